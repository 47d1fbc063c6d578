"""What is rendered for a scale: counts, order, security, names, and what changes when something changes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from pydantic import SecretStr

from synapse_operator import naming
from synapse_operator.api.common import JsonObject
from synapse_operator.api.reasons import Reason
from synapse_operator.desired import Blocked, Desired, desired_for_scale
from synapse_operator.desired.environment import literal
from synapse_operator.naming import CONFIG_HASH_ANNOTATION, HASH_ANNOTATION, Kind
from synapse_operator.observed import (
    Found,
    KeyMissing,
    NotTried,
    Overview,
    QueueFigures,
    SecretMissing,
    Unknown,
    Unreachable,
    Unusable,
)
from synapse_worker import contract
from tests.builders import (
    HASH_KEY,
    IMAGE,
    POSTGRES_URL,
    REDIS_URL,
    a_child,
    a_scale,
    an_observed,
    manifest_of,
    what_is_desired,
)

DEFAULT = what_is_desired(a_scale())


def _deployment(desired: Desired = DEFAULT) -> JsonObject:
    return manifest_of(desired, Kind.DEPLOYMENT).body


def _pod(desired: Desired = DEFAULT) -> JsonObject:
    pod: JsonObject = _deployment(desired)["spec"]["template"]["spec"]
    return pod


def _container(desired: Desired = DEFAULT) -> JsonObject:
    (container,) = _pod(desired)["containers"]
    found: JsonObject = container
    return found


def _environment(desired: Desired = DEFAULT) -> dict[str, str]:
    data: dict[str, str] = manifest_of(desired, Kind.CONFIG_MAP).body["data"]
    return data


def _config_hash(desired: Desired) -> str:
    found: str = _deployment(desired)["spec"]["template"]["metadata"]["annotations"][CONFIG_HASH_ANNOTATION]
    return found


def _spec(**spec: Any) -> Desired:
    return what_is_desired(a_scale(spec=spec))


# ---- what there is


def test_an_object_comes_after_those_that_it_needs() -> None:
    assert [manifest.ref.kind for manifest in DEFAULT.manifests] == [
        Kind.SERVICE_ACCOUNT,
        Kind.SERVICE,
        Kind.CONFIG_MAP,
        Kind.DEPLOYMENT,
        Kind.POD_DISRUPTION_BUDGET,
    ]


def test_every_object_is_owned_labelled_and_hashed() -> None:
    for manifest in DEFAULT.manifests:
        metadata = manifest.body["metadata"]
        assert (metadata["name"], metadata["namespace"]) == (manifest.ref.name, "team-a")
        (owner,) = metadata["ownerReferences"]
        assert owner["uid"] == a_scale().metadata.uid
        assert owner["controller"] is True
        assert naming.child_labels("demo").items() <= metadata["labels"].items()
        assert metadata["annotations"] == {HASH_ANNOTATION: manifest.applied_hash}


def test_the_expected_refs_are_those_with_stable_names() -> None:
    stable = {manifest.ref for manifest in DEFAULT.manifests if manifest.ref.kind is not Kind.CONFIG_MAP}
    expected = naming.expected_refs(
        "team-a", "demo", shards=["0"], budgets=True, network_policy=False, api=False, pod_monitor=False
    )
    assert set(expected) == stable


def test_rendering_is_the_same_each_time() -> None:
    assert what_is_desired(a_scale()) == DEFAULT


def test_nothing_rendered_is_null_and_nothing_is_empty_by_accident() -> None:
    """A server-side apply owns what it is sent: a null or an empty list would be a claim."""

    def walk(value: object, path: str) -> None:
        assert value is not None, path
        assert value not in ([], {}, ""), path
        if isinstance(value, dict):
            for key, below in value.items():
                if key != naming.SYNC_LABEL:  # empty on purpose
                    walk(below, f"{path}.{key}")
        if isinstance(value, list):
            for below in value:
                walk(below, f"{path}[]")

    for manifest in DEFAULT.manifests:
        walk(manifest.body, manifest.ref.kind.kind)


def test_no_manifest_holds_a_secret() -> None:
    text = json.dumps([manifest.body for manifest in DEFAULT.manifests])
    for secret in ("redis-password", "postgres-password", REDIS_URL, POSTGRES_URL, HASH_KEY.get_secret_value()):
        assert secret not in text
    assert "password" not in repr(DEFAULT)


# ---- pods


def test_pods_satisfy_pod_security_restricted() -> None:
    pod, container = _pod(), _container()
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert {"hostNetwork", "hostPID", "hostIPC"}.isdisjoint(pod)
    assert all(set(volume) == {"name", "emptyDir"} for volume in pod["volumes"])


def test_pods_get_no_token_and_no_service_links() -> None:
    assert _pod()["automountServiceAccountToken"] is False
    assert _pod()["enableServiceLinks"] is False
    assert manifest_of(DEFAULT, Kind.SERVICE_ACCOUNT).body["automountServiceAccountToken"] is False
    assert _pod()["serviceAccountName"] == manifest_of(DEFAULT, Kind.SERVICE_ACCOUNT).ref.name


def test_only_tmp_and_data_can_be_written() -> None:
    mounts = {mount["mountPath"]: mount["name"] for mount in _container()["volumeMounts"]}
    assert mounts == {"/tmp": "tmp", contract.BY_NAME["SYNAPSE_DATA_DIR"].default: "data"}  # noqa: S108


def test_requests_and_limits_are_set() -> None:
    resources = _container()["resources"]
    assert set(resources["requests"]) == set(resources["limits"]) == {"cpu", "memory"}


@pytest.mark.parametrize(
    ("probe", "path", "timing"),
    [
        ("startupProbe", "/startupz", contract.STARTUP_PROBE),
        ("readinessProbe", "/readyz", contract.READINESS_PROBE),
        ("livenessProbe", "/livez", contract.LIVENESS_PROBE),
    ],
)
def test_probes_are_those_of_the_contract(probe: str, path: str, timing: contract.ProbeTiming) -> None:
    rendered = _container()[probe]
    assert rendered["httpGet"]["path"] == path
    assert (rendered["periodSeconds"], rendered["timeoutSeconds"], rendered["failureThreshold"]) == (
        timing.period,
        timing.timeout,
        timing.failures,
    )


@pytest.mark.parametrize("drain", [0, 300, 86_400])
def test_the_grace_period_outlasts_the_drain(drain: int) -> None:
    desired = _spec(workers={"drainTimeoutSeconds": drain})
    assert _pod(desired)["terminationGracePeriodSeconds"] == contract.grace_period_seconds(drain)
    assert _environment(desired)["WORKER_DRAIN_SECONDS"] == str(drain)


def test_the_image_runs_its_own_command() -> None:
    assert {"command", "args"}.isdisjoint(_container())
    assert _container()["image"] == IMAGE


def test_the_image_of_the_spec_wins() -> None:
    desired = _spec(image="ghcr.io/x/worker@sha256:abc", imagePullPolicy="Always", imagePullSecrets=[{"name": "reg"}])
    assert desired.image == "ghcr.io/x/worker@sha256:abc"
    assert _container(desired)["image"] == desired.image
    assert _container(desired)["imagePullPolicy"] == "Always"
    assert _pod(desired)["imagePullSecrets"] == [{"name": "reg"}]


def test_workers_are_spread_over_zones_and_nodes_where_there_is_room() -> None:
    constraints = _pod()["topologySpreadConstraints"]
    assert [constraint["topologyKey"] for constraint in constraints] == [
        "topology.kubernetes.io/zone",
        "kubernetes.io/hostname",
    ]
    assert {constraint["whenUnsatisfiable"] for constraint in constraints} == {"ScheduleAnyway"}


def test_a_rollout_never_goes_below_the_wanted_number() -> None:
    assert _deployment()["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": "25%", "maxUnavailable": 0}


def test_selectors_agree() -> None:
    selector = _deployment()["spec"]["selector"]["matchLabels"]
    labels = _deployment()["spec"]["template"]["metadata"]["labels"]
    assert selector == naming.shard_selector("demo", "0")
    assert selector.items() <= labels.items()
    assert manifest_of(DEFAULT, Kind.POD_DISRUPTION_BUDGET).body["spec"]["selector"]["matchLabels"] == selector
    assert manifest_of(DEFAULT, Kind.SERVICE).body["spec"]["selector"].items() <= labels.items()


def test_the_disruption_budget_lets_a_node_be_drained() -> None:
    spec = manifest_of(DEFAULT, Kind.POD_DISRUPTION_BUDGET).body["spec"]
    assert (spec["maxUnavailable"], spec["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")


def test_the_metrics_service_lists_every_worker() -> None:
    spec = manifest_of(DEFAULT, Kind.SERVICE).body["spec"]
    assert (spec["clusterIP"], spec["publishNotReadyAddresses"]) == ("None", True)
    (port,) = spec["ports"]
    (container_port,) = _container()["ports"]
    assert port["targetPort"] == container_port["name"]
    assert container_port["containerPort"] == int(contract.BY_NAME["WORKER_HEALTH_PORT"].default or 0)


# ---- environment


def test_only_what_the_spec_sets_becomes_a_variable() -> None:
    assert _environment() == {"K8S_MODE": "1", "WORKER_QUEUE_SHARD": "default,0", "WORKER_DRAIN_SECONDS": "300"}


def test_settings_of_the_spec_become_variables() -> None:
    desired = _spec(
        workers={"concurrency": 20, "jobTimeoutSeconds": 60, "maxRetries": 0},
        postgres={"urlSecretRef": {"name": "s", "key": "k"}, "pgbouncer": True},
    )
    assert _environment(desired) == {
        "K8S_MODE": "1",
        "WORKER_QUEUE_SHARD": "default,0",
        "WORKER_DRAIN_SECONDS": "300",
        "WORKER_CONCURRENCY": "20",
        "WORKER_JOB_TIMEOUT": "60",
        "WORKER_MAX_RETRIES": "0",
        "PGBOUNCER_MODE": "1",
    }


def test_the_config_map_is_immutable_and_referenced() -> None:
    config_map = manifest_of(DEFAULT, Kind.CONFIG_MAP)
    assert config_map.body["immutable"] is True
    assert _container()["envFrom"] == [{"configMapRef": {"name": config_map.ref.name}}]


def test_urls_come_from_the_secret_or_from_the_spec() -> None:
    desired = _spec(redis={"url": "redis://redis:6379/0"})
    assert _container(desired)["env"][:2] == [
        {"name": "REDIS_URL", "value": "redis://redis:6379/0"},
        {"name": "SCALE_POSTGRES_URL", "valueFrom": {"secretKeyRef": {"name": "stores", "key": "postgres"}}},
    ]


def test_kubernetes_expands_nothing_in_a_literal() -> None:
    assert literal("a$(HOME)$b") == "a$$(HOME)$b"


# ---- what rolls the pods


@pytest.mark.parametrize(
    "desired",
    [
        _spec(image="other"),
        _spec(workers={"concurrency": 20}),
        _spec(redis={"url": "redis://redis:6379/0"}),
        what_is_desired(a_scale(), an_observed(redis_url=Found(SecretStr("redis://:rotated@redis")))),
        what_is_desired(a_scale(), an_observed(postgres_url=Found(SecretStr("postgresql://u:rotated@p/d")))),
    ],
    ids=["image", "concurrency", "inline url", "redis rotated", "postgres rotated"],
)
def test_what_a_worker_reads_at_start_rolls_the_pods(desired: Desired) -> None:
    assert _deployment(desired)["spec"]["template"] != _deployment()["spec"]["template"]


def test_a_rotated_secret_changes_nothing_but_the_hash() -> None:
    rotated = what_is_desired(a_scale(), an_observed(redis_url=Found(SecretStr("redis://:rotated@redis"))))
    assert _config_hash(rotated) != _config_hash(DEFAULT)
    assert _pod(rotated) == _pod()


@pytest.mark.parametrize("spec", [{"workers": {"replicas": 5}}, {"enabled": False}], ids=["replicas", "enabled"])
def test_what_a_worker_does_not_read_rolls_nothing(spec: dict[str, Any]) -> None:
    assert _deployment(_spec(**spec))["spec"]["template"] == _deployment()["spec"]["template"]


def test_the_same_secrets_look_different_in_two_scales_and_two_installations() -> None:
    other_scale = what_is_desired(a_scale(uid="22222222-2222-4222-8222-222222222222"))
    other_key = desired_for_scale(a_scale(), an_observed(), default_image=IMAGE, hash_key=SecretStr("other"))
    assert isinstance(other_key, Desired)
    assert len({_config_hash(DEFAULT), _config_hash(other_scale), _config_hash(other_key)}) == 3


# ---- replicas


def _live(replicas: int) -> Any:
    desired = _spec(workers={"replicas": replicas})
    return (a_child(manifest_of(desired, Kind.DEPLOYMENT)),)


BUSY = {"default": QueueFigures(3, 0, 1.0)}
UNKNOWN = Unknown("Redis does not answer")


@pytest.mark.parametrize("queues", [BUSY, UNKNOWN, {"default": QueueFigures(0, 0, None)}])
def test_an_enabled_scale_has_the_workers_of_its_spec(queues: Any) -> None:
    observed = an_observed(queues=queues, children=_live(7))
    assert what_is_desired(a_scale(spec={"workers": {"replicas": 3}}), observed).workers == 3


@pytest.mark.parametrize(
    ("present", "observed", "replicas"),
    [
        (3, an_observed(), 0),
        (3, an_observed(queues=BUSY), 3),
        (3, an_observed(queues={"default": QueueFigures(0, 1, None)}), 3),
        (3, an_observed(overview=Overview(0, 10, 0, open_jobs=1)), 3),
        (0, an_observed(queues=BUSY), 1),
        (0, an_observed(), 0),
        (3, an_observed(queues=UNKNOWN), 3),
        (3, an_observed(overview=UNKNOWN), 3),
        (0, an_observed(queues=UNKNOWN), 0),
        (9, an_observed(queues=BUSY), 4),
        (9, an_observed(queues=UNKNOWN), 4),
    ],
    ids=[
        "idle: to 0",
        "queued: they stay",
        "leased: they stay",
        "open in the ledger: they stay",
        "a job arrives: one comes back",
        "idle at 0",
        "Redis unknown: they stay",
        "Postgres unknown: they stay",
        "unknown brings none",
        "busy: never above the spec",
        "unknown: never above the spec",
    ],
)
def test_a_disabled_scale_finishes_and_goes_to_zero(present: int, observed: Any, replicas: int) -> None:
    scale = a_scale(spec={"enabled": False, "workers": {"replicas": 4}})
    assert what_is_desired(scale, replace(observed, children=_live(present))).workers == replicas


def test_a_disabled_scale_without_workers_by_order_stays_without() -> None:
    scale = a_scale(spec={"enabled": False, "workers": {"replicas": 0}})
    assert what_is_desired(scale, an_observed(queues=BUSY)).workers == 0


def test_a_new_disabled_scale_begins_at_zero() -> None:
    assert what_is_desired(a_scale(spec={"enabled": False}), an_observed(queues=UNKNOWN)).workers == 0


# ---- blocked


@pytest.mark.parametrize(
    ("changes", "reason", "sentence"),
    [
        ({"redis_url": SecretMissing("gone")}, Reason.SECRET_NOT_FOUND, "redis.urlSecretRef: gone"),
        ({"postgres_url": KeyMissing("no key")}, Reason.SECRET_KEY_NOT_FOUND, "postgres.urlSecretRef: no key"),
        ({"redis_url": Unknown("forbidden")}, Reason.SECRET_UNREADABLE, "redis.urlSecretRef: forbidden"),
        ({"redis": Unusable("REDIS_URL names no host")}, Reason.REDIS_UNUSABLE, "REDIS_URL names no host"),
        ({"postgres": Unusable("no database")}, Reason.POSTGRES_UNUSABLE, "no database"),
    ],
)
def test_what_somebody_must_repair_blocks(changes: dict[str, Any], reason: Reason, sentence: str) -> None:
    blocked = desired_for_scale(a_scale(), an_observed(**changes), default_image=IMAGE, hash_key=HASH_KEY)
    assert blocked == Blocked(reason, sentence)


@pytest.mark.parametrize("state", [Unreachable("away"), NotTried("no url")])
def test_a_store_that_is_away_does_not_block(state: Any) -> None:
    assert what_is_desired(a_scale(), an_observed(redis=state, postgres=state)).workers == 1
