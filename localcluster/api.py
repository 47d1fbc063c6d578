"""The few questions a start asks of the API server, without a Kubernetes client.

Everything else goes through kubectl; a process for each look while waiting would
cost more time than the thing waited for.
"""

import json
import ssl
import urllib.request
from functools import cached_property
from typing import Any

from localcluster.places import State

TIMEOUT_SECONDS = 5
# A cluster of this machine's own is never behind the proxy that the environment may name.
NO_PROXY = urllib.request.ProxyHandler({})


class Api:
    def __init__(self, state: State, server: str) -> None:
        self._state = state
        self._server = server

    @cached_property
    def _opener(self) -> urllib.request.OpenerDirector:
        trust = ssl.create_default_context(cafile=str(self._state.pki / "ca.crt"))
        return urllib.request.build_opener(NO_PROXY, urllib.request.HTTPSHandler(context=trust))

    def _get(self, path: str) -> bytes | None:
        """The answer to a GET; None while there is none."""
        request = urllib.request.Request(  # noqa: S310 - always https
            self._server + path, headers={"Authorization": f"Bearer {self._state.token.read_text()}"}
        )
        try:
            with self._opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
                return bytes(answer.read())
        except OSError:
            return None

    def ready(self) -> bool:
        return self._get("/readyz") == b"ok"

    def default_account(self) -> bool:
        """Whether pods can be created: the controllers made the first service account and its CA bundle."""
        base = "/api/v1/namespaces/default"
        return all(self._get(base + path) for path in ("/serviceaccounts/default", "/configmaps/kube-root-ca.crt"))

    def has_address(self, node: str) -> bool:
        return bool((self._node(node).get("status") or {}).get("addresses"))

    def schedulable(self, node: str) -> bool:
        """Whether the node is Ready and the scheduler has been told so."""
        return node_schedulable(self._node(node))

    def _node(self, name: str) -> dict[str, Any]:
        answer = self._get(f"/api/v1/nodes/{name}")
        return {} if answer is None else dict(json.loads(answer))


def node_schedulable(node: dict[str, Any]) -> bool:
    conditions = (node.get("status") or {}).get("conditions") or []
    ready = any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
    return ready and not node["spec"].get("taints")


def answers(url: str) -> bool:
    """Whether a plain health endpoint says 200."""
    try:
        with urllib.request.build_opener(NO_PROXY).open(url, timeout=TIMEOUT_SECONDS) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
