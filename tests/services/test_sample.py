"""The sample's bundle on the aids of manifests/dev, as the demo plays it: API, worker, model server, receiver."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

from localcluster.demo.api import V2Api
from localcluster.demo.lines import Progress
from synapse_worker.store.database import Database
from tests.support import sample
from tests.support.api import StartApi
from tests.support.model_server import model_server
from tests.support.servers import RedisServer, wait_until
from tests.support.workers import StartWorker, command

TREE = """
POST /api/v2/orchestrations/{orchestration_id}/run, HTTP 202
  enqueue
    run incident-update, paused
      queue wait, synapse:orchestrations:default
      claim
      step logs, agent
        model small-model, at openai_compatible, 230 tokens
        tool error_log
        model small-model, at openai_compatible, 469 tokens
      step tickets, agent
        model small-model, at openai_compatible, 221 tokens
        tool open_tickets
        model small-model, at openai_compatible, 389 tokens
      step findings, merge
      step draft, agent
        model small-model, at openai_compatible, 423 tokens
      step review, evaluator
        model small-model, at openai_compatible, 368 tokens
      step draft, agent
        model small-model, at openai_compatible, 619 tokens
      step review, evaluator
        model small-model, at openai_compatible, 522 tokens
    enqueue
      run incident-update, completed
        queue wait, synapse:orchestrations:default
        claim
        step decision, if_else
        step publish, print
        step done, end
    webhook
"""


def write_definitions(folder: Path, model_url: str) -> None:
    """Write what the sample's sources hold, with another model server."""
    held = {**sample.texts("ConfigMap", "incident-update"), **sample.texts("Secret", "model-settings")}
    for key, text in held.items():
        (folder / key).write_text(text.replace("http://model-server:8000", model_url))


def play(api: V2Api, hook: str) -> tuple[str, list[str]]:
    """Run the bundle through the API and say yes; returns the run's id and what the demo's screen would show."""
    definition = api.get("/api/v2/orchestrations/incident-update")["definition"]
    body = {"message": "Checkout answers 502", "webhook_url": hook}
    run_id = str(api.post("/api/v2/orchestrations/incident-update/run", body)["run_id"])
    progress = Progress({step["id"]: step["name"] for step in definition["steps"]})
    shown = []
    for entry_id, event in api.events(f"/api/v2/orchestrations/runs/{run_id}/stream"):
        shown += list(progress.lines(entry_id, event))
        if event["type"] == "paused":
            answer = {"response": {"approved": True, "by": "Ada"}}
            api.post(f"/api/v2/orchestrations/runs/{run_id}/resume", answer)
    return run_id, shown


async def test_the_bundle_is_sent_back_once_approved_and_traced_to_the_webhook(
    database: Database,
    redis_server: RedisServer,
    postgres_url: str,
    start_api: StartApi,
    start_worker: StartWorker,
    tmp_path: Path,
) -> None:
    with sample.receiver() as receiver, model_server(sample.RULES) as models:
        write_definitions(tmp_path, models.url)
        synced = command(redis_server.url, postgres_url, "sync", str(tmp_path))
        assert synced.stdout.startswith("synced 9 ("), synced.stdout + synced.stderr
        traced = {"OTLP_ENDPOINT": receiver.otlp, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        api = await asyncio.to_thread(start_api, **traced)
        start_worker(WEBHOOK_ALLOW="127.0.0.0/8", **traced).wait_ready()
        run_id, shown = await asyncio.to_thread(play, V2Api(api.url, "none is asked for"), f"{receiver.http}/hook")

        def traced_whole() -> bool:
            told = receiver.lines(f"/runs/{run_id}")
            return any("webhook" in line for line in told) and "on their way" not in told[0]

        await asyncio.to_thread(wait_until, "the trace is whole", traced_whole)
        heading, *spans = receiver.lines(f"/runs/{run_id}")
        (hook,) = [json.loads(line) for line in receiver.lines("/hooks")]

    text = "\n".join(re.sub(r"^ *[\d.]+ s \[[# ]{20}\] ", "", line) for line in shown)
    assert "Look into it from two sides: 2 branches side by side" in text
    assert "Read the logs: agent at work" in text
    assert "Read the logs: calls error_log(service='checkout')" in text
    assert "Put both together: 2 results are one" in text
    assert "Review it: sends it back to 'Write the update': It does not say from when to when" in text
    assert "Review it: goes on to 'Ask the incident manager': It says from when to when" in text
    assert "  it wants: approved (boolean), by (text)" in text
    assert "Publish: Published, approved by Ada: Between 14:05 and 14:33 UTC" in text
    assert text.endswith("completed; 10 of 11 steps were on its way")

    assert re.fullmatch(r"trace [0-9a-f]{32}: \d+ spans of 2 processes, [\d.]+ s", heading)
    bare = [re.sub(r", (postgresql|redis) \d+x [\d.]+ m?s", "", line[10:]) for line in spans]
    told = {line.strip() for line in TREE.splitlines() if line}
    # Branches run side by side, so their order is theirs.
    assert sorted(line for line in bare if line.strip() in told) == sorted(filter(None, TREE.splitlines()))
    assert json.loads(hook["body"])["status"] == "completed"
