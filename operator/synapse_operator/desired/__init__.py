"""Everything that one SynapseScale needs in the cluster, as manifests: pure builders, one module for each kind.

`desired_for_scale` puts them together. Whether one of them has to be sent is decided in `plan`.
"""

from __future__ import annotations

from pydantic import SecretStr

from synapse_operator.api.reasons import Reason
from synapse_operator.api.scale import SynapseScale
from synapse_operator.desired.api import api_manifests
from synapse_operator.desired.configmap import environment_config_map
from synapse_operator.desired.deployment import worker_deployment
from synapse_operator.desired.environment import (
    POSTGRES_CA,
    POSTGRES_URL,
    REDIS_CA,
    REDIS_URL,
    stored_settings,
    template_secrets,
    worker_environment,
)
from synapse_operator.desired.manifest import Manifest
from synapse_operator.desired.model import Blocked, Desired
from synapse_operator.desired.networkpolicy import worker_network_policy
from synapse_operator.desired.observability import METRICS_TOKEN, pod_monitor
from synapse_operator.desired.pdb import worker_disruption_budget
from synapse_operator.desired.service import metrics_service
from synapse_operator.desired.serviceaccount import worker_service_account
from synapse_operator.desired.shards import deployment_of, flip_of, shards_of
from synapse_operator.observed import Found, KeyMissing, Observed, SecretLookup, SecretMissing, Unusable
from synapse_worker.contract import OTLP_HEADERS

__all__ = ["Blocked", "Desired", "desired_for_scale"]


def desired_for_scale(
    scale: SynapseScale, observed: Observed, *, default_image: str, hash_key: SecretStr
) -> Desired | Blocked:
    """Return the children that the scale should have, or why they must stay as they are.

    Args:
        scale: what the user wants.
        observed: what is there: what the Secrets say, and for `enabled: false` the load and the present replicas.
        default_image: image of workers whose spec names none.
        hash_key: the installation's own key for fingerprints of Secrets (`naming.secret_fingerprint`); another
            key rolls all pods once.
    """
    secrets = {}
    for name, field, lookup in (
        (REDIS_URL, "redis.urlSecretRef", observed.redis_url),
        (POSTGRES_URL, "postgres.urlSecretRef", observed.postgres_url),
        (REDIS_CA, "redis.caSecretRef", observed.redis_ca),
        (POSTGRES_CA, "postgres.caSecretRef", observed.postgres_ca),
        (METRICS_TOKEN, _token_field(scale), observed.metrics_token),
        (OTLP_HEADERS, "observability.otlpHeadersSecretRef", observed.otlp_headers),
        *((name, "storage.s3.credentialsSecretRef", lookup) for name, lookup in observed.s3_keys.items()),
    ):
        if lookup is None:
            continue
        if not isinstance(lookup, Found):
            return Blocked(_reason(lookup), f"{field}: {lookup.sentence}")
        secrets[name] = lookup.value
    if isinstance(observed.redis, Unusable):
        return Blocked(Reason.REDIS_UNUSABLE, observed.redis.sentence)
    if isinstance(observed.postgres, Unusable):
        return Blocked(Reason.POSTGRES_UNUSABLE, observed.postgres.sentence)

    image = scale.spec.image or default_image
    shards = shards_of(scale, observed)
    manifests = [worker_service_account(scale), metrics_service(scale)]
    if scale.spec.network_policy.enabled:
        manifests.append(worker_network_policy(scale, secrets))
    of_tenants: list[Manifest] = []
    for shard in shards:
        environment = worker_environment(scale, shard.workers, shard.serves)
        config_map = environment_config_map(scale, environment)
        live = deployment_of(scale, observed, shard.name)
        deployment = worker_deployment(
            scale,
            shard,
            image=image,
            config_map=config_map,
            stored=stored_settings(scale, observed, shard.workers, environment, live, hash_key),
            template_secrets=template_secrets(scale, observed, shard.workers, live, hash_key),
            secrets=secrets,
            hash_key=hash_key,
        )
        # What one tenant asks for comes behind what all need.
        mine = of_tenants if shard.tenant else manifests
        mine += [config_map, deployment]
        if scale.spec.pod_disruption_budget.enabled:
            mine.append(worker_disruption_budget(scale, shard.name))
    manifests += api_manifests(scale, observed, image=image, secrets=secrets, hash_key=hash_key)
    monitors = [pod_monitor(scale)] if scale.spec.observability.pod_monitor.enabled else []
    # The monitor is the last one: where the kind is absent, all else is as it should be.
    return Desired((*manifests, *of_tenants, *monitors), shards, flip_of(scale, observed), image)


def _token_field(scale: SynapseScale) -> str:
    generated = scale.spec.observability.metrics_auth == "Generated"
    return "observability.metricsAuth" if generated else "observability.metricsTokenSecretRef"


def _reason(lookup: SecretLookup) -> Reason:
    if isinstance(lookup, SecretMissing):
        return Reason.SECRET_NOT_FOUND
    if isinstance(lookup, KeyMissing):
        return Reason.SECRET_KEY_NOT_FOUND
    return Reason.SECRET_UNREADABLE
