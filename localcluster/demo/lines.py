"""What runs and metrics say, in lines for the screen; pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WIDTH = 110
BAR = 20
ASKS_MODELS = ("agent", "llm", "tool")
"""Types of steps that take their time without a word; an evaluator is quick, and says why."""
_SAMPLE = re.compile(r"([a-z_]+)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')

Json = Mapping[str, Any]


@dataclass
class Progress:
    """One run as it is told: each event makes a line or none.

    Attributes:
        steps: id -> name, of the orchestration's steps.
    """

    steps: Mapping[str, str]
    _began_ms: int = 0
    _done: set[str] = field(default_factory=set)
    _said: dict[str, str] = field(default_factory=dict)

    def lines(self, entry_id: str, event: Json) -> Iterator[str]:
        """Return what to show for an event: when, how many of the steps have finished, what happened."""
        ms = int(entry_id.partition("-")[0])
        self._began_ms = self._began_ms or ms
        for text in self._texts(event):
            bar = "#" * (BAR * len(self._done) // len(self.steps))
            yield f"{(ms - self._began_ms) / 1000:6.1f} s [{bar:<{BAR}}] {text}"

    def _texts(self, event: Json) -> Iterator[str]:
        step = str(event.get("orch_step_id", ""))
        name = self.steps.get(step, step)
        match event["type"]:
            case "worker_picked_up":
                yield f"worker {event['worker_id']} has it"
            case "step_start" if event["step_type"] in ASKS_MODELS:
                yield f"{name}: {event['step_type']} at work"
            case "parallel_start":
                yield f"{name}: {event['branch_count']} branches side by side"
            case "tool_execution":
                given = ", ".join(f"{key}={value!r}" for key, value in (event["args"] or {}).items())
                yield f"{name}: calls {event['tool_name']}({given})"
            case "routing_decision":
                target = event["target_step_id"]
                back = "sends it back to" if target in self._done else "goes on to"
                self._said[step] = f"{back} {self.steps.get(target, target)!r}: {event['reasoning']}"
            case "final" if step:
                self._said[step] = event["response"]
            case "merge_complete":
                self._said[step] = f"{event['input_count']} results are one"
            case "if_decision":
                self._said[step] = event["decision"]
            case "step_warning":
                yield f"{name}: {event['message']}"
            case "human_input_required":
                asked = ", ".join(f"{each['name']} ({each['type']})" for each in event["fields"])
                yield f"{name}: the run waits for a human, and holds no worker meanwhile"
                yield f"  it asks: {event['prompt']}"
                yield f"  it wants: {asked}"
            case "step_complete":
                self._done.add(step)
                said = self._said.pop(step, "")
                took = event["duration_seconds"]
                yield f"{name}{': ' if said else ''}{said}{f' ({took:.1f} s)' if took >= 0.05 else ''}"
            case "step_error" | "orchestration_error":
                yield f"{name}{': ' if name else ''}{event['error']}"
            case "orchestration_complete":
                yield f"completed; {len(self._done)} of {len(self.steps)} steps were on its way"


def wrapped(line: str, indent: int) -> Iterator[str]:
    """Break a line between words; what follows is indented."""
    rest = line
    while len(rest) > WIDTH:
        at = rest.rfind(" ", indent + 1, WIDTH + 1)
        if at < 0:
            break
        yield rest[:at]
        rest = " " * indent + rest[at + 1 :]
    yield rest


@dataclass(frozen=True)
class Sample:
    """One value of a series in Prometheus' text."""

    name: str
    labels: Mapping[str, str]
    value: float


def samples(text: str) -> list[Sample]:
    """Read Prometheus' text."""
    found = []
    for line in text.splitlines():
        match = _SAMPLE.fullmatch(line)
        if match:
            found.append(Sample(match[1], dict(_LABEL.findall(match[2] or "")), float(match[3])))
    return found


def counted(read: Iterable[Sample], name: str, *by: str) -> Iterator[str]:
    """Show a counter or gauge, with the labels `by`, summed over the others."""
    for labels, value in _summed(read, name, by).items():
        yield f"{_series(name, by, labels):<78} {value:g}"


def largest(read: Sequence[Sample], name: str) -> Iterator[str]:
    """Show a gauge that several processes tell alike."""
    values = [sample.value for sample in read if sample.name == name]
    if values:
        yield f"{name:<78} {max(values):g}"


def timed(read: Sequence[Sample], name: str, *by: str) -> Iterator[str]:
    """Show a histogram of seconds, by how many there were and their mean."""
    sums = _summed(read, f"{name}_sum", by)
    for labels, count in _summed(read, f"{name}_count", by).items():
        if count:
            yield f"{_series(name, by, labels):<78} {count:g}, {sums[labels] / count * 1000:.0f} ms each"


def _summed(read: Iterable[Sample], name: str, by: Sequence[str]) -> dict[tuple[str, ...], float]:
    found: dict[tuple[str, ...], float] = {}
    for sample in read:
        if sample.name == name:
            key = tuple(sample.labels.get(label, "") for label in by)
            found[key] = found.get(key, 0) + sample.value
    return dict(sorted(found.items()))


def _series(name: str, by: Sequence[str], labels: Sequence[str]) -> str:
    shown = ",".join(f'{label}="{value}"' for label, value in zip(by, labels, strict=True))
    return f"{name}{{{shown}}}" if by else name
