"""Steps that talk to models, in real worker processes, against servers that speak the providers' protocols."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator

import pytest
from redis.asyncio import Redis

from synapse_worker.queueing.client import RESUME_FUNCTION
from synapse_worker.store import definitions, runs
from synapse_worker.store.database import Database
from synapse_worker.store.definitions import Document
from tests.support.mcp_server import mcp_server
from tests.support.model_server import ModelServer, call, model_server, script
from tests.support.runs import Event, enqueue, enqueue_as_upstream, said_done, store, until, view
from tests.support.workers import StartWorker, chain


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server() as running:
        yield running


async def write(database: Database, table: str, *documents: dict[str, object], tenant: str = "default") -> None:
    """Store definitions, or settings given as one mapping, as `sync` does."""
    rows = [Document(table, str(each.get("id") or each["name"]), str(each.get("name")), "", each) for each in documents]
    await definitions.upsert(database, rows, tenant_id=tenant)


async def write_settings(database: Database, settings: dict[str, object]) -> None:
    rows = [Document(definitions.SETTINGS, key, "", "", value) for key, value in settings.items()]
    await definitions.upsert(database, rows, tenant_id="default")


def agent(name: str = "worker", **fields: object) -> dict[str, object]:
    return {"id": name, "name": name.title(), "system_prompt": "You are careful.", "tools": [], **fields}


def events_named(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event["type"] == kind]


PYTHON_TOOL: dict[str, object] = {
    "id": "double",
    "name": "double",
    "tool_type": "python",
    "description": "Doubles a number",
    "inputSchema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
    "code": "print(json.dumps({'doubled': _args['n'] * 2}))",
}


async def test_an_llm_step_asks_the_stored_default_model(
    database: Database, redis_client: Redis, server: ModelServer, start_worker: StartWorker
) -> None:
    await write_settings(database, server.settings())
    ask = {"id": "ask", "type": "llm", "prompt_template": "Say {state.user_input} back", "output_key": "said"}
    await store(database, chain("o", [ask, {"id": "bare", "type": "llm", "model": "default", "output_key": "bare"}]))
    worker = start_worker().wait_ready()
    run_id = await enqueue(database, redis_client, "o", "hello")
    done = await until(database, run_id, "completed")
    # Without a prompt_template the user input is the task.
    assert (done.state["said"], done.state["bare"]) == ("Say hello back", "hello")
    assert {asked.body["model"] for asked in server.asked} == {"scripted"}
    events = await said_done(redis_client, run_id)
    assert [event["response"] for event in events_named(events, "final")][:2] == ["Say hello back", "hello"]
    row = await database.fetchrow(
        "SELECT total_tokens_used, total_cost_usd, (SELECT count(*) FROM run_turns) AS turns,"
        " (SELECT array_agg(tokens ORDER BY ordinal) FROM run_steps s WHERE s.run_id = r.run_id) AS tokens"
        " FROM orchestration_runs r WHERE run_id = $1",
        run_id,
    )
    assert row is not None
    assert tuple(row) == (30, 0.0, 0, [15, 15])
    assert "the price of model scripted at openai_compatible is not known" in worker.log
    assert "the-openai-compatible-key" not in worker.log + str(events) + str(done)


async def test_what_a_new_process_has_to_load_is_not_of_a_steps_time(
    database: Database, redis_client: Redis, server: ModelServer, start_worker: StartWorker
) -> None:
    await write_settings(database, server.settings())
    # Loading the packages of that protocol takes longer than that, asking a model does not.
    step = {"id": "s", "type": "llm", "model": "claude-haiku-5-5", "output_key": "out", "timeout_seconds": 3}
    await store(database, chain("o", [step]))
    start_worker(ANTHROPIC_BASE_URL=server.url).wait_ready()
    done = await until(database, await enqueue(database, redis_client, "o"), "completed", "failed")
    assert (done.error, done.state.get("out")) == (None, "hi")


@pytest.mark.parametrize("model", ["scripted", "claude-haiku-5-5"])
async def test_an_agent_works_with_tools_until_it_answers(
    database: Database, redis_client: Redis, server: ModelServer, start_worker: StartWorker, model: str
) -> None:
    await write_settings(database, server.settings())
    await write(database, definitions.TOOLS, PYTHON_TOOL)
    await write(database, definitions.AGENTS, agent(model=model, tools=["double", "gone"]))
    prompt = "Double it. " + script(
        {"call": "double", "args": {"n": 21}, "say": "I double 21"},
        {"calls": [call("nothing"), call("double"), call("double", n="x")]},
        {"say": "it is $last"},
    )
    await store(
        database,
        chain(
            "o", [{"id": "s", "type": "agent", "agent_id": "worker", "prompt_template": prompt, "output_key": "out"}]
        ),
    )
    start_worker(ANTHROPIC_BASE_URL=server.url).wait_ready()
    run_id = await enqueue(database, redis_client, "o")
    done = await until(database, run_id, "completed")
    assert done.state["out"] == 'it is {"doubled": "xx"}'
    assert [asked.system for asked in server.asked] == ["You are careful."] * 3
    events = await said_done(redis_client, run_id)
    told = [(event["type"], event.get("tool_name"), event.get("failed")) for event in events if "tool_name" in event]
    assert told == [
        ("tool_execution", "double", None),
        ("tool_result", "double", False),
        ("tool_execution", "nothing", None),
        ("tool_execution", "double", None),
        ("tool_execution", "double", None),
        ("tool_result", "nothing", True),
        ("tool_result", "double", True),
        ("tool_result", "double", False),
    ]
    results = [event["preview"] for event in events_named(events, "tool_result")]
    assert results[0] == '{"doubled": 42}'
    assert results[1] == "There is no tool 'nothing'; there are: double."
    assert results[2] == "The arguments lack n."
    assert [event["content"] for event in events_named(events, "thinking")] == ["I double 21"]
    assert "The tool 'gone' of agent 'Worker' is not there." in str(events_named(events, "step_warning"))
    ids = [event["event_id"] for event in events]
    assert len(set(ids)) == len(ids)
    if model.startswith("claude"):
        row = await database.fetchrow("SELECT total_cost_usd FROM orchestration_runs WHERE run_id = $1", run_id)
        assert row is not None
        assert row["total_cost_usd"] > 0


async def test_an_evaluator_sends_back_once(
    database: Database, redis_client: Redis, server: ModelServer, start_worker: StartWorker
) -> None:
    await write_settings(database, server.settings())
    await write(database, definitions.AGENTS, agent())
    steps: list[dict[str, object]] = [
        {
            "id": "write",
            "name": "Write",
            "type": "agent",
            "agent_id": "worker",
            "prompt_template": "Write about {state.user_input}. " + script({"say": "a draft"}),
            "output_key": "draft",
            "next_step_id": "review",
        },
        {
            "id": "review",
            "name": "Review",
            "type": "evaluator",
            "evaluator_prompt": "Is it good? {state.seen}",
            "input_keys": ["draft"],
            "route_map": {"again": "write", "good enough": None},
            "route_descriptions": {"again": "It needs work"},
            "output_key": "verdict",
        },
    ]
    # The evaluator's script is in the run's state, so that each visit has its own.
    sent_back = {"call": "route_again", "args": {"reasoning": "too dull"}}
    as_json = {"say": 'I think {"tool": "route_good_enough", "arguments": {"reasoning": "fine"}}'}
    steps.insert(
        1,
        {
            "id": "first",
            "type": "if_else",
            "if_condition": "state.seen",
            "if_true_step_id": "two",
            "if_false_step_id": "one",
        },
    )
    steps[0]["next_step_id"] = "first"
    steps += [
        {
            "id": "one",
            "type": "transform",
            "transform_code": f"result = {script(sent_back)!r}",
            "output_key": "seen",
            "next_step_id": "review",
        },
        {
            "id": "two",
            "type": "transform",
            "transform_code": f"result = {script({'say': 'route_no'}, as_json)!r}",
            "output_key": "seen",
            "next_step_id": "review",
        },
    ]
    await store(database, {"id": "o", "name": "o", "entry_step_id": "write", "steps": steps})
    start_worker().wait_ready()
    run_id = await enqueue(database, redis_client, "o", "cats")
    done = await until(database, run_id, "completed")
    events = await said_done(redis_client, run_id)
    decisions = [
        (event["decision"], event["reasoning"], event["target_step_id"])
        for event in events_named(events, "routing_decision")
    ]
    assert decisions == [("again", "too dull", "write"), ("good enough", "fine", None)]
    assert done.state["verdict"] == {"decision": "good enough", "reasoning": "fine"}
    again = [asked for asked in server.asked if "Write about cats." in asked.prompt][-1].prompt
    assert "this is run 2 of the step 'Write'" in again
    assert "[Why it runs again, from Review]:\ntoo dull" in again
    assert "[Your previous output]:\na draft" in again
    reviews = [asked for asked in server.asked if "Is it good?" in asked.prompt]
    assert "[Write (write)]:\na draft" in reviews[0].prompt
    assert reviews[0].tools == ["route_again", "route_good_enough"]
    # An unknown label is asked again, in the same conversation.
    assert "none of the routes" in reviews[-1].prompt


async def test_a_route_that_is_none_fails_the_step(
    database: Database, redis_client: Redis, server: ModelServer, start_worker: StartWorker
) -> None:
    await write_settings(database, server.settings())
    prompt = script(call("route_elsewhere"), {"say": "hm"})
    step = {
        "id": "s",
        "name": "Pick",
        "type": "evaluator",
        "evaluator_prompt": prompt,
        "route_map": {"a": None, "b": "s"},
    }
    await store(database, chain("o", [step]))
    start_worker().wait_ready()
    failed = await until(database, await enqueue(database, redis_client, "o"), "failed")
    assert failed.error == "step 'Pick' (s): the model chose 'hm', which is no route; accepted are a, b"


@pytest.mark.parametrize("sse", [False, True])
async def test_tools_of_an_mcp_server(
    database: Database, redis_client: Redis, server: ModelServer, start_worker: StartWorker, sse: bool
) -> None:
    await write_settings(database, server.settings(**{"mcp_token.demo": "the-mcp-token"}))
    await write(database, definitions.AGENTS, agent(tools=["demo__weather", "fail"]))
    prompt = script(call("demo__weather", city="Oslo"), call("demo__fail", reason="no luck"), {"say": "done: $last"})
    step = {"id": "s", "type": "agent", "agent_id": "worker", "prompt_template": prompt, "output_key": "out"}
    await store(database, chain("o", [step]))
    with mcp_server(sse=sse) as tools:
        await write(database, definitions.MCP_SERVERS, {"name": "demo", "server_type": "remote", "url": tools.url})
        worker = start_worker().wait_ready()
        run_id = await enqueue(database, redis_client, "o")
        done = await until(database, run_id, "completed")
        events = await said_done(redis_client, run_id)
    assert tools.calls == [("weather", {"city": "Oslo"}), ("fail", {"reason": "no luck"})]
    assert tools.tokens == {"Bearer the-mcp-token"}
    results = [(event["preview"], event["failed"]) for event in events_named(events, "tool_result")]
    assert results[0] == ("3 degrees in Oslo", False)
    assert results[1][1] is True
    assert "no luck" in str(done.state["out"])
    assert server.asked[0].tools == ["demo__weather", "demo__fail"]
    kept = await database.fetchrow("SELECT definition_snapshot::text FROM orchestration_runs WHERE run_id = $1", run_id)
    assert "the-mcp-token" not in worker.log + str(events) + str(kept)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"openai_compatible_base_url": ""}, "setting openai_compatible_base_url, which is not set"),
        ({"model": "grok-4"}, "The model 'grok-4' is asked at grok; the setting grok_key is not set."),
    ],
)
async def test_settings_that_lack_something_fail_with_a_sentence(
    database: Database,
    redis_client: Redis,
    server: ModelServer,
    start_worker: StartWorker,
    changes: dict[str, object],
    sentence: str,
) -> None:
    await write_settings(database, server.settings(**changes))
    await store(database, chain("o", [{"id": "s", "name": "Ask", "type": "llm"}]))
    start_worker().wait_ready()
    failed = await until(database, await enqueue(database, redis_client, "o"), "failed")
    assert failed.error is not None
    assert failed.error.startswith("step 'Ask' (s): ")
    assert sentence in failed.error


EIGHT_TURNS = [call("double", n=n) for n in range(7)]


async def rows_of(database: Database, run_id: str) -> int:
    row = await database.fetchrow("SELECT count(*) FROM run_turns WHERE run_id = $1", run_id)
    assert row is not None
    return int(row[0])


async def turns_reach(database: Database, run_id: str, count: int) -> None:
    """Poll until so many turns are kept."""
    deadline = time.monotonic() + 60
    while await rows_of(database, run_id) < count:
        assert time.monotonic() < deadline, "the turns do not get on"
        await asyncio.sleep(0.01)


async def eight_turns(database: Database, server: ModelServer) -> None:
    """Store an orchestration whose agent step takes eight answers, each a third of a second."""
    await write_settings(database, server.settings())
    await write(database, definitions.TOOLS, PYTHON_TOOL)
    await write(database, definitions.AGENTS, agent(tools=["double"]))
    answers = [{**entry, "wait": 0.3} for entry in EIGHT_TURNS]
    prompt = script(*answers, {"say": "at last $last"})
    step = {"id": "s", "type": "agent", "agent_id": "worker", "prompt_template": prompt, "output_key": "out"}
    await store(database, chain("o", [step]))


async def went_on(database: Database, client: Redis, server: ModelServer, run_id: str, *, asked_at_most: int) -> None:
    """The run has ended well; no kept answer was asked for again, no event is lost or told as another one."""
    done = await until(database, run_id, "completed")
    assert done.state["out"] == 'at last {"doubled": 12}'
    assert set(server.turns) == set(range(8))
    assert len(server.turns) <= asked_at_most
    events = await said_done(client, run_id)
    results = {str(event["event_id"]): event["preview"] for event in events_named(events, "tool_result")}
    assert list(results.values()) == [f'{{"doubled": {2 * n}}}' for n in range(7)]
    row = await database.fetchrow(
        "SELECT total_tokens_used, (SELECT tokens FROM run_steps s WHERE s.run_id = r.run_id)"
        " FROM orchestration_runs r WHERE run_id = $1",
        run_id,
    )
    assert row is not None
    assert tuple(row) == (120, 120)
    assert await rows_of(database, run_id) == 0


async def test_an_agent_killed_after_five_of_eight_turns_goes_on(
    database: Database, redis_client: Redis, server: ModelServer, start_worker: StartWorker
) -> None:
    await eight_turns(database, server)
    first = start_worker(WORKER_LEASE_SECONDS="5").wait_ready()
    run_id = await enqueue(database, redis_client, "o")
    await turns_reach(database, run_id, 10)  # five answers, and the results of what they called
    first.kill()
    # What the agent is meanwhile is the next run's; this one goes on as it began.
    await write(database, definitions.AGENTS, agent(system_prompt="You are somebody else."))
    start_worker(WORKER_LEASE_SECONDS="5").wait_ready()
    await went_on(database, redis_client, server, run_id, asked_at_most=9)
    assert {asked.system for asked in server.asked} == {"You are careful."}


async def test_a_drain_hands_an_agent_over_between_turns(
    database: Database, redis_client: Redis, server: ModelServer, start_worker: StartWorker
) -> None:
    await eight_turns(database, server)
    first = start_worker().wait_ready()
    run_id = await enqueue(database, redis_client, "o")
    await turns_reach(database, run_id, 4)
    first.signal(signal.SIGTERM)
    second = start_worker().wait_ready()
    assert first.wait() == 0
    await went_on(database, redis_client, server, run_id, asked_at_most=8)
    assert "is run alone" not in second.log


async def test_a_run_that_costs_too_much_fails(
    database: Database, redis_client: Redis, server: ModelServer, start_worker: StartWorker
) -> None:
    await write_settings(database, server.settings())
    step: dict[str, object] = {"type": "llm", "model": "claude-haiku-5-5", "output_key": "o"}
    steps = [{"id": "one", "name": "One", **step}, {"id": "two", "name": "Two", **step}]
    await store(database, {**chain("o", steps), "max_total_cost_usd": 0.000003})
    start_worker(ANTHROPIC_BASE_URL=server.url).wait_ready()
    failed = await until(database, await enqueue(database, redis_client, "o"), "failed")
    assert failed.error is not None
    assert failed.error.startswith("step 'One' (one): the run has cost 0.000004 USD")
    assert failed.error.endswith("max_total_cost_usd of orchestration 'o' (o) is 0.000003")
    assert len(server.asked) == 1


async def test_a_step_that_failed_is_done_from_its_beginning(
    database: Database, redis_client: Redis, server: ModelServer, start_worker: StartWorker
) -> None:
    await write_settings(database, server.settings())
    await write(database, definitions.AGENTS, agent(max_turns=1, tools=["double"]))
    await write(database, definitions.TOOLS, PYTHON_TOOL)
    prompt = script(call("double", n=1), {"say": "done"})
    step = {"id": "s", "type": "agent", "agent_id": "worker", "prompt_template": prompt, "output_key": "out"}
    await store(database, chain("o", [step]))
    start_worker().wait_ready()
    run_id = await enqueue(database, redis_client, "o")
    failed = await until(database, run_id, "failed")
    assert "still called tools in its answer 1, and max_turns is 1" in str(failed.error)
    assert await rows_of(database, run_id) == 0
    # A run that has not finished a step reads its definitions anew.
    await write(database, definitions.AGENTS, agent(max_turns=2, tools=["double"]))
    await enqueue_as_upstream(redis_client, f"resume_{run_id}_1", RESUME_FUNCTION, run_id=run_id)
    assert (await until(database, run_id, "completed")).state["out"] == "done"


async def test_a_provider_that_stays_away_ends_the_run_with_a_sentence(
    database: Database, redis_client: Redis, server: ModelServer, start_worker: StartWorker
) -> None:
    await write_settings(database, server.settings())
    broken = {"id": "s", "name": "Ask", "type": "llm", "prompt_template": script({"status": 401})}
    await store(database, chain("o", [broken]))
    start_worker().wait_ready()
    failed = await until(database, await enqueue(database, redis_client, "o"), "failed")
    assert failed.error == (
        "step 'Ask' (s): openai_compatible does not accept the key in the setting openai_compatible_key (HTTP 401)."
    )


async def test_an_agent_that_is_missing_fails_before_the_first_step(
    database: Database, redis_client: Redis, server: ModelServer, start_worker: StartWorker
) -> None:
    steps = [{"id": "p", "type": "print", "print_content": "x"}, {"id": "s", "type": "agent", "agent_id": "gone"}]
    await store(database, chain("o", steps))
    start_worker().wait_ready()
    failed = await until(database, await enqueue(database, redis_client, "o"), "failed")
    assert failed.error == (
        "Step 's' (s) names the agent 'gone', which does not exist; sync it, then enqueue the run again"
    )
    assert failed.steps_done == 0


async def test_an_agent_that_is_an_orchestration(
    database: Database, redis_client: Redis, server: ModelServer, start_worker: StartWorker
) -> None:
    await write_settings(database, server.settings())
    await write(database, definitions.AGENTS, agent("outer", orchestration_id="inner"), agent("inner"))
    inside = {"id": "ask", "type": "agent", "agent_id": "inner", "output_key": "said"}
    await store(database, chain("inner", [inside]))
    step = {"id": "s", "type": "agent", "agent_id": "outer", "prompt_template": "Tell {state.user_input}"}
    await store(database, chain("o", [{**step, "output_key": "out"}]))
    start_worker().wait_ready()
    run_id = await enqueue(database, redis_client, "o", "Ada")
    assert (await until(database, run_id, "completed")).state["out"] == "Tell Ada"
    nested = await until(database, f"{run_id}.s.1.1", "completed")
    assert nested.state["said"] == "Tell Ada"


async def test_what_runs_inside_a_run_cost_counts_for_it(
    database: Database, redis_client: Redis, server: ModelServer, start_worker: StartWorker
) -> None:
    await write_settings(database, server.settings())
    await write(database, definitions.AGENTS, agent("outer", orchestration_id="middle"))
    await write(database, definitions.AGENTS, agent("within", orchestration_id="inner"))
    ask: dict[str, object] = {"type": "llm", "model": "claude-haiku-5-5", "output_key": "o"}
    await store(database, chain("inner", [{"id": "one", "name": "One", **ask}, {"id": "two", "name": "Two", **ask}]))
    await store(database, chain("middle", [{"id": "m", "type": "agent", "agent_id": "within"}]))
    around = chain("o", [{"id": "first", **ask}, {"id": "s", "type": "agent", "agent_id": "outer"}])
    await store(database, {**around, "max_total_cost_usd": 0.000009})
    start_worker(ANTHROPIC_BASE_URL=server.url).wait_ready()
    run_id = await enqueue(database, redis_client, "o")
    failed = await until(database, run_id, "failed", "completed")
    assert failed.error is not None
    assert failed.error.endswith("max_total_cost_usd of orchestration 'o' (o) is 0.000009")
    middle, inner = f"{run_id}.s.1.1", f"{run_id}.s.1.1.m.1.1"
    spent = {each.run_id: each for each in await runs.get(database, [run_id, middle, inner])}
    assert (await view(database, inner)).status == "failed"
    assert spent[inner].total_cost_usd == spent[middle].total_cost_usd
    assert spent[run_id].total_cost_usd == pytest.approx(1.5 * spent[inner].total_cost_usd)
    assert spent[run_id].total_tokens_used == 1.5 * spent[middle].total_tokens_used > 0
    assert len(server.asked) == 3


async def test_agents_of_two_tenants_share_no_tools_and_a_tenants_agent_is_its_own(
    database: Database, redis_client: Redis, server: ModelServer, start_worker: StartWorker
) -> None:
    await write_settings(database, server.settings())
    prompt = script(call("double", n=21), {"say": "it is $last"})
    asks = {"type": "agent", "prompt_template": prompt}
    own, shared = agent("own", tools=["double"]), agent("shared", tools=["double"])
    await write(database, definitions.TOOLS, PYTHON_TOOL, tenant="acme")
    await write(database, definitions.AGENTS, own, tenant="acme")
    await write(database, definitions.AGENTS, shared)
    await write(
        database,
        definitions.ORCHESTRATIONS,
        chain("both", [{"id": each, "agent_id": each, "output_key": each, **asks} for each in ("own", "shared")]),
        tenant="acme",
    )
    thief = chain("thief", [{"id": "s", "agent_id": "own", **asks}])
    await write(database, definitions.ORCHESTRATIONS, thief, tenant="other")
    start_worker().wait_ready()
    done = await until(database, await enqueue(database, redis_client, "both", tenant="acme"), "completed")
    assert done.state["own"] == 'it is {"doubled": 42}'
    assert "There is no tool 'double'; there are: none." in str(done.state["shared"])
    failed = await until(database, await enqueue(database, redis_client, "thief", tenant="other"), "failed")
    assert "names the agent 'own', which does not exist" in str(failed.error)
