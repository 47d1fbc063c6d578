"""What a user lays over the pods, and that what the operator owns stays its own."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from synapse_operator import naming
from synapse_operator.api.common import JsonObject
from synapse_operator.api.overlay import SecretPart
from synapse_operator.naming import Kind
from synapse_operator.observed import Observed, read_secret_part
from synapse_operator.plan import owns
from tests.builders import a_scale, a_secret, an_observed, children_of, fields_of, manifest_of, what_is_desired


def _deployment(**template: Any) -> JsonObject:
    desired = what_is_desired(a_scale(spec={"workers": {"template": template}}))
    body: JsonObject = manifest_of(desired, Kind.DEPLOYMENT).body
    return body


def _pod(**template: Any) -> JsonObject:
    pod: JsonObject = _deployment(**template)["spec"]["template"]["spec"]
    return pod


def _container(**template: Any) -> JsonObject:
    container: JsonObject = _pod(**template)["containers"][0]
    return container


def test_labels_and_annotations_stand_beside_ours_on_the_pods_only() -> None:
    deployment = _deployment(labels={"team": "a"}, annotations={"note": "b"})
    metadata = deployment["spec"]["template"]["metadata"]
    assert metadata["labels"] == {"team": "a", **naming.child_labels("demo"), **naming.shard_selector("demo", "0")}
    assert set(metadata["labels"]) - {"team"} == set(naming.POD_LABELS)
    assert metadata["annotations"]["note"] == "b"
    assert naming.CONFIG_HASH_ANNOTATION in metadata["annotations"]
    assert "team" not in deployment["metadata"]["labels"]
    assert "team" not in deployment["spec"]["selector"]["matchLabels"]


def test_what_is_ours_wins_in_an_object_that_slipped_through() -> None:
    metadata = _deployment(labels={naming.SHARD_LABEL: "7"}, annotations={naming.CONFIG_HASH_ANNOTATION: "none"})[
        "spec"
    ]["template"]["metadata"]
    assert metadata["labels"][naming.SHARD_LABEL] == "0"
    assert metadata["annotations"][naming.CONFIG_HASH_ANNOTATION] != "none"


@pytest.mark.parametrize(
    ("given", "rendered"),
    [
        (
            {},
            {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"cpu": "2", "memory": "1Gi"}},
        ),
        (
            {"limits": {"memory": "4Gi"}},
            {"requests": {"cpu": "100m"}, "limits": {"cpu": "2", "memory": "4Gi"}},
        ),
        (
            {"requests": {"memory": "2Gi", "nvidia.com/gpu": 1}},
            {"requests": {"cpu": "100m", "memory": "2Gi", "nvidia.com/gpu": 1}, "limits": {"cpu": "2"}},
        ),
        (
            {"requests": {"cpu": 1, "memory": "1Gi"}},
            {"requests": {"cpu": 1, "memory": "1Gi"}},
        ),
    ],
    ids=["nothing", "a limit", "requests", "requests only"],
)
def test_a_resource_that_is_named_takes_nothing_from_the_defaults(given: JsonObject, rendered: JsonObject) -> None:
    assert _container(resources=given)["resources"] == rendered


def test_variables_come_after_ours_and_sources_before() -> None:
    container = _container(
        env=[
            {"name": "LOG_LEVEL", "value": "debug"},
            {"name": "EMPTY", "value": ""},
            {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        ],
        envFrom=[{"secretRef": {"name": "more"}}, {"prefix": "X_", "configMapRef": {"name": "c", "optional": True}}],
    )
    assert [entry["name"] for entry in container["env"]] == [
        *("REDIS_URL", "SCALE_POSTGRES_URL", "METRICS_TOKEN"),
        *("LOG_LEVEL", "EMPTY", "TOKEN", "NODE"),
    ]
    assert container["env"][4] == {"name": "EMPTY"}
    assert container["env"][5] == {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
    assert container["envFrom"][0]["secretRef"]["name"] == "more"
    assert container["envFrom"][1] == {"prefix": "X_", "configMapRef": {"name": "c", "optional": True}}
    assert "configMapRef" in container["envFrom"][2]


def test_volumes_are_passed_on_as_they_are_written() -> None:
    claim = {"name": "models", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}}
    mount = {"name": "models", "mountPath": "/models", "readOnly": True}
    pod = _pod(volumes=[claim], volumeMounts=[mount, {"name": "models", "mountPath": "/b", "readOnly": False}])
    assert pod["volumes"][-1] == claim
    assert pod["containers"][0]["volumeMounts"][-2:] == [mount, {"name": "models", "mountPath": "/b"}]
    assert [volume["name"] for volume in pod["volumes"][:2]] == ["tmp", "data"]


def test_where_pods_run() -> None:
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}
    pod = _pod(
        nodeSelector={"disk": "ssd"},
        tolerations=[{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        affinity=affinity,
        priorityClassName="high",
        topologySpreadConstraints=[{"topologyKey": "rack", "maxSkew": 2, "whenUnsatisfiable": "DoNotSchedule"}],
    )
    assert pod["nodeSelector"] == {"disk": "ssd"}
    assert pod["tolerations"] == [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert pod["affinity"] == affinity
    assert pod["priorityClassName"] == "high"
    (spread,) = pod["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["maxSkew"], spread["whenUnsatisfiable"]) == ("rack", 2, "DoNotSchedule")
    assert spread["labelSelector"] == {"matchLabels": naming.shard_selector("demo", "0")}


def test_an_own_service_account_takes_the_place_of_ours() -> None:
    assert _pod(serviceAccountName="cloud")["serviceAccountName"] == "cloud"


def test_a_cloud_role_is_an_annotation_of_our_service_account() -> None:
    role = {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"}
    desired = what_is_desired(a_scale(spec={"workers": {"template": {"serviceAccountAnnotations": role}}}))
    account = manifest_of(desired, Kind.SERVICE_ACCOUNT)
    assert role.items() <= account.body["metadata"]["annotations"].items()
    assert account.applied_hash != manifest_of(what_is_desired(a_scale()), Kind.SERVICE_ACCOUNT).applied_hash


def test_what_the_overlay_adds_is_ours_once_it_is_applied() -> None:
    """Else each look would take it for somebody's edit and apply it again."""
    body = _deployment(
        labels={"team": "a"},
        env=[{"name": "A", "value": "b"}],
        volumes=[{"name": "models", "emptyDir": {}}],
        volumeMounts=[{"name": "models", "mountPath": "/models"}],
        tolerations=[{"operator": "Exists"}],
    )
    assert owns(fields_of(body), body)


# ---- certificates, port, tenant


def test_certificates_of_the_stores_are_mounted_and_named() -> None:
    ca = {"caSecretRef": {"name": "ca", "key": "root.pem"}}
    spec = {
        "redis": {"url": "rediss://redis", **ca},
        "postgres": {"url": "postgresql://p@postgres/d?sslmode=verify-full", **ca},
    }
    desired = what_is_desired(a_scale(spec=spec))
    data = manifest_of(desired, Kind.CONFIG_MAP).body["data"]
    pod = manifest_of(desired, Kind.DEPLOYMENT).body["spec"]["template"]["spec"]
    mounts = {mount["name"]: mount for mount in pod["containers"][0]["volumeMounts"]}
    for volume, variable in (("redis-ca", "REDIS_CA_FILE"), ("postgres-ca", "POSTGRES_CA_FILE")):
        assert data[variable] == f"{mounts[volume]['mountPath']}/ca.crt"
        assert mounts[volume]["readOnly"] is True
        (source,) = [each["secret"] for each in pod["volumes"] if each["name"] == volume]
        assert source == {"secretName": "ca", "items": [{"key": "root.pem", "path": "ca.crt"}]}


def test_another_health_port_is_one_number_everywhere() -> None:
    desired = what_is_desired(a_scale(spec={"workers": {"healthPort": 9100}}))
    container = manifest_of(desired, Kind.DEPLOYMENT).body["spec"]["template"]["spec"]["containers"][0]
    assert container["ports"][0]["containerPort"] == 9100
    assert manifest_of(desired, Kind.CONFIG_MAP).body["data"]["WORKER_HEALTH_PORT"] == "9100"
    assert manifest_of(desired, Kind.SERVICE).body["spec"]["ports"][0]["port"] == 9100


def test_a_disruption_budget_can_be_switched_off() -> None:
    desired = what_is_desired(a_scale(spec={"podDisruptionBudget": {"enabled": False}}))
    assert Kind.POD_DISRUPTION_BUDGET not in {manifest.ref.kind for manifest in desired.manifests}


# ---- Secrets that variables name


NAMED = {
    "env": [
        {"name": "A", "valueFrom": {"secretKeyRef": {"name": "one", "key": "a"}}},
        {"name": "B", "value": "plain"},
        {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "map", "key": "c"}}},
    ],
    "envFrom": [{"secretRef": {"name": "two"}}, {"configMapRef": {"name": "map"}}],
}


def _secrets_hash(observed: Observed, template: dict[str, Any] = NAMED) -> str | None:
    desired = what_is_desired(a_scale(spec={"workers": {"template": template}}), observed)
    annotations = manifest_of(desired, Kind.DEPLOYMENT).body["spec"]["template"]["metadata"]["annotations"]
    found: str | None = annotations.get(naming.TEMPLATE_SECRETS_ANNOTATION)
    return found


def _known(**values: str) -> dict[SecretPart, SecretStr]:
    parts = {"one": SecretPart("one", "a"), "two": SecretPart("two")}
    return {parts[name]: SecretStr(value) for name, value in values.items()}


def test_the_secrets_of_variables_are_known_by_key_or_as_a_whole() -> None:
    scale = a_scale(spec={"workers": {"template": NAMED}, "pools": [{"name": "p", "shards": [0], "template": NAMED}]})
    assert [overlay.secrets for overlay in scale.spec.overlays] == [(SecretPart("one", "a"), SecretPart("two"))] * 2
    secret = a_secret(a="x", b="y")
    assert read_secret_part(secret, SecretPart("one", "a")) == SecretStr(secret["data"]["a"])
    assert read_secret_part(secret, SecretPart("one", "c")) is None
    other = a_secret(a="x", b="z")
    assert read_secret_part(secret, SecretPart("one")) != read_secret_part(other, SecretPart("one"))


def test_a_changed_secret_of_a_variable_rolls_the_pods() -> None:
    hashes = {
        _secrets_hash(an_observed(template_secrets=_known(one=one, two=two)))
        for one, two in (("x", "y"), ("z", "y"), ("x", "z"), ("x", "y"))
    }
    assert len(hashes) == 3
    assert "x" not in hashes
    assert _secrets_hash(an_observed(), {}) is None


def test_while_such_a_secret_is_missing_the_pods_stay() -> None:
    before = an_observed(template_secrets=_known(one="x", two="y"))
    scale = a_scale(spec={"workers": {"template": NAMED}})
    children = children_of(what_is_desired(scale, before))
    assert _secrets_hash(an_observed(template_secrets=_known(one="x"), children=children)) == _secrets_hash(before)
    assert _secrets_hash(an_observed(template_secrets=_known(one="x"))) != _secrets_hash(before)
