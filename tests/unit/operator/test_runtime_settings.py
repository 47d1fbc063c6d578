"""The operator's settings: one sentence for each thing that cannot be used."""

from __future__ import annotations

import pytest

from synapse_operator import settings
from synapse_operator.settings import SettingsError


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in settings.Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("WORKER_IMAGE", "registry.example/worker:1")


def test_only_the_worker_image_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = settings.load()
    assert loaded.watch_namespaces == ()
    assert loaded.resync_seconds == 60
    assert (loaded.shard_empty_seconds, loaded.status_figures_seconds) == (30, 15)
    monkeypatch.delenv("WORKER_IMAGE")
    with pytest.raises(SettingsError, match=r"^WORKER_IMAGE is not set; it is required: [^.]*\.$"):
        settings.load()


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEALTH_PORT", "")
    monkeypatch.setenv("WATCH_NAMESPACES", "")
    assert settings.load().health_port == 8080


def test_namespaces_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCH_NAMESPACES", " a, b-1 ,,a")
    assert settings.load().watch_namespaces == ("a", "b-1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HEALTH_PORT", "0"),
        ("METRICS_PORT", "65536"),
        ("METRICS_PORT", "many"),
        ("RESYNC_SECONDS", "0"),
        ("SHARD_EMPTY_SECONDS", "0"),
        ("STATUS_FIGURES_SECONDS", "3601"),
        ("LOG_LEVEL", "loud"),
        ("LOG_FORMAT", "xml"),
        ("WATCH_NAMESPACES", "a,B"),
    ],
)
def test_a_value_that_is_not_accepted_is_named_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        settings.load()
    sentence = str(caught.value)
    assert sentence.startswith(f"{name} is '{value}', which is not accepted: ")
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_settings_do_not_change() -> None:
    loaded = settings.load()
    with pytest.raises(ValueError, match="frozen"):
        loaded.health_port = 1
