"""Whose turn it is among the queues of one worker: smooth weighted round robin, pure.

With all queues full, each is served in proportion to its weight, and the turns of one are spread over the time
(the algorithm is nginx's: nginx.org, commit 52327e0627f4). What a turn is worth is `loop`'s matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


class Turns:
    """Orders queues, turn by turn."""

    def __init__(self, queues: Sequence[str], weight: Callable[[str], int]) -> None:
        self._weight = weight
        self._credits = dict.fromkeys(queues, 0)

    def next(self) -> list[str]:
        """Return the queues as they are to be asked now: the one whose turn it is, then the others as listed."""
        total = 0
        for queue in self._credits:
            weight = max(1, self._weight(queue))
            self._credits[queue] += weight
            total += weight
        first = max(self._credits, key=lambda queue: self._credits[queue])
        self._credits[first] -= total
        return [first, *(queue for queue in self._credits if queue != first)]
