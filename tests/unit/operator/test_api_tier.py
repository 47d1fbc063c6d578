"""The V2 API tier: what is rendered for it, and what its Secret of keys may hold."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest

from synapse_operator import naming
from synapse_operator.api.common import JsonObject
from synapse_operator.api.reasons import ConditionType
from synapse_operator.api_keys import KeyEntries, not_taken, read_keys
from synapse_operator.conditions import by_type
from synapse_operator.desired import Desired
from synapse_operator.naming import CONFIG_HASH_ANNOTATION, Kind
from synapse_operator.observed import Child, Observed, SecretMissing, Unknown
from synapse_operator.plan import ApplyReport, plan
from synapse_operator.status import next_status
from synapse_worker.store.api_keys import hash_of
from synapse_worker.store.managed_keys import ManagedKey
from tests.builders import NOW, a_deployment_status, a_pod, a_scale, an_observed, children_of, what_is_desired

NAME = naming.api_name("demo")


def scale(**api: Any) -> Any:
    return a_scale(spec={"api": {"enabled": True, **api}, "workers": {"concurrency": 7}})


def body(desired: Desired, kind: Kind, name: str = NAME) -> JsonObject:
    (found,) = [each.body for each in desired.manifests if (each.ref.kind, each.ref.name) == (kind, name)]
    return found


def test_it_is_off_unless_it_is_asked_for() -> None:
    assert NAME not in {each.ref.name for each in what_is_desired(a_scale()).manifests}


def test_its_pods_are_the_workers_but_for_what_they_run() -> None:
    desired = what_is_desired(scale())
    spec = body(desired, Kind.DEPLOYMENT)["spec"]
    assert spec["replicas"] == 2
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert (container["name"], container["args"]) == ("api", ["api"])
    assert container["ports"] == [{"name": "http", "containerPort": 8765, "protocol": "TCP"}]
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "http"}
    worker_pod = body(desired, Kind.DEPLOYMENT, naming.deployment_name("demo", "0"))["spec"]["template"]["spec"]
    (worker,) = worker_pod["containers"]
    for same in ("image", "env", "securityContext", "resources", "volumeMounts"):
        assert container[same] == worker[same]
    assert pod["securityContext"] == worker_pod["securityContext"]
    assert pod["automountServiceAccountToken"] is False


def test_its_labels_are_no_workers() -> None:
    desired = what_is_desired(scale())
    deployment = body(desired, Kind.DEPLOYMENT)
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert not naming.worker_selector("demo").items() <= labels.items()
    for kind in (Kind.SERVICE, Kind.POD_DISRUPTION_BUDGET):
        selector = body(desired, kind)["spec"]["selector"]
        assert selector.get("matchLabels", selector) == naming.api_selector("demo")


def test_its_environment_is_a_config_map_of_its_own_that_goes_with_the_rollout() -> None:
    desired = what_is_desired(scale())
    (container,) = body(desired, Kind.DEPLOYMENT)["spec"]["template"]["spec"]["containers"]
    name = container["envFrom"][-1]["configMapRef"]["name"]
    data = body(desired, Kind.CONFIG_MAP, name)["data"]
    assert data == {"K8S_MODE": "1"}
    limited = a_scale(spec={"api": {"enabled": True}, "queue": {"maxDepth": 5}, "workers": {"concurrency": 7}})
    worker = naming.deployment_name("demo", "0")
    before, after = (
        [
            body(each, Kind.DEPLOYMENT, name)["spec"]["template"]["metadata"]["annotations"][CONFIG_HASH_ANNOTATION]
            for name in (NAME, worker)
        ]
        for each in (desired, what_is_desired(limited))
    )
    assert before[0] != after[0]
    assert before[1] == after[1], "a limit of the API rolls no worker"
    # Former environments of it are removed beside those of workers.
    seen = an_observed(children=(*children_of(what_is_desired(limited)), *children_of(desired)))
    gone = {each.ref.name for each in plan(limited, what_is_desired(limited), seen, NOW).delete}
    assert name not in gone


def test_the_service_is_what_the_spec_says() -> None:
    service = {"type": "LoadBalancer", "port": 80, "annotations": {"a": "b"}}
    made = body(what_is_desired(scale(service=service)), Kind.SERVICE)
    assert made["spec"]["type"] == "LoadBalancer"
    assert made["spec"]["ports"] == [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}]
    assert made["metadata"]["annotations"]["a"] == "b"


def test_switched_off_all_of_it_goes() -> None:
    seen = an_observed(children=children_of(what_is_desired(scale())))
    off = a_scale(spec={"workers": {"concurrency": 7}})
    gone = plan(off, what_is_desired(off), seen, NOW).delete
    assert {(each.ref.kind, each.ref.name) for each in gone if each.ref.kind is not Kind.CONFIG_MAP} == {
        (kind, NAME) for kind in (Kind.DEPLOYMENT, Kind.SERVICE, Kind.POD_DISRUPTION_BUDGET)
    }


# ---- keys


def secret(**entries: object) -> JsonObject:
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in entries.items()}
    return {"data": {name: base64.b64encode(text.encode()).decode() for name, text in texts.items()}}


def test_each_entry_is_a_key_of_which_only_a_hash_is_kept() -> None:
    made = read_keys(secret(ci={"token": "hidden-1"}, acme={"token": "hidden-2", "tenantId": "Acme & Söhne"}))
    assert made.problems == ()
    assert made.keys == (
        ManagedKey(hash_of("hidden-2"), "acme", "Acme & Söhne"),
        ManagedKey(hash_of("hidden-1"), "ci", None),
    )
    assert "hidden" not in repr(made)
    assert read_keys({}) == KeyEntries((), ())


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("hidden-token", "it is no JSON; accepted:"),
        (["hidden-token"], "it is no JSON object"),
        ("[" * 200_000, "it is no JSON; accepted:"),
        ({"token": "hidden-token", "tenant": "a"}, "it has a field that is not known"),
        ({"hidden-token": "acme"}, "it has a field that is not known"),
        ({}, "token is not 1 to 1024 characters"),
        ({"token": ""}, "token is not 1 to 1024 characters"),
        ({"token": "hidden token"}, "token is not 1 to 1024 characters"),
        ({"token": "hidden-tökén"}, "token is not 1 to 1024 characters"),
        ({"token": 7}, "token is not 1 to 1024 characters"),
        ({"token": "hidden-token", "tenantId": ""}, "tenantId is not a text of 1 to 255 characters"),
        ({"token": "hidden-token", "tenantId": "\ud800"}, "tenantId is not a text of 1 to 255 characters"),
        ({"token": "hidden-token", "tenantId": 3}, "tenantId is not a text of 1 to 255 characters"),
    ],
)
def test_what_is_no_key_is_said_without_its_words_and_the_others_hold(entry: object, words: str) -> None:
    made = read_keys(secret(bad=entry, good={"token": "t"}))
    assert [key.name for key in made.keys] == ["good"]
    (problem,) = made.problems
    assert problem.startswith(f"entry bad: {words}")
    assert "hidden" not in problem


def test_a_token_is_one_keys_alone() -> None:
    made = read_keys(secret(a={"token": "t"}, b={"token": "t", "tenantId": "acme"}))
    assert [key.name for key in made.keys] == ["a"]
    assert made.problems == ("entry b: it has the token of entry a; give it its own",)
    (problem,) = not_taken(made, [hash_of("t")])
    assert problem.startswith("entry a: its token is a key of somebody else")


# ---- what is told


def told(observed: Observed, home: Any, previous: JsonObject | None = None) -> JsonObject:
    status = next_status(
        home, what_is_desired(home, observed), observed, ApplyReport(), previous=previous or {}, now=NOW, figures=True
    )
    assert status is not None
    return status


def seen(home: Any, *, ready: int = 2, **changes: Any) -> Observed:
    children = tuple(
        Child.read(child.ref.kind, child.raw | {"status": a_deployment_status(2, ready=ready)})
        if (child.ref.kind, child.ref.name) == (Kind.DEPLOYMENT, NAME)
        else child
        for child in children_of(what_is_desired(home))
    )
    return an_observed(children=children, **changes)


def conditions(status: JsonObject) -> dict[str, tuple[str, str]]:
    return {type_: (each["status"], each["reason"]) for type_, each in by_type(status).items()}


def test_the_status_shows_it_and_counts_no_worker_of_it() -> None:
    home = scale(keysSecretRef={"name": "keys"}, service={"port": 80})
    status = told(seen(home, api_keys=read_keys(secret(a={"token": "t"}))), home)
    assert status["api"] == {"desired": 2, "ready": 2, "service": NAME, "port": 80, "keys": 1}
    assert status["workers"]["summary"] == "1/1"
    found = conditions(status)
    assert (found[ConditionType.API_READY], found[ConditionType.READY]) == (
        ("True", "ApiServes"),
        ("True", "WorkersReady"),
    )
    assert found[ConditionType.RECONCILING][0] == "False"
    off = told(an_observed(children=children_of(what_is_desired(a_scale()))), a_scale())
    assert "api" not in off
    assert conditions(off)[ConditionType.API_READY] == ("True", "ApiOff")


@pytest.mark.parametrize(
    ("changes", "reason", "stalled", "words"),
    [
        ({"ready": 1}, "ApiNotReady", False, "1 of 2 pods of the V2 API are ready"),
        (
            {"api_keys": SecretMissing("Secret keys does not exist"), "keys_left": Unknown("missing")},
            *("SecretNotFound", True, "api.keysSecretRef: Secret keys does not exist"),
        ),
        ({"api_keys": read_keys(secret(a="x"))}, "ApiKeysRefused", True, "1 error in the Secret of keys"),
    ],
)
def test_its_troubles_are_the_scales(changes: dict[str, Any], reason: str, stalled: bool, words: str) -> None:
    home = scale(keysSecretRef={"name": "keys"})
    before = {"api": {"keys": 3}}
    status = told(seen(home, **changes), home, before)
    found = conditions(status)
    assert found[ConditionType.API_READY] == found[ConditionType.READY] == ("False", reason)
    assert (found[ConditionType.STALLED][0] == "True") is stalled
    assert words in by_type(status)[ConditionType.READY]["message"]
    if reason == "SecretNotFound":
        assert status["api"]["keys"] == 3, "what was stored holds"


def test_keys_that_could_not_be_revoked_are_remembered() -> None:
    api = {"desired": 2, "ready": 2, "service": NAME, "port": 8765, "keys": 3}
    away = Unknown("PostgreSQL does not answer")
    unnamed = scale()
    assert told(seen(unnamed, keys_left=away), unnamed, {"api": api})["api"]["keys"] == 3
    assert "keys" not in told(seen(unnamed), unnamed, {"api": api})["api"]
    off = a_scale()
    children = children_of(what_is_desired(off))
    assert told(an_observed(children=children, keys_left=away), off, {"api": api})["api"] == api
    assert "api" not in told(an_observed(children=children), off, {"api": api})


def test_a_pod_of_it_that_cannot_start_is_told() -> None:
    home = scale()
    pod = a_pod("api-1", waiting={"reason": "ImagePullBackOff", "message": "no such image"})
    observed = replace(seen(home, ready=0), pods=(pod,))
    assert conditions(told(observed, home))[ConditionType.READY] == ("False", "ImagePullFailed")
