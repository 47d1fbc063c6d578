"""What a turn of a chat reads of its agent, and what comes with it."""

from __future__ import annotations

from synapse_worker.store.chats import SessionView
from tests.services.fields.bench import CALL_IT, DONE, PRICED, TOOL, Bench, a_print
from tests.support.model_server import call, script
from tests.support.runs import Event


def error(turn: tuple[SessionView, list[Event]]) -> str:
    """Return why a turn failed; it did."""
    session, events = turn
    assert session.status == "failed"
    (told,) = [event["error"] for event in events if event["type"] == "error"]
    return str(told)


def answer(turn: tuple[SessionView, list[Event]]) -> object:
    """Return what the agent said last; the turn was completed."""
    session, events = turn
    assert session.status == "completed", [event.get("error") for event in events]
    told = [event["response"] for event in events if event["type"] == "final"][-1]
    assert session.messages[-1] == {"role": "assistant", "content": told}
    return told


async def test_chats_system_prompt(bench: Bench) -> None:
    assert answer(await bench.chat(await bench.agent(system_prompt="Speak in rhymes."), "hello")) == "hello"
    assert [asked.system for asked in bench.requests] == ["Speak in rhymes."]


async def test_chats_tools(bench: Bench) -> None:
    agent = await bench.agent(tools=[TOOL, "gone"], name="Ada")
    turn = await bench.chat(agent, script(CALL_IT, DONE))
    assert answer(turn) == 'at last {"doubled": 4}'
    assert bench.requests[0].tools == [TOOL]
    warnings = [event["message"] for event in turn[1] if event["type"] == "step_warning"]
    assert warnings == ["The tool 'gone' of agent 'Ada' is not there."]
    without = await bench.chat(await bench.agent(), script(call(TOOL, n=1), DONE))
    assert f"There is no tool '{TOOL}'; there are: none." in str(answer(without))


async def test_chats_max_turns(bench: Bench) -> None:
    agent = await bench.agent(tools=[TOOL], max_turns=2, name="Ada")
    assert answer(await bench.chat(agent, script(CALL_IT, DONE))) == 'at last {"doubled": 4}'
    assert error(await bench.chat(agent, script(CALL_IT, CALL_IT, DONE))) == (
        "the agent 'Ada' still called tools in its answer 2, and max_turns is 2"
    )
    agent = await bench.agent(tools=[TOOL], max_turns=None)
    assert answer(await bench.chat(agent, script(*[CALL_IT] * 14, DONE)))
    assert error(await bench.chat(agent, script(*[CALL_IT] * 15, DONE))).endswith("max_turns is 15")


async def test_chats_model(bench: Bench) -> None:
    for model, asked in ((PRICED, PRICED), ("default", "scripted"), (None, "scripted")):
        assert answer(await bench.chat(await bench.agent(model=model), "hello")) == "hello"
        assert bench.requests[-1].body["model"] == asked
    refused = await bench.chat(await bench.agent(model="unheard-of"), "hello")
    assert error(refused).startswith("No provider answers for the model 'unheard-of'; accepted are names")


async def test_chats_provider(bench: Bench) -> None:
    assert answer(await bench.chat(await bench.agent(model="any", provider="anthropic"), "hello")) == "hello"
    assert (bench.requests[-1].body["model"], bench.requests[-1].path) == ("any", "/v1/messages")
    refused = await bench.chat(await bench.agent(model="any", provider="nobody"), "hello")
    assert error(refused).startswith("There is no provider 'nobody' here; accepted are openai, anthropic,")


async def test_chats_orchestration_id_is_refused(bench: Bench) -> None:
    inner = await bench.orchestration(a_print("a"))
    agent = await bench.agent(orchestration_id=inner)
    assert error(await bench.chat(agent, "hello")) == (
        f"agent {agent!r} is an orchestration; enqueue a run of {inner!r} instead of a chat"
    )


async def test_chats_agent_that_would_go_astray(bench: Bench) -> None:
    agent = await bench.agent(name="Ada", max_turns="many")
    assert error(await bench.chat(agent, "hello")) == f"Agent 'Ada' ({agent}) has max_turns 'many', which is no number."


async def test_chats_message_and_images(bench: Bench) -> None:
    image = "data:image/png;base64,iVBORw0KGgo="
    agent = await bench.agent()
    session = "with-an-image"
    assert answer(await bench.chat(agent, "What is this?", session=session, images=[image])) == "What is this?"
    turn = await bench.chat(agent, "And its colour?", session=session)
    assert answer(turn) == "And its colour?"
    assert [message["content"] for message in turn[0].messages if message["role"] == "user"] == [  # type: ignore[index]
        "What is this?",
        "And its colour?",
    ]
    told = bench.requests[-1].body["messages"]
    assert image in str(told)
