"""One client for the API server, with our policy built in.

Whatever goes through `Client` has a deadline, is counted by verb, and fails with our own errors, so no
caller can forget it: `observe` and `apply` use `request`, `election` the typed Lease calls. Watches are
not here; kopf keeps those and logs in with `connection_info`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import aiohttp
import kopf
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.client.rest import RESTResponse
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from synapse_operator.api.common import JsonObject
from synapse_operator.errors import ApiNotFound, ApiRefused, ApiUnavailable
from synapse_operator.settings import SettingsError
from synapse_operator.telemetry import Metrics

CALL_SECONDS = 5.0
"""Longest wait for one answer, far below the client's own 300 s: a hanging server must not hang us."""

PARALLEL_CALLS = 16
"""Requests of one client at a time; more wait, so that a thousand keys do not storm the API server."""

APPLY_PATCH = "application/apply-patch+yaml"
MERGE_PATCH = "application/merge-patch+json"

_UNREADABLE_APPLY = ("failed to create typed patch object", "failed to convert new object")

_VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


def path(api_version: str, namespace: str, plural: str, name: str = "", subresource: str = "") -> str:
    """Return the path of a namespaced collection, object or subresource; `namespace` "" = all of them."""
    root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
    scope = f"/namespaces/{namespace}" if namespace else ""
    return root + scope + "".join(f"/{part}" for part in (plural, name, subresource) if part)


async def load_configuration(kubeconfig: str) -> Configuration:
    """Return how to reach the API server: by the file, or ("") by the pod's service account.

    Raises:
        SettingsError: the file or the service account cannot be used.
    """
    configuration = Configuration()
    try:
        if kubeconfig:
            await load_kube_config(kubeconfig, client_configuration=configuration, persist_config=False)  # type: ignore[no-untyped-call]
        else:
            load_incluster_config(configuration)  # type: ignore[no-untyped-call]
    except (ConfigException, OSError) as error:
        where = f"KUBECONFIG names {kubeconfig}" if kubeconfig else "KUBECONFIG is empty and this is no pod"
        raise SettingsError(f"{where}; the API server cannot be found: {str(error).rstrip('.')}.") from None
    return configuration


async def connection_info(configuration: Configuration) -> kopf.ConnectionInfo:
    """Return the same way for kopf; a service account's token is read again when it is a minute old."""
    header = await configuration.get_api_key_with_prefix("BearerToken", alias="authorization") or ""
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        token=header.split(" ", 1)[-1].strip() or None,
    )


class Client(ApiClient):
    """The kubernetes client under our policy."""

    def __init__(self, configuration: Configuration, metrics: Metrics) -> None:
        super().__init__(configuration)
        self.user_agent = "synapse-operator"
        self._metrics = metrics
        self._slots = asyncio.Semaphore(PARALLEL_CALLS)

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: JsonObject | None = None,
        content_type: str = "application/json",
    ) -> JsonObject:
        """Send one request for `path` (from the root) and return the object that comes back.

        Raises:
            ApiNotFound, ApiRefused: the server said no; the sentence is the server's.
            ApiUnavailable: no answer within `CALL_SECONDS`, or one that says "not now".
        """
        arguments = await self.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params={"Accept": "application/json", "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        response = await self.call_api(*arguments)
        answer = self.response_deserialize(response, {"2XX": "object"}).data
        return answer if isinstance(answer, dict) else {}

    async def call_api(
        self,
        method: str,
        url: str,
        header_params: dict[str, str] | None = None,
        body: object = None,
        post_params: object = None,
        _request_timeout: object = None,
        _preload_content: bool = True,
    ) -> RESTResponse:
        """Override: set the deadline, read the whole answer within it, count, and raise our errors."""
        verb = _VERBS.get(method, method.lower())
        try:
            # Waiting for a slot is not the server's fault: the deadline starts after it.
            async with self._slots, asyncio.timeout(CALL_SECONDS):
                response = await super().call_api(method, url, header_params, body, post_params, CALL_SECONDS)
                await response.read()  # type: ignore[no-untyped-call]
        except TimeoutError:
            self._metrics.api_call(verb, "failed")
            raise ApiUnavailable(f"The API server did not answer within {CALL_SECONDS:.0f} s.") from None
        except (aiohttp.ClientError, OSError) as error:
            self._metrics.api_call(verb, "failed")
            raise ApiUnavailable(f"The API server cannot be reached: {error or type(error).__name__}.") from None
        failed = response.status >= 500 or response.status == 429
        self._metrics.api_call(verb, "failed" if failed else "refused" if response.status >= 400 else "ok")
        return response

    def response_deserialize(self, response_data: RESTResponse, response_types_map: Any = None) -> Any:
        """Override: turn the client's exceptions into ours."""
        try:
            return super().response_deserialize(response_data, response_types_map)
        except ApiException as error:
            status = int(error.status or 0)
            reason, message = _said(error.body or "")
            if status == 404:
                raise ApiNotFound(status, reason, message) from None
            # What a server-side apply cannot even read comes as a 500; only its sender can repair it.
            unreadable = message.startswith(_UNREADABLE_APPLY)
            if (status == 429 or status >= 500 or status < 400) and not unreadable:
                raise ApiUnavailable(f"The API server cannot serve now ({status} {reason}): {message}") from None
            raise ApiRefused(status, reason, message) from None


def _said(body: str) -> tuple[str, str]:
    """Return reason and message of a Status object, as far as the answer is one."""
    try:
        status = json.loads(body)
    except ValueError:
        return "", body.strip()[:300]
    if not isinstance(status, dict):
        return "", ""
    return str(status.get("reason") or ""), str(status.get("message") or "")
