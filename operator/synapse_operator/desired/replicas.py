"""How many workers a shard gets.

Unknown is never idle: while a store cannot say what is under way, no worker goes for lack of work. A number in the
spec is another matter: it is an order and holds at once, whatever the stores say.
"""

from __future__ import annotations

from synapse_operator.api.scale import SynapseScale
from synapse_operator.naming import Kind
from synapse_operator.observed import Observed, Rollout, Unknown


def wanted_replicas(scale: SynapseScale, observed: Observed) -> int:
    """Return the replicas of each shard's Deployment.

    With `enabled: false` the present workers stay while there is work, go when there is none, and one is
    brought back for a job that still arrives; `workers.replicas` stays the upper bound.
    """
    replicas = scale.spec.workers.replicas
    if scale.spec.enabled:
        return replicas
    present = max((Rollout.of(child).wanted for child in observed.of_kind(Kind.DEPLOYMENT)), default=0)
    idle = observed.idle
    if isinstance(idle, Unknown):
        return min(present, replicas)
    return 0 if idle else min(max(present, 1), replicas)
