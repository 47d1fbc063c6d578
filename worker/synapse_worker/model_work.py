"""What steps that talk to models need of the stores: definitions and keys at a job's start, and turns kept as they end.

A job whose orchestration has no such step does none of it. What the steps do with it is `engine`'s.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal

from pydantic import SecretStr

from synapse_worker.engine.errors import CostLimit, EngineError
from synapse_worker.engine.json_values import JsonObject
from synapse_worker.engine.model import ASKS_MODELS, Definition, Step
from synapse_worker.engine.models import Message
from synapse_worker.engine.providers import Providers
from synapse_worker.engine.runner import Execute
from synapse_worker.engine.snapshot import MCP_SERVERS, TOOLS, Snapshot, collect
from synapse_worker.engine.steps.asking import endpoint_of
from synapse_worker.engine.steps.context import ModelMeans
from synapse_worker.engine.steps.suspension import Halted
from synapse_worker.engine.tools import ToolSecrets, Vault
from synapse_worker.engine.turns import Done, Turns
from synapse_worker.errors import OwnershipLost, StoreRefused, StoreUnavailable
from synapse_worker.store import definitions, turns
from synapse_worker.store.claims import OwnedRun, State
from synapse_worker.store.turns import TurnRow
from synapse_worker.surroundings import Surroundings


class ModelWork:
    """What the steps of one job that talk to models have in common, those of nested runs included.

    Attributes:
        document: the orchestration's document with the snapshot in it, to be kept with the run.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        document: State,
        snapshot: Snapshot,
        providers: Providers,
        secrets: ToolSecrets,
    ) -> None:
        self.document = document
        self._with = surroundings
        self._snapshot = snapshot
        self._providers = providers
        self._secrets = secrets

    async def means(
        self,
        run: OwnedRun,
        definition: Definition,
        document: State,
        task: Execute,
        halts: Callable[[], bool],
        around: Mapping[str, Definition],
    ) -> tuple[ModelMeans, StepTurns] | None:
        """Return what one visit of a step is given; None for a step that talks to no model.

        Args:
            run: the run, or the nested one, that the step is of.
            definition: its definition, and `document` what that is kept as.
            document: see there.
            task: the step, and its visit.
            halts: whether the run is to be given back instead of doing one more turn.
            around: definitions of the runs that it is nested in, by their ids: its cost is theirs too.
        """
        if task.step.type not in ASKS_MODELS:
            return None
        kept = document if run.definition is None else None
        payers = {run.run_id: definition, **around}
        turns = await StepTurns.open(self._with, run, task.step, task.visit, payers, kept, halts)
        given = self.given(run.tenant_id, turns)
        with suppress(EngineError):  # the step itself says what is wrong
            endpoint = endpoint_of(task.step, given)
            if endpoint is not None:
                # Here, since it takes seconds in a new process and those are not of the step's timeout_seconds.
                await self._with.models.load(endpoint)
        return given, turns

    def given(
        self,
        tenant_id: str,
        turns: Turns,
        *,
        before: Sequence[Message] = (),
        images: Sequence[str] = (),
    ) -> ModelMeans:
        """Return what one conversation is given; see `ModelMeans`."""
        return ModelMeans(
            models=self._with.models,
            providers=self._providers,
            snapshot=self._snapshot,
            secrets=self._secrets,
            vault=Vault(self._with.blobs, tenant_id),
            turns=turns,
            before=tuple(before),
            images=tuple(images),
        )


async def prepare(
    surroundings: Surroundings, definition: Definition, document: State, *, owner: str | None = None
) -> ModelWork:
    """Read what an orchestration reaches, unless the run keeps it already, and the keys as they are now.

    Args:
        surroundings: where.
        definition: the orchestration, and `document` what it was read from.
        document: see there.
        owner: whose it is, where it is none that is stored.

    Raises:
        DefinitionError: it reaches an agent or orchestration that does not exist.
    """
    database = surroundings.database
    read = definitions.Reached(database, surroundings.settings.default_tenant_id)
    snapshot = Snapshot.found_in(document)
    if snapshot is None:
        snapshot = await surroundings.persist(lambda: collect(definition, read, owner=owner))
        document = snapshot.kept_in(document)
    stored = await surroundings.persist(lambda: definitions.stored_settings(database))
    tools, servers = snapshot.owners_of(TOOLS, snapshot.tools), snapshot.owners_of(MCP_SERVERS, snapshot.mcp_servers)
    secrets = await surroundings.persist(lambda: read.secrets(tools, servers))
    tokens = dict(secrets.tokens)
    tokens |= {
        name: value
        for key, value in stored.items()
        if key.startswith(definitions.MCP_TOKEN)
        and isinstance(value, str)
        and (name := key.removeprefix(definitions.MCP_TOKEN)) not in secrets.others
    }
    return ModelWork(
        surroundings,
        document,
        snapshot,
        Providers(stored),
        ToolSecrets(
            {name: SecretStr(token) for name, token in tokens.items()},
            {
                tool: {name: SecretStr(value) for name, value in headers.items()}
                for tool, headers in secrets.headers.items()
            },
        ),
    )


class StepTurns:
    """The turns of one visit, kept in PostgreSQL; see `engine.turns.Turns`."""

    def __init__(
        self,
        surroundings: Surroundings,
        run: OwnedRun,
        step: Step,
        visit: int,
        payers: Mapping[str, Definition],
        document: State | None,
        halts: Callable[[], bool],
        stored: turns.StoredTurns,
        told: set[str],
    ) -> None:
        self._with = surroundings
        self._run = run
        self._step = step
        self._visit = visit
        self._payers = payers
        self._document = document
        self._halts = halts
        self._rows = dict(stored.rows)
        self._last = max(stored.rows, default=0)
        self._told = told
        self._costs = stored.costs_usd
        self.tokens = sum(row.tokens for row in stored.rows.values())
        self.cost_usd = sum((row.cost_usd for row in stored.rows.values()), Decimal(0))

    @classmethod
    async def open(
        cls,
        surroundings: Surroundings,
        run: OwnedRun,
        step: Step,
        visit: int,
        payers: Mapping[str, Definition],
        document: State | None,
        halts: Callable[[], bool],
    ) -> StepTurns:
        """Read what former owners did of this visit; `payers` are this run and those around it, in this order."""
        around = list(payers)[1:]
        stored = await surroundings.persist(
            lambda: turns.read(surroundings.database, run, step.id, visit, around=around)
        )
        told: set[str] = set()
        if stored.rows:
            try:
                told = await surroundings.events.tail_ids(run.run_id)
            except (StoreUnavailable, StoreRefused):
                told = set()  # an event twice with the same id does no harm, a missing one does
        return cls(surroundings, run, step, visit, payers, document, halts, stored, told)

    async def once(
        self, turn: int, do: Callable[[], Awaitable[Done]], say: Callable[[JsonObject], Sequence[JsonObject]]
    ) -> JsonObject:
        """Return the value of a turn; see `engine.turns.Turns`."""
        kept = self._rows.get(turn)
        if kept is not None:
            if turn == self._last:  # the events of those before were written before it was stored
                self._tell(turn, say(_json(kept.value)))
            return _json(kept.value)
        self._check_cost()
        if self._halts():
            raise Halted
        done = await do()
        row = TurnRow(turn, dict(done.value), done.tokens, done.cost_usd)
        around = list(self._payers)[1:]
        costs = await self._with.persist(
            lambda: turns.record(
                self._with.database,
                self._run,
                self._step.id,
                self._visit,
                row,
                around=around,
                definition=self._document,
            )
        )
        if costs is None:
            raise OwnershipLost(self._run.run_id)
        self._rows[turn] = row  # the step may be done again here, after a store was away
        self._document = None
        self._costs = costs
        self.tokens += done.tokens
        self.cost_usd += done.cost_usd
        self._tell(turn, say(done.value))
        self._check_cost()
        return done.value

    async def forget(self) -> None:
        """Drop what is kept: the visit has its checkpoint, or has failed for good."""
        await self._with.persist(lambda: turns.forget(self._with.database, self._run, self._step.id, self._visit))

    def _check_cost(self) -> None:
        for run_id, definition in self._payers.items():
            if definition.max_total_cost_usd is None:
                continue
            cost, most = self._costs.get(run_id, Decimal(0)), Decimal(str(definition.max_total_cost_usd))
            if cost > most:
                raise CostLimit(
                    f"the run has cost {cost:.6f} USD, and max_total_cost_usd of {definition.title} is {most:f}"
                )

    def _tell(self, turn: int, events: Sequence[JsonObject]) -> None:
        prefix = f"{self._run.run_id}:{self._step.id}:{self._visit}:{turn}"
        named = [{**event, "event_id": f"{prefix}.{number}"} for number, event in enumerate(events)]
        self._with.events.hand(
            self._run.run_id, self._run.claim, [event for event in named if event["event_id"] not in self._told]
        )


def _json(value: State) -> JsonObject:
    return value  # type: ignore[return-value]  # what is stored was JSON
