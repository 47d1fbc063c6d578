"""The scenes of the demo: a bundle with agents and a human, followed live; small runs; trace; metrics."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from localcluster.api import NO_PROXY
from localcluster.commands import wait_for as poll
from localcluster.demo import cluster, lines
from localcluster.demo.api import Json, V2Api
from localcluster.demo.cluster import NAMESPACE, SCALE
from localcluster.errors import ClusterError
from localcluster.progress import duration, say

BUNDLE = "incident-update"
INCIDENT = "Checkout answers 502 since 14:05 UTC, after release 2026.11.3"
ANSWER = ("--field", "approved=true", "--field", "by=Ada")
WEBHOOK = "http://receiver:8080/hook"
TRIAGE = "support-triage"
MESSAGES = (
    "Everything is down!\nOur checkout has an outage, ada@example.com",
    "Error while exporting\nThe file ends halfway. grace@example.com",
    "How do I add a tenant?\nThank you, alan@example.com",
)
RUNS = "/api/v2/orchestrations/runs"
# Processes send their spans every 5 seconds, and the webhook is told after the run's end.
TRACE_SECONDS = 30
TRACE_UNFINISHED = "on their way"
METRICS_PORT = 9000
# What a run's line begins with: time and bar.
INDENT = 6 + 4 + lines.BAR + 1


@contextmanager
def api_key(worker: str) -> Iterator[str]:
    """A key of the V2 API while the block lasts."""
    made = cluster.ours(*("exec", worker, "--", "synapse-worker", "keys", "create", "demo", "-o", "json"), capture=True)
    key = json.loads(made)
    try:
        yield str(key["key"])
    finally:
        cluster.ours("exec", worker, "--", "synapse-worker", "keys", "revoke", key["id"], capture=True, check=False)


def submit(api: V2Api, orchestration: str, body: dict[str, object]) -> Json:
    """POST a run, and show how that is typed; returns the answer."""
    path = f"/api/v2/orchestrations/{orchestration}/run"
    say(f'  $ curl $API{path} -H "Authorization: Bearer $KEY" \\')
    say(f"      -H 'Content-Type: application/json' -d '{json.dumps(body)}'")
    accepted = api.post(path, body)
    say(f"  202 {json.dumps({name: accepted[name] for name in ('run_id', 'status')})}: whatever happens now, it is run")
    return accepted


def bundle(api: V2Api, worker: str) -> str:
    """The bundle's run: submitted, followed, answered; returns its id."""
    definition = api.get(f"/api/v2/orchestrations/{BUNDLE}")["definition"]
    steps = {step["id"]: step["name"] for step in definition["steps"]}
    say(f"\n{definition['name']}: {len(steps)} steps. {definition['description']}")
    say("The model server of manifests/dev answers its agents, by OpenAI's protocol. A worker's first request to")
    say("a model takes some seconds more, in which it loads the client for models.")
    run_id = str(submit(api, BUNDLE, {"message": INCIDENT, "webhook_url": WEBHOOK})["run_id"])
    say("Followed live, as by:")
    say(f'  $ curl -N $API{RUNS}/{run_id}/stream -H "Authorization: Bearer $KEY"')
    told = lines.Progress(steps)
    response = ""
    for entry_id, event in api.events(f"{RUNS}/{run_id}/stream"):
        for line in told.lines(entry_id, event):
            for part in lines.wrapped(line, INDENT):
                say(part)
        if event["type"] == "paused":
            answer(worker, run_id)
        elif event["type"] == "final" and "orch_step_id" not in event:
            response = event["response"]
        elif event["type"] == "orchestration_error":
            raise ClusterError(f"run {run_id}: {event['error']}")
    state = api.get(f"{RUNS}/{run_id}/status")
    print(f"\nWhat the run says in the end ({state['total_tokens_used']} tokens of models):", flush=True)
    for part in lines.wrapped(f"  {response}", 2):
        print(part, flush=True)
    return run_id


def answer(worker: str, run_id: str) -> None:
    """Answer the human step from the command line."""
    command = ("exec", worker, "--", "synapse-worker", "runs", "resume", run_id, *ANSWER)
    say("A person answers it, here or anywhere, with this command, which is given now:")
    say(f"  $ kubectl -n {NAMESPACE} {' '.join(command)}")
    say(f"  {cluster.ours(*command, capture=True).strip()}")


def triage(api: V2Api) -> list[str]:
    """The small runs, all at once; returns what each answered."""
    say(f"\nThree runs of {TRIAGE} at once, through the same API:")
    runs = []
    for message in MESSAGES:
        accepted = api.post(f"/api/v2/orchestrations/{TRIAGE}/run", {"message": message})
        say(f"  {accepted['run_id']}: {message.splitlines()[0]}")
        runs.append(accepted["run_id"])
    answers = []
    for run_id in runs:
        for _, event in api.events(f"{RUNS}/{run_id}/stream"):
            if event["type"] == "orchestration_error":
                raise ClusterError(f"run {run_id}: {event['error']}")
        answers.append(str(api.get(f"{RUNS}/{run_id}/status")["shared_state"]["summary"]))
    return answers


def trace(run_id: str) -> None:
    """The trace of a run, from the request to the webhook."""
    path = f"/api/v1/namespaces/{NAMESPACE}/services/receiver:http/proxy/runs/{run_id}"
    say("\nThe trace of the first run, from the request to the webhook, as the receiver of manifests/dev got it:")
    say(f"  $ kubectl get --raw {path}")
    shown = ""

    def whole() -> bool:
        nonlocal shown
        shown = cluster.kubectl("get", "--raw", path, capture=True, check=False)
        heading, _, tree = shown.partition("\n")
        return "webhook" in tree and TRACE_UNFINISHED not in heading

    poll("The trace of the run", whole, seconds=TRACE_SECONDS)
    print("".join(f"  {line}\n" for line in shown.splitlines()), end="", flush=True)


def metrics(api_url: str) -> None:
    """A few series of the API and the workers."""
    secret = cluster.metrics_secret()
    say("\nMetrics, behind a token of the scale's own; these are a few of docs/metrics.md:")
    say(f"  $ TOKEN=$(kubectl get secret {secret} -n {NAMESPACE} -o jsonpath='{{.data.token}}' | base64 -d)")
    say('  $ curl -s $API/api/v2/metrics -H "Authorization: Bearer $TOKEN"    # of a worker: port 9000, /metrics')
    token = cluster.secret_value(secret, "token")
    of_api = _scraped(f"{api_url}/api/v2/metrics", token)
    of_workers: list[lines.Sample] = []
    with ExitStack() as forwards:
        for pod in cluster.names("pods", f"{cluster.ROLE}=worker"):
            url = forwards.enter_context(cluster.forwarded(f"{pod}:{METRICS_PORT}"))
            of_workers += _scraped(f"{url}/metrics", token)
    table = [
        *lines.counted(of_api, "synapse_runs_enqueued_total", "orch_id"),
        *lines.timed(of_api, "synapse_api_request_seconds", "method", "status"),
        *lines.largest(of_api, "synapse_active_workers"),
        *lines.counted(of_workers, "synapse_runs_completed_total", "status"),
        *lines.timed(of_workers, "synapse_run_duration_seconds"),
        *lines.timed(of_workers, "synapse_step_duration_seconds", "step_type"),
        *lines.counted(of_workers, "synapse_webhook_deliveries_total", "status"),
        *lines.largest(of_workers, "synapse_queue_depth"),
    ]
    print("".join(f"  {line}\n" for line in table), end="", flush=True)


def _scraped(url: str, token: str) -> list[lines.Sample]:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})  # noqa: S310 - http
    try:
        with urllib.request.build_opener(NO_PROXY).open(request, timeout=10) as answered:
            return lines.samples(answered.read().decode())
    except OSError as error:
        raise ClusterError(f"{url}: {error}") from None


def resources(worker: str) -> None:
    """What is in the namespace now, and the runs."""
    print(flush=True)
    cluster.ours("get", "sscale,deploy,pods")
    print(flush=True)
    cluster.ours("exec", worker, "--", "synapse-worker", "runs", "list", "--limit", str(1 + len(MESSAGES)))


def play() -> str:
    """All scenes; returns the worker Deployment, for the commands to go on with."""
    cluster.install()
    worker = cluster.worker_deployment()
    service = cluster.api_service()
    with api_key(worker) as key, cluster.forwarded(service) as url:
        api = V2Api(url, key)
        say("\nThe V2 API is reached through its Service, with a key that is revoked at the end of the demo:")
        name, _, port = service.partition(":")
        say(f"  $ kubectl port-forward -n {NAMESPACE} {name} {port}    # API=http://localhost:{port}")
        say(f"  $ KEY=$(kubectl exec -n {NAMESPACE} {worker} -- synapse-worker keys create demo)")
        run_id = bundle(api, worker)
        answers = triage(api)
        print("What they answered:\n" + "".join(f"  {each}\n" for each in answers), end="", flush=True)
        trace(run_id)
        metrics(url)
    resources(worker)
    return worker


def main() -> int:
    """Run the demo; returns the exit code."""
    began = time.monotonic()
    try:
        worker = play()
    except ClusterError as error:
        say(f"the demo stopped: {error}")
        return 1
    except KeyboardInterrupt:
        say("the demo was interrupted; what it has started runs on, `make demo-down` removes it")
        return 130
    say(f"\ndone in {duration(time.monotonic() - began)}. Go on with:")
    print(
        "  export KUBECONFIG=$(python3 -m localcluster kubeconfig)\n"
        f"  kubectl get sscale -A; kubectl describe sscale {SCALE} -n {NAMESPACE}\n"
        f"  kubectl exec -n {NAMESPACE} {worker} -- synapse-worker enqueue {TRIAGE} -m 'Slow!' --wait 30\n"
        f"  kubectl exec -n {NAMESPACE} {worker} -- synapse-worker enqueue {BUNDLE} -m 'Search is slow'\n"
        f"  kubectl exec -n {NAMESPACE} {worker} -- synapse-worker runs list --status paused\n"
        f"  kubectl logs -n {NAMESPACE} {worker} -f\n"
        "  make demo-down"
    )
    return 0
