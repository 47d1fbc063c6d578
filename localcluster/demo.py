"""The demo: from nothing to runs that completed in worker pods, told line by line.

It does what the README tells a user to do, with the same manifests; what is special is only that cluster,
images, Redis and PostgreSQL come from this repository too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from localcluster.errors import ClusterError
from localcluster.progress import say

ROOT = Path(__file__).resolve().parent.parent
NAMESPACE = "synapse-quickstart"
SCALE = "quickstart"
ORCHESTRATION = "support-triage"
# On kind, the public images; here, those that were built from Debian packages.
DEV_STORES = "manifests/dev" if os.environ.get("CLUSTER") == "kind" else "manifests/dev/local"
MESSAGES = (
    "Everything is down!\nOur checkout has an outage, ada@example.com",
    "Error while exporting\nThe file ends halfway. grace@example.com",
    "How do I add a tenant?\nThank you, alan@example.com",
)


def localcluster(command: str) -> str:
    """Run a command of localcluster, show what it says and return it.

    Raises:
        ClusterError: it failed.
    """
    said = ""
    with subprocess.Popen(
        [sys.executable, "-m", "localcluster", command],
        cwd=ROOT,
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
        cwd=ROOT,
        check=False,
        text=True,
        stdout=subprocess.PIPE if capture else None,
        stderr=subprocess.PIPE if capture else None,
    )
    if check and done.returncode != 0:
        detail = f": {done.stderr.strip()}" if capture and done.stderr else ""
        raise ClusterError(f"kubectl {' '.join(arguments[:3])} failed{detail}")
    return done.stdout or ""


def wait_for(what: str, *arguments: str, seconds: int) -> None:
    """Wait with `kubectl wait`; what keeps it waiting is shown when the time is over."""
    say(f"waiting for {what}")
    try:
        kubectl("wait", *arguments, f"--timeout={seconds}s", capture=True)
    except ClusterError as error:
        kubectl("get", "sscale,deploy,pods", "-n", NAMESPACE, check=False)
        kubectl("get", "events", "-n", NAMESPACE, "--sort-by=.lastTimestamp", check=False)
        raise ClusterError(f"{what} did not come within {seconds} s ({error})") from None


def install() -> None:
    """Cluster, images, operator, stores and the quickstart sample; safe to run again."""
    for command in ("images", "up", "load-image"):
        said = localcluster(command)
    renewed = "loaded" in said
    say("installing the operator from manifests/install.yaml")
    kubectl("apply", "--server-side", "--force-conflicts", "-f", "manifests/install.yaml", capture=True)
    kubectl(
        "wait", "--for=condition=Established", "crd/synapsescales.scale.synapseorch.com", "--timeout=30s", capture=True
    )
    say("applying manifests/samples/quickstart.yaml, with a Redis and a PostgreSQL from manifests/dev")
    # A Job's pod template cannot be changed; an earlier one may carry another image.
    kubectl("delete", "job", "sync-support-triage", "-n", NAMESPACE, "--ignore-not-found", capture=True, check=False)
    kubectl("apply", "--server-side", "--force-conflicts", "-f", "manifests/samples/quickstart.yaml", capture=True)
    kubectl("apply", "--server-side", "--force-conflicts", "-n", NAMESPACE, "-k", DEV_STORES, capture=True)
    if renewed:
        # The images keep their names here, so pods of an earlier demo would go on with the old ones.
        kubectl("rollout", "restart", "deploy", "-n", "synapse-system", capture=True)
        kubectl("rollout", "status", "deploy", "-n", "synapse-system", "--timeout=120s", capture=True, check=False)
    wait_for("the operator", "--for=condition=Available", "deploy", "--all", "-n", "synapse-system", seconds=120)
    wait_for(
        "the definitions to be synced",
        "--for=condition=Complete",
        "job/sync-support-triage",
        "-n",
        NAMESPACE,
        seconds=180,
    )
    wait_for("the SynapseScale to be Ready", "--for=condition=Ready", f"sscale/{SCALE}", "-n", NAMESPACE, seconds=180)


def worker_deployment() -> str:
    """Return the name of the worker Deployment of the demo's SynapseScale."""
    names = kubectl("get", "deploy", "-n", NAMESPACE, "-o", "name", capture=True).split()
    for name in names:
        if SCALE in name:
            return name
    raise ClusterError(f"there is no worker Deployment in namespace {NAMESPACE}")


def run(deployment: str, message: str) -> str:
    """Run the orchestration once in a worker pod and return what it answered."""
    say(f"run: {message.splitlines()[0]}")
    shown = kubectl(
        *("exec", "-n", NAMESPACE, deployment, "--", "synapse-worker", "enqueue", ORCHESTRATION),
        *("--message", message, "--wait", "60", "--output", "json"),
        capture=True,
    )
    return str(json.loads(shown)[0]["state"]["summary"])


def main() -> int:
    """Run the demo; returns the exit code."""
    began = time.monotonic()
    try:
        install()
        deployment = worker_deployment()
        answers = [run(deployment, message) for message in MESSAGES]
        print(flush=True)
        kubectl("get", "sscale,deploy,pods", "-n", NAMESPACE)
        print(flush=True)
        kubectl(
            "exec", "-n", NAMESPACE, deployment, "--", "synapse-worker", "runs", "list", "--limit", str(len(MESSAGES))
        )
        print("\nWhat the runs answered:\n" + "\n".join(f"  {answer}" for answer in answers), flush=True)
    except ClusterError as error:
        say(f"the demo stopped: {error}")
        return 1
    say(f"done in {time.monotonic() - began:.0f} s. Go on with:")
    print(
        "  export KUBECONFIG=$(python3 -m localcluster kubeconfig)\n"
        f"  kubectl get sscale -A; kubectl describe sscale {SCALE} -n {NAMESPACE}\n"
        f"  kubectl exec -n {NAMESPACE} {deployment} -- synapse-worker enqueue {ORCHESTRATION} -m 'Slow!' --wait 30\n"
        f"  kubectl exec -n {NAMESPACE} {deployment} -- synapse-worker runs list\n"
        f"  kubectl logs -n {NAMESPACE} {deployment} -f\n"
        "  make demo-down"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
