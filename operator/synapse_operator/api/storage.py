"""spec.storage: where vault files and run logs are."""

from __future__ import annotations

from pydantic import Field

from synapse_operator.api.common import OBJECT_NAME, ApiModel, rule
from synapse_worker.contract import BY_NAME

_KEY = r"^[-._a-zA-Z0-9]+$"


class S3CredentialsRef(ApiModel):
    """A Secret that holds both keys of an S3 user."""

    name: str = Field(
        min_length=1, max_length=253, pattern=OBJECT_NAME, description="Name of a Secret in the same namespace."
    )
    access_key_id_key: str = Field(
        default="accessKeyId",
        min_length=1,
        max_length=253,
        pattern=_KEY,
        description="Key of the Secret that holds the access key id. Default: accessKeyId.",
    )
    secret_access_key_key: str = Field(
        default="secretAccessKey",
        min_length=1,
        max_length=253,
        pattern=_KEY,
        description="Key of the Secret that holds the secret access key. Default: secretAccessKey.",
    )


class S3Spec(ApiModel):
    """A bucket of S3 or of a store that speaks its protocol."""

    bucket: str = Field(
        min_length=3,
        max_length=255,
        pattern=r"^[A-Za-z0-9._-]+$",
        description=(
            "Name of the bucket, which must exist. The credentials need s3:GetObject, s3:PutObject and s3:ListBucket, "
            "and nothing else. Required."
        ),
    )
    region: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        pattern=r"^[A-Za-z0-9-]+$",
        description=f"Region of the bucket. Unset: the stored setting, else `{BY_NAME['S3_REGION'].default}`.",
    )
    prefix: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        pattern=r"^[^/]+(/[^/]+)*$",
        description=(
            "Prefix of all objects: `<prefix>/vault/...` and `<prefix>/logs/...`; 1 to 128 characters. "
            f"Unset: the stored setting, else `{BY_NAME['S3_PREFIX'].default}`."
        ),
    )
    endpoint_url: str | None = Field(
        default=None,
        min_length=1,
        max_length=1024,
        description=(
            "URL of an S3-compatible store, for example `http://minio:9000`, "
            "`https://<account>.r2.cloudflarestorage.com`, `https://s3.<region>.backblazeb2.com` or "
            "`https://<region>.digitaloceanspaces.com`. Unset: the stored setting, else AWS."
        ),
        json_schema_extra={
            "x-kubernetes-validations": [
                rule(
                    "self.matches('^https?://[^@/?#]+/?$')",
                    "storage.s3: endpointUrl must be http:// or https:// and a host, without user name, path and query",
                )
            ]
        },
    )
    credentials_secret_ref: S3CredentialsRef | None = Field(
        default=None,
        description=(
            "Secret with the keys of the user. When it changes, the workers are rolled within about a minute. Unset: "
            "the stored settings, else the role of the pods (instance profile, EKS IRSA and Pod Identity: see "
            "workers.template.serviceAccountName)."
        ),
    )


class StorageSpec(ApiModel):
    """Where vault files and run logs are."""

    s3: S3Spec | None = Field(
        default=None,
        description=(
            "A bucket that all workers share. Unset: the stored settings, else each worker's own disk, which goes with "
            "the pod and which no other worker sees."
        ),
    )
