"""What the demo runs on: the local cluster with images, operator, stores and the quickstart sample, and kubectl."""

from __future__ import annotations

import base64
import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from localcluster.errors import ClusterError
from localcluster.places import REPOSITORY
from localcluster.progress import say

NAMESPACE = "synapse-quickstart"
OPERATOR = "synapse-system"
SCALE = "quickstart"
SAMPLE = "manifests/samples/quickstart.yaml"
# On kind, the public images; here, those that were built from Debian packages.
STORES = "manifests/dev" if os.environ.get("CLUSTER") == "kind" else "manifests/dev/local"
AIDS = ("manifests/dev/model-server", "manifests/dev/receiver")
OF_THE_SCALE = f"scale.synapseorch.com/scale={SCALE}"
ROLE = "scale.synapseorch.com/role"
FORWARD_SECONDS = 20
FORWARDING = re.compile(r"Forwarding from (127\.0\.0\.1:\d+) ->")
APPLY = ("apply", "--server-side", "--force-conflicts")


def localcluster(command: str) -> str:
    """Run a command of localcluster, show what it says and return it.

    Raises:
        ClusterError: it failed.
    """
    said = ""
    with subprocess.Popen(
        [sys.executable, "-m", "localcluster", command],
        cwd=REPOSITORY,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            said += line
    if process.returncode != 0:
        raise ClusterError(f"`python3 -m localcluster {command}` did not succeed")
    return said


def kubectl(*arguments: str, capture: bool = False, check: bool = True) -> str:
    """Run kubectl against the demo's cluster; returns its output when captured.

    Raises:
        ClusterError: it failed; its own words are on the screen already.
    """
    done = subprocess.run(
        [sys.executable, "-m", "localcluster", "kubectl", *arguments],
        cwd=REPOSITORY,
        check=False,
        text=True,
        stdout=subprocess.PIPE if capture else None,
        stderr=subprocess.PIPE if capture else None,
    )
    if check and done.returncode != 0:
        detail = f": {done.stderr.strip()}" if capture and done.stderr else ""
        raise ClusterError(f"kubectl {' '.join(arguments[:3])} failed{detail}")
    return done.stdout or ""


def ours(*arguments: str, capture: bool = False, check: bool = True) -> str:
    """Run kubectl in the demo's namespace; see `kubectl`."""
    return kubectl("-n", NAMESPACE, *arguments, capture=capture, check=check)


def get(*words: str) -> dict[str, Any]:
    """Return an object of the demo's namespace as JSON."""
    found: dict[str, Any] = json.loads(ours("get", *words, "-o", "json", capture=True))
    return found


def names(kind: str, *words: str) -> list[str]:
    """Return the objects of a kind that belong to the demo's scale, as `kind/name`."""
    return ours("get", kind, "-l", ",".join((OF_THE_SCALE, *words)), "-o", "name", capture=True).split()


def worker_deployment() -> str:
    """Return the worker Deployment of the demo's scale, as `deployment/name`.

    Raises:
        ClusterError: there is none.
    """
    found = names("deploy", f"{ROLE}=worker")
    if not found:
        raise ClusterError(f"there is no worker Deployment in namespace {NAMESPACE}")
    return found[0].replace("deployment.apps/", "deploy/")


def api_service() -> str:
    """Return the Service of the scale's V2 API, as `svc/name:port`."""
    api = get("sscale", SCALE)["status"]["api"]
    return f"svc/{api['service']}:{api['port']}"


def metrics_secret() -> str:
    """Return the name of the Secret with the token of the scale's metrics.

    Raises:
        ClusterError: there is none.
    """
    found = [name for name in names("secret") if "metrics-token" in name]
    if not found:
        raise ClusterError(f"there is no Secret with a token for the scale's metrics in namespace {NAMESPACE}")
    return found[0].partition("/")[2]


def secret_value(name: str, key: str) -> str:
    """Return one value of a Secret of the demo's namespace."""
    return base64.b64decode(get("secret", name)["data"][key]).decode()


@contextmanager
def forwarded(target: str) -> Iterator[str]:
    """Have `kubectl port-forward` lead from a free port of this machine to `svc/name:port` or `pod/name:port`.

    Returns:
        The URL, `http://127.0.0.1:PORT`, while the block lasts.

    Raises:
        ClusterError: it leads nowhere.
    """
    name, _, port = target.partition(":")
    command = ["kubectl", "port-forward", "-n", NAMESPACE, "--address", "127.0.0.1", name, f":{port}"]
    with subprocess.Popen(
        [sys.executable, "-m", "localcluster", *command],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            yield f"http://{_forwarding(process, target)}"
        finally:
            process.terminate()


def _forwarding(process: subprocess.Popen[bytes], target: str) -> str:
    assert process.stdout is not None  # noqa: S101 - asked for above
    said = b""
    deadline = time.monotonic() + FORWARD_SECONDS
    while select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
        piece = os.read(process.stdout.fileno(), 4096)
        said += piece
        found = FORWARDING.search(said.decode(errors="replace"))
        if found:
            return found[1]
        if not piece:
            break
    raise ClusterError(f"kubectl port-forward to {target} did not begin: {said.decode(errors='replace').strip()}")


def wait_for(what: str, *words: str, seconds: int, namespace: str = NAMESPACE) -> None:
    """Wait with `kubectl wait` or `kubectl rollout status`; what keeps it waiting is shown when the time is over.

    Raises:
        ClusterError: it did not come.
    """
    say(f"waiting for {what}")
    there = ("-n", namespace)
    try:
        kubectl(*words, *there, f"--timeout={seconds}s", capture=True)
    except ClusterError as error:
        kubectl("get", "sscale,deploy,pods", *there, check=False)
        kubectl("get", "events", "--sort-by=.lastTimestamp", *there, check=False)
        raise ClusterError(f"{what} did not come within {seconds} s ({error})") from None


def install() -> None:
    """Cluster, images, operator, stores, aids and the quickstart sample; safe to run again."""
    for command in ("images", "up", "load-image"):
        said = localcluster(command)
    renewed = "loaded" in said
    say("installing the operator from manifests/install.yaml")
    kubectl(*APPLY, "-f", "manifests/install.yaml", capture=True)
    kubectl(
        "wait", "--for=condition=Established", "crd/synapsescales.scale.synapseorch.com", "--timeout=30s", capture=True
    )
    # A namespace that an earlier demo left is perhaps on its way out, and takes nothing then.
    if kubectl("get", "ns", NAMESPACE, "-o", "jsonpath={.status.phase}", capture=True, check=False) == "Terminating":
        wait_for("the namespace of an earlier demo to be gone", "wait", "--for=delete", f"ns/{NAMESPACE}", seconds=120)
    say(f"applying {SAMPLE}")
    kubectl(*APPLY, "-f", SAMPLE, capture=True)
    say("with aids for a try-out from manifests/dev, in the same namespace:")
    say("  a Redis and a PostgreSQL; a model server, which stands in for a provider of models and answers by rules;")
    say("  a receiver, which stands in for a collector of traces and for whoever is told of a run's end")
    for folder in (STORES, *AIDS):
        ours(*APPLY, "-k", folder, capture=True)
    if renewed:
        _replace_pods()
    wait_for("the operator", "wait", "--for=condition=Available", "deploy", "--all", seconds=120, namespace=OPERATOR)
    for folder in AIDS:
        name = folder.rpartition("/")[2]
        # Not only available, which the pod before this one may be as well.
        wait_for(f"the {name.replace('-', ' ')}", "rollout", "status", f"deploy/{name}", seconds=120)
    scale = f"sscale/{SCALE}"
    wait_for("the SynapseScale to be Ready", "wait", "--for=condition=Ready", scale, seconds=180)
    wait_for("its API", "wait", "--for=condition=ApiReady", scale, seconds=120)
    wait_for("the definitions to be synced", "wait", "--for=condition=DefinitionsSynced", scale, seconds=90)


def _replace_pods() -> None:
    """Images keep their names here, so pods of an earlier demo would go on with the old ones."""
    kubectl("rollout", "restart", "deploy", "-n", OPERATOR, capture=True)
    kubectl("rollout", "status", "deploy", "-n", OPERATOR, "--timeout=120s", capture=True, check=False)
    for label in (OF_THE_SCALE, "app in (model-server, receiver)"):
        ours("delete", "pods", "-l", label, "--wait=false", capture=True)
    ours("rollout", "status", "deploy", "--timeout=180s", capture=True, check=False)
