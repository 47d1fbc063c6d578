"""Which provider answers for a name, and the sentences where none does."""

from __future__ import annotations

import pytest

from synapse_worker.engine.errors import ModelRefused
from synapse_worker.engine.providers import Providers, WireProtocol

STORED: dict[str, object] = {
    "model": "gpt-4o",
    "mode": "cloud",
    "openai_key": "sk-openai",
    "anthropic_key": "sk-anthropic",
    "gemini_key": "sk-gemini",
    "openai_compatible_base_url": "https://gateway.example/v1",
    "openai_compatible_key": "sk-gateway",
    "openai_compatible_models": "qwen3, gpt-oss-120b",
    "local_compatible_base_url": "http://ollama:11434/v1",
    "local_compatible_models": ["mistral"],
}


@pytest.mark.parametrize(
    ("names", "provider", "expected"),
    [
        ((None, "", "default"), None, ("openai", "gpt-4o")),
        (("Default",), "anthropic", ("openai", "gpt-4o")),  # who names no model has the stored one's provider
        (("claude-haiku-5-5", "gpt-5"), None, ("anthropic", "claude-haiku-5-5")),
        ((None, "o3-mini"), None, ("openai", "o3-mini")),
        (("gemini-3-pro",), None, ("gemini", "gemini-3-pro")),
        (("gpt-oss-120b",), None, ("openai_compatible", "gpt-oss-120b")),  # what is listed comes before the prefix
        (("mistral",), None, ("local_compatible", "mistral")),
        (("claude-haiku-5-5",), "openai_compatible", ("openai_compatible", "claude-haiku-5-5")),
        (("my-tuned",), "OpenAI", ("openai", "my-tuned")),
        (("gemini-3-pro",), "google", ("gemini", "gemini-3-pro")),
    ],
)
def test_a_name_finds_its_provider(
    names: tuple[str | None, ...], provider: str | None, expected: tuple[str, str]
) -> None:
    found = Providers(STORED).endpoint(*names, provider=provider)
    assert (found.provider, found.model) == expected


def test_an_endpoint_has_address_and_key() -> None:
    providers = Providers(STORED)
    claude = providers.endpoint("claude-haiku-5-5")
    assert (claude.protocol, claude.base_url) == (WireProtocol.ANTHROPIC, None)
    assert claude.key is not None
    assert claude.key.get_secret_value() == "sk-anthropic"
    local = providers.endpoint("mistral")
    assert (local.base_url, local.key) == ("http://ollama:11434/v1", None)
    assert "sk-" not in repr([claude, local, providers.endpoint("qwen3")])


def test_local_mode_takes_names_that_nobody_else_has() -> None:
    assert Providers({**STORED, "mode": "local"}).endpoint("llama3").provider == "local_compatible"


@pytest.mark.parametrize(
    ("changes", "name", "provider", "sentence"),
    [
        ({"model": ""}, None, None, "none is stored: set the setting model, or the step's model"),
        ({}, "llama3", None, "those in the settings openai_compatible_models (qwen3, gpt-oss-120b)"),
        ({}, "grok-4", None, "The model 'grok-4' is asked at grok; the setting grok_key is not set."),
        ({"openai_compatible_base_url": ""}, "qwen3", None, "openai_compatible_base_url, which is not set to an http"),
        ({}, "gpt-4o", "bedrock", "There is no provider 'bedrock' here; accepted are openai, anthropic,"),
    ],
)
def test_what_cannot_be_asked_says_what_to_set(
    changes: dict[str, object], name: str | None, provider: str | None, sentence: str
) -> None:
    with pytest.raises(ModelRefused) as refused:
        Providers({**STORED, **changes}).endpoint(name, provider=provider)
    assert sentence in str(refused.value)
    assert "sk-" not in str(refused.value)
