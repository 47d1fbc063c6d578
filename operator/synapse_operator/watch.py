"""Runs kopf as the watcher and as nothing else.

kopf keeps the watch streams alive and calls `handlers`; it stores no state in objects, posts no Events,
pairs with no peer and looks for no new kinds. Every right that it would need for those is left out of our
RBAC. When a stream is lost for good, `watch` raises, and `__main__` ends the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import kopf
from kubernetes.aio.client import Configuration

from synapse_operator import handlers, naming
from synapse_operator.cluster.client import CALL_SECONDS, connection_info
from synapse_operator.errors import OperatorError
from synapse_operator.naming import WATCHED, Kind

SERVER_SECONDS = 300
"""How long one watch request may last; the server ends it then, and the next one begins where it ended."""

SILENCE_SECONDS = 70.0
"""A stream without even a bookmark for so long is dead; the server sends one each minute."""

_PAGE = 500
_RETRIES = (1, 2, 3, 5, 5, 5, 5, 5)


class _NothingKept(kopf.DiffBaseStorage):
    """What kopf compares objects with for change handlers; we have none, and copying each object costs milliseconds."""

    def build(self, *, body: kopf.Body, extra_fields: Iterable[object] | None = None) -> kopf.BodyEssence:
        """Override: nothing is looked at."""
        return cast("kopf.BodyEssence", {})

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        """Override: nothing was kept."""
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Override: nothing is kept."""


class WatchLost(OperatorError):
    """kopf has ended, and with it the watches."""


async def watch(
    inbox: handlers.Inbox, configuration: Configuration, namespaces: Sequence[str], take_signals: Callable[[], None]
) -> None:
    """Feed `inbox` until cancelled.

    Args:
        inbox: what the handlers are given.
        configuration: how to reach the API server.
        namespaces: which to watch; empty = all.
        take_signals: called once kopf has claimed the process's signals, to claim them back.

    Raises:
        WatchLost: a stream ended for good.
    """

    async def login(**_: object) -> kopf.ConnectionInfo:
        return await connection_info(configuration)

    # The default registry, which holds the handlers; a second call in one process would log in twice.
    kopf.on.login(id="login")(login)
    others = asyncio.all_tasks()
    tasks = await kopf.spawn_tasks(
        settings=_settings(), memo=inbox, clusterwide=not namespaces, namespaces=tuple(namespaces)
    )
    take_signals()
    try:
        await kopf.run_tasks(tasks, ignored=others)
    except Exception as error:
        raise WatchLost(f"The watch was lost: {error or type(error).__name__}.") from error
    raise WatchLost("The watch ended.")


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.persistence.diffbase_storage = _NothingKept()
    settings.networking.request_timeout = CALL_SECONDS * 2
    settings.networking.connect_timeout = CALL_SECONDS
    settings.networking.error_backoffs = _RETRIES
    settings.watching.server_timeout = SERVER_SECONDS
    settings.watching.connect_timeout = CALL_SECONDS
    settings.watching.inactivity_timeout = SILENCE_SECONDS
    settings.watching.chunk_size = _PAGE
    # A handler takes no time, so what is held for an object may go at once.
    settings.queueing.worker_limit = 200
    settings.queueing.idle_timeout = 0.2
    settings.queueing.exit_timeout = 0.2
    settings.process.ultimate_exiting_timeout = 10.0
    for kind in WATCHED:
        selector = naming.SYNC_LABEL if kind is Kind.CONFIG_MAP else naming.MANAGED_SELECTOR
        settings.watching.label_selectors[kind.group, kind.version, kind.plural] = selector
    return settings
