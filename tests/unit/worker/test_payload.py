"""Job payloads: what arq wrote is read, what is hostile is refused with a sentence, and nothing is executed."""

from __future__ import annotations

import json
import pickle
from contextlib import suppress

import pytest
from arq.jobs import deserialize_job_raw, serialize_job
from hypothesis import given
from hypothesis import strategies as st

from synapse_worker.errors import PayloadError
from synapse_worker.queueing.payload import JobPayload, decode, encode

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=20,
)


@given(st.text(min_size=1), st.dictionaries(st.text(), JSON, max_size=5), st.integers(0, 2**41))
def test_what_we_write_stock_arq_reads_and_we_read_back(
    function: str, arguments: dict[str, object], enqueued: int
) -> None:
    raw = encode(JobPayload(function, arguments, enqueued_ms=enqueued, extras={"traceparent": "00"}))
    assert deserialize_job_raw(raw) == (function, (), arguments, None, enqueued)
    back = decode(raw)
    assert (back.function, back.arguments, back.enqueued_ms, back.extras) == (
        function,
        arguments,
        enqueued,
        {"traceparent": "00"},
    )


def test_what_stock_arq_writes_we_read() -> None:
    raw = serialize_job("f", (1, "two"), {"k": [1, None]}, None, 5)
    read = decode(raw)
    assert (read.function, read.positional, read.arguments, read.enqueued_ms) == ("f", (1, "two"), {"k": [1, None]}, 5)


def test_json_is_read_too() -> None:
    assert decode(json.dumps({"f": "f", "k": {"a": 1}, "et": 1}).encode()).arguments == {"a": 1}


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("run",))


def _nested(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    return value


def _bomb() -> list[object]:
    value: list[object] = [0] * 10
    for _ in range(9):
        value = [value] * 10
    return value


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (pickle.dumps({"f": "f", "k": {"x": _Evil()}}), "asks for builtins.print"),
        (pickle.dumps(_Evil()), "asks for builtins.print"),
        (b"cos\nsystem\n(S'true'\ntR.", "asks for os.system"),
        (b"", "cannot be read"),
        (b"\x80\x04\x95", "cannot be read"),
        (b"{not json", "cannot be read"),
        (pickle.dumps([1]), "names no function"),
        (pickle.dumps({"f": 1}), "names no function"),
        (pickle.dumps({"f": "f", "k": {1: 2}}), "not a mapping of names"),
        (pickle.dumps({"f": "f", "k": {"a": {1: 2}}}), "keys are not text"),
        (pickle.dumps({"f": "f", "k": {"a": b"bytes"}}), "hold a bytes"),
        (pickle.dumps({"f": "f", "k": {"a": {1, 2}}}), "hold a set"),
        (pickle.dumps({"f": "f", "k": {"a": [float("nan")]}}), "the number nan, which JSON does not have"),
        (b'{"f": "f", "k": {"a": -Infinity}}', "the number -inf"),
        (pickle.dumps({"f": "f", "k": {"a": 10**5000}}), "a whole number of over 1024 bits"),
        (pickle.dumps({"f": "f", "k": {}, "a": "abc"}), "not a list"),
        (pickle.dumps({"f": "f", "k": {"a": _nested(150)}}), "nested too deeply"),
        (pickle.dumps({"f": "f", "k": {"a": _bomb()}}), "too many"),
        (b"{" + b" " * (16 * 1024 * 1024), "at most 16777216 are accepted"),
    ],
)
def test_what_cannot_be_a_job_is_refused_with_a_sentence(
    raw: bytes, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PayloadError, match=sentence):
        decode(raw)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("enqueued", [-1, 0, 10**30, "yesterday", None])
def test_an_impossible_time_of_enqueueing_counts_as_none(enqueued: object) -> None:
    assert decode(pickle.dumps({"f": "f", "k": {}, "et": enqueued})).enqueued_ms == 0


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_our_error(raw: bytes) -> None:
    with suppress(PayloadError):
        decode(raw)
