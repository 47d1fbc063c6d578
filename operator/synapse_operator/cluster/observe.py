"""Reads from the API server what `observed` describes: the scale, its children, its pods, its Secrets, its tenants.

Everything is read afresh for each reconcile (level, not edge). What was read is interpreted by
`observed`; what cannot be read raises, except where "not allowed" is something a user can repair.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import SecretStr

from synapse_operator import naming
from synapse_operator.api.common import JsonObject, SecretKeySelector
from synapse_operator.api.overlay import PodOverlay, SecretPart
from synapse_operator.api.scale import PostgresSpec, RedisSpec, SynapseScale
from synapse_operator.api_keys import KeyEntries, read_keys
from synapse_operator.cluster.client import Client, path
from synapse_operator.desired.environment import s3_keys
from synapse_operator.desired.shards import expected_shards
from synapse_operator.echo import Version
from synapse_operator.errors import ApiNotFound, ApiRefused
from synapse_operator.naming import Kind
from synapse_operator.observed import (
    Child,
    Found,
    Pod,
    Rollout,
    SecretLookup,
    SecretMissing,
    SourceKind,
    SourceRef,
    Unknown,
    read_secret_key,
    read_secret_part,
)
from synapse_operator.tenants import scale_name


class ScaleKey(NamedTuple):
    """Which SynapseScale."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{naming.SCALE_KIND} {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class TenantsKey:
    """All SynapseTenants of one SynapseScale, whether or not it exists."""

    scale: ScaleKey

    def __str__(self) -> str:
        return f"{naming.TENANT_KIND}s of {self.scale}"


Key = ScaleKey | TenantsKey
"""What the work queue holds."""


async def read_stored(client: Client, key: ScaleKey) -> JsonObject | None:
    """Return a SynapseScale as it is stored; None = there is none."""
    try:
        return await client.request("GET", path(naming.API_VERSION, key.namespace, naming.SCALE_PLURAL, key.name))
    except ApiNotFound:
        return None


async def is_there(client: Client, scale: SynapseScale) -> bool:
    """Return whether a scale is still there and is to stay; ask before something is made for it.

    What is missing may have been taken away with the scale after that was read. The garbage collector takes children
    only once their scale is gone or deleted, so where this is True after a look at them, they are really missing.
    """
    stored = await read_stored(client, ScaleKey(scale.metadata.namespace, scale.metadata.name))
    metadata = {} if stored is None else stored["metadata"]
    return metadata.get("uid") == scale.metadata.uid and "deletionTimestamp" not in metadata


async def list_tenants(client: Client, namespace: str) -> list[JsonObject]:
    """Return all SynapseTenants of a namespace as they are stored.

    Raises:
        ApiNotFound: the cluster does not know the kind; not the same as none.
    """
    answer = await client.request("GET", path(naming.API_VERSION, namespace, naming.TENANT_PLURAL))
    return list(answer.get("items") or ())


async def is_terminating(client: Client, namespace: str) -> bool:
    """Return whether a namespace is being deleted; one that we may not look at counts as not."""
    try:
        found = await client.request("GET", path("v1", "", "namespaces", namespace))
    except ApiNotFound:
        return True
    except ApiRefused:
        return False
    return "deletionTimestamp" in found["metadata"]


async def list_versions(client: Client, namespaces: Sequence[str]) -> list[Version]:
    """Return what exists of our kinds in the given namespaces ("" = all): the question of `echo`."""
    scales = [client.request("GET", path(naming.API_VERSION, each, naming.SCALE_PLURAL)) for each in namespaces]
    tenants = [list_tenants(client, each) for each in namespaces]
    return [
        *(
            _version(item, item["metadata"]["name"])
            for answer in await asyncio.gather(*scales)
            for item in answer.get("items") or ()
        ),
        *(_version(item, scale_of(item).name) for items in await asyncio.gather(*tenants) for item in items),
    ]


def scale_of(tenant: JsonObject) -> ScaleKey:
    """Return the scale that a stored SynapseTenant names."""
    return ScaleKey(tenant["metadata"]["namespace"], scale_name(tenant))


def _version(item: JsonObject, scale: str) -> Version:
    meta = item["metadata"]
    return Version(meta["namespace"], meta["name"], meta["uid"], meta.get("generation", 1), scale)


async def read_children(client: Client, scale: SynapseScale, dedicated: Iterable[str]) -> tuple[Child, ...]:
    """Return the children of a scale, found by label, and by name where the label got lost.

    Args:
        client: the API server.
        scale: the scale.
        dedicated: shards of tenants with workers of their own.
    """
    namespace, name = scale.metadata.namespace, scale.metadata.name
    selector = naming.selector_text({naming.SCALE_LABEL: naming.scale_label(name)})
    lists = await asyncio.gather(*(_list(client, kind, namespace, selector) for kind in Kind))
    children = [child for found in lists for child in found]
    present = {child.ref for child in children}
    expected = naming.expected_refs(
        namespace,
        name,
        shards=expected_shards(scale, dedicated),
        budgets=scale.spec.pod_disruption_budget.enabled,
        network_policy=scale.spec.network_policy.enabled,
        pod_monitor=scale.spec.observability.pod_monitor.enabled,
        api=scale.spec.api.enabled,
    )
    others = await asyncio.gather(*(_read(client, ref) for ref in expected if ref not in present))
    return (*children, *(child for child in others if child is not None))


def pods_matter(children: Iterable[Child]) -> bool:
    """Whether something can be wrong with pods: not while every Deployment is complete."""
    return not all(Rollout.of(child).complete for child in children if child.ref.kind is Kind.DEPLOYMENT)


async def read_pods(client: Client, scale: SynapseScale) -> tuple[Pod, ...]:
    """Return the pods of a scale."""
    selector = naming.selector_text({naming.SCALE_LABEL: naming.scale_label(scale.metadata.name)})
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
    namespace = scale.metadata.namespace
    answers = await asyncio.gather(*(_named(client, namespace, "secrets", name) for name in names))
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


async def read_selected(client: Client, namespace: str, selector: SecretKeySelector, content: str) -> SecretLookup:
    """Return the value of one key of a Secret; `content` is what should be there, for the sentence."""
    secret = await _named(client, namespace, "secrets", selector.name)
    return secret if isinstance(secret, Unknown) else read_secret_key(secret, selector, content)


async def read_api_keys(client: Client, scale: SynapseScale) -> KeyEntries | SecretMissing | Unknown | None:
    """Return the API keys that the spec names a Secret for; None = it names none, or the API is off."""
    reference = scale.spec.api.keys_secret_ref
    if reference is None or not scale.spec.api.enabled:
        return None
    secret = await _named(client, scale.metadata.namespace, "secrets", reference.name)
    if secret is None:
        return SecretMissing(
            f"Secret {reference.name} does not exist in this namespace; create it, an entry for each key"
        )
    return secret if isinstance(secret, Unknown) else read_keys(secret)


async def read_template_secrets(
    client: Client, namespace: str, overlays: Iterable[PodOverlay]
) -> dict[SecretPart, SecretStr]:
    """Return what the variables of overlays take from Secrets, without what is missing or may not be read."""
    parts = list(dict.fromkeys(part for overlay in overlays for part in overlay.secrets))
    names = sorted({part.name for part in parts})
    answers = await asyncio.gather(*(_named(client, namespace, "secrets", name) for name in names))
    secrets = dict(zip(names, answers, strict=True))
    found = {}
    for part in parts:
        secret = secrets[part.name]
        value = None if secret is None or isinstance(secret, Unknown) else read_secret_part(secret, part)
        if value is not None:
            found[part] = value
    return found


async def read_s3_keys(client: Client, scale: SynapseScale) -> dict[str, SecretLookup]:
    """Return what the Secret of spec.storage.s3 says, by variable; nothing when the spec names none."""
    selectors = s3_keys(scale)
    found: dict[str, SecretLookup] = {}
    for variable, selector in selectors.items():
        secret = await _named(client, scale.metadata.namespace, "secrets", selector.name)
        content = "a key of the S3 user"
        found[variable] = secret if isinstance(secret, Unknown) else read_secret_key(secret, selector, content)
    return found


async def read_sources(client: Client, namespace: str, refs: Sequence[SourceRef]) -> list[JsonObject | Unknown | None]:
    """Return the objects that hold definitions; None = one does not exist, `Unknown` = it may not be read.

    Raises:
        ApiUnavailable: the API server did not answer.
    """
    plurals = {SourceKind.CONFIG_MAP: "configmaps", SourceKind.SECRET: "secrets"}
    return await asyncio.gather(*(_named(client, namespace, plurals[ref.kind], ref.name) for ref in refs))


async def _named(client: Client, namespace: str, plural: str, name: str) -> JsonObject | Unknown | None:
    """Return an object of a user; None = it does not exist, `Unknown` = we may not read it, which a user can repair."""
    try:
        return await client.request("GET", path("v1", namespace, plural, name))
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
