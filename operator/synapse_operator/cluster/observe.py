"""Reads from the API server what `observed` describes: the scale, its children, its pods, its Secrets.

Everything is read afresh for each reconcile (level, not edge). What was read is interpreted by
`observed`; what cannot be read raises, except where "not allowed" is something a user can repair.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pydantic import SecretStr

from synapse_operator import naming
from synapse_operator.api.common import JsonObject, SecretKeySelector
from synapse_operator.api.scale import PostgresSpec, RedisSpec, SynapseScale
from synapse_operator.cluster.client import Client, path
from synapse_operator.desired.shards import SHARD_NAMES, is_used, wanted_topology
from synapse_operator.echo import Version
from synapse_operator.errors import ApiNotFound, ApiRefused
from synapse_operator.naming import Kind
from synapse_operator.observed import Child, Found, Pod, Rollout, SecretLookup, Unknown, read_secret_key


class ScaleKey(NamedTuple):
    """Which SynapseScale."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{naming.SCALE_KIND} {self.namespace}/{self.name}"


async def read_stored(client: Client, key: ScaleKey) -> JsonObject | None:
    """Return a SynapseScale as it is stored; None = there is none."""
    try:
        return await client.request("GET", path(naming.API_VERSION, key.namespace, naming.SCALE_PLURAL, key.name))
    except ApiNotFound:
        return None


async def list_versions(client: Client, namespaces: Sequence[str]) -> list[Version]:
    """Return what exists in the given namespaces ("" = all): the question of `echo`."""
    answers = await asyncio.gather(
        *(client.request("GET", path(naming.API_VERSION, each, naming.SCALE_PLURAL)) for each in namespaces)
    )
    return [
        Version(meta["namespace"], meta["name"], meta["uid"], meta.get("generation", 1))
        for answer in answers
        for meta in (item["metadata"] for item in answer.get("items") or ())
    ]


async def read_children(client: Client, scale: SynapseScale) -> tuple[Child, ...]:
    """Return the children of a scale, found by label, and by name where the label got lost."""
    namespace, name = scale.metadata.namespace, scale.metadata.name
    selector = naming.selector_text({naming.SCALE_LABEL: naming.scale_label(name)})
    lists = await asyncio.gather(*(_list(client, kind, namespace, selector) for kind in Kind))
    children = [child for found in lists for child in found]
    present = {child.ref for child in children}
    expected = naming.expected_refs(
        namespace,
        name,
        shards=[name for name in SHARD_NAMES if is_used(wanted_topology(scale), name)],
        budgets=scale.spec.pod_disruption_budget.enabled,
        network_policy=scale.spec.network_policy.enabled,
    )
    others = await asyncio.gather(*(_read(client, ref) for ref in expected if ref not in present))
    return (*children, *(child for child in others if child is not None))


async def read_pods(client: Client, scale: SynapseScale, children: Iterable[Child]) -> tuple[Pod, ...]:
    """Return the worker pods of a scale; none are read while every Deployment is complete, as nothing is wrong then."""
    rollouts = [Rollout.of(child) for child in children if child.ref.kind is Kind.DEPLOYMENT]
    if all(rollout.complete for rollout in rollouts):
        return ()
    selector = naming.selector_text(naming.worker_selector(scale.metadata.name))
    answer = await client.request(
        "GET", path("v1", scale.metadata.namespace, "pods"), query={"labelSelector": selector}
    )
    return tuple(Pod.read(item) for item in answer.get("items") or ())


class StoreSecrets(NamedTuple):
    """What the spec and its Secrets say of the stores; fields as in `observed.Observed`."""

    redis_url: SecretLookup
    postgres_url: SecretLookup
    redis_ca: SecretLookup | None
    postgres_ca: SecretLookup | None


async def read_store_secrets(client: Client, scale: SynapseScale) -> StoreSecrets:
    """Return URLs and certificates of Redis and of PostgreSQL, from the spec or from the Secrets that it names."""
    redis, postgres = scale.spec.redis, scale.spec.postgres
    selectors = (redis.url_secret_ref, postgres.url_secret_ref, redis.ca_secret_ref, postgres.ca_secret_ref)
    names = sorted({selector.name for selector in selectors if selector is not None})
    answers = await asyncio.gather(*(_secret(client, scale.metadata.namespace, name) for name in names))
    secrets = dict(zip(names, answers, strict=True))

    def look_up(selector: SecretKeySelector, content: str) -> SecretLookup:
        secret = secrets[selector.name]
        return secret if isinstance(secret, Unknown) else read_secret_key(secret, selector, content)

    def url(store: RedisSpec | PostgresSpec) -> SecretLookup:
        selector = store.url_secret_ref
        return Found(SecretStr(store.url or "")) if selector is None else look_up(selector, "the URL")

    def ca(store: RedisSpec | PostgresSpec) -> SecretLookup | None:
        selector = store.ca_secret_ref
        return None if selector is None else look_up(selector, "the certificates")

    return StoreSecrets(url(redis), url(postgres), ca(redis), ca(postgres))


async def _secret(client: Client, namespace: str, name: str) -> JsonObject | Unknown | None:
    """Return a Secret; None = it does not exist, `Unknown` = we may not read it, which a user can repair."""
    try:
        return await client.request("GET", path("v1", namespace, "secrets", name))
    except ApiNotFound:
        return None
    except ApiRefused as error:
        return Unknown(str(error))


async def _list(client: Client, kind: Kind, namespace: str, selector: str) -> list[Child]:
    try:
        answer = await client.request(
            "GET", path(kind.api_version, namespace, kind.plural), query={"labelSelector": selector}
        )
    except ApiNotFound:
        return []  # the cluster does not know the kind: applying one says so
    return [Child.read(kind, item) for item in answer.get("items") or ()]


async def _read(client: Client, ref: naming.Ref) -> Child | None:
    try:
        return Child.read(
            ref.kind, await client.request("GET", path(ref.kind.api_version, ref.namespace, ref.kind.plural, ref.name))
        )
    except ApiNotFound:
        return None
