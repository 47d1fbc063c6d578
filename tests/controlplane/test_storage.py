"""spec.storage.s3 under a real API server: what workers are given, rotation, a missing Secret, StorageShared."""

from __future__ import annotations

import json

from tests.controlplane import harness
from tests.controlplane.harness import ControlPlane, Operator, eventually

S3 = {"bucket": "vault", "endpointUrl": "http://minio:9000", "credentialsSecretRef": {"name": "s3-user"}}


def _keys(namespace: str, secret: str) -> harness.Json:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "s3-user", "namespace": namespace},
        "stringData": {"accessKeyId": "AKIAEXAMPLE", "secretAccessKey": secret},
    }


def test_keys_come_from_the_users_secret_and_a_new_one_rolls_the_pods(
    plane: ControlPlane, ns: str, operator: Operator
) -> None:
    plane.apply(harness.scale(ns, storage={"s3": S3}))
    missing = plane.await_condition(ns, "Ready", "False", "SecretNotFound")
    assert "storage.s3.credentialsSecretRef: Secret s3-user does not exist" in missing["message"]
    plane.apply(_keys(ns, "hidden-s3-word"))
    plane.await_children(ns)
    plane.await_condition(ns, "StorageShared", "True", "BucketConfigured")

    def template() -> harness.Json:
        found: harness.Json = plane.child(ns, "Deployment")["spec"]["template"]
        return found

    first = template()
    given = {entry["name"]: entry for entry in first["spec"]["containers"][0]["env"]}
    assert given["S3_SECRET_ACCESS_KEY"]["valueFrom"] == {"secretKeyRef": {"name": "s3-user", "key": "secretAccessKey"}}
    plane.apply(_keys(ns, "hidden-s3-word-2"))
    eventually("another template", lambda: template() != first)
    everything = plane.find(ns, ["sscale", *harness.CHILD_KINDS, "events"])
    assert "hidden-s3-word" not in json.dumps(everything) + operator.log


def test_several_workers_without_a_bucket_are_told_so(plane: ControlPlane, ns: str) -> None:
    plane.apply(harness.scale(ns))
    plane.await_condition(ns, "StorageShared", "True", "SingleWorker")
    plane.kubectl("patch", "sscale", "main", "-n", ns, "--type=merge", "-p", '{"spec":{"queue":{"shards":2}}}')
    told = plane.await_condition(ns, "StorageShared", "Unknown", "PostgresUnreachable")
    assert "may hold S3 settings" in told["message"]
