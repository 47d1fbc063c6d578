"""What one turn of a chat is to the engine: an agent step of its own, its means, and its events.

The conversation is the agent step's (`engine.steps.agent`); here it gets the session's messages before it, and each of
its turns is kept and told as it ends. Claiming a turn and how it ends are `chat_job`'s.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from decimal import Decimal

from synapse_worker import model_work
from synapse_worker.engine.errors import DefinitionError, StepFailed
from synapse_worker.engine.json_values import JsonObject, JsonValue
from synapse_worker.engine.model import Definition
from synapse_worker.engine.models import Message, Replied, Said
from synapse_worker.engine.prompts import USER_INPUT
from synapse_worker.engine.steps import NestedResult, StepContext, agent
from synapse_worker.engine.steps.suspension import Halted
from synapse_worker.engine.turns import Done
from synapse_worker.errors import OwnershipLost, StoreRefused, StoreUnavailable
from synapse_worker.store import chat_turns, definitions
from synapse_worker.store.chat_turns import STEP_ID, OwnedTurn
from synapse_worker.store.claims import State
from synapse_worker.store.turns import TurnRow
from synapse_worker.surroundings import Surroundings

_IMAGE = re.compile(r"data:image/(png|jpeg|gif|webp);base64")
_OUTPUT = "response"
_OF_STEPS = ("orch_step_id", "step_name")
"""What events of steps have and those of chats have not."""


async def answer(
    surroundings: Surroundings,
    turn: OwnedTurn,
    agent_id: str,
    message: str,
    images: Sequence[str],
    halts: Callable[[], bool],
) -> tuple[str, list[State]]:
    """Have the agent answer a message; returns its answer, and the events that end the turn, without `done`.

    Args:
        images: base64 data URLs that come with the message.
        halts: whether the turn is to be given back instead of going on.

    Raises:
        EngineError: the agent could not answer.
        Halted: the turn is to be given back.
        OwnershipLost: another claim owns the session.
    """
    database = surroundings.database
    for number, image in enumerate(images, 1):
        if not _is_image(image):
            raise StepFailed(
                f"image {number} of the message cannot be shown to a model; accepted are base64 data URLs of PNG, JPEG,"
                " GIF and WebP, such as data:image/png;base64,..."
            )
    found = await surroundings.persist(
        lambda: definitions.Reached(database, surroundings.settings.default_tenant_id).agents([agent_id])
    )
    if agent_id not in found:
        raise DefinitionError(f"agent {agent_id!r} does not exist; sync it, then send the message again")
    # The agent's tools are those of its tenant; the id of what stands for an orchestration names none.
    document: State = {
        "id": turn.job_id,
        "entry_step_id": STEP_ID,
        "steps": [{"id": STEP_ID, "type": "agent", "agent_id": agent_id, "output_key": _OUTPUT}],
    }
    definition = Definition.parse(document)
    step = definition.steps[STEP_ID]
    work = await model_work.prepare(surroundings, definition, document, owner=found[agent_id][1])
    turns = await _ChatTurns.open(surroundings, turn, halts)

    async def nested(document: Mapping[str, object], said: JsonValue, number: int) -> NestedResult:
        raise DefinitionError(
            f"agent {agent_id!r} is an orchestration; enqueue a run of {document.get('id')!r} instead of a chat"
        )

    context = StepContext(
        definition=definition,
        sandbox=surroundings.sandbox,
        idempotency_key=f"{turn.job_id}:{STEP_ID}:1",
        nested=nested,
        means=work.given(turn.tenant_id, turns, before=_before(turn.messages), images=images),
    )
    # A store of ours that a tool needs is waited for, as in a run.
    outcome = await surroundings.persist(lambda: agent.execute(step, {USER_INPUT: message}, context))
    return str(outcome.output[_OUTPUT]), [
        {**_of_chat(event), "event_id": f"{turn.job_id}:end:{number}"} for number, event in enumerate(outcome.events)
    ]


def _before(messages: Sequence[object]) -> list[Message]:
    """Return what a session's messages are to a model; those of other roles, or without a text, are left out."""
    said: list[Message] = []
    for message in messages:
        if not isinstance(message, Mapping):
            continue
        content = message.get("content")
        if not isinstance(content, str) or not content:
            continue
        if message.get("role") == "user":
            given = message.get("images")
            images = [image for image in given if isinstance(image, str)] if isinstance(given, list) else []
            said.append(Said(content, tuple(filter(_is_image, images))))
        elif message.get("role") == "assistant":
            said.append(Replied(content))
    return said


def _is_image(url: str) -> bool:
    head, _, data = url.partition(",")
    try:
        return _IMAGE.fullmatch(head) is not None and bool(base64.b64decode(data, validate=True))
    except ValueError:
        return False


def _of_chat(event: JsonObject) -> State:
    return {key: value for key, value in event.items() if key not in _OF_STEPS}


class _ChatTurns:
    """A model's answers and tools' results of one turn of a chat, kept in PostgreSQL; see `engine.turns.Turns`."""

    def __init__(
        self,
        surroundings: Surroundings,
        turn: OwnedTurn,
        halts: Callable[[], bool],
        rows: dict[int, TurnRow],
        told: set[str],
    ) -> None:
        self._with = surroundings
        self._turn = turn
        self._halts = halts
        self._rows = rows
        self._last = max(rows, default=0)
        self._told = told
        self.tokens = sum(row.tokens for row in rows.values())
        self.cost_usd = sum((row.cost_usd for row in rows.values()), Decimal(0))

    @classmethod
    async def open(cls, surroundings: Surroundings, turn: OwnedTurn, halts: Callable[[], bool]) -> _ChatTurns:
        """Read what former owners did."""
        rows = await surroundings.persist(lambda: chat_turns.done_so_far(surroundings.database, turn))
        told: set[str] = set()
        if rows:
            try:
                told = await surroundings.chat_events.tail_ids(turn.session_id)
            except (StoreUnavailable, StoreRefused):
                told = set()  # an event twice with the same id does no harm, a missing one does
        return cls(surroundings, turn, halts, rows, told)

    async def once(
        self, turn: int, do: Callable[[], Awaitable[Done]], say: Callable[[JsonObject], Sequence[JsonObject]]
    ) -> JsonObject:
        """Return the value of a turn; see `engine.turns.Turns`."""
        kept = self._rows.get(turn)
        if kept is not None:
            value: JsonObject = kept.value  # type: ignore[assignment]  # what is stored was JSON
            if turn == self._last:  # the events of those before were written before it was stored
                self._tell(turn, say(value))
            return value
        if self._halts():
            raise Halted
        done = await do()
        row = TurnRow(turn, dict(done.value), done.tokens, done.cost_usd)
        if not await self._with.persist(lambda: chat_turns.record(self._with.database, self._turn, row)):
            raise OwnershipLost(self._turn.session_id)
        self._rows[turn] = row  # the conversation may be gone through again here, after a store was away
        self.tokens += done.tokens
        self.cost_usd += done.cost_usd
        self._tell(turn, say(done.value))
        return done.value

    def _tell(self, turn: int, events: Sequence[JsonObject]) -> None:
        prefix = f"{self._turn.job_id}:{STEP_ID}:1:{turn}"
        named = [{**_of_chat(event), "event_id": f"{prefix}.{number}"} for number, event in enumerate(events)]
        self._with.chat_events.hand(
            self._turn.session_id, self._turn.claim, [event for event in named if event["event_id"] not in self._told]
        )
