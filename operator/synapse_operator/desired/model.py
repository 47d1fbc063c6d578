"""What `desired_for_scale` answers: everything that is wanted, or why nothing may be touched now."""

from __future__ import annotations

from dataclasses import dataclass

from synapse_operator.api.reasons import Reason
from synapse_operator.desired.manifest import Manifest
from synapse_operator.desired.shards import Flip, Shard


@dataclass(frozen=True, slots=True)
class Desired:
    """The children of one scale.

    Attributes:
        manifests: all of them; an object comes after those that it needs.
        shards: those with a Deployment, by index.
        flip: how the topology's row is to be changed, once the children are as they should be.
        image: the image that workers get.
    """

    manifests: tuple[Manifest, ...]
    shards: tuple[Shard, ...]
    flip: Flip | None
    image: str

    @property
    def workers(self) -> int:
        """Workers that are wanted over all shards."""
        return sum(shard.replicas for shard in self.shards)


@dataclass(frozen=True, slots=True)
class Blocked:
    """The children stay as they are until somebody repairs what `sentence` says."""

    reason: Reason
    sentence: str
