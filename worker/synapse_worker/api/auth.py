"""Who asks: the API key of a request, checked before its body is read.

What a caller may do is `admission`'s and the routes' to say; a key that is bound to a tenant speaks for that one only.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from synapse_worker.api.admission import Reason, retry_after
from synapse_worker.api.problems import Problem, store_problem
from synapse_worker.errors import StoreRefused, StoreUnavailable

if TYPE_CHECKING:
    from synapse_worker.api.context import Context

MAX_BODY_BYTES = 8 * 1024 * 1024
"""Half of what a worker takes as a job's payload."""
PREFIX = "/api/v2/"
METRICS_PATH = PREFIX + "metrics"
"""It has a token of its own."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        key_id: names the key; None where nobody has to show one.
        tenant_id: the only tenant that it may speak for; None = any.
    """

    key_id: str | None
    tenant_id: str | None


class Doorkeeper:
    """The outermost layer: lets nobody in without a key, adds what every answer says, and counts answers."""

    def __init__(self, app: ASGIApp, context: Context) -> None:
        self._app = app
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        began = time.monotonic()
        status = 500

        async def send_more(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _added(state).items():
                    headers[name] = value
            await send(message)

        try:
            try:
                _check_length(scope)
                if scope["path"].startswith(PREFIX) and scope["path"] != METRICS_PATH:
                    state["caller"] = await self._caller(scope, state)
            except Problem as problem:
                await problem.response()(scope, receive, send_more)
                return
            await self._app(scope, receive, send_more)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            self._context.metrics.answered(scope["method"], route, status, time.monotonic() - began)
            if refusal := state.get("refusal"):
                self._context.metrics.refused(refusal)

    async def _caller(self, scope: Scope, state: dict[str, object]) -> Caller:
        context = self._context
        if context.problem:
            state["refusal"] = Reason.STORE.value
            raise Problem(503, f"the API does not serve now: {context.problem}", retry_after(1))
        if context.settings.api_auth == "off":
            return Caller(None, None)
        scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
        try:
            key = await context.key_of(token.strip()) if scheme.lower() == "bearer" and token.strip() else None
        except (StoreUnavailable, StoreRefused) as error:
            state["refusal"] = Reason.STORE.value
            raise store_problem(error) from None
        if key is None:
            state["refusal"] = Reason.UNAUTHENTICATED.value
            raise Problem(401, "send a valid API key as `Authorization: Bearer KEY`", {"WWW-Authenticate": "Bearer"})
        return Caller(key.key_id, key.tenant_id)


def _check_length(scope: Scope) -> None:
    length = Headers(scope=scope).get("content-length", "0")
    if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
        raise Problem(413, f"the body is too large; at most {MAX_BODY_BYTES} bytes are accepted")


def _added(state: Mapping[str, object]) -> Mapping[str, str]:
    headers = state.get("headers")
    return headers if isinstance(headers, Mapping) else {}
