"""The events that a run itself says, in the form in which they go into its stream; steps say their own.

Pure: an `event_id` depends on what is said only, so that an event which is written twice can be told.
"""

from __future__ import annotations

from synapse_worker.store.claims import State


def done(run_id: str) -> State:
    return {"type": "done", "event_id": f"{run_id}:done"}
