"""spec.storage: what workers are given, what rolls them, and what the status says of files that nobody shares."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from synapse_operator.api.common import JsonObject
from synapse_operator.api.overlay import OPERATOR_ENVIRONMENT
from synapse_operator.api.reasons import ConditionType, Reason
from synapse_operator.api.scale import SynapseScale
from synapse_operator.desired import Blocked, desired_for_scale
from synapse_operator.desired.environment import s3_keys, worker_environment
from synapse_operator.naming import CONFIG_HASH_ANNOTATION, STORED_ANNOTATION, Kind
from synapse_operator.observed import Found, Observed, SecretMissing, Unknown
from synapse_operator.plan import ApplyReport
from synapse_operator.status import next_status
from tests.builders import HASH_KEY, IMAGE, NOW, a_scale, an_observed, children_of, manifest_of, what_is_desired

S3: JsonObject = {
    "bucket": "vault",
    "region": "eu-central-1",
    "prefix": "teams/a",
    "endpointUrl": "http://minio:9000",
    "credentialsSecretRef": {"name": "s3-user"},
}
IN_S3: JsonObject = {"storage": {"s3": S3}}


def keys(access: str = "AKIA1234", secret: str = "hush-hush") -> dict[str, Found]:  # noqa: S107
    """What the Secret of the user says."""
    return {"S3_ACCESS_KEY_ID": Found(SecretStr(access)), "S3_SECRET_ACCESS_KEY": Found(SecretStr(secret))}


def _template(scale: SynapseScale, **changes: Any) -> JsonObject:
    desired = what_is_desired(scale, an_observed(**changes))
    template: JsonObject = manifest_of(desired, Kind.DEPLOYMENT).body["spec"]["template"]
    return template


def test_workers_are_told_where_the_bucket_is_and_read_the_keys_from_the_users_own_secret() -> None:
    scale = a_scale(spec=IN_S3)
    desired = what_is_desired(scale, an_observed(s3_keys=keys()))
    data = manifest_of(desired, Kind.CONFIG_MAP).body["data"]
    assert {name: value for name, value in data.items() if name.startswith("S3_")} == {
        "S3_BUCKET": "vault",
        "S3_REGION": "eu-central-1",
        "S3_PREFIX": "teams/a",
        "S3_ENDPOINT_URL": "http://minio:9000",
    }
    (container,) = _template(scale, s3_keys=keys())["spec"]["containers"]
    assert {entry["name"]: entry.get("valueFrom") for entry in container["env"] if "S3_" in entry["name"]} == {
        "S3_ACCESS_KEY_ID": {"secretKeyRef": {"name": "s3-user", "key": "accessKeyId"}},
        "S3_SECRET_ACCESS_KEY": {"secretKeyRef": {"name": "s3-user", "key": "secretAccessKey"}},
    }
    assert "hush" not in repr([manifest.body for manifest in desired.manifests])


def test_the_keys_of_the_secret_may_have_other_names() -> None:
    ref = {"name": "aws", "accessKeyIdKey": "AWS_ACCESS_KEY_ID", "secretAccessKeyKey": "AWS_SECRET_ACCESS_KEY"}
    found = s3_keys(a_scale(spec={"storage": {"s3": {"bucket": "vault", "credentialsSecretRef": ref}}}))
    assert [selector.key for selector in found.values()] == ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]


def test_what_is_left_open_stays_open_for_stored_settings() -> None:
    for spec in ({}, {"storage": {"s3": {"bucket": "vault"}}}):
        scale = a_scale(spec=spec)
        assert s3_keys(scale) == {}
        rendered = {name for name in worker_environment(scale, scale.spec.workers, ["0"]) if name.startswith("S3_")}
        assert rendered == ({"S3_BUCKET"} if spec else set())


def test_what_is_rendered_cannot_be_overlaid() -> None:
    scale = a_scale(spec=IN_S3)
    rendered = worker_environment(scale, scale.spec.workers, ["0"])
    assert {*rendered, *s3_keys(scale)} <= set(OPERATOR_ENVIRONMENT)


@pytest.mark.parametrize("changed", [keys(access="AKIA9999"), keys(secret="another")])
def test_a_rotated_key_rolls_the_pods_and_is_not_readable_in_them(changed: dict[str, Found]) -> None:
    scale = a_scale(spec=IN_S3)
    before, after = _template(scale, s3_keys=keys()), _template(scale, s3_keys=changed)
    name = CONFIG_HASH_ANNOTATION
    assert before["metadata"]["annotations"][name] != after["metadata"]["annotations"][name]


def test_stored_keys_roll_the_pods_by_a_keyed_hash_unless_the_spec_names_a_secret() -> None:
    def stored(spec: JsonObject, secret: str, hash_key: str = "k", **more: Any) -> str:
        observed = an_observed(stored={"s3_bucket": "b", "s3_secret_access_key": SecretStr(secret)}, **more)
        desired = desired_for_scale(a_scale(spec=spec), observed, default_image=IMAGE, hash_key=SecretStr(hash_key))
        assert not isinstance(desired, Blocked)
        annotations = manifest_of(desired, Kind.DEPLOYMENT).body["spec"]["template"]["metadata"]["annotations"]
        return str(annotations[STORED_ANNOTATION])

    assert stored({}, "one") != stored({}, "two")
    assert stored({}, "one") != stored({}, "one", hash_key="another")
    assert stored(IN_S3, "one", s3_keys=keys()) == stored(IN_S3, "two", s3_keys=keys())


def test_a_missing_secret_leaves_the_children_as_they_are() -> None:
    missing = {**keys(), "S3_SECRET_ACCESS_KEY": SecretMissing("Secret s3-user does not exist in this namespace")}
    observed = an_observed(s3_keys=missing)
    desired = desired_for_scale(a_scale(spec=IN_S3), observed, default_image=IMAGE, hash_key=HASH_KEY)
    assert desired == Blocked(
        Reason.SECRET_NOT_FOUND,
        "storage.s3.credentialsSecretRef: Secret s3-user does not exist in this namespace",
    )


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        (None, 443),
        ("http://minio:9000", 9000),
        ("http://minio", 80),
        ("https://minio", 443),
        ("https://minio:9443/", 9443),
    ],
)
def test_a_network_policy_lets_workers_reach_the_endpoint(endpoint: str | None, port: int) -> None:
    s3 = {"bucket": "vault", **({"endpointUrl": endpoint} if endpoint else {})}
    scale = a_scale(spec={"storage": {"s3": s3}, "networkPolicy": {"enabled": True}})
    egress = manifest_of(what_is_desired(scale), Kind.NETWORK_POLICY).body["spec"]["egress"]
    assert {"port": port, "protocol": "TCP"} in egress[1]["ports"]


def _shared(spec: JsonObject, observed: Observed | None = None) -> tuple[str, str, str]:
    scale = a_scale(spec=spec)
    observed = observed or an_observed(s3_keys=keys() if "storage" in spec else {})
    desired = desired_for_scale(scale, observed, default_image=IMAGE, hash_key=HASH_KEY)
    status = next_status(scale, desired, observed, ApplyReport(), previous={}, now=NOW, figures=True)
    assert status is not None
    (told,) = [each for each in status["conditions"] if each["type"] == ConditionType.STORAGE_SHARED]
    return told["status"], told["reason"], told["message"]


THREE: JsonObject = {"workers": {"replicas": 3}}


@pytest.mark.parametrize(
    ("spec", "observed", "expected"),
    [
        (THREE, None, ("False", "LocalDisk")),
        ({"queue": {"shards": 2}}, None, ("False", "LocalDisk")),
        ({}, None, ("True", "SingleWorker")),
        ({**THREE, **IN_S3}, None, ("True", "BucketConfigured")),
        (THREE, an_observed(stored={"s3_bucket": "vault"}), ("True", "BucketConfigured")),
        (THREE, an_observed(stored={"s3_region": "eu-central-1"}), ("False", "LocalDisk")),
        (THREE, an_observed(stored=Unknown("away")), ("Unknown", "PostgresUnreachable")),
    ],
)
def test_several_workers_without_a_bucket_are_a_warning(
    spec: JsonObject, observed: Observed | None, expected: tuple[str, str]
) -> None:
    assert _shared(spec, observed)[:2] == expected


def test_the_warning_says_what_to_do_and_does_not_make_the_scale_unready() -> None:
    assert "3 workers keep vault files" in _shared(THREE)[2]
    assert "give spec.storage.s3" in _shared(THREE)[2]
    scale = a_scale(spec=THREE)
    observed = an_observed(children=children_of(what_is_desired(scale)))
    status = next_status(scale, what_is_desired(scale), observed, ApplyReport(), previous={}, now=NOW, figures=True)
    assert status is not None
    conditions = {each["type"]: each["status"] for each in status["conditions"]}
    assert (conditions["Ready"], conditions["Stalled"]) == ("True", "False")
