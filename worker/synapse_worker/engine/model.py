"""An orchestration as users write it, read once into a value that the rest of the engine can trust.

Reading is tolerant where users' files differ: any field may be null or missing, numbers may be text, and whatever
we do not know (canvas positions, caches, avatars) is ignored here and kept in the stored document. It is strict
where a run would go astray: unknown targets, double ids, a step without what it needs, or a step type that this
release does not run. Whether expressions and transforms can run is judged by `sandbox`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import cast

from synapse_worker.engine.errors import DefinitionError
from synapse_worker.engine.fields import Fields, text_of
from synapse_worker.engine.json_values import JsonObject, JsonValue

DEFAULT_MAX_TOTAL_TURNS = 100
DEFAULT_MAX_ITERATIONS = 3
DEFAULT_TIMEOUT_SECONDS = 300.0
DEFAULT_LOOP_COUNT = 3
MAX_ID_LENGTH = 255
"""Of a step's id: it is a column of the run's steps."""
DEFAULT_HUMAN_PROMPT = "Please provide input to continue."
MERGE_STRATEGIES = ("list", "concat", "dict")


class StepType(StrEnum):
    """Every step type that definitions may name."""

    AGENT = "agent"
    LLM = "llm"
    TOOL = "tool"
    EVALUATOR = "evaluator"
    PARALLEL = "parallel"
    MERGE = "merge"
    LOOP = "loop"
    HUMAN = "human"
    TRANSFORM = "transform"
    EXTRACT_JSON = "extract_json"
    IF_ELSE = "if_else"
    SWITCH = "switch"
    PRINT = "print"
    END = "end"


ASKS_MODELS: frozenset[StepType] = frozenset({StepType.AGENT, StepType.LLM, StepType.TOOL, StepType.EVALUATOR})
"""The step types that talk to models."""

CONTAINERS: frozenset[StepType] = frozenset({StepType.LOOP, StepType.PARALLEL})
"""The step types that consist of other steps; `runner` enters and leaves them, the others have a module in `steps`."""

MAX_NESTING = 10
"""Deepest nesting of loops and parallel steps in each other."""

_REQUIRED: Mapping[StepType, str] = {
    StepType.PRINT: "print_content",
    StepType.IF_ELSE: "if_condition",
    StepType.SWITCH: "switch_expression",
    StepType.TRANSFORM: "transform_code",
    StepType.AGENT: "agent_id",
    StepType.TOOL: "forced_tool",
}
_REQUIRED_LISTS: Mapping[StepType, str] = {
    StepType.MERGE: "input_keys",
    StepType.EXTRACT_JSON: "input_keys",
    StepType.LOOP: "loop_step_ids",
    StepType.PARALLEL: "parallel_branches",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One node of the graph; fields of other types than the step's own are empty.

    Attributes:
        max_iterations: finished visits after which a transition to the step is refused; 0 = never entered.
        timeout_seconds: seconds that one visit may take.
        switch_cases: text of the value -> target; a target of None ends the run.
        max_turns: answers of a model that one visit may take; None = as its agent says.
        allowed_tools: of its agent's tools those that it may use; empty = all of them.
        route_map: label -> target; a target of None ends the run.
        merge_strategy: one of MERGE_STRATEGIES.
        loop_count: how many times a loop does its body, `loop_step_ids` one after another.
        parallel_branches: for each branch the steps that it does, one after another.
        human_fields: what is to be filled in, each {name, type, label} as written; empty where a text is wanted.
        human_timeout_seconds: seconds that an answer may take; None = no limit.
    """

    id: str
    name: str
    type: StepType
    input_keys: tuple[str, ...] = ()
    output_key: str | None = None
    next_step_id: str | None = None
    max_iterations: int = DEFAULT_MAX_ITERATIONS
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    print_content: str = ""
    if_condition: str = ""
    if_true_step_id: str | None = None
    if_false_step_id: str | None = None
    switch_expression: str = ""
    switch_cases: Mapping[str, str | None] = field(default_factory=dict)
    switch_default_step_id: str | None = None
    transform_code: str = ""
    agent_id: str = ""
    prompt_template: str = ""
    model: str | None = None
    max_turns: int | None = None
    allowed_tools: tuple[str, ...] = ()
    forced_tool: str = ""
    evaluator_prompt: str = ""
    route_map: Mapping[str, str | None] = field(default_factory=dict)
    route_descriptions: Mapping[str, str] = field(default_factory=dict)
    merge_strategy: str = MERGE_STRATEGIES[0]
    loop_count: int = DEFAULT_LOOP_COUNT
    loop_step_ids: tuple[str, ...] = ()
    parallel_branches: tuple[tuple[str, ...], ...] = ()
    human_prompt: str = DEFAULT_HUMAN_PROMPT
    human_fields: tuple[Mapping[str, JsonValue], ...] = ()
    human_timeout_seconds: float | None = None

    @property
    def title(self) -> str:
        """The step as a sentence names it."""
        return f"step {self.name!r} ({self.id})"


@dataclass(frozen=True, slots=True)
class Definition:
    """A graph of steps that can be run.

    Attributes:
        steps: id -> step, in the order of the document.
        state_schema: state key -> {type, default, description}, as written.
        max_total_turns: steps that one run may do.
        timeout_minutes: minutes that a run may take; None = no limit of its own.
        max_total_cost_usd: what its model requests may cost; None = no limit.
    """

    id: str
    name: str
    description: str
    steps: Mapping[str, Step]
    entry_step_id: str
    state_schema: Mapping[str, JsonValue]
    max_total_turns: int
    timeout_minutes: float | None
    max_total_cost_usd: float | None = None

    @property
    def asks_models(self) -> bool:
        """Whether a step of it talks to a model."""
        return any(step.type in ASKS_MODELS for step in self.steps.values())

    @property
    def title(self) -> str:
        """The orchestration as a sentence names it."""
        return f"orchestration {self.name!r} ({self.id})"

    @property
    def nests(self) -> bool:
        """Whether a run of it may have nested runs: an agent may be an orchestration itself."""
        return any(step.type is StepType.AGENT for step in self.steps.values())

    def source_of(self, key: str, past: Sequence[Mapping[str, object]]) -> str:
        """Return how the producer of a state key is named, `<step name> (<step id>)`; the key where no step is.

        Args:
            key: the state key.
            past: the run's step_history so far; of several steps with that output_key the last to finish counts.
        """
        producers = {step.id: step for step in self.steps.values() if step.output_key == key}
        if not producers:
            return key
        step = next(iter(producers.values()))
        if len(producers) > 1:
            finished = (entry.get("step_id") for entry in reversed(past) if entry.get("status") == "completed")
            step = next((producers[str(each)] for each in finished if each in producers), step)
        return f"{step.name} ({step.id})"

    @classmethod
    def parse(cls, document: Mapping[str, object], *, source: str = "") -> Definition:
        """Read a definition.

        Args:
            document: the decoded JSON of one orchestration.
            source: the file or object it came from; put in front of an error's sentence.

        Raises:
            DefinitionError: it cannot be run; one sentence with orchestration, step and what is accepted.
        """
        try:
            return _definition(document)
        except DefinitionError as error:
            if source:
                raise DefinitionError(f"{source}: {error}") from None
            raise


def _definition(document: Mapping[str, object]) -> Definition:
    identity = text_of(document.get("id"))
    if identity is None:
        raise DefinitionError("The orchestration has no id.")
    name = text_of(document.get("name")) or identity
    fields = Fields(document, f"orchestration {name!r} ({identity})")
    items = fields.sequence("steps")
    if not items:
        raise fields.error("has no steps")
    steps: dict[str, Step] = {}
    for number, item in enumerate(items, 1):
        step = _step(item, number, fields)
        if step.id in steps:
            raise fields.error(f"has two steps with the id {step.id!r}; ids are unique")
        steps[step.id] = step
    # Users' files may leave the entry out; the canvas shows the first step as the start then.
    entry = fields.text("entry_step_id") or next(iter(steps))
    if entry not in steps:
        raise fields.error(f"starts at {entry!r}, which is no step; {_ids(steps)}")
    for step in steps.values():
        for way, target in _targets(step):
            if target not in steps:
                names = "names" if way in ("loop_step_ids", "parallel_branches") else "is"
                raise fields.error(f"has {step.title} whose {way} {names} {target!r}, which is no step; {_ids(steps)}")
    for step in list(steps.values()):
        if step.type is StepType.PARALLEL:
            chains = tuple(_chain(steps, step, branch) for branch in step.parallel_branches)
            steps[step.id] = replace(step, parallel_branches=chains)
    for step in steps.values():
        _contained(steps, step, (), fields)
    return Definition(
        id=identity,
        name=name,
        description=fields.text("description") or "",
        steps=MappingProxyType(steps),
        entry_step_id=entry,
        state_schema=MappingProxyType(cast(JsonObject, fields.mapping("state_schema"))),
        max_total_turns=fields.whole("max_total_turns", DEFAULT_MAX_TOTAL_TURNS, minimum=1),
        timeout_minutes=fields.positive("timeout_minutes"),
        max_total_cost_usd=fields.positive("max_total_cost_usd"),
    )


def _step(item: object, number: int, parent: Fields) -> Step:
    if not isinstance(item, Mapping):
        raise parent.error(f"has a step (number {number}) that is no object")
    identity = text_of(item.get("id"))
    if identity is None:
        raise parent.error(f"has a step (number {number}) without an id")
    if len(identity) > MAX_ID_LENGTH:
        raise parent.error(f"has a step (number {number}) with an id of over {MAX_ID_LENGTH} characters")
    name = text_of(item.get("name")) or identity
    fields = Fields(item, f"{parent.title}, step {name!r} ({identity})")
    kind = _step_type(fields)
    required = _REQUIRED.get(kind)
    # An empty text to print is a choice; an empty condition or an empty script is not.
    if (
        required is not None
        and not fields.code(required).strip()
        and not (kind is StepType.PRINT and item.get(required) == "")
    ):
        raise fields.error(f"is of type {kind} and needs {required}")
    if (listed := _REQUIRED_LISTS.get(kind)) is not None and not fields.sequence(listed):
        raise fields.error(f"is of type {kind} and needs {listed}")
    return Step(
        id=identity,
        name=name,
        type=kind,
        input_keys=fields.texts("input_keys"),
        output_key=fields.text("output_key"),
        next_step_id=fields.text("next_step_id"),
        max_iterations=fields.whole("max_iterations", DEFAULT_MAX_ITERATIONS, minimum=0),
        timeout_seconds=fields.positive("timeout_seconds") or DEFAULT_TIMEOUT_SECONDS,
        print_content=fields.code("print_content"),
        if_condition=fields.code("if_condition"),
        if_true_step_id=fields.text("if_true_step_id"),
        if_false_step_id=fields.text("if_false_step_id"),
        switch_expression=fields.code("switch_expression"),
        switch_cases=MappingProxyType(_cases(fields)),
        switch_default_step_id=fields.text("switch_default_step_id"),
        transform_code=fields.code("transform_code"),
        agent_id=fields.text("agent_id") or "",
        prompt_template=fields.code("prompt_template"),
        model=fields.text("model"),
        max_turns=fields.whole("max_turns", 0, minimum=0) or None,
        allowed_tools=fields.texts("allowed_tools"),
        forced_tool=fields.text("forced_tool") or "",
        evaluator_prompt=fields.code("evaluator_prompt"),
        route_map=MappingProxyType(_routes(fields, kind)),
        route_descriptions=MappingProxyType(
            {str(label): str(text) for label, text in fields.mapping("route_descriptions").items() if text}
        ),
        merge_strategy=_merge_strategy(fields),
        loop_count=fields.whole("loop_count", DEFAULT_LOOP_COUNT, minimum=1),
        loop_step_ids=fields.texts("loop_step_ids"),
        parallel_branches=_branches(fields),
        human_prompt=fields.code("human_prompt") or DEFAULT_HUMAN_PROMPT,
        human_fields=_human_fields(fields),
        human_timeout_seconds=fields.positive("human_timeout_seconds"),
    )


def _step_type(fields: Fields) -> StepType:
    written = fields.text("type")
    accepted = "this release runs " + ", ".join(sorted(StepType))
    if written is None:
        raise fields.error(f"has no type; {accepted}")
    try:
        return StepType(written.strip().lower())
    except ValueError:
        raise fields.error(f"is of type {written!r}, which is no step type; {accepted}") from None


def _merge_strategy(fields: Fields) -> str:
    written = (fields.text("merge_strategy") or MERGE_STRATEGIES[0]).strip().lower()
    if written not in MERGE_STRATEGIES:
        raise fields.error(f"has the merge_strategy {written!r}; it is one of {', '.join(MERGE_STRATEGIES)}")
    return written


def _branches(fields: Fields) -> tuple[tuple[str, ...], ...]:
    branches: list[tuple[str, ...]] = []
    for item in fields.sequence("parallel_branches"):
        ids = [text_of(part) for part in item] if isinstance(item, list) else [None]
        if None in ids:
            raise fields.error("has parallel_branches that are no lists of step ids")
        if ids:
            branches.append(tuple(cast(list[str], ids)))
    return tuple(branches)


def _human_fields(fields: Fields) -> tuple[Mapping[str, JsonValue], ...]:
    found: list[Mapping[str, JsonValue]] = []
    for item in fields.sequence("human_fields"):
        if not isinstance(item, Mapping) or text_of(item.get("name")) is None:
            raise fields.error("has human_fields that are no objects with a name")
        found.append(cast(JsonObject, item))
    return tuple(found)


def _cases(fields: Fields) -> dict[str, str | None]:
    return _ways(fields, "switch_cases", "switch case")


def _routes(fields: Fields, kind: StepType) -> dict[str, str | None]:
    routes = _ways(fields, "route_map", "route")
    if kind is StepType.EVALUATOR and not routes:
        raise fields.error(f"is of type {kind} and needs a route_map with at least one label")
    return routes


def _ways(fields: Fields, field: str, title: str) -> dict[str, str | None]:
    ways: dict[str, str | None] = {}
    for label, target in fields.mapping(field).items():
        if target is not None and text_of(target) is None and target != "":
            raise fields.error(f"has a {title} {label!r} whose target is no step id")
        ways[str(label)] = text_of(target)
    return ways


def _targets(step: Step) -> Iterator[tuple[str, str]]:
    """Each way out of the step that names a target: (as a sentence names it, step id)."""
    named = [
        ("next_step_id", step.next_step_id),
        ("if_true_step_id", step.if_true_step_id),
        ("if_false_step_id", step.if_false_step_id),
        ("switch_default_step_id", step.switch_default_step_id),
        *((f"switch case {value!r}", target) for value, target in step.switch_cases.items()),
        *((f"route {label!r}", target) for label, target in step.route_map.items()),
        *(("loop_step_ids", target) for target in step.loop_step_ids),
        *(("parallel_branches", target) for branch in step.parallel_branches for target in branch),
    ]
    for way, target in named:
        if target is not None:
            yield way, target


def _chain(steps: Mapping[str, Step], parallel: Step, branch: tuple[str, ...]) -> tuple[str, ...]:
    """The steps of a branch: as listed; where only its first is, on along next_step_id to where the branches meet."""
    if len(branch) > 1:
        return branch
    chain = [branch[0]]
    ends = {None, parallel.next_step_id, parallel.id}
    while (following := steps[chain[-1]].next_step_id) not in ends and following not in chain:
        chain.append(cast(str, following))
    return tuple(chain)


def _contained(steps: Mapping[str, Step], step: Step, above: tuple[str, ...], fields: Fields) -> frozenset[str]:
    """All step ids inside a loop or parallel step, whatever the depth.

    Raises:
        DefinitionError: it contains itself, nests too deeply, or two branches share a step.
    """
    if step.id in above:
        raise fields.error(f"has {step.title} that contains itself")
    if len(above) > MAX_NESTING:
        raise fields.error(f"nests loops and parallel steps deeper than {MAX_NESTING} levels at {step.title}")
    above = (*above, step.id)
    inside = [
        frozenset(part).union(*(_contained(steps, steps[each], above, fields) for each in part))
        for part in ([step.loop_step_ids] if step.type is StepType.LOOP else _own_branches(step))
    ]
    owner: dict[str, int] = {}
    for number, part in enumerate(inside, 1):
        for each in sorted(part):
            if each in owner:
                raise fields.error(
                    f"has {step.title} whose branches {owner[each]} and {number} both do {steps[each].title};"
                    " a step belongs to one branch, and where branches meet is the next_step_id of the parallel step"
                )
            owner[each] = number
    return frozenset().union(*inside)


def _own_branches(step: Step) -> tuple[tuple[str, ...], ...]:
    return step.parallel_branches if step.type is StepType.PARALLEL else ()


def _ids(steps: Mapping[str, Step]) -> str:
    shown = list(steps)[:10]
    return "its steps are " + ", ".join(shown) + (", ..." if len(steps) > len(shown) else "")
