"""The API server asked without kubectl: tests that wait look all the time, and each kubectl is a process of its own.

What a user types (scale, annotate, patch, explain) stays kubectl's, in `harness`. Here are the plain requests: read,
list, apply, delete, as kubectl would send them.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from synapse_operator import naming

Json = dict[str, Any]

TIMEOUT_SECONDS = 90.0
_APPLY = "application/apply-patch+yaml"
_PREFIXES = (
    "/api/v1",
    "/apis/apps/v1",
    "/apis/policy/v1",
    "/apis/networking.k8s.io/v1",
    "/apis/coordination.k8s.io/v1",
    "/apis/events.k8s.io/v1",
    f"/apis/{naming.API_VERSION}",
)
"""Where the kinds that tests look at are served; of two with one name the first is meant."""


@dataclass(frozen=True, slots=True)
class Resource:
    """How the server serves one kind."""

    prefix: str
    plural: str
    kind: str
    namespaced: bool

    @property
    def api_version(self) -> str:
        """The `apiVersion` of its objects."""
        return self.prefix.split("/", 2)[2]

    def path(self, namespace: str = "", name: str = "") -> str:
        """The path of one object, or of all of a namespace; without a namespace, of all there are."""
        place = ("namespaces", namespace) if self.namespaced and namespace else ()
        return "/".join((self.prefix, *place, self.plural, *((name,) if name else ())))


class Api:
    """One connection with the rights of a kubeconfig's user, whose token and certificate authority it names.

    Threads that ask at the same time take turns.
    """

    def __init__(self, kubeconfig: Path) -> None:
        config: Json = json.loads(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        address = urlsplit(cluster["server"])
        assert address.hostname is not None
        self._headers = {"Authorization": f"Bearer {user['token']}", "Accept": "application/json"}
        self._connection = http.client.HTTPSConnection(
            address.hostname,
            address.port,
            timeout=TIMEOUT_SECONDS,
            context=ssl.create_default_context(cadata=authority),
        )
        self._turn = threading.Lock()

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        self._connection.close()

    def resource(self, name: str) -> Resource:
        """Return what kubectl would take `name` for: a plural, a singular, a short name or a kind."""
        return self._resources[name.lower()]

    def get(self, namespace: str, kind: str, name: str) -> Json:
        """Return one object, {} = there is none."""
        code, answer = self._request("GET", self.resource(kind).path(namespace, name))
        assert code in (200, 404), answer
        return answer if code == 200 else {}

    def list(self, namespace: str, kind: str, selector: str = "") -> list[Json]:
        """Return the objects of a kind, with their labels if asked."""
        resource = self.resource(kind)
        query = f"?{urlencode({'labelSelector': selector})}" if selector else ""
        code, answer = self._request("GET", resource.path(namespace) + query)
        assert code == 200, answer
        # In a list the items of the server's own kinds do not say what they are.
        about = {"apiVersion": resource.api_version, "kind": resource.kind}
        return [{**about, **item} for item in answer["items"]]

    def apply(self, given: Json) -> None:
        """Apply one object as `kubectl apply --server-side` does."""
        metadata = given["metadata"]
        path = self.resource(given["kind"]).path(metadata.get("namespace", ""), metadata["name"])
        code, answer = self._request("PATCH", f"{path}?fieldManager=kubectl&fieldValidation=Strict", _APPLY, given)
        assert code in (200, 201), f"{given['kind']} {metadata['name']}: {answer.get('message', answer)}"

    def refusal(self, given: Json, *, create: bool) -> str:
        """Return why the server would not create, or else apply, an object, "" = it would; nothing is written."""
        metadata, resource = given["metadata"], self.resource(given["kind"])
        namespace, query = metadata.get("namespace", ""), "dryRun=All&fieldValidation=Strict&fieldManager=kubectl"
        if create:
            asked = ("POST", f"{resource.path(namespace)}?{query}", "application/json", given)
        else:
            asked = ("PATCH", f"{resource.path(namespace, metadata['name'])}?{query}", _APPLY, given)
        code, answer = self._request(*asked)
        return "" if code in (200, 201) else str(answer["message"])

    def patch_status(self, namespace: str, kind: str, name: str, patch: Json) -> bool:
        """Merge into the status of an object; whether it was there."""
        path = f"{self.resource(kind).path(namespace, name)}/status"
        return self._request("PATCH", path, "application/merge-patch+json", patch)[0] == 200

    def delete(self, namespace: str, kind: str, name: str) -> None:
        """Delete an object, in the background; one that is not there is none."""
        code, answer = self._request("DELETE", self.resource(kind).path(namespace, name))
        assert code in (200, 202, 404), answer

    def token(self, namespace: str, account: str, *, seconds: int) -> str:
        """Return a token of a service account."""
        path = f"{self.resource('serviceaccounts').path(namespace, account)}/token"
        asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"}
        code, answer = self._request(
            "POST", path, "application/json", {**asked, "spec": {"expirationSeconds": seconds}}
        )
        assert code == 201, answer
        return str(answer["status"]["token"])

    @cached_property
    def _resources(self) -> Mapping[str, Resource]:
        found: dict[str, Resource] = {}
        for prefix in _PREFIXES:
            code, answer = self._request("GET", prefix)
            assert code == 200, answer
            group = ".".join(reversed(prefix.split("/")[2:]))
            for each in answer["resources"]:
                if "/" in each["name"]:
                    continue
                resource = Resource(prefix, each["name"], each["kind"], each["namespaced"])
                names = (each["name"], each["singularName"], each["kind"], *each.get("shortNames", ()))
                for name in (*names, f"{each['name']}.{group}"):
                    found.setdefault(name.lower(), resource)
        return found

    def _request(self, method: str, path: str, content: str = "", body: Json | None = None) -> tuple[int, Json]:
        headers = {**self._headers, **({"Content-Type": content} if content else {})}
        data = None if body is None else json.dumps(body)
        try:
            code, text = self._once(method, path, data, headers)
        except (http.client.HTTPException, ConnectionError, ssl.SSLEOFError):
            # The server restarted since the last request. All that is sent here can be sent twice.
            code, text = self._once(method, path, data, headers)
        try:
            answer: Json = json.loads(text)
        except ValueError:
            answer = {"message": text.decode(errors="replace")}  # "404 page not found" of a kind that is gone
        return code, answer

    def _once(self, method: str, path: str, data: str | None, headers: Mapping[str, str]) -> tuple[int, bytes]:
        with self._turn:
            try:
                self._connection.request(method, path, data, headers)
                answer = self._connection.getresponse()
                return answer.status, answer.read()
            except (OSError, http.client.HTTPException):
                self._connection.close()
                raise
