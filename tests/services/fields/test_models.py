"""The own fields of the step types that ask models, and those of agents, custom tools and MCP servers."""

from __future__ import annotations

import json

import pytest

from tests.services.fields.bench import AGENT, CALL_IT, DONE, PRICED, TOOL, Bench, Ran, a_print
from tests.support.endpoint import Endpoint
from tests.support.mcp_server import Tools, mcp_server
from tests.support.model_server import call, script


def a_step(kind: str, **fields: object) -> dict[str, object]:
    return {"id": "s", "name": "Step", "type": kind, "output_key": "out", **fields}


def an_agent_step(agent: str, *answers: dict[str, object], **fields: object) -> dict[str, object]:
    prompt = script(*answers) if answers else "answer"
    return a_step("agent", agent_id=agent, prompt_template=prompt, **fields)


def previews(ran: Ran) -> list[tuple[object, object]]:
    """What called tools gave, and whether they failed."""
    return [(told["preview"], told["failed"]) for told in ran.told("tool_result")]


# ---- agent


async def test_agent_agent_id(bench: Bench) -> None:
    careful, bold = await bench.agent(system_prompt="Be careful."), await bench.agent(system_prompt="Be bold.")
    await bench.run(an_agent_step(careful), {**an_agent_step(bold), "id": "t"})
    assert [asked.system for asked in bench.requests] == ["Be careful.", "Be bold."]
    assert (await bench.run(an_agent_step("nobody"))).error == (
        "Step 'Step' (s) names the agent 'nobody', which does not exist; sync it, then enqueue the run again"
    )


async def test_agent_prompt_template(bench: Bench) -> None:
    await prompt_templates(bench, a_step("agent", agent_id=AGENT))


async def test_llm_prompt_template(bench: Bench) -> None:
    await prompt_templates(bench, a_step("llm"))


async def test_tool_prompt_template(bench: Bench) -> None:
    await prompt_templates(bench, a_step("tool", forced_tool=TOOL), script(CALL_IT))


async def test_evaluator_prompt_template(bench: Bench) -> None:
    # It stands in where there is no evaluator_prompt.
    await prompt_templates(bench, a_step("evaluator", route_map={"go": None}), script(call("route_go")))


async def prompt_templates(bench: Bench, step: dict[str, object], answer: str = "") -> None:
    """A template is filled in, and without one the user input is the task."""
    state = {"name": "Ada", "home": {"city": "Oslo"}}
    template = f"Hi {{state.name}} of {{state.home.city}}! {{state.gone}} {{{{x}}}} {answer}"
    await bench.run({**step, "prompt_template": template}, state=state)
    assert bench.asked[0].startswith("Hi Ada of Oslo! {state.gone} {{x}} ")
    await bench.run({**step, "prompt_template": None}, message=f"the input {answer}")
    assert bench.asked[-1].startswith("the input ")


async def test_agent_model(bench: Bench) -> None:
    await models(bench, a_step("agent", agent_id=AGENT))


async def test_llm_model(bench: Bench) -> None:
    await models(bench, a_step("llm"))


async def test_tool_model(bench: Bench) -> None:
    await models(bench, a_step("tool", forced_tool=TOOL, prompt_template=script(CALL_IT)))


async def test_evaluator_model(bench: Bench) -> None:
    await models(bench, a_step("evaluator", route_map={"go": None}, prompt_template=script(call("route_go"))))


async def models(bench: Bench, step: dict[str, object]) -> None:
    """A step's model is asked; a name that says "default" leaves it to the stored one."""
    for model, asked in ((PRICED, PRICED), ("default", "scripted"), (None, "scripted"), ("", "scripted")):
        ran = await bench.run({**step, "model": model})
        assert ran.view.status == "completed", ran.view.error
        assert bench.requests[-1].body["model"] == asked
    refused = await bench.run({**step, "model": "unheard-of"})
    assert "No provider answers for the model 'unheard-of'" in refused.error


async def test_agent_max_turns(bench: Bench) -> None:
    agent = await bench.agent(tools=[TOOL], max_turns=3)
    answers = [CALL_IT, CALL_IT, CALL_IT, DONE]
    assert (await bench.run(an_agent_step(agent, *answers, max_turns=4))).state["out"] == 'at last {"doubled": 4}'
    too_few = await bench.run(an_agent_step(agent, *answers, max_turns=2))
    assert too_few.error == (
        "step 'Step' (s): the agent 'Helper' still called tools in its answer 2, and max_turns is 2"
    )
    assert (await bench.run(an_agent_step(agent, *answers, max_turns=None))).error.endswith("max_turns is 3")


async def test_agent_max_turns_left_out_everywhere_is_15(bench: Bench) -> None:
    agent = await bench.agent(tools=[TOOL])
    assert (await bench.run(an_agent_step(agent, *[CALL_IT] * 14, DONE))).view.status == "completed"
    assert (await bench.run(an_agent_step(agent, *[CALL_IT] * 15, DONE))).error.endswith("max_turns is 15")


@pytest.mark.parametrize(
    ("tools", "allowed", "offered"),
    [
        (["{a}", "{b}"], ["{b}"], ["{b}"]),
        (["{a}", "{b}"], [], ["{a}", "{b}"]),
        (["{a}", "{b}"], None, ["{a}", "{b}"]),
        (["{a}"], ["{b}"], []),
        (["all"], ["{b}"], ["{b}"]),
        (["{a}", "{b}"], ["all"], ["{a}", "{b}"]),
    ],
)
async def test_agent_allowed_tools(
    bench: Bench, tools: list[str], allowed: list[str] | None, offered: list[str]
) -> None:
    names = {each: await bench.tool(tool_type="python", code="print(1)") for each in "ab"}
    agent = await bench.agent(tools=[each.format(**names) for each in tools])
    narrowed = None if allowed is None else [each.format(**names) for each in allowed]
    ran = await bench.run(an_agent_step(agent, allowed_tools=narrowed))
    assert ran.view.status == "completed", ran.view.error
    assert bench.requests[0].tools == [each.format(**names) for each in offered]


# ---- tool


async def test_tool_forced_tool(bench: Bench) -> None:
    other = await bench.tool(tool_type="python", code="print('other')")
    ran = await bench.run(a_step("tool", forced_tool=other, prompt_template=script(call(other))))
    assert ran.state["out"] == "other"
    (asked,) = bench.requests
    assert asked.tools == [other]
    assert asked.body["tool_choice"] == "required"
    assert (await bench.run(a_step("tool", forced_tool="gone"))).error == (
        "step 'Step' (s): there is no tool 'gone': neither a custom tool nor an MCP server has one of that name"
    )


# ---- evaluator


async def test_evaluator_evaluator_prompt(bench: Bench) -> None:
    prompt = f"Is {{state.draft.title}} good? {script(call('route_go'))}"
    step = a_step("evaluator", evaluator_prompt=prompt, prompt_template="not said", route_map={"go": None})
    ran = await bench.run(step, state={"draft": {"title": "Cats"}})
    assert ran.view.status == "completed", ran.view.error
    (asked,) = bench.asked
    assert asked.startswith("Is Cats good? ")
    assert "not said" not in asked


@pytest.mark.parametrize(("label", "done"), [("yes", ["s", "a"]), ("not yet", ["s", "b"]), ("stop", ["s"])])
async def test_evaluator_route_map(bench: Bench, label: str, done: list[str]) -> None:
    routes = {"yes": "a", "not yet": "b", "stop": None}
    chosen = script(call(f"route_{label.replace(' ', '_')}", reasoning="because"))
    others = (a_print(each, next_step_id=None) for each in "ab")
    # Its next_step_id is no way out of it.
    ran = await bench.run(a_step("evaluator", evaluator_prompt=chosen, route_map=routes), *others)
    assert (ran.view.status, ran.done) == ("completed", done)
    assert ran.state["out"] == {"decision": label, "reasoning": "because"}
    (told,) = ran.told("routing_decision")
    assert (told["decision"], told["reasoning"], told["target_step_id"]) == (label, "because", routes[label])
    assert set(bench.requests[0].tools) == {"route_yes", "route_not_yet", "route_stop"}


async def test_evaluator_route_map_leads_back_up_to_max_iterations(bench: Bench) -> None:
    again = script(call("route_again", reasoning="too dull"))
    draft = a_step("llm", id="draft", name="Draft", prompt_template="Write.", output_key="text", max_iterations=2)
    judge = a_step("evaluator", evaluator_prompt=again, route_map={"again": "draft"}, next_step_id=None)
    ran = await bench.run(draft, judge, a_print("behind"))
    assert ran.done == ["draft", "s", "draft", "s", "s"]
    told = [(each["orch_step_id"], each["iterations"]) for each in ran.told("loop_limit_reached")]
    assert told == [("draft", 2), ("draft", 2), ("s", 3)]
    drafts = [asked for asked in bench.asked if asked.startswith("Write.")]
    assert "You have worked on this before" not in drafts[0]
    assert "[Your previous output]:\nWrite." in drafts[1]
    assert "[Why it runs again, from Step]:\ntoo dull" in drafts[1]


async def test_evaluator_route_descriptions(bench: Bench) -> None:
    step = a_step(
        "evaluator",
        evaluator_prompt=script(call("route_go")),
        route_map={"go": None, "stay": None},
        route_descriptions={"go": "When all is well", "stay": None},
    )
    await bench.run(step)
    (asked,) = bench.requests
    assert "- route_go: When all is well\n- route_stay: stay\n" in asked.prompt
    described = {tool["function"]["name"]: tool["function"]["description"] for tool in asked.body["tools"]}  # type: ignore[attr-defined]
    assert described == {"route_go": "When all is well", "route_stay": "Go on with stay."}


# ---- agents


async def test_agents_name(bench: Bench) -> None:
    agent = await bench.agent(name="Ada", tools=["gone"])
    ran = await bench.run(an_agent_step(agent))
    assert [told["message"] for told in ran.told("step_warning")] == ["The tool 'gone' of agent 'Ada' is not there."]


async def test_agents_system_prompt(bench: Bench) -> None:
    await bench.run(an_agent_step(await bench.agent(system_prompt="Speak in rhymes.")))
    await bench.run(an_agent_step(await bench.agent(system_prompt=None)))
    assert [asked.system for asked in bench.requests] == ["Speak in rhymes.", ""]


async def test_agents_tools(bench: Bench, mcp_tools: Tools) -> None:
    server = await bench.mcp_server(server_type="remote", url=mcp_tools.url)
    tool = await bench.tool(tool_type="python", code="print(1)")
    for tools, offered in (
        (None, []),
        ([tool, f"{server}__fail"], [tool, f"{server}__fail"]),
        (["weather"], [f"{server}__weather"]),
    ):
        ran = await bench.run(an_agent_step(await bench.agent(tools=tools)))
        assert ran.view.status == "completed", ran.view.error
        assert bench.requests[-1].tools == offered
    await bench.run(an_agent_step(await bench.agent(tools=["all"])))
    assert {tool, TOOL, f"{server}__weather", f"{server}__fail"} <= set(bench.requests[-1].tools)


async def test_agents_model(bench: Bench) -> None:
    agent = await bench.agent(model=PRICED)
    for model, asked in ((None, PRICED), ("default", PRICED), ("scripted", "scripted")):
        await bench.run(an_agent_step(agent, model=model))
        assert bench.requests[-1].body["model"] == asked
    await bench.run(an_agent_step(await bench.agent(model="default")))
    assert bench.requests[-1].body["model"] == "scripted"


async def test_agents_provider(bench: Bench) -> None:
    agent = await bench.agent(model="any-name", provider="anthropic")
    ran = await bench.run(an_agent_step(agent))
    assert ran.state["out"] == "answer"
    asked = bench.requests[-1]
    assert (asked.body["model"], asked.path) == ("any-name", "/v1/messages")
    assert "the-anthropic-key" in str(asked.headers)
    # It is of the agent's own model only.
    assert (await bench.run(an_agent_step(agent, model="scripted"))).state["out"] == "answer"
    nobody = await bench.run(an_agent_step(await bench.agent(model="any-name", provider="nobody")))
    assert "There is no provider 'nobody' here; accepted are openai, anthropic" in nobody.error


@pytest.mark.parametrize("most", [2, "2"])
async def test_agents_max_turns(bench: Bench, most: object) -> None:
    agent = await bench.agent(tools=[TOOL], max_turns=most)
    assert (await bench.run(an_agent_step(agent, CALL_IT, DONE))).view.status == "completed"
    assert (await bench.run(an_agent_step(agent, CALL_IT, CALL_IT, DONE))).error.endswith("max_turns is 2")


async def test_agents_orchestration_id(bench: Bench) -> None:
    inner = await bench.orchestration(a_print("inside", "{state.user_input}, inside"))
    agent = await bench.agent(orchestration_id=inner)
    step = a_step("agent", agent_id=agent, prompt_template="Tell {state.user_input}", input_keys=["more"])
    ran = await bench.run(step, message="Ada", state={"more": "soon"})
    assert ran.state["out"] == "Tell Ada\n\nContext:\n\n[more]:\nsoon, inside"
    inside = await bench.ended(f"{ran.run_id}.s.1.1")
    assert (inside.view.status, inside.view.orchestration_id, inside.done) == ("completed", inner, ["inside"])
    assert bench.asked == []


async def test_agents_that_would_go_astray_end_a_run_before_its_first_step(bench: Bench) -> None:
    agent = await bench.agent(name="Ada", tools="search")
    ran = await bench.run(a_print("first"), an_agent_step(agent))
    assert (ran.error, ran.done) == (f"Agent 'Ada' ({agent}) has tools that are no list.", [])


# ---- custom tools


async def called(bench: Bench, tool: str, **arguments: object) -> Ran:
    """Have an agent call a tool once."""
    agent = await bench.agent(tools=[tool])
    return await bench.run(an_agent_step(agent, call(tool, **arguments), DONE))


async def test_tools_name_is_what_agents_call_it(bench: Bench) -> None:
    tool = await bench.tool(tool_type="python", code="print('it')", name="my tool")
    step = an_agent_step(await bench.agent(tools=["my tool", tool]), call("my_tool"), DONE)
    ran = await bench.run(step)
    assert (ran.state["out"], bench.requests[0].tools) == ("at last it", ["my_tool"])
    assert [told["tool_name"] for told in ran.told("tool_execution")] == ["my tool"]


async def test_tools_description(bench: Bench) -> None:
    await called(bench, await bench.tool(tool_type="python", code="print(1)", description="Says one"))
    assert "Says one" in json.dumps(bench.requests[0].body["tools"])


@pytest.mark.parametrize("field", ["inputSchema", "schema", "parameters"])
async def test_tools_input_schema(bench: Bench, field: str) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    tool = await bench.tool(tool_type="python", code="print(_args['n'])", **{field: schema})
    assert previews(await called(bench, tool)) == [("The arguments lack n.", True)]
    assert previews(await called(bench, tool, n=5)) == [("5", False)]
    offered = bench.requests[0].body["tools"]
    assert offered[0]["function"]["parameters"]["required"] == ["n"]  # type: ignore[index]


async def test_tools_tool_type_and_code(bench: Bench) -> None:
    tool = await bench.tool(tool_type="python", code="print({'got': _args['words']})", url="http://127.0.0.1:9/")
    assert previews(await called(bench, tool, words=["a"])) == [("{'got': ['a']}", False)]


async def test_tools_url(bench: Bench, site: Endpoint) -> None:
    tool = await bench.tool(tool_type="http", url=site.url + "/of/{id}/{data.kind}")
    ran = await called(bench, tool, id="a/b", data={"kind": "x"}, page=2)
    assert previews(ran) == [('{"ok": true}', False)]
    assert [path for _, path, _, _ in site.requests] == ["/of/a%2Fb/x?page=2"]


@pytest.mark.parametrize("method", [None, "get", "POST", "PUT", "DELETE"])
async def test_tools_method(bench: Bench, site: Endpoint, method: str | None) -> None:
    await called(bench, await bench.tool(tool_type="http", url=site.url + "/x", method=method), n=1)
    ((sent, path, _, body),) = site.requests
    assert sent == (method or "GET").upper()
    assert (path, body) == (("/x", '{"n":1}') if sent in ("POST", "PUT") else ("/x?n=1", ""))


async def test_tools_headers(bench: Bench, site: Endpoint) -> None:
    ran = await called(bench, await bench.tool(tool_type="http", url=site.url, headers={"X-Key": "the-tools-key"}))
    ((_, _, headers, _),) = site.requests
    assert headers["x-key"] == "the-tools-key"
    assert headers["idempotency-key"] == f"{ran.run_id}:s:1:2"
    kept = await bench.database.fetchrow(
        "SELECT definition_snapshot::text FROM orchestration_runs WHERE run_id = $1", ran.run_id
    )
    assert "the-tools-key" not in f"{kept}{ran}"


# ---- MCP servers


async def test_servers_name_and_url(bench: Bench, mcp_tools: Tools) -> None:
    server = await bench.mcp_server(server_type="remote", url=mcp_tools.url)
    ran = await called(bench, f"{server}__weather", city="Oslo")
    assert previews(ran) == [("3 degrees in Oslo", False)]
    assert mcp_tools.calls == [("weather", {"city": "Oslo"})]


async def test_servers_transport(bench: Bench) -> None:
    with mcp_server(sse=True) as tools:
        # The url does not end in /sse, which would say it too.
        server = await bench.mcp_server(url=tools.url + "#", transport="sse")
        assert previews(await called(bench, f"{server}__weather", city="Oslo")) == [("3 degrees in Oslo", False)]


async def test_servers_server_type(bench: Bench) -> None:
    server = await bench.mcp_server(server_type="stdio", command="cat", args=[], url="http://127.0.0.1:9/mcp")
    ran = await called(bench, f"{server}__cat")
    assert ran.error == (
        f"step 'Step' (s): MCP server {server!r} is of type stdio, a command; workers run no commands: give it as"
        " server_type remote with a url"
    )


async def test_servers_token(bench: Bench, mcp_tools: Tools) -> None:
    # A main instance keeps it with the server, a sync apart from it.
    server = await bench.mcp_server(url=mcp_tools.url, token="the-first-token")
    await called(bench, f"{server}__weather", city="Oslo")
    assert mcp_tools.tokens == {"Bearer the-first-token"}
    await bench.setting(f"mcp_token.{server}", "the-second-token")
    await called(bench, f"{server}__weather", city="Oslo")
    assert mcp_tools.tokens == {"Bearer the-first-token", "Bearer the-second-token"}
