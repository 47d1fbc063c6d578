"""What a receiver gets, and how long a failed delivery waits."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import uuid
from datetime import UTC, datetime

from pydantic import SecretStr

from synapse_worker.store.outbox import Attempt
from synapse_worker.webhooks import MOST_ATTEMPTS, body, delay, headers

ATTEMPT = Attempt(
    id=uuid.UUID(int=7),
    number=1,
    url="https://receiver.example/hook?token=t",
    host="receiver.example",
    run_id="run_1",
    orchestration_id="three",
    tenant_id="acme",
    status="completed",
    error=None,
    started_at=datetime(2026, 11, 1, 12, 0, tzinfo=UTC),
    ended_at=datetime(2026, 11, 1, 12, 1, tzinfo=UTC),
    total_cost_usd=0.25,
    state='{"big": 12345678901234567890123, "text": "ü"}',
    secret=SecretStr("hush"),
    known=True,
)


def test_the_body_tells_how_the_run_ended() -> None:
    assert json.loads(body(ATTEMPT)) == {
        "run_id": "run_1",
        "orchestration_id": "three",
        "tenant_id": "acme",
        "status": "completed",
        "error": None,
        "started_at": "2026-11-01T12:00:00+00:00",
        "ended_at": "2026-11-01T12:01:00+00:00",
        "total_cost_usd": 0.25,
        "shared_state": {"big": 12345678901234567890123, "text": "ü"},
    }
    assert json.loads(body(dataclasses.replace(ATTEMPT, state=None)))["shared_state"] is None


def test_the_signature_is_over_timestamp_and_body() -> None:
    content = body(ATTEMPT)
    given = headers(ATTEMPT, content, 1_700_000_000)
    wanted = hmac.new(b"hush", b"1700000000." + content, hashlib.sha256).hexdigest()
    assert given["X-Synapse-Signature"] == f"sha256={wanted}"
    assert given["X-Synapse-Timestamp"] == "1700000000"
    assert given["X-Synapse-Delivery"] == "00000000-0000-0000-0000-000000000007"
    assert "hush" not in repr(ATTEMPT)


def test_without_a_secret_there_is_no_signature() -> None:
    assert "X-Synapse-Signature" not in headers(dataclasses.replace(ATTEMPT, secret=None), b"{}", 1)


def test_delays_double_up_to_two_hours_and_end_within_a_day() -> None:
    delays = [delay(number) for number in range(1, MOST_ATTEMPTS)]
    assert delays[:4] == [5, 10, 20, 40]
    assert max(delays) == 7200
    assert 12 * 3600 < sum(delays) < 20 * 3600
