"""An S3 that checks signatures and rights: moto's server as a process, with users that may do what their policy says.

What a user of `Rights.PAGE` may do is exactly what the configuration page asks for. Whatever else a client of ours does
is refused with 403 and fails its test.
"""

from __future__ import annotations

import http.client
import json
import sys
from dataclasses import dataclass
from enum import Enum
from typing import Any

import boto3
from pydantic import SecretStr

from synapse_worker.store.blobs import S3Settings
from tests.support.servers import Server, accepts

REGION = "eu-central-1"


class Rights(Enum):
    """Actions that a user is allowed."""

    PAGE = ("s3:GetObject", "s3:PutObject", "s3:ListBucket")
    READ = ("s3:GetObject", "s3:ListBucket")
    ALL = ("s3:*", "iam:*")


@dataclass(frozen=True, slots=True)
class User:
    """Credentials."""

    access_key_id: str
    secret_access_key: str


class S3Server(Server):
    """moto, with signatures and rights checked from the first request of a test on."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        super().__init__("s3")
        self._host = host
        self._buckets = 0
        self._users: dict[Rights, User] = {}

    def command(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", self._host, "-p", str(self.port)]

    def ready(self) -> bool:
        return accepts(self.port, self._host)

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://{self._host}:{self.port}"

    def start(self) -> None:
        super().start()
        iam = self._client("iam", User("anybody", "anything"))
        for rights in Rights:
            iam.create_user(UserName=rights.name)
            allowed = {"Effect": "Allow", "Action": list(rights.value), "Resource": "*"}
            policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
            iam.put_user_policy(UserName=rights.name, PolicyName="rights", PolicyDocument=policy)
            key = iam.create_access_key(UserName=rights.name)["AccessKey"]
            self._users[rights] = User(key["AccessKeyId"], key["SecretAccessKey"])
        connection = http.client.HTTPConnection(self._host, self.port, timeout=10)
        connection.request("POST", "/moto-api/reset-auth", body=b"0")  # every request from here on is checked
        assert connection.getresponse().status == 200
        connection.close()

    def user(self, rights: Rights = Rights.PAGE) -> User:
        """The user with some rights."""
        return self._users[rights]

    def new_bucket(self) -> str:
        """Create an empty bucket and return its name."""
        self._buckets += 1
        name = f"test-bucket-{self._buckets}"
        self.client().create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
        return name

    def client(self, rights: Rights = Rights.ALL) -> Any:
        """A client of boto3 for tests to look at buckets with."""
        return self._client("s3", self.user(rights))

    def settings(self, bucket: str, rights: Rights = Rights.PAGE, *, prefix: str = "synapse") -> S3Settings:
        """The settings of a worker that uses a bucket as this user."""
        user = self.user(rights)
        return S3Settings(
            bucket, REGION, prefix, SecretStr(user.access_key_id), SecretStr(user.secret_access_key), self.url
        )

    def environment(self, bucket: str, rights: Rights = Rights.PAGE) -> dict[str, str]:
        """The variables of a worker that uses a bucket as this user."""
        user = self.user(rights)
        return {
            "S3_BUCKET": bucket,
            "S3_REGION": REGION,
            "S3_ENDPOINT_URL": self.url,
            "S3_ACCESS_KEY_ID": user.access_key_id,
            "S3_SECRET_ACCESS_KEY": user.secret_access_key,
        }

    def keys(self, bucket: str) -> list[str]:
        """The keys of all objects in a bucket."""
        return [entry["Key"] for entry in self.client().list_objects_v2(Bucket=bucket).get("Contents", ())]

    def _client(self, service: str, user: User) -> Any:
        return boto3.session.Session().client(
            service,
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=user.access_key_id,
            aws_secret_access_key=user.secret_access_key,
        )
