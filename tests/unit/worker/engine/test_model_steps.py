"""Steps that talk to models: what is said, asked and called, and going on with what another worker began."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path

import pytest

from synapse_worker.engine.errors import DefinitionError, EngineError, ModelMisled, ModelRefused, ToolsUnavailable
from synapse_worker.engine.json_values import JsonObject, JsonValue
from synapse_worker.engine.models import Models
from synapse_worker.engine.outcome import StepOutcome
from synapse_worker.engine.providers import Providers
from synapse_worker.engine.sandbox import Sandbox
from synapse_worker.engine.snapshot import Snapshot
from synapse_worker.engine.steps import EXECUTORS, NestedResult, StepContext, evaluator
from synapse_worker.engine.steps.context import ModelMeans
from synapse_worker.engine.tools import ToolSecrets, Vault
from synapse_worker.engine.turns import Done
from synapse_worker.store.local_blobs import LocalBlobs
from tests.support.mcp_server import mcp_server
from tests.support.model_server import ModelServer, call, model_server, script
from tests.unit.worker.engine.documents import Document, a_definition, a_print

DOUBLE: dict[str, object] = {
    "name": "double",
    "tool_type": "python",
    "inputSchema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
    "code": "print(json.dumps({'doubled': _args['n'] * 2}))",
}


class Killed(Exception):
    """The worker is gone."""


class KeptTurns:
    """Turns in a dict, that outlive the worker; `most` new ones may be done until it is killed."""

    def __init__(self, kept: dict[int, Done], most: int = 1000) -> None:
        self._kept = kept
        self._most = most
        self.events: list[JsonObject] = []

    @property
    def tokens(self) -> int:
        return sum(done.tokens for done in self._kept.values())

    @property
    def cost_usd(self) -> Decimal:
        return sum((done.cost_usd for done in self._kept.values()), Decimal(0))

    async def once(
        self, turn: int, do: Callable[[], Awaitable[Done]], say: Callable[[JsonObject], Sequence[JsonObject]]
    ) -> JsonObject:
        if turn not in self._kept:
            if self._most == 0:
                raise Killed
            self._most -= 1
            self._kept[turn] = await do()
            self.events += say(self._kept[turn].value)
        return self._kept[turn].value


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server() as running:
        yield running


@pytest.fixture
async def models() -> AsyncIterator[Models]:
    async with Models(attempts=1) as opened:
        yield opened


class Bench:
    """Does one visit of a step."""

    def __init__(self, sandbox: Sandbox, models: Models, server: ModelServer) -> None:
        self._sandbox = sandbox
        self._models = models
        self._server = server
        self.snapshot = Snapshot(tools={"double": DOUBLE})
        self.turns = KeptTurns({})
        self.nested: list[tuple[object, JsonValue, int]] = []

    async def __call__(
        self, fields: Document, *, past: Sequence[Mapping[str, object]] = (), **state: object
    ) -> StepOutcome:
        definition = a_definition(
            {"id": "s", "name": "Step", **fields}, a_print("next"), a_print("made", output_key="k")
        )
        step = definition.steps["s"]
        means = ModelMeans(
            models=self._models,
            providers=Providers(self._server.settings()),
            snapshot=self.snapshot,
            secrets=ToolSecrets(),
            vault=Vault(LocalBlobs(Path("/nonexistent")), "acme"),
            turns=self.turns,
        )

        async def nested(document: Mapping[str, object], given: JsonValue, number: int) -> NestedResult:
            self.nested.append((document["id"], given, number))
            return NestedResult("what it says", {})

        context = StepContext(
            definition=definition,
            sandbox=self._sandbox,
            idempotency_key="run_1:s:1",
            nested=nested,
            past=past,
            means=means,
        )
        return await EXECUTORS[step.type](step, {"user_input": "hi", **state}, context)

    def with_agent(self, **fields: object) -> Document:
        """Have an agent; returns the fields of a step that names it."""
        agent: dict[str, object] = {
            "id": "a",
            "name": "Ada",
            "system_prompt": "Be careful.",
            "tools": ["double"],
            **fields,
        }
        self.snapshot = Snapshot({"a": agent}, self.snapshot.tools, self.snapshot.mcp_servers)
        return {"type": "agent", "agent_id": "a", "output_key": "out", "next_step_id": "next"}


@pytest.fixture
def bench(sandbox: Sandbox, models: Models, server: ModelServer) -> Bench:
    return Bench(sandbox, models, server)


async def test_llm(bench: Bench, server: ModelServer) -> None:
    result = await bench(
        {"type": "llm", "prompt_template": "About {state.topic}", "input_keys": ["k", "gone", "l"], "output_key": "o"},
        topic="cats",
        k="made by a step",
        l=[1, {"a": "ü"}],
    )
    said = 'About cats\n\nContext:\n\n[MADE (made)]:\nmade by a step\n\n[l]:\n[1, {"a": "ü"}]'
    assert result.output == {"o": said}
    assert [event["type"] for event in result.events] == ["final"]
    assert (result.tokens, result.cost_usd) == (15, Decimal(0))
    assert server.asked[0].system == ""


async def test_without_a_template_the_user_input_is_the_task(bench: Bench) -> None:
    result = await bench({"type": "llm", "input_keys": ["user_input"], "output_key": "o"})
    assert result.output == {"o": "hi"}


async def test_a_step_that_runs_again_is_told_why(bench: Bench) -> None:
    past: list[dict[str, object]] = [
        {"step_id": "s", "step_name": "Step"},
        {"step_id": "judge", "step_name": "Judge", "routed_to": "s", "reasoning": "too dull"},
    ]
    result = await bench({"type": "llm", "prompt_template": "Go", "output_key": "o"}, past=past, o="before")
    assert result.output["o"] == (
        "Go\n\nYou have worked on this before; this is run 2 of the step 'Step'.\n\n"
        "[Your previous output]:\nbefore\n\n[Why it runs again, from Judge]:\ntoo dull"
    )
    bench.turns = KeptTurns({})
    again = await bench({"type": "llm", "prompt_template": "Go"}, past=[*past, past[0], {"step_name": "If"}])
    assert str(again.events[0]["response"]).endswith("It runs again because the flow came back to it from 'If'.")


TURNS = [call("double", n=n) for n in range(7)]


@pytest.mark.parametrize("done", range(16))
async def test_another_worker_goes_on_where_one_was_killed(bench: Bench, server: ModelServer, done: int) -> None:
    step = {**bench.with_agent(), "prompt_template": script(*TURNS, {"say": "at last $last"})}
    kept: dict[int, Done] = {}
    bench.turns = KeptTurns(kept, done)
    if done < 15:
        with pytest.raises(Killed):
            await bench(step)
    bench.turns = KeptTurns(kept)
    result = await bench(step)
    assert result.output == {"out": 'at last {"doubled": 12}'}
    assert result.tokens == 8 * 15
    # Every answer was asked for once, and nothing that was kept is told twice.
    assert Counter(server.turns) == Counter(range(8))
    assert len(kept) == 15


async def test_max_turns_is_the_steps_or_the_agents(bench: Bench, server: ModelServer) -> None:
    prompt = script(*TURNS, {"say": "at last"})
    for step, most in (
        ({**bench.with_agent(max_turns=3), "prompt_template": prompt}, 3),
        ({**bench.with_agent(max_turns=3), "prompt_template": prompt, "max_turns": 2}, 2),
    ):
        bench.turns = KeptTurns({})
        with pytest.raises(
            ModelMisled, match=f"the agent 'Ada' still called tools in its answer {most}, and max_turns"
        ):
            await bench(step)
    assert len(server.asked) == 5


async def test_an_agents_model_and_provider(bench: Bench, server: ModelServer) -> None:
    prompt = {"prompt_template": "hi"}
    await bench({**bench.with_agent(model="named", provider="openai_compatible"), **prompt})
    bench.turns = KeptTurns({})
    await bench({**bench.with_agent(model="claude-x", provider="anthropic"), **prompt, "model": "scripted"})
    assert [asked.body["model"] for asked in server.asked] == ["named", "scripted"]
    bench.turns = KeptTurns({})
    with pytest.raises(ModelRefused, match="There is no provider 'ollama' here"):
        await bench({**bench.with_agent(model="named", provider="ollama"), **prompt})


async def test_an_agent_that_is_an_orchestration_runs_it(bench: Bench, server: ModelServer) -> None:
    step = {**bench.with_agent(orchestration_id="o2"), "prompt_template": "about {state.user_input}"}
    bench.snapshot = Snapshot(bench.snapshot.agents, orchestrations={"o2": {"id": "o2"}})
    result = await bench(step)
    assert bench.nested == [("o2", "about hi", 1)]
    assert (result.output, result.next_step_id) == ({"out": "what it says"}, "next")
    assert server.asked == []


@pytest.mark.parametrize(
    "entry",
    [
        {"call": "route_b_", "args": {"reasoning": "why"}},
        {"say": 'Well: {"tool": "route_b_", "arguments": {"reasoning": "why"}}'},
        {"say": '```json\n{"tool": "b!", "reasoning": "why"}\n```'},
    ],
)
async def test_evaluator(bench: Bench, entry: dict[str, object]) -> None:
    step: Document = {
        "type": "evaluator",
        "evaluator_prompt": script(entry),
        "route_map": {"a": None, "b!": "next"},
        "output_key": "o",
    }
    result = await bench(step)
    assert result.next_step_id == "next"
    assert result.output == {"o": {"decision": "b!", "reasoning": "why"}}
    assert result.history == {"routed_to": "next", "decision": "b!", "reasoning": "why"}
    assert [(event["type"], event["target_step_id"]) for event in result.events] == [("routing_decision", "next")]


async def test_a_null_route_ends_the_run(bench: Bench) -> None:
    prompt = script({"call": "route_a", "args": "not json"})
    result = await bench({"type": "evaluator", "evaluator_prompt": prompt, "route_map": {"a": None}})
    assert (result.next_step_id, result.history["decision"]) == (None, "a")


@pytest.mark.parametrize("first", [call("route_c"), call("nothing"), {"say": "hm"}, {"say": '{"tool": "route_c"}'}])
async def test_an_unknown_route_is_asked_again(bench: Bench, server: ModelServer, first: dict[str, object]) -> None:
    step: Document = {
        "type": "evaluator",
        "evaluator_prompt": script(first, {"say": "route_a"}),
        "route_map": {"a": None},
    }
    assert (await bench(step)).history["decision"] == "a"
    bench.turns = KeptTurns({})
    step["evaluator_prompt"] = script(first, {"say": "neither"})
    with pytest.raises(ModelMisled, match="the model chose 'neither', which is no route; accepted are a"):
        await bench(step)
    assert len(server.asked) == 4


async def test_tool(bench: Bench, server: ModelServer) -> None:
    step: Document = {
        "type": "tool",
        "forced_tool": "double",
        "prompt_template": script({"say": "no"}, call("double"), call("double", n=4)),
        "output_key": "o",
    }
    result = await bench(step)
    assert result.output == {"o": {"doubled": 8}}
    assert [event["tool_name"] for event in bench.turns.events] == ["double"] * 4
    assert server.asked[0].body["tool_choice"] == "required"
    assert len(server.asked) == 3


async def test_a_tool_that_never_works_fails_the_step(bench: Bench) -> None:
    step: Document = {"type": "tool", "forced_tool": "double", "prompt_template": script(call("double"))}
    with pytest.raises(ModelMisled, match=r"the tool 'double' was not called with success: The arguments lack n\."):
        await bench(step)
    with pytest.raises(DefinitionError, match="there is no tool 'gone'"):
        await bench({**step, "forced_tool": "gone"})


@pytest.mark.parametrize("sse", [False, True])
async def test_mcp_tools(bench: Bench, server: ModelServer, sse: bool) -> None:
    step = bench.with_agent(tools=["demo__weather", "fail"])
    step["prompt_template"] = script(
        call("demo__weather", city="Oslo"), call("demo__fail", reason="no luck"), {"say": "$last"}
    )
    with mcp_server(sse=sse) as tools:
        bench.snapshot = Snapshot(bench.snapshot.agents, {}, {"demo": {"url": tools.url}})
        result = await bench(step)
    assert tools.calls == [("weather", {"city": "Oslo"}), ("fail", {"reason": "no luck"})]
    results = [event for event in bench.turns.events if event["type"] == "tool_result"]
    assert [(each["tool_name"], each["failed"]) for each in results] == [("demo__weather", False), ("demo__fail", True)]
    assert results[0]["preview"] == "3 degrees in Oslo"
    assert "no luck" in str(result.output["out"])
    assert server.asked[0].tools == ["demo__weather", "demo__fail"]


@pytest.mark.parametrize(
    ("document", "kind", "words"),
    [
        (
            {"server_type": "stdio", "command": "npx"},
            DefinitionError,
            "'demo' is of type stdio, a command; workers run no",
        ),
        ({"server_type": "remote"}, DefinitionError, "'demo' has no http:// or https:// url"),
        ({"url": "http://127.0.0.1:9/mcp"}, ToolsUnavailable, "MCP server 'demo' cannot be used: "),
        ({"url": "http://127.0.0.1:9/sse"}, ToolsUnavailable, "MCP server 'demo' cannot be used: "),
    ],
)
async def test_an_mcp_server_that_cannot_be_used(
    bench: Bench, document: dict[str, object], kind: type[EngineError], words: str
) -> None:
    step = bench.with_agent(tools=["demo__weather"])
    bench.snapshot = Snapshot(bench.snapshot.agents, {}, {"demo": document})
    with pytest.raises(kind) as refused:
        await bench(step)
    assert words in str(refused.value)


@pytest.mark.parametrize("text", ['{"a":' * 60_000, '{"a": ' + "9" * 5000 + "}"])
def test_an_answer_of_braces_without_end_is_no_choice(text: str) -> None:
    began = time.monotonic()
    assert evaluator._json_choice(text) is None
    assert time.monotonic() - began < 2.0
