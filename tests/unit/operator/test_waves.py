"""How many scales replace pods at a time."""

from __future__ import annotations

from synapse_operator.naming import Kind
from synapse_operator.observed import Child, Observed
from synapse_operator.waves import SCALES_AT_ONCE, Waves
from tests.builders import a_child, a_deployment_status, a_pod, a_scale, an_observed, manifest_of, what_is_desired


def test_two_scales_at_a_time() -> None:
    waves = Waves()
    for scale in range(SCALES_AT_ONCE):
        assert waves.may_roll(scale, rolling=False)
        waves.begin(scale)
        assert waves.may_roll(scale, rolling=True)
    assert not waves.may_roll("next", rolling=False)
    assert waves.may_roll(0, rolling=True), "one that is at it goes on"
    assert waves.may_roll(0, rolling=False), "one that is through may begin again while nobody took its place"
    assert waves.may_roll("next", rolling=False)
    waves.begin("next")
    assert not waves.may_roll(0, rolling=False)
    waves.forget("next")
    assert waves.may_roll(0, rolling=False)


def test_one_that_was_at_it_before_this_process_began_counts() -> None:
    waves = Waves()
    for scale in range(SCALES_AT_ONCE):
        waves.may_roll(scale, rolling=True)
    assert not waves.may_roll("next", rolling=False)


def _seen(status: dict[str, object], *, generation: int = 1, **changes: object) -> Observed:
    scale = a_scale(spec={"workers": {"replicas": 4}})
    child: Child = a_child(
        manifest_of(what_is_desired(scale), Kind.DEPLOYMENT), status=dict(status), generation=generation
    )
    return an_observed(children=(child,), **changes)


def test_who_replaces_pods() -> None:
    assert not _seen(a_deployment_status(4)).rolling
    assert not _seen(a_deployment_status(2)).rolling, "it only gets more of them"
    assert not _seen(a_deployment_status(4, ready=1)).rolling
    half = a_deployment_status(5, updated=1)
    assert _seen(half).rolling
    assert _seen(a_deployment_status(4), generation=2).rolling, "nobody knows yet what becomes of a change"


def test_one_that_does_not_get_on_gives_its_turn_up() -> None:
    half = a_deployment_status(5, updated=1)
    given_up = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    assert not _seen({**half, "conditions": [given_up]}).rolling
    assert not _seen(half, pods=(a_pod(waiting={"reason": "ImagePullBackOff"}),)).rolling
