"""Which provider answers for a model's name, at which address and with which key.

Pure: from the stored settings (`scale_settings`) to an endpoint or one sentence. Talking to it is `models`'s. Keys are
secrets here and stay so: no sentence holds one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from pydantic import SecretStr

from synapse_worker.engine.errors import ModelRefused

DEFAULT_NAMES = frozenset({"", "default"})
"""What users write for "the stored default"."""


class WireProtocol(StrEnum):
    """How an endpoint is spoken to."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model is asked.

    Attributes:
        provider: as settings name it: openai, anthropic, gemini, grok, deepseek, openai_compatible, local_compatible.
        protocol: how it is spoken to.
        model: the model's name there.
        base_url: None = the provider's own.
        key: None = it wants none.
    """

    provider: str
    protocol: WireProtocol
    model: str
    base_url: str | None
    key: SecretStr | None

    @property
    def key_setting(self) -> str:
        """The setting that holds the key."""
        return f"{self.provider}_key"


@dataclass(frozen=True, slots=True)
class _Provider:
    protocol: WireProtocol
    base_url: str | None
    prefixes: tuple[str, ...]


_OWN: Mapping[str, _Provider] = {
    "openai": _Provider(WireProtocol.OPENAI, None, ("gpt-", "chatgpt-", "ft:", "o1", "o3", "o4")),
    "anthropic": _Provider(WireProtocol.ANTHROPIC, None, ("claude",)),
    "gemini": _Provider(
        WireProtocol.OPENAI, "https://generativelanguage.googleapis.com/v1beta/openai/", ("gemini", "gemma")
    ),
    "grok": _Provider(WireProtocol.OPENAI, "https://api.x.ai/v1", ("grok",)),
    "deepseek": _Provider(WireProtocol.OPENAI, "https://api.deepseek.com/v1", ("deepseek",)),
}
_COMPATIBLE = ("openai_compatible", "local_compatible")
_ALIASES: Mapping[str, str] = {"google": "gemini", "xai": "grok", "claude": "anthropic", "local": "local_compatible"}


class Providers:
    """The model settings of one job; read anew at each job's start, so a rotated key needs no restart."""

    def __init__(self, settings: Mapping[str, object]) -> None:
        self._settings = settings

    def endpoint(self, *names: str | None, provider: str | None = None) -> Endpoint:
        """Return where the first of `names` that is no default is asked, else the stored default model.

        Args:
            names: in order of precedence; null, "" and "default" stand for the next one.
            provider: whoever answers for the first of `names` when its owner says so; else it follows from the name.

        Raises:
            ModelRefused: no model or no key is set, or nobody answers for that name; says what to set.
        """
        chosen = next((name.strip() for name in names if name is not None and not is_default(name)), None)
        if chosen is None:
            chosen, provider = self._text("model"), None
            if is_default(chosen):
                raise ModelRefused("No model is named, and none is stored: set the setting model, or the step's model.")
        named = self._named(provider) if provider else None
        return self._at(named or self._provider_of(chosen), chosen)

    def _named(self, provider: str) -> str | None:
        name = provider.strip().lower()
        if name in ("", "default", "auto"):
            return None
        name = _ALIASES.get(name, name)
        if name not in (*_OWN, *_COMPATIBLE):
            raise ModelRefused(
                f"There is no provider {provider!r} here; accepted are {', '.join((*_OWN, *_COMPATIBLE))}."
            )
        return name

    def _provider_of(self, model: str) -> str:
        for name in _COMPATIBLE:
            if model in self._models(name):
                return name
        for name, own in _OWN.items():
            if model.lower().startswith(own.prefixes):
                return name
        if self._text("mode").lower() == "local" and self._text("local_compatible_base_url"):
            return "local_compatible"
        prefixes = ", ".join(f"{'/'.join(own.prefixes)} ({name})" for name, own in _OWN.items())
        listed = "; ".join(f"{name}_models ({', '.join(self._models(name)) or 'none'})" for name in _COMPATIBLE)
        raise ModelRefused(
            f"No provider answers for the model {model!r}; accepted are names that begin with {prefixes}, "
            f"and those in the settings {listed}."
        )

    def _at(self, provider: str, model: str) -> Endpoint:
        key = self._text(f"{provider}_key")
        if provider in _COMPATIBLE:
            base_url = self._text(f"{provider}_base_url")
            if not base_url.startswith(("http://", "https://")):
                raise ModelRefused(
                    f"The model {model!r} is asked at the setting {provider}_base_url, which is not set to an "
                    "http:// or https:// URL."
                )
            return Endpoint(provider, WireProtocol.OPENAI, model, base_url, SecretStr(key) if key else None)
        if not key:
            raise ModelRefused(f"The model {model!r} is asked at {provider}; the setting {provider}_key is not set.")
        own = _OWN[provider]
        return Endpoint(provider, own.protocol, model, own.base_url, SecretStr(key))

    def _text(self, key: str) -> str:
        value = self._settings.get(key)
        return value.strip() if isinstance(value, str) else ""

    def _models(self, provider: str) -> list[str]:
        value = self._settings.get(f"{provider}_models")
        names = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
        return [name.strip() for name in names if isinstance(name, str) and name.strip()]


def is_default(name: str) -> bool:
    """Whether a model's name stands for the next one in order, or the stored one."""
    return name.strip().lower() in DEFAULT_NAMES
