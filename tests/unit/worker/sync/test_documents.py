"""What users write becomes rows of the right table, and what is wrong with it one sentence with its line."""

from __future__ import annotations

import json

import pytest

from synapse_worker.contract import VARIABLES
from synapse_worker.store.definitions import AGENTS, MCP_SERVERS, ORCHESTRATIONS, SETTINGS, TOOLS
from synapse_worker.sync.documents import MAX_KEY_LENGTH, SETTING_RULES, Item, Problem, Source, read

ORCHESTRATION = {"id": "greet", "name": "Greet", "description": "d", "steps": [{"id": "s", "type": "end"}]}
AGENT = {"id": "agent_1", "name": "Writer", "type": "conversational", "system_prompt": "Write.", "tools": []}
HTTP_TOOL = {"name": "lookup", "generalName": "Look up", "tool_type": "http", "url": "https://example.com/{id}"}
STDIO_SERVER = {
    "name": "files",
    "label": "Files",
    "server_type": "stdio",
    "command": "mcp-files",
    "status": "connected",
}


def in_config_map(text: str | None, key: str = "a.yaml") -> Source:
    return Source("ConfigMap team", key, text, takes_secrets=False, shown=True)


def in_secret(text: str | None, key: str = "a.yaml") -> Source:
    return Source("Secret team", key, text, takes_secrets=True, shown=False)


def in_folder(text: str | None, key: str) -> Source:
    return Source("", key, text, takes_secrets=True, shown=True)


def items(source: Source) -> list[Item]:
    found, problems = read(source)
    assert problems == []
    return found


def problem(source: Source) -> Problem:
    found, (only,) = read(source)
    assert found == []
    return only


def rows(source: Source) -> list[tuple[str, str]]:
    return [tuple(item.document.row) for item in items(source)]


@pytest.mark.parametrize(
    ("document", "row"),
    [
        (ORCHESTRATION, (ORCHESTRATIONS, "greet")),
        (AGENT, (AGENTS, "agent_1")),
        (HTTP_TOOL, (TOOLS, "lookup")),
        ({**HTTP_TOOL, "id": "t1"}, (TOOLS, "t1")),
        (STDIO_SERVER, (MCP_SERVERS, "files")),
        ({"worker_concurrency": 5}, (SETTINGS, "worker_concurrency")),
    ],
)
def test_a_single_document_is_told_by_its_fields(document: dict[str, object], row: tuple[str, str]) -> None:
    text = json.dumps(document)
    assert rows(in_config_map(text, "x.json")) == [row]
    assert rows(in_config_map(text, "x.yaml")) == [row]
    assert rows(in_config_map(text, "x")) == [row]
    assert rows(in_config_map(f"[{text}]", "x.json")) == [row]


def test_the_name_of_a_key_tells_what_its_fields_do_not() -> None:
    plain = '[{"id": "a", "name": "n"}]'
    assert rows(in_folder(plain, "user_agents.json")) == [(AGENTS, "a")]
    assert rows(in_folder(plain, "custom_tools.json")) == [(TOOLS, "a")]
    assert rows(in_folder(plain, "mcp_servers.json")) == [(MCP_SERVERS, "n")]
    assert rows(in_config_map("id: a\n", "agents.yaml")) == [(AGENTS, "a")]
    assert rows(in_folder(f"[{json.dumps(ORCHESTRATION)}]", "orchestrations.json")) == [(ORCHESTRATIONS, "greet")]
    assert rows(in_folder(json.dumps(ORCHESTRATION), "agents.json")) == [(ORCHESTRATIONS, "greet")]


def test_what_is_stored() -> None:
    (item,) = items(in_config_map(json.dumps({**ORCHESTRATION, "avatar": "fox"})))
    assert (item.document.name, item.document.description) == ("Greet", "d")
    assert item.document.definition == {**ORCHESTRATION, "avatar": "fox"}
    assert item.document.source == "ConfigMap team/a.yaml"
    (nameless,) = items(in_config_map("id: 7\nname: null\nsteps: []\ndescription: 3\n"))
    assert (nameless.document.key, nameless.document.name, nameless.document.description) == ("7", "7", "")
    (long,) = items(in_config_map(json.dumps({**AGENT, "name": "n" * 600})))
    assert len(long.document.name) == 500
    (server,) = items(in_config_map(json.dumps(STDIO_SERVER)))
    assert (server.document.name, server.token) == ("Files", None)
    assert server.document.definition == {key: STDIO_SERVER[key] for key in STDIO_SERVER if key != "status"}


def test_a_bundle_is_split_with_the_lines_of_its_parts() -> None:
    bundle = {
        "synapse_export": True,
        "version": "1.0",
        "has_python_tools": False,
        "orchestrations": [ORCHESTRATION],
        "agents": [AGENT],
        "mcp_servers": [STDIO_SERVER],
        "custom_tools": [HTTP_TOOL],
    }
    text = json.dumps(bundle, indent=1)
    found = items(in_config_map(text, "bundle.json"))
    assert [tuple(item.document.row) for item in found] == [
        (ORCHESTRATIONS, "greet"),
        (AGENTS, "agent_1"),
        (MCP_SERVERS, "files"),
        (TOOLS, "lookup"),
    ]
    lines = text.splitlines()
    for item, first in zip(found, ("id", "id", "name", "name"), strict=True):
        assert lines[item.line - 1].strip() == "{"
        assert lines[item.line].strip().startswith(f'"{first}"')
    assert rows(in_config_map('{"synapse_export": true, "orchestrations": null}')) == []


def test_many_documents_in_one_key_and_one_bad_one() -> None:
    text = "id: a\nsystem_prompt: x\n---\n- id: b\n  system_prompt: y\n- 7\n---\n\n---\nid: c\nsystem_prompt: z\n"
    found, problems = read(in_config_map(text))
    assert [(item.document.key, item.line) for item in found] == [("a", 1), ("b", 4), ("c", 10)]
    assert [str(each) for each in problems] == [
        "ConfigMap team/a.yaml:6: A definition is an object, not a single value."
    ]


@pytest.mark.parametrize(
    ("text", "line", "sentence"),
    [
        ("\nhello: 1\n", 2, "What the document is cannot be told: accepted are an orchestration (steps),"),
        ("just words\n", 1, "A definition is an object, not a text."),
        ("- []\n", 1, "A definition is an object, not a list."),
        ("name: x\nsteps: []\n", 1, "The orchestration has no id."),
        ("server_type: remote\n", 1, "The MCP server has no name."),
        (f"id: {'x' * 256}\nsteps: []\n", 1, f"it has at most {MAX_KEY_LENGTH} characters and no control characters."),
        ('id: "a\\0"\nsteps: []\n', 1, "The orchestration has an id that cannot be stored"),
        ("synapse_export: true\nagents: {a: 1}\n", 2, "Agents of the export bundle is no list."),
        ("synapse_export: true\nagents:\n- name: x\n", 3, "Item 1 of agents in the export bundle has no id."),
        ("synapse_export: true\nagents:\n\n- x\n", 4, "Item 1 of agents in the export bundle is no object."),
        ("worker_concurrency: 500\n", 1, "takes a whole number from 1 to 100."),
        ("model: gpt\nmodle: x\n", 2, "There is no setting 'modle'; known are model, mode,"),
    ],
)
def test_what_is_refused(text: str, line: int, sentence: str) -> None:
    _, (only,) = read(in_config_map(text))
    assert sentence in only.sentence
    assert (only.name, only.key, only.line) == ("ConfigMap team", "a.yaml", line)


def test_what_is_no_text_or_no_document() -> None:
    assert problem(in_config_map(None)).sentence == "It is not text (UTF-8)."
    assert problem(in_config_map("{", "a.json")).sentence.startswith("Not JSON: ")
    for blank in ("", " \n", "---\n", "# nothing\n"):
        assert rows(in_config_map(blank)) == []
    assert rows(in_config_map("", "a.json")) == []
    assert rows(in_config_map("\ufeff" + json.dumps(AGENT), "a.json")) == [(AGENTS, "agent_1")]


# ---- secrets


def test_a_token_is_kept_apart_and_only_taken_from_a_secret() -> None:
    server = {"name": "crm", "server_type": "remote", "url": "https://example.com", "token": "hidden-token"}
    (item,) = items(in_secret(json.dumps(server)))
    assert "token" not in json.dumps(item.document.definition)
    assert item.token is not None
    assert (item.token.table, item.token.key, item.token.definition) == (SETTINGS, "mcp_token.crm", "hidden-token")
    refused = problem(in_config_map(json.dumps(server)))
    assert refused.sentence == "MCP server 'crm' holds a token: put the document into a Secret."
    for nothing in (None, "", "xxxxxxxxx"):
        (item,) = items(in_config_map(json.dumps({**server, "token": nothing})))
        assert item.token is None
    assert "no text" in problem(in_secret(json.dumps({**server, "token": 7}))).sentence
    assert "at most 245 characters" in problem(in_secret(json.dumps({**server, "name": "n" * 250}))).sentence


def test_model_keys_are_only_taken_from_a_secret() -> None:
    text = "openai_key: hidden-key\nmodel: gpt\n"
    assert rows(in_secret(text)) == [(SETTINGS, "openai_key"), (SETTINGS, "model")]
    found, (only,) = read(in_config_map(text))
    assert [item.document.key for item in found] == ["model"]
    assert (only.line, only.sentence) == (1, "The setting openai_key is a secret: put it into a Secret.")
    secrets = {key for key, rule in SETTING_RULES.items() if rule.secret}
    assert secrets == {key for key in SETTING_RULES if key.endswith("_key") or key == "s3_access_key_id"}


def test_nothing_that_stands_in_a_secret_is_shown() -> None:
    texts = (
        "openai_key: *hidden\n",
        "openai_key: !hidden x\n",
        "openai_key: [hidden]\n",
        "- hidden\n",
        "x: hidden\n",
        'openai_key: "hidden\n',
        "worker_concurrency: hidden\n",
        "name: a\nserver_type: remote\ntoken: [hidden]\n",
    )
    for text in texts:
        for key in ("a.yaml", "a.json", "settings.yaml"):
            _, problems = read(in_secret(text, key))
            assert problems
            assert "hidden" not in "".join(map(str, problems))


# ---- settings


def test_of_a_main_instances_settings_only_ours_are_taken() -> None:
    settings = {
        "model": "gpt",
        "openai_key": "k",
        "gemini_key": "",
        "grok_key": None,
        "bedrock_api_key": "b",
        "theme": 1,
    }
    found = items(in_folder(json.dumps(settings), "settings.json"))
    assert {item.document.key: item.document.definition for item in found} == {"model": "gpt", "openai_key": "k"}


def test_every_stored_setting_of_a_variable_can_be_synced() -> None:
    assert {each.stored for each in VARIABLES if each.stored} <= set(SETTING_RULES)


@pytest.mark.parametrize("value", [1, 100, "7"])
def test_numbers_in_their_range_are_taken(value: object) -> None:
    assert rows(in_config_map(json.dumps({"worker_concurrency": value}))) == [(SETTINGS, "worker_concurrency")]


@pytest.mark.parametrize("value", [0, 101, -1, 1.5, True, "x", [], {}, "9" * 5000])
def test_numbers_out_of_their_range_are_refused(value: object) -> None:
    only = problem(in_config_map(json.dumps({"worker_concurrency": value})))
    assert only.sentence == (
        "The setting worker_concurrency is not accepted as it is; it takes a whole number from 1 to 100."
    )


def test_lists_of_models_are_taken() -> None:
    assert rows(in_config_map("openai_compatible_models: [a, b]\nlocal_compatible_models: a,b\n"))
    assert "a list of names" in problem(in_config_map("local_compatible_models: {a: b}\n")).sentence
