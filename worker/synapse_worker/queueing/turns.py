"""Whose turn it is among the queues of one worker, and how much of it: weighted fair queueing, pure.

Each queue has a clock that goes on by one over its weight with every job taken from it; the queue whose clock is
behind comes first. So with all queues full each is served in proportion to its weight, one job or fifty at a time, and
a queue that comes and goes neither saves turns up nor pays for those that it did not need.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence


class Turns:
    """Shares the slots of one worker out among queues."""

    def __init__(self, weight: Callable[[str], int]) -> None:
        self._weight = weight
        self._clocks: dict[str, float] = {}
        self._now = 0.0
        """Where the queue that is most behind stands; never goes back."""

    def share(self, slots: int, queues: Sequence[str], idle: Collection[str] = ()) -> list[tuple[str, int]]:
        """Return the queues in the order in which they are to be asked, each with the most that it may give.

        Args:
            slots: how many jobs there is room for.
            queues: those that are served now.
            idle: those of them that had nothing more when they were asked last. Whatever they have now may take all
                slots; the others get their shares, one job at least.
        """
        busy = {queue: self._weight_of(queue) for queue in queues if queue not in idle}
        known = [self._clocks[queue] for queue in busy if queue in self._clocks]
        self._now = max(self._now, min(known, default=self._now))
        ahead = {queue: clock for queue, clock in self._clocks.items() if clock > self._now}
        self._clocks = dict.fromkeys(queues, self._now) | ahead
        total = sum(busy.values())
        return [
            (queue, max(1, slots * busy[queue] // total) if queue in busy else slots)
            for queue in sorted(queues, key=self._clocks.__getitem__)
        ]

    def took(self, queue: str, jobs: int) -> None:
        """Note how many jobs a queue has given."""
        self._clocks[queue] = self._clocks.get(queue, self._now) + jobs / self._weight_of(queue)

    def _weight_of(self, queue: str) -> int:
        return max(1, self._weight(queue))
