"""A real control plane and the operator as a real process, for the tests of this folder.

The API server, etcd and the controllers are `localcluster`'s; no kubelet runs, so pods exist and stay pending
until a test says they are ready. The operator runs under the service account of manifests/install.yaml, so
a right that is missing there fails a test here.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from pydantic import SecretStr

from synapse_operator import naming
from synapse_worker.connections import open_database
from synapse_worker.store import migrate
from tests.controlplane.api import Api
from tests.controlplane.api import Json as Json
from tests.support.servers import free_port

ROOT = Path(__file__).parents[2]
OPERATOR_NAMESPACE = "synapse-system"
OPERATOR_USER = f"system:serviceaccount:{OPERATOR_NAMESPACE}:synapse-operator"
LEASE = "synapse-operator"
WORKER_IMAGE = "localhost/synapse-scale-worker:dev"
CHILD_KINDS = ("deployments", "configmaps", "services", "serviceaccounts", "poddisruptionbudgets")
"""What every scale has, by its defaults."""
RESYNC_SECONDS = 1
"""Of the operator under test; what a watch does not tell is noticed so soon."""
SHARD_EMPTY_SECONDS = 3
"""Of the operator under test: for so long an unused queue must be empty."""
STATUS_FIGURES_SECONDS = 3
"""Of the operator under test: the rhythm of figures in a status."""
_LONGEST_ENTRY = 1 << 16
"""Bytes of one line of the audit log, at most."""
WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})

T = TypeVar("T")


def eventually(what: str, check: Callable[[], T], *, seconds: float = 20.0) -> T:
    """Poll `check` until it returns something true, and return that; fail with `what` and the last answer."""
    deadline = time.monotonic() + seconds
    while True:
        answer = check()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}; last answer: {answer!r}")
        time.sleep(0.1)  # the poll's period; the deadline above bounds it


@dataclass(frozen=True, slots=True)
class Call:
    """One request in the audit log."""

    user: str
    verb: str
    group: str
    resource: str
    namespace: str
    name: str
    code: int
    uri: str

    @property
    def is_write(self) -> bool:
        """Whether it changes something, or tries to."""
        return self.verb in WRITES


class ControlPlane:
    """One throw-away control plane."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._kubectl: list[str] = []
        self.kubeconfig = ""
        self.api: Api
        self._audit_log = Path()

    def start(self) -> None:
        """Start it, or take the running one of this name, and install the operator's objects."""
        _localcluster("up", "--control-plane", "--name", self.name)
        self.kubeconfig = _localcluster("kubeconfig", "--name", self.name)
        self._kubectl = [str(Path(_localcluster("tools")) / "node"), "kubectl", "--kubeconfig", self.kubeconfig]
        self.api = Api(Path(self.kubeconfig))
        self._audit_log = Path(self.kubeconfig).parent / "logs" / "audit.log"
        self.kubectl("apply", "--server-side", "-f", str(ROOT / "manifests" / "install.yaml"))
        for plural in (naming.SCALE_PLURAL, naming.TENANT_PLURAL):
            self.kubectl("wait", "--for=condition=Established", "crd", f"{plural}.{naming.GROUP}")

    def remove(self) -> None:
        """End it and remove its data."""
        if self.kubeconfig:
            self.api.close()
        _localcluster("down", "--name", self.name)

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """Run kubectl as administrator and return what it prints; a failure shows what it said."""
        done = self.try_kubectl(*arguments, stdin=stdin)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def try_kubectl(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run kubectl as administrator, whatever becomes of it."""
        return subprocess.run(
            [*self._kubectl, *arguments], input=stdin, capture_output=True, text=True, timeout=90, check=False
        )

    def apply(self, *objects: Json) -> None:
        """Apply objects as a user does."""
        for each in objects:
            self.api.apply(each)

    def kubectl_apply(self, *objects: Json) -> None:
        """Apply objects with one `kubectl apply --server-side`, for what is compared with it."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        self.kubectl("apply", "--server-side", "-f", "-", stdin=text)

    def get(self, namespace: str, kind: str, name: str) -> Json:
        """Return one object, {} = there is none."""
        return self.api.get(namespace, kind, name)

    def find(self, namespace: str, kinds: Sequence[str], selector: str = "") -> list[Json]:
        """Return objects of several kinds, with their labels if asked."""
        return [each for kind in kinds for each in self.api.list(namespace, kind, selector)]

    def children(self, namespace: str, scale: str = "main") -> list[Json]:
        """Return the children of a scale, found by label."""
        return self.find(namespace, CHILD_KINDS, f"{naming.SCALE_LABEL}={naming.scale_label(scale)}")

    def child(self, namespace: str, kind: str, scale: str = "main") -> Json:
        """Return the one child of a kind, {} = there is none."""
        found = [child for child in self.children(namespace, scale) if child["kind"] == kind]
        assert len(found) < 2, [child["metadata"]["name"] for child in found]
        return found[0] if found else {}

    def condition(self, namespace: str, type_: str, scale: str = "main", *, kind: str = "sscale") -> Json:
        """Return a condition of a scale, or of another kind of ours; {} = not there."""
        status = self.get(namespace, kind, scale).get("status") or {}
        return next((each for each in status.get("conditions", []) if each["type"] == type_), {})

    def await_condition(
        self, namespace: str, type_: str, status: str, reason: str = "", *, scale: str = "main", seconds: float = 20.0
    ) -> Json:
        """Wait for a condition and return it."""

        def holds() -> Json:
            found = self.condition(namespace, type_, scale)
            ok = found.get("status") == status and (not reason or found.get("reason") == reason)
            return found if ok else {}

        return eventually(f"{type_}={status} {reason} of {namespace}/{scale}", holds, seconds=seconds)

    def await_tenant(self, namespace: str, name: str, reason: str, *, seconds: float = 20.0) -> Json:
        """Wait until a tenant's condition Ready has a reason, and return the tenant."""

        def holds() -> bool:
            return bool(self.condition(namespace, "Ready", name, kind="stenant").get("reason") == reason)

        eventually(f"{reason} of tenant {namespace}/{name}", holds, seconds=seconds)
        return self.get(namespace, "stenant", name)

    def await_children(self, namespace: str, scale: str = "main") -> list[Json]:
        """Wait for one child of each kind and return them."""

        def complete() -> list[Json]:
            found = self.children(namespace, scale)
            return found if len({child["kind"] for child in found}) == len(CHILD_KINDS) else []

        return eventually(f"all children of {namespace}/{scale}", complete)

    def deployments(self, namespace: str, scale: str = "main") -> dict[str, Json]:
        """Return the Deployments of a scale by the shard that they serve, the V2 API's as `api`."""
        found = [child for child in self.children(namespace, scale) if child["kind"] == "Deployment"]
        return {child["metadata"]["labels"].get(naming.SHARD_LABEL, naming.API_ROLE): child for child in found}

    def make_pods_ready(self, namespace: str, scale: str = "main") -> None:
        """Play kubelet: wait until each Deployment has all its pods and say that they are ready."""

        def ready() -> bool:
            selector = naming.selector_text({naming.SCALE_LABEL: naming.scale_label(scale)})
            for pod in self.find(namespace, ["pods"], selector):
                conditions = (pod.get("status") or {}).get("conditions") or []
                if any(each["type"] == "Ready" and each["status"] == "True" for each in conditions):
                    continue
                condition = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
                patch = {"status": {"phase": "Running", "conditions": [condition]}}
                self.api.patch_status(namespace, "pod", pod["metadata"]["name"], patch)
            return all(map(available, self.deployments(namespace, scale).values()))

        def available(deployment: Json) -> bool:
            status, spec = deployment.get("status") or {}, deployment["spec"]
            same = spec["replicas"] == status.get("updatedReplicas", 0) == status.get("replicas", 0)
            current = status.get("observedGeneration") == deployment["metadata"]["generation"]
            return bool(current and same and status.get("availableReplicas", 0) == spec["replicas"])

        eventually(f"the Deployments of {namespace}/{scale} are available", ready, seconds=60)

    def audit_mark(self) -> int:
        """Return where the audit log ends now; a line that is half written lies behind the mark."""
        with self._audit_log.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            start = log.seek(max(0, end - _LONGEST_ENTRY))
            return start + log.read(end - start).rfind(b"\n") + 1

    def audit(self, mark: int = 0, *, user: str = OPERATOR_USER) -> Iterator[Call]:
        """Yield the requests of one user since a mark."""
        with self._audit_log.open("rb") as log:
            log.seek(mark)
            for line in log:
                if not line.endswith(b"\n"):
                    return
                entry = json.loads(line)
                target = entry.get("objectRef") or {}
                if entry["user"]["username"] != user or entry["stage"] == "RequestReceived":
                    continue
                resource = "/".join(filter(None, (target.get("resource", ""), target.get("subresource", ""))))
                yield Call(
                    user=user,
                    verb=entry["verb"],
                    group=target.get("apiGroup", ""),
                    resource=resource,
                    namespace=target.get("namespace", ""),
                    name=target.get("name", ""),
                    code=entry.get("responseStatus", {}).get("code", 0),
                    uri=entry["requestURI"],
                )

    def writes(self, mark: int) -> list[Call]:
        """Return what the operator wrote since a mark, its Lease aside."""
        return [call for call in self.audit(mark) if call.is_write and call.resource != "leases"]

    def server(self) -> str:
        """Return the address of the API server."""
        server: str = self._config()["clusters"][0]["cluster"]["server"]
        return server

    def operator_kubeconfig(self, path: Path, *, server: str = "") -> None:
        """Write a kubeconfig with a fresh token of the operator's service account."""
        token = self.api.token(OPERATOR_NAMESPACE, "synapse-operator", seconds=3600)
        config = self._config()
        cluster = config["clusters"][0]
        if server:
            cluster["cluster"]["server"] = server
        config["users"] = [{"name": "operator", "user": {"token": token}}]
        config["contexts"] = [{"name": "operator", "context": {"cluster": cluster["name"], "user": "operator"}}]
        config["current-context"] = "operator"
        path.write_text(json.dumps(config))

    def token(self, seconds: int) -> str:
        """Return a token of the operator's service account."""
        return self.kubectl(
            "create", "token", "synapse-operator", "-n", OPERATOR_NAMESPACE, f"--duration={seconds}s"
        ).strip()

    def authority(self) -> bytes:
        """Return the certificate that the API server is checked with."""
        cluster = self._config()["clusters"][0]["cluster"]
        if "certificate-authority-data" in cluster:
            return base64.b64decode(cluster["certificate-authority-data"])
        return Path(cluster["certificate-authority"]).read_bytes()

    def _config(self) -> Json:
        config: Json = json.loads(Path(self.kubeconfig).read_text())
        return config


class Operator:
    """One operator process; used as a context manager it is killed at the end."""

    def __init__(self, plane: ControlPlane, *, server: str = "", **environment: str) -> None:
        self._plane = plane
        self._folder = Path(tempfile.mkdtemp(prefix="synapse-test-operator-"))
        self._health_port, self.metrics_port = free_port(), free_port()
        kubeconfig = self._folder / "kubeconfig"
        plane.operator_kubeconfig(kubeconfig, server=server)
        self._environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT / 'operator'}{os.pathsep}{ROOT / 'worker'}",
            "PYTHONWARNINGS": "error",
            "KUBECONFIG": str(kubeconfig),
            "WORKER_IMAGE": WORKER_IMAGE,
            "POD_NAMESPACE": OPERATOR_NAMESPACE,
            "POD_NAME": f"operator-{self._health_port}",
            "HEALTH_PORT": str(self._health_port),
            "METRICS_PORT": str(self.metrics_port),
            "RESYNC_SECONDS": str(RESYNC_SECONDS),
            "SHARD_EMPTY_SECONDS": str(SHARD_EMPTY_SECONDS),
            "STATUS_FIGURES_SECONDS": str(STATUS_FIGURES_SECONDS),
            **environment,
        }
        self._command = [sys.executable, "-m", "synapse_operator"]
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> Self:
        """Start it and return at once."""
        with (self._folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=self._folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def lead(self) -> Self:
        """Start it and wait until it leads."""
        self.start()
        eventually("the operator leads", self.leads, seconds=30)
        return self

    @property
    def log(self) -> str:
        """Everything that it wrote."""
        return (self._folder / "log").read_text()

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self.process is not None and self.process.poll() is None

    def leads(self) -> bool:
        """Whether it holds the Lease."""
        assert self.running, self.log[-3000:]
        return self.metric("synapse_operator_leading") == 1.0

    def metric(self, name: str) -> float | None:
        """Return the value of a metric, with its labels in the name; None = not there."""
        code, text = self._fetch(self.metrics_port, "/metrics")
        values = [line.rsplit(" ", 1) for line in text.splitlines() if code == 200 and not line.startswith("#")]
        return next((float(value) for key, value in values if key == name), None)

    def reconciles(self) -> float:
        """Return how many reconciles ended well."""
        return self.metric('synapse_operator_reconciles_total{kind="SynapseScale",outcome="ok"}') or 0.0

    def probe(self, path: str) -> tuple[int, str]:
        """Return status and text of /livez or /readyz; 0 = nobody answers."""
        return self._fetch(self._health_port, path)

    def terminate(self) -> tuple[int, float]:
        """Send SIGTERM and return the exit code and the seconds that it took."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=15), time.monotonic() - began

    def await_end(self, seconds: float) -> int:
        """Wait until it ends by itself and return the exit code."""
        assert self.process is not None
        return self.process.wait(timeout=seconds)

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(timeout=15)

    @staticmethod
    def _fetch(port: int, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""


class MountedOperator(Operator):
    """One that reads its token from a file, as in a pod."""

    def __init__(self, plane: ControlPlane, *, server: str, token_seconds: int) -> None:
        super().__init__(plane, server=server)
        self._seconds = token_seconds
        host, port = server.removeprefix("https://").rsplit(":", 1)
        self._environment |= {
            "KUBECONFIG": "",
            "KUBERNETES_SERVICE_HOST": host,
            "KUBERNETES_SERVICE_PORT": port,
            "SERVICE_ACCOUNT_FOLDER": str(self._folder),
            "RESYNC_SECONDS": "60",
            "PYTHONPATH": f"{self._environment['PYTHONPATH']}{os.pathsep}{ROOT}",
        }
        self._command = [sys.executable, "-m", "tests.controlplane.mounted"]
        (self._folder / "ca.crt").write_bytes(plane.authority())
        self.renew_token()

    def renew_token(self) -> None:
        """Put a new token into its place, as kubelet does."""
        fresh = self._folder / "token.new"
        fresh.write_text(self._plane.token(self._seconds))
        fresh.rename(self._folder / "token")


def migrated(url: str) -> str:
    """Create the tables in a database, as the first worker does; returns the URL."""

    async def migrate_it() -> None:
        database = open_database(SecretStr(url))
        try:
            await migrate.migrate(database)
        finally:
            await database.close()

    asyncio.run(migrate_it())
    return url


def definitions(namespace: str, name: str = "definitions", *, label: str = "", **data: str) -> Json:
    """A ConfigMap of definitions; each argument is a key of YAML, `label` the scale that an edit wakes."""
    metadata: Json = {"name": name, "namespace": namespace}
    if label:
        metadata["labels"] = {naming.SYNC_LABEL: label}
    texts = {f"{key}.yaml": text for key, text in data.items()}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": texts}


def namespace(name: str) -> Json:
    """A namespace that enforces Pod Security `restricted`, as ours do."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def secret(namespace: str, redis: str, postgres: str, name: str = "stores") -> Json:
    """The Secret with the URLs of both stores."""
    data = {key: base64.b64encode(url.encode()).decode() for key, url in (("redis", redis), ("postgres", postgres))}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace}, "data": data}


def scale(namespace: str, name: str = "main", **spec: object) -> Json:
    """A SynapseScale that takes its URLs from `secret`; `spec` replaces or adds fields."""
    return {
        "apiVersion": naming.API_VERSION,
        "kind": naming.SCALE_KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "redis": {"urlSecretRef": {"name": "stores", "key": "redis"}},
            "postgres": {"urlSecretRef": {"name": "stores", "key": "postgres"}},
            **spec,
        },
    }


def tenant(namespace: str, name: str, scale: str = "main", /, **spec: object) -> Json:
    """A SynapseTenant; `spec` adds fields."""
    return {
        "apiVersion": naming.API_VERSION,
        "kind": naming.TENANT_KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"scaleRef": {"name": scale}, **spec},
    }


def _localcluster(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "localcluster", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=1800,
        check=True,
    )
    return done.stdout.strip()
