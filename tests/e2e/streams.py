"""`make chaos-cluster`, seventh part: a run's events followed by curl, cut and resumed, while the API's pods go.

What a client has seen in the end, over all its connections, is compared with the run's stream in Redis: each event once
and in its order. Kept out of `make test` by its name. Each test prints one line of figures.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx2
import pytest
from redis.asyncio import Redis

from synapse_operator import naming
from synapse_worker.queueing import keys
from synapse_worker.store.database import Database
from tests.e2e.conftest import SCALE, Place
from tests.support import runs
from tests.support.api import Message
from tests.support.kube import a_scale, apply, items, kubectl
from tests.support.model_server import ModelServer, model_server, script
from tests.support.outside import address_for_pods
from tests.support.workers import chain

FOLLOWERS = 4
STEPS = 150
STEP_SECONDS = 0.3
CUT_AFTER = 25
"""Events of one connection before its client is killed."""


@dataclass(frozen=True, slots=True)
class Api:
    """The V2 API of the shared scale, reached through its Service."""

    place: Place
    url: str
    key: str

    def client(self) -> httpx2.AsyncClient:
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx2.AsyncClient(base_url=self.url, headers=headers, timeout=30)

    def pods(self) -> set[str]:
        found = items("pods", "-n", self.place.namespace, "-l", naming.selector_text(naming.api_selector(SCALE)))
        return {pod["metadata"]["name"] for pod in found if "deletionTimestamp" not in pod["metadata"]}


@pytest.fixture(scope="module")
def api(place: Place) -> Iterator[Api]:
    """Two pods of the API, and a key; without them afterwards."""
    found = a_scale(SCALE, replicas=2, drainTimeoutSeconds=60)
    found["spec"]["api"] = {"enabled": True, "replicas": 2}
    apply(found, namespace=place.namespace)
    place.settled()
    yield Api(place, place.api_url(), place.command("keys", "create", "streams").strip())
    apply(a_scale(SCALE, replicas=2, drainTimeoutSeconds=60), namespace=place.namespace)
    place.settled()


@pytest.fixture
def models(place: Place) -> Iterator[ModelServer]:
    """A model that takes its time, so that a run lasts without keeping a processor busy."""
    with model_server(host=address_for_pods(place.redis_address)) as running:
        yield running


@dataclass(slots=True)
class Follower:
    """Somebody who follows a stream with curl and comes back with the last id that he has seen, as the page says."""

    url: str
    key: str
    messages: list[Message] = field(default_factory=list)
    connections: int = 0
    told_to_come_back: int = 0

    async def follow(self, *, cut_after: int | None = None) -> None:
        """Follow until `done`; with `cut_after`, curl is killed after so many events of a connection."""
        async with asyncio.timeout(240):
            while not self.messages or self.messages[-1].event["type"] != "done":
                await self._once(cut_after)

    async def _once(self, cut_after: int | None) -> None:
        last = ["-H", f"Last-Event-ID: {self.messages[-1].fields['id']}"] if self.messages else []
        curl = await asyncio.create_subprocess_exec(
            *(
                "curl",
                "-sS",
                "-N",
                "--connect-timeout",
                "3",
                "-H",
                f"Authorization: Bearer {self.key}",
                *last,
                self.url,
            ),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert curl.stdout is not None
        self.connections += 1
        before, block = len(self.messages), ""
        try:
            async for line in curl.stdout:
                block += line.decode()
                if line.strip():
                    continue
                message, block = Message(block.strip()), ""
                self.told_to_come_back += "retry" in message.fields
                if message.event:
                    self.messages.append(message)
                if cut_after is not None and len(self.messages) >= before + cut_after:
                    break
        finally:
            if curl.returncode is None:
                curl.kill()
            await curl.wait()

    @property
    def ids(self) -> list[str]:
        """The ids of the events, as they came."""
        return [message.fields["id"] for message in self.messages]


async def long_run(api: Api, database: Database, models: ModelServer) -> str:
    """Enqueue a run of some fifty seconds through the API; returns its id."""
    await runs.store_settings(database, models.settings())
    answers = script({"say": "slowly", "wait": STEP_SECONDS})
    steps = [
        {"id": f"s{number:03}", "type": "llm", "prompt_template": answers, "output_key": "said"}
        for number in range(STEPS)
    ]
    await runs.store(database, chain("streamed", steps))
    async with api.client() as client:
        answer = await client.post("/orchestrations/streamed/run", json={})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["run_id"])


def followers(api: Api, run_id: str) -> list[Follower]:
    return [Follower(f"{api.url}/orchestrations/runs/{run_id}/stream", api.key) for _ in range(FOLLOWERS)]


async def seen_once(client: Redis, run_id: str, following: list[Follower], what: str) -> None:
    stored = [entry_id.decode() for entry_id, _ in await client.xrange(keys.run_events(run_id))]
    doubled = sum(len(each.ids) - len(set(each.ids)) for each in following)
    missing = sum(len(set(stored) - set(each.ids)) for each in following)
    print(
        f"\n{what}: {len(stored)} events, {len(following)} clients with"
        f" {[each.connections for each in following]} connections, told to come back"
        f" {sum(each.told_to_come_back for each in following)} times; missing {missing}, doubled {doubled}",
        flush=True,
    )
    for each in following:
        assert each.ids == stored
        event_ids = [str(message.event["event_id"]) for message in each.messages]
        assert len(set(event_ids)) == len(event_ids)


@pytest.mark.timeout(400)
async def test_curl_cut_and_resumed(
    api: Api, models: ModelServer, cluster_database: Database, cluster_redis: Redis
) -> None:
    run_id = await long_run(api, cluster_database, models)
    following = followers(api, run_id)
    async with asyncio.TaskGroup() as group:
        for number, each in enumerate(following):
            group.create_task(each.follow(cut_after=CUT_AFTER + 7 * number))
    assert all(each.connections > 5 for each in following)
    await seen_once(cluster_redis, run_id, following, "curl killed in the middle and resumed")


@pytest.mark.timeout(400)
async def test_the_apis_pods_are_replaced_under_curl(
    api: Api, models: ModelServer, cluster_database: Database, cluster_redis: Redis
) -> None:
    before = await asyncio.to_thread(api.pods)
    run_id = await long_run(api, cluster_database, models)
    following = followers(api, run_id)
    async with asyncio.TaskGroup() as group:
        for each in following:
            group.create_task(each.follow())
        await runs.eventually("all of them follow", lambda: all(each.messages for each in following))
        deployment = (f"deploy/{naming.api_name(SCALE)}", "-n", api.place.namespace)
        await asyncio.to_thread(kubectl, "rollout", "restart", *deployment)
        await asyncio.to_thread(kubectl, "rollout", "status", *deployment, "--timeout=120s")
        await runs.eventually("the old pods are gone", lambda: gone(api, before), seconds=60)
        assert (await runs.view(cluster_database, run_id)).status == "running"
    assert all(each.connections > 1 for each in following)
    await seen_once(cluster_redis, run_id, following, "both pods of the API replaced")


async def gone(api: Api, before: set[str]) -> bool:
    return not before & await asyncio.to_thread(api.pods)
