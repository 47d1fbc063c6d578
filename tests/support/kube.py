"""kubectl and the local cluster for tests, as a user would type them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.support.servers import wait_until

ROOT = Path(__file__).resolve().parents[2]
Object = dict[str, Any]
"""A Kubernetes object as JSON; its shape is the API's, not ours."""


def localcluster(*words: str, check: bool = True) -> str:
    """Run a command of localcluster; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "localcluster", *words], cwd=ROOT, check=False, text=True, capture_output=True
    )
    assert not check or done.returncode == 0, f"localcluster {' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout


def kubectl(*words: str, check: bool = True, stdin: str | None = None) -> str:
    """Run kubectl; returns its output, with what it complained about when it may fail."""
    done = subprocess.run(
        [sys.executable, "-m", "localcluster", "kubectl", *words],
        cwd=ROOT,
        check=False,
        text=True,
        input=stdin,
        capture_output=True,
    )
    assert not check or done.returncode == 0, f"kubectl {' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout if check else done.stdout + done.stderr


def get(*words: str) -> Object:
    """`kubectl get ... -o json`; an empty object when it is not there."""
    text = kubectl("get", *words, "-o", "json", "--ignore-not-found")
    found: Object = json.loads(text) if text.strip() else {}
    return found


def items(*words: str) -> list[Object]:
    """`kubectl get ... -o json` of a list; none when there is nothing."""
    found: list[Object] = get(*words).get("items", [])
    return found


def apply(*objects: Object, namespace: str) -> str:
    """`kubectl apply --server-side` of objects."""
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
    return kubectl("apply", "--server-side", "-n", namespace, "-f", "-", stdin=text)


def condition(scale: Object, name: str) -> Mapping[str, str]:
    """Return one condition of a SynapseScale; an empty one when it is not there yet."""
    for each in scale.get("status", {}).get("conditions", []):
        if each["type"] == name:
            found: Mapping[str, str] = each
            return found
    return {"status": "", "reason": "", "message": ""}


def eventually(what: str, check: Callable[[], bool], *, seconds: float = 60) -> None:
    """Poll a condition of the cluster, every fifth of a second."""

    def slowly() -> bool:
        if check():
            return True
        time.sleep(0.2)  # the poll's period; wait_until bounds it
        return False

    wait_until(what, slowly, seconds=seconds)


def namespace(name: str) -> Object:
    """A namespace that enforces Pod Security `restricted`."""
    labels = {
        "pod-security.kubernetes.io/enforce": "restricted",
        "pod-security.kubernetes.io/enforce-version": "latest",
    }
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def a_scale(name: str, **workers: object) -> Object:
    """A SynapseScale on the stores of manifests/dev."""
    return {
        "apiVersion": "scale.synapseorch.com/v1alpha1",
        "kind": "SynapseScale",
        "metadata": {"name": name},
        "spec": {
            "redis": {"urlSecretRef": {"name": "synapse-redis", "key": "url"}},
            "postgres": {"urlSecretRef": {"name": "synapse-postgres", "key": "url"}},
            "workers": workers,
        },
    }


def a_tenant(name: str, scale: str, **spec: object) -> Object:
    """A SynapseTenant of a scale; `spec` adds fields."""
    return {
        "apiVersion": "scale.synapseorch.com/v1alpha1",
        "kind": "SynapseTenant",
        "metadata": {"name": name},
        "spec": {"scaleRef": {"name": scale}, **spec},
    }
