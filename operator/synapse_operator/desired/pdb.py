"""How many workers an eviction may take at once."""

from __future__ import annotations

from synapse_operator import naming
from synapse_operator.api.scale import SynapseScale
from synapse_operator.desired.manifest import Manifest, manifest
from synapse_operator.naming import Kind


def worker_disruption_budget(scale: SynapseScale, shard: str) -> Manifest:
    """Return the PodDisruptionBudget of one shard's workers.

    One at a time, so that a drained node's jobs find other workers; of a single worker too, since it hands its
    jobs over, and a budget of 0 would block the node's drain for ever.
    """
    name = naming.deployment_name(scale.metadata.name, shard)
    selector = naming.shard_selector(scale.metadata.name, shard)
    spec = {
        "maxUnavailable": 1,
        "selector": {"matchLabels": selector},
        # A worker that is not ready (a store is away) must not keep a node from being drained.
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }
    return manifest(scale, Kind.POD_DISRUPTION_BUDGET, name, {"spec": spec})
