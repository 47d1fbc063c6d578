"""The page's introduction: where settings come from and when they take effect."""

from __future__ import annotations

from pydantic import SecretStr
from redis.asyncio import Redis

from synapse_operator.naming import CONFIG_HASH_ANNOTATION, Kind
from synapse_operator.observed import Found
from synapse_worker.store.database import Database
from tests.builders import POSTGRES_URL, REDIS_URL, a_scale, an_observed, manifest_of, what_is_desired
from tests.page.conftest import StartHere
from tests.page.support import store_setting


async def test_environment_variables_take_precedence_over_stored_values(
    database: Database, redis_client: Redis, start_here: StartHere
) -> None:
    """Environment variables take precedence over values stored in the UI settings when both are present."""
    await store_setting(database, "worker_concurrency", 4)
    await store_setting(database, "job_timeout", 40)
    worker = await (await start_here(WORKER_CONCURRENCY="7")).ready()
    assert (await worker.health())["max_jobs"] == 7


async def test_a_stored_value_stands_in_for_a_variable_that_is_not_set(
    database: Database, redis_client: Redis, start_here: StartHere
) -> None:
    """Changes are persisted to the settings database and take effect: at the next start of a worker."""
    running = await (await start_here()).ready()
    await store_setting(database, "worker_concurrency", 4)
    assert (await running.health())["max_jobs"] == 10
    restarted = await (await start_here()).ready()
    assert (await restarted.health())["max_jobs"] == 4


def test_a_changed_store_url_restarts_the_workers() -> None:
    """Changes to the Redis URL or Postgres URL require a restart to reconnect: the operator rolls the pods."""

    def template_hash(redis_url: str, postgres_url: str) -> str:
        observed = an_observed(redis_url=Found(SecretStr(redis_url)), postgres_url=Found(SecretStr(postgres_url)))
        deployment = manifest_of(what_is_desired(a_scale(), observed), Kind.DEPLOYMENT)
        annotations: dict[str, str] = deployment.body["spec"]["template"]["metadata"]["annotations"]
        return annotations[CONFIG_HASH_ANNOTATION]

    before = template_hash(REDIS_URL, POSTGRES_URL)
    assert template_hash(REDIS_URL, POSTGRES_URL) == before
    assert template_hash(REDIS_URL + "1", POSTGRES_URL) != before
    assert template_hash(REDIS_URL, POSTGRES_URL + "1") != before
