"""How many SynapseScales replace their pods at a time: a new image of a release concerns all of them at once.

In memory, since only the leader acts; one that starts anew learns from the Deployments who is at it. What counts as
replacing pods is `observed.Rollout`'s; how many Deployments of one scale do so at a time is `plan`'s.
"""

from __future__ import annotations

from collections.abc import Hashable

SCALES_AT_ONCE = 2


class Waves:
    """Whose turn it is. A scale that does not get through gives its turn up, as `Rollout.rolling` says."""

    def __init__(self) -> None:
        self._rolling: set[Hashable] = set()

    def may_roll(self, scale: Hashable, *, rolling: bool) -> bool:
        """Return whether a scale may replace pods now.

        Args:
            scale: the scale.
            rolling: whether it is at it.
        """
        if rolling:
            self._rolling.add(scale)
        else:
            self._rolling.discard(scale)
        return rolling or len(self._rolling) < SCALES_AT_ONCE

    def begin(self, scale: Hashable) -> None:
        """Note that a scale has begun."""
        self._rolling.add(scale)

    def forget(self, scale: Hashable) -> None:
        """Forget a scale that is gone."""
        self._rolling.discard(scale)
