"""Reading what the API server sends, and the questions that `Observed` answers."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from synapse_operator import naming
from synapse_operator.api.common import SecretKeySelector
from synapse_operator.naming import Kind
from synapse_operator.observed import (
    Child,
    Found,
    KeyMissing,
    Overview,
    PodProblemKind,
    QueueFigures,
    Rollout,
    SecretMissing,
    SourceKind,
    SourceRef,
    Unknown,
    read_secret_key,
    read_source,
)
from tests.builders import (
    a_child,
    a_deployment_status,
    a_live_object,
    a_pod,
    a_scale,
    a_secret,
    an_observed,
    manifest_of,
    what_is_desired,
)

SELECTOR = SecretKeySelector(name="stores", key="redis")
DEPLOYMENT = manifest_of(what_is_desired(a_scale(spec={"workers": {"replicas": 3}})), Kind.DEPLOYMENT)


# ---- sources of definitions


def test_the_texts_of_a_source_are_its_keys_that_may_hold_definitions() -> None:
    data = {"b.yaml": "x", "a.json": "y", "plain": "z", "README.md": "no", "c.YML": "w"}
    ref = SourceRef(SourceKind.CONFIG_MAP, "defs")
    found = read_source(ref, {"data": data, "binaryData": {"d.yaml": "AAE=", "logo.png": "AAE="}})
    assert [(each.key, each.text) for each in found] == [
        ("a.json", "y"),
        ("b.yaml", "x"),
        ("c.YML", "w"),
        ("d.yaml", None),
        ("plain", "z"),
    ]
    assert {(each.name, each.takes_secrets, each.shown) for each in found} == {("ConfigMap defs", False, True)}
    assert read_source(ref, {}) == ()


def test_a_secret_is_decoded_and_its_words_are_not_shown() -> None:
    raw = {"data": {"a.yaml": base64.b64encode(b"model: gpt").decode(), "b.yaml": "/w==", "c.yaml": "no base64"}}
    found = read_source(SourceRef(SourceKind.SECRET, "keys"), raw)
    assert [(each.place, each.text) for each in found] == [
        ("Secret keys/a.yaml", "model: gpt"),
        ("Secret keys/b.yaml", None),
        ("Secret keys/c.yaml", None),
    ]
    assert {(each.takes_secrets, each.shown) for each in found} == {(True, False)}


# ---- Secrets


def test_a_key_is_found() -> None:
    found = read_secret_key(a_secret(redis="redis://r\n"), SELECTOR, "the URL")
    assert isinstance(found, Found)
    assert found.value.get_secret_value() == "redis://r\n"
    assert "redis://r" not in repr(found)


def test_a_missing_secret_says_what_to_create() -> None:
    assert read_secret_key(None, SELECTOR, "the URL") == SecretMissing(
        "Secret stores does not exist in this namespace; create it with the key redis"
    )


@pytest.mark.parametrize(
    "secret",
    [
        {},
        {"data": None},
        a_secret(postgres="x"),
        a_secret(redis=""),
        a_secret(redis=" \n"),
        {"data": {"redis": "/w=="}},
    ],
    ids=["no data", "null", "other key", "empty", "blank", "not text"],
)
def test_a_secret_without_the_key_says_so(secret: dict[str, Any]) -> None:
    missing = read_secret_key(secret, SELECTOR, "the URL")
    assert isinstance(missing, KeyMissing)
    assert "redis" in missing.sentence
    assert "stores" in missing.sentence


# ---- children


def test_a_child_is_read_with_what_we_own_of_it() -> None:
    child = a_child(DEPLOYMENT)
    assert child.ref == DEPLOYMENT.ref
    assert child.applied_hash == DEPLOYMENT.applied_hash
    assert child.owner_uid == "11111111-1111-4111-8111-111111111111"
    assert child.owned_fields is not None
    assert not child.terminating


def test_other_entries_of_managed_fields_are_not_ours() -> None:
    live = a_live_object(DEPLOYMENT)
    (ours,) = live["metadata"]["managedFields"]
    live["metadata"]["managedFields"] = [
        ours | {"manager": "kubectl"},
        ours | {"operation": "Update"},
        ours | {"subresource": "status"},
    ]
    assert Child.read(Kind.DEPLOYMENT, live).owned_fields is None


def test_an_object_of_somebody_else_can_be_read() -> None:
    child = Child.read(Kind.SERVICE, {"metadata": {"name": "x", "namespace": "n", "uid": "u", "resourceVersion": "1"}})
    assert (child.owner_uid, child.applied_hash, child.owned_fields) == (None, None, None)


# ---- rollouts


def _rollout(status: dict[str, Any], *, generation: int = 1) -> Rollout:
    return Rollout.of(a_child(DEPLOYMENT, status=status, generation=generation))


def test_a_rollout_is_complete_when_all_pods_are_new_and_available() -> None:
    assert _rollout(a_deployment_status(3)).complete


@pytest.mark.parametrize(
    "rollout",
    [
        _rollout({}),
        _rollout(a_deployment_status(3), generation=2),
        _rollout(a_deployment_status(2)),
        _rollout(a_deployment_status(4)),
        _rollout(a_deployment_status(3, ready=2)),
        _rollout(a_deployment_status(3, updated=2)),
    ],
    ids=["no status", "not seen yet", "one to come", "one to go", "one not ready", "one old"],
)
def test_a_rollout_is_not_complete(rollout: Rollout) -> None:
    assert not rollout.complete


def test_a_refusal_is_the_message_of_replica_failure() -> None:
    condition = {"type": "ReplicaFailure", "status": "True", "message": 'pods "x-1" is forbidden: exceeded quota'}
    assert _rollout({"conditions": [condition]}).refusal == "a pod is forbidden: exceeded quota"
    assert _rollout({"conditions": [condition | {"status": "False"}]}).refusal is None
    assert _rollout({}).refusal is None


# ---- pods


def test_a_pod_that_runs_has_no_problem() -> None:
    pod = a_pod(ready=True)
    assert pod.ready
    assert pod.problem is None


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("ImagePullBackOff", PodProblemKind.IMAGE),
        ("ErrImagePull", PodProblemKind.IMAGE),
        ("ErrImageNeverPull", PodProblemKind.IMAGE),
        ("InvalidImageName", PodProblemKind.IMAGE),
        ("CreateContainerConfigError", PodProblemKind.CONFIGURATION),
        ("CreateContainerError", PodProblemKind.CONFIGURATION),
        ("CrashLoopBackOff", PodProblemKind.CRASH),
    ],
)
def test_a_waiting_reason_is_a_problem(reason: str, kind: PodProblemKind) -> None:
    pod = a_pod(waiting={"reason": reason, "message": "because"})
    assert pod.problem is not None
    assert pod.problem.kind is kind


@pytest.mark.parametrize("reason", ["ContainerCreating", "PodInitializing"])
def test_a_pod_that_is_starting_has_no_problem(reason: str) -> None:
    assert a_pod(waiting={"reason": reason}).problem is None


def test_kubelet_is_quoted_in_one_line() -> None:
    pod = a_pod("p", waiting={"reason": "ErrImagePull", "message": "failed\n  to pull"})
    assert pod.problem is not None
    assert pod.problem.sentence == "pod p waits with ErrImagePull: failed to pull"


def test_a_long_message_is_clipped() -> None:
    pod = a_pod(waiting={"reason": "ErrImagePull", "message": "x" * 5000})
    assert pod.problem is not None
    assert len(pod.problem.sentence) < 500


def test_a_crash_shows_exit_code_and_last_line() -> None:
    last = {"exitCode": 1, "reason": "Error", "message": "Traceback\nREDIS_URL names no host\n\n"}
    pod = a_pod("p", waiting={"reason": "CrashLoopBackOff"}, last=last, restarts=4)
    assert pod.problem is not None
    assert pod.problem.sentence == "pod p was restarted 4 times: it exited with code 1: REDIS_URL names no host"


def test_a_crash_for_memory_says_so() -> None:
    last = {"exitCode": 137, "reason": "OOMKilled"}
    pod = a_pod(waiting={"reason": "CrashLoopBackOff"}, last=last, restarts=2)
    assert pod.problem is not None
    assert pod.problem.sentence.endswith("it used more memory than its limit")


def test_between_two_back_offs_it_still_counts_as_a_crash() -> None:
    crashing = a_pod(restarts=3, last={"exitCode": 1}).problem
    assert crashing is not None
    assert crashing.kind is PodProblemKind.CRASH
    assert a_pod(restarts=2, last={"exitCode": 1}).problem is None
    assert a_pod(restarts=9, last={"exitCode": 1}, ready=True).problem is None


def test_a_pod_without_a_node_says_what_the_scheduler_says() -> None:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}
    pod = a_pod("p", conditions=[condition], phase="Pending")
    assert pod.problem is not None
    assert pod.problem.kind is PodProblemKind.UNSCHEDULABLE
    assert pod.problem.sentence == "no node takes pod p: 0/1 nodes"


@pytest.mark.parametrize("gone", [{"deletionTimestamp": "2026-11-24T12:00:00Z"}, {"phase": "Failed"}])
def test_a_pod_on_its_way_out_has_no_problem(gone: dict[str, str]) -> None:
    assert a_pod(waiting={"reason": "CrashLoopBackOff"}, **gone).problem is None  # type: ignore[arg-type]


def test_the_first_problem_is_the_one_that_comes_first_in_a_pods_life() -> None:
    crash = a_pod("a", waiting={"reason": "CrashLoopBackOff"})
    image = a_pod("b", waiting={"reason": "ImagePullBackOff"})
    other = a_pod("c", waiting={"reason": "ImagePullBackOff"})
    assert an_observed(pods=(other, crash, image)).pod_problem == image.problem
    assert an_observed(pods=(a_pod(ready=True),)).pod_problem is None


# ---- load


def test_queues_are_added_up() -> None:
    queues = {"default": QueueFigures(2, 1, 3.5), "1": QueueFigures(1, 0, 9.0), "2": QueueFigures(0, 0, None)}
    assert an_observed(queues=queues).queue == QueueFigures(3, 1, 9.0)


@pytest.mark.parametrize(
    ("figures", "open_jobs", "idle"),
    [((0, 0), 0, True), ((1, 0), 0, False), ((0, 1), 0, False), ((0, 0), 1, False)],
)
def test_idle_is_when_neither_store_knows_of_work(figures: tuple[int, int], open_jobs: int, idle: bool) -> None:
    observed = an_observed(queues={"default": QueueFigures(*figures, None)}, overview=Overview(0, 10, 0, open_jobs))
    assert observed.idle is idle


def test_work_without_a_job_is_work_too() -> None:
    quiet = {"default": QueueFigures(0, 0, None)}
    assert an_observed(queues=quiet, overview=Overview(0, 10, 0, open_jobs=0, work_due=True)).idle is False


@pytest.mark.parametrize("missing", ["queues", "overview"])
def test_unknown_is_never_idle(missing: str) -> None:
    assert an_observed(**{missing: Unknown("Redis is away")}).idle == Unknown("Redis is away")


def test_a_child_is_found_by_kind_and_name() -> None:
    child = a_child(DEPLOYMENT)
    observed = an_observed(children=(child,))
    assert observed.child(DEPLOYMENT.ref) is child
    assert observed.child(naming.Ref(Kind.SERVICE, DEPLOYMENT.ref.namespace, DEPLOYMENT.ref.name)) is None
    assert observed.of_kind(Kind.SERVICE) == ()
