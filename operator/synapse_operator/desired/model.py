"""What `desired_for_scale` answers: everything that is wanted, or why nothing may be touched now."""

from __future__ import annotations

from dataclasses import dataclass

from synapse_operator.api.reasons import Reason
from synapse_operator.desired.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Desired:
    """The children of one scale.

    Attributes:
        manifests: all of them; an object comes after those that it needs.
        replicas: workers wanted for each shard.
        workers: workers wanted over all shards.
        image: the image that they get.
    """

    manifests: tuple[Manifest, ...]
    replicas: int
    workers: int
    image: str


@dataclass(frozen=True, slots=True)
class Blocked:
    """The children stay as they are until somebody repairs what `sentence` says."""

    reason: Reason
    sentence: str
