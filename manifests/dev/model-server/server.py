"""A model provider for tests and demos: OpenAI's chat and Anthropic's messages protocol, answers by script.

The prompt says what is answered: text that begins with `SCRIPT:` is followed by a JSON list with one entry per answer
of the conversation. Entries:

    {"say": "text"}                      an answer; $prompt stands for all that was said, $last for the last tool result
    {"call": "tool", "args": {...}}      a tool call, args may be text; {"calls": [...]} holds several of them
    {"status": 429, "headers": {...}}    an HTTP error; "times": how often, then the next entry stands in its place
    {"raw": "text"}                      a body that is no answer
    {"think": "text"}                    beside the others: reasoning that is shown (Anthropic)
    {"wait": 0.5}                        beside the others: seconds until the answer
    {"tokens": [10, 5]}                  beside the others: what the answer says it has used (OpenAI)

Definitions that are to be read as a user writes them have no script in them. For those there is a file of rules, a JSON
list of `{"when": [texts], "answers": [entries]}`: the first rule all of whose texts were said answers.

Without either, the last thing said is repeated. Only the standard library, so that it runs on any Python image:
`python server.py PORT [RULES]`.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MARK = "SCRIPT:"


@dataclass
class Asked:
    """One request: which protocol, its headers in lower case, its body, and how many answers it goes on from."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    turn: int

    @property
    def prompt(self) -> str:
        """All that was said to the model, tool results apart."""
        return "\n".join(_texts(self.body, ("user",)))

    @property
    def system(self) -> str:
        """The instructions."""
        return "\n".join(_texts(self.body, ("system", "developer")))

    @property
    def tools(self) -> list[str]:
        """Names of the tools offered."""
        return [tool.get("name") or tool["function"]["name"] for tool in self.body.get("tools") or []]


@dataclass(frozen=True)
class Rule:
    """Answers for conversations in which all of these texts were said."""

    when: Sequence[str]
    answers: list[dict[str, Any]]


@dataclass
class Log:
    """What was asked so far."""

    asked: list[Asked] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    log: Log
    rules: Sequence[Rule]

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer a probe."""
        self._send(200, b"ok", "text/plain")

    def do_POST(self) -> None:
        """Answer a request of either protocol."""
        length = int(self.headers.get("content-length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        path = self.path.partition("?")[0]
        anthropic = path.endswith("/messages")
        if not anthropic and not path.endswith("/chat/completions"):
            self._send(404, b'{"error": {"message": "no such path"}}', "application/json")
            return
        turn = sum(1 for message in body["messages"] if message["role"] == "assistant")
        asked = Asked(path, {name.lower(): value for name, value in self.headers.items()}, body, turn)
        with self.log.lock:
            self.log.asked.append(asked)
        entry = self._entry(asked)
        time.sleep(entry.get("wait", 0))
        if "status" in entry:
            error = {"type": "error", "error": {"type": "scripted", "message": entry.get("say", "scripted error")}}
            self._send(entry["status"], json.dumps(error).encode(), "application/json", entry.get("headers", {}))
        elif "raw" in entry:
            self._send(200, entry["raw"].encode(), "application/json")
        elif anthropic:
            self._anthropic(asked, entry)
        else:
            self._openai(asked, entry)

    def _entry(self, asked: Asked) -> dict[str, Any]:
        prompt = asked.prompt
        script, said = _script(prompt) or _script(asked.system), _said(asked.body)
        if script is None:
            heard = f"{asked.system}\n{prompt}"
            script = next((rule.answers for rule in self.rules if all(text in heard for text in rule.when)), None)
        if script is None:
            return {"say": said}
        rest = script[:]
        place, steps = 0, []
        while place < len(rest):
            entry = rest[place]
            key = f"{hash(prompt)}:{asked.turn}:{place}"
            if "status" in entry and "times" in entry:
                with self.log.lock:
                    self.log.failed[key] += 1
                    used_up = self.log.failed[key] > entry["times"]
                if used_up or len(steps) != asked.turn:
                    place += 1
                    continue
            steps.append(entry)
            place += 1
        entry = dict(steps[min(asked.turn, len(steps) - 1)])
        if "say" in entry:
            last = _last_result(asked.body)
            entry["say"] = entry["say"].replace("$prompt", prompt).replace("$last", last)
        return entry

    def _openai(self, asked: Asked, entry: dict[str, Any]) -> None:
        calls = [
            {"id": f"call_{asked.turn}_{number}", "type": "function", "function": {"name": name, "arguments": text}}
            for number, (name, text, _) in enumerate(_calls(entry))
        ]
        message: dict[str, Any] = {"role": "assistant", "content": entry.get("say")}
        if calls:
            message["tool_calls"] = calls
        used, made = entry.get("tokens", (10, 5))
        answer = {
            "id": "chat-1",
            "object": "chat.completion",
            "created": 1,
            "model": asked.body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}],
            "usage": {"prompt_tokens": used, "completion_tokens": made, "total_tokens": used + made},
        }
        self._send(200, json.dumps(answer).encode(), "application/json")

    def _anthropic(self, asked: Asked, entry: dict[str, Any]) -> None:
        content: list[dict[str, Any]] = []
        if "think" in entry:
            content.append({"type": "thinking", "thinking": entry["think"], "signature": "s"})
        if "say" in entry:
            content.append({"type": "text", "text": entry["say"]})
        for number, (name, _, value) in enumerate(_calls(entry)):
            content.append({"type": "tool_use", "id": f"toolu_{asked.turn}_{number}", "name": name, "input": value})
        stop = "tool_use" if _calls(entry) else "end_turn"
        answer = {
            "id": "msg-1",
            "type": "message",
            "role": "assistant",
            "model": asked.body["model"],
            "content": content,
            "stop_reason": stop,
            "stop_sequence": None,
            "usage": {"input_tokens": 11, "output_tokens": 6},
        }
        if asked.body.get("stream"):
            self._send(200, _stream(answer), "text/event-stream")
        else:
            self._send(200, json.dumps(answer).encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        try:
            self.end_headers()
            self.wfile.write(body)
        except OSError:  # whoever asked did not wait
            self.close_connection = True


def _stream(answer: dict[str, Any]) -> bytes:
    start = {**answer, "content": [], "stop_reason": None, "usage": {"input_tokens": 11, "output_tokens": 1}}
    events: list[tuple[str, dict[str, Any]]] = [("message_start", {"message": start})]
    for index, block in enumerate(answer["content"]):
        deltas: list[dict[str, str]]
        if block["type"] == "text":
            empty, deltas = {"type": "text", "text": ""}, [{"type": "text_delta", "text": block["text"]}]
        elif block["type"] == "thinking":
            empty = {"type": "thinking", "thinking": "", "signature": ""}
            deltas = [
                {"type": "thinking_delta", "thinking": block["thinking"]},
                {"type": "signature_delta", "signature": block["signature"]},
            ]
        else:
            empty = {**block, "input": {}}
            deltas = [{"type": "input_json_delta", "partial_json": json.dumps(block["input"])}]
        events.append(("content_block_start", {"index": index, "content_block": empty}))
        events += [("content_block_delta", {"index": index, "delta": delta}) for delta in deltas]
        events.append(("content_block_stop", {"index": index}))
    delta = {"stop_reason": answer["stop_reason"], "stop_sequence": None}
    events += [("message_delta", {"delta": delta, "usage": {"output_tokens": 6}}), ("message_stop", {})]
    return "".join(f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n" for name, data in events).encode()


def _calls(entry: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """Each call as (tool, arguments as text, arguments as value)."""
    calls = []
    for call in entry.get("calls") or ([entry] if "call" in entry else []):
        value = call.get("args", {})
        calls.append((call["call"], value if isinstance(value, str) else json.dumps(value), value))
    return calls


def _script(text: str) -> list[dict[str, Any]] | None:
    _, mark, rest = text.rpartition(MARK)
    if not mark:
        return None
    start = rest.index("[")
    script: list[dict[str, Any]] = json.JSONDecoder().raw_decode(rest[start:])[0]
    return script


def _texts(body: dict[str, Any], roles: tuple[str, ...]) -> list[str]:
    messages = list(body["messages"])
    if body.get("system") is not None:
        messages.insert(0, {"role": "system", "content": body["system"]})
    return [text for message in messages if message["role"] in roles for text in _parts(message["content"], "text")]


def _parts(content: Any, kind: str) -> list[str]:
    if isinstance(content, str):
        return [content]
    found = []
    for block in content or []:
        if block.get("type") == kind:
            inner = block.get("text") if kind == "text" else block.get("content")
            found += [inner] if isinstance(inner, str) else _parts(inner, "text")
    return found


def _said(body: dict[str, Any]) -> str:
    return (_texts(body, ("user",)) or [""])[-1]


def _last_result(body: dict[str, Any]) -> str:
    results = [
        text
        for message in body["messages"]
        for text in (
            _parts(message["content"], "text")
            if message["role"] == "tool"
            else _parts(message["content"], "tool_result")
            if isinstance(message["content"], list)
            else []
        )
    ]
    return results[-1] if results else ""


def read_rules(path: Path) -> list[Rule]:
    """Read a file of rules."""
    return [Rule(rule["when"], rule["answers"]) for rule in json.loads(path.read_text(encoding="utf-8"))]


def serve(port: int, host: str = "127.0.0.1", rules: Sequence[Rule] = ()) -> tuple[ThreadingHTTPServer, Log]:
    """Start serving in a thread; port 0 = any free one."""
    log = Log()
    handler = type("ScriptedHandler", (Handler,), {"log": log, "rules": rules})
    server = ThreadingHTTPServer((host, port), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server, log


if __name__ == "__main__":
    given = read_rules(Path(sys.argv[2])) if len(sys.argv) > 2 else []
    running, _ = serve(int(sys.argv[1]), "0.0.0.0", given)  # noqa: S104 - a pod's Service reaches it
    threading.Event().wait()
