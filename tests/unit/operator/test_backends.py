"""Where a store's URL leads from the operator's namespace."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from synapse_operator.backends import seen_from_here


@pytest.mark.parametrize(
    ("url", "there"),
    [
        ("redis://:p%40ss@redis:6379/0", "redis://:p%40ss@redis.team-a:6379/0"),
        ("rediss://redis", "rediss://redis.team-a"),
        ("postgresql://u:p@postgres/db?sslmode=require", "postgresql://u:p@postgres.team-a/db?sslmode=require"),
        ("redis://redis.other:6379", "redis://redis.other:6379"),
        ("redis://127.0.0.1:6379", "redis://127.0.0.1:6379"),
        ("redis://[::1]:6379", "redis://[::1]:6379"),
        ("redis://localhost", "redis://localhost"),
        ("redis://host:not-a-port", "redis://host:not-a-port"),
        ("redis+cluster://a:6379,b:6379", "redis+cluster://a.team-a:6379,b.team-a:6379"),
        (
            "rediss+cluster://u:p%40ss@a,b.other:6379,10.0.0.1:6379",
            "rediss+cluster://u:p%40ss@a.team-a,b.other:6379,10.0.0.1:6379",
        ),
        ("redis+cluster://a:6379, b:6379", "redis+cluster://a.team-a:6379,b.team-a:6379"),
        ("redis+cluster://a:6379,b:no-port", "redis+cluster://a:6379,b:no-port"),
        ("redis+cluster://a,,b", "redis+cluster://a.team-a,,b.team-a"),
        ("nonsense", "nonsense"),
    ],
)
def test_a_short_name_is_a_service_of_the_scales_namespace(url: str, there: str) -> None:
    assert seen_from_here(SecretStr(url), "team-a").get_secret_value() == there
