"""Artifacts in a bucket: boto3, kept off the loop, and no right used but GetObject, PutObject and ListBucket.

There is one client a process, with threads of its own. Large objects are sent in parts, one at a time, and received in
chunks. An upload that ends in the middle is left to the bucket's lifecycle rule, since giving it up takes a right that
we do not ask for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import boto3
import botocore.exceptions as aws
from botocore.config import Config

from synapse_worker.contract import STORE_TIMEOUT_SECONDS
from synapse_worker.errors import BlobNotFound, BlobRefused, StoreRefused, StoreUnavailable
from synapse_worker.store.blobs import CHUNK_BYTES, Blob, S3Settings

T = TypeVar("T")

PART_BYTES = 8 << 20
"""Size of a part of a large object, and of the largest that goes in one request."""
_MOST_PARTS = 10_000
_THREADS = 16
_CONNECT_SECONDS = 5.0
_PAGE = 1_000

_CREDENTIALS = {
    "AccessDenied": "does not allow our user the call",
    "AllAccessDisabled": "has this account's access disabled",
    "SignatureDoesNotMatch": "refuses the secret access key",
    "InvalidAccessKeyId": "does not know the access key id",
    "InvalidClientTokenId": "does not know the access key id",
    "InvalidToken": "refuses the session token",
    "ExpiredToken": "says that the credentials have expired",
}
_CHECKSUMS = ("ChecksumCRC32", "ChecksumCRC32C", "ChecksumCRC64NVME", "ChecksumSHA1", "ChecksumSHA256")
_REGION = ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301")
_BUSY = (
    "SlowDown",
    "RequestTimeout",
    "RequestTimeTooSkewed",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
)


class S3Blobs:
    """A store of artifacts below a prefix of a bucket."""

    def __init__(self, settings: S3Settings, *, timeout: float = STORE_TIMEOUT_SECONDS) -> None:
        """Open nothing yet.

        Args:
            settings: where the bucket is.
            timeout: seconds for each answer, and at most for connecting.
        """
        self._settings = settings
        self._prefix = f"{settings.prefix}/"
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="s3")
        self._timeout = timeout
        self._client: Any = None  # boto3 makes its clients' types at run time
        self._opening = asyncio.Lock()

    async def put(self, key: str, chunks: AsyncIterable[bytes]) -> int:
        """See `Blobs.put`."""
        upload = _Upload(self, self._prefix + key)
        waiting = bytearray()
        async for chunk in chunks:
            waiting += chunk
            while len(waiting) > PART_BYTES:
                await upload.part(bytes(memoryview(waiting)[:PART_BYTES]))
                del waiting[:PART_BYTES]
        return await upload.end(bytes(waiting))

    async def get(self, key: str) -> AsyncGenerator[bytes]:
        """See `Blobs.get`."""
        body = (await self.call("get_object", "GetObject", Key=self._prefix + key))["Body"]
        try:
            while chunk := await self._run("GetObject", partial(body.read, CHUNK_BYTES)):
                yield chunk
        finally:
            body.close()

    async def walk(self, folder: str) -> AsyncGenerator[Blob]:
        """See `Blobs.walk`."""
        page: dict[str, Any] = {"Prefix": self._prefix + folder, "MaxKeys": _PAGE}
        while True:
            answer = await self.call("list_objects_v2", "ListBucket", **page)
            for entry in answer.get("Contents", ()):
                yield Blob(entry["Key"].removeprefix(self._prefix), entry["Size"], entry["LastModified"])
            if not answer.get("IsTruncated"):
                return
            page["ContinuationToken"] = answer["NextContinuationToken"]

    async def exists(self, key: str) -> bool:
        """See `Blobs.exists`."""
        answer = await self.call("list_objects_v2", "ListBucket", Prefix=self._prefix + key, MaxKeys=1)
        return any(entry["Key"] == self._prefix + key for entry in answer.get("Contents", ()))

    async def ping(self) -> None:
        """See `Blobs.ping`."""
        await self.call("list_objects_v2", "ListBucket", Prefix=self._prefix, MaxKeys=1)

    async def close(self) -> None:
        """See `Blobs.close`."""
        if self._client is not None:
            self._client.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def call(self, name: str, right: str, **arguments: object) -> dict[str, Any]:
        """Call a method of the client on our bucket, in a thread.

        Args:
            name: of the method.
            right: what the bucket's policy calls the right that it takes, for the sentence when it is missing.
        """
        async with self._opening:
            if self._client is None:
                self._client = await self._run(right, self._open)
        call = partial(getattr(self._client, name), Bucket=self._settings.bucket, **arguments)
        return await self._run(right, call)

    def _open(self) -> Any:
        settings = self._settings
        own = bool(settings.endpoint_url)
        # Checksums beyond those that S3 demands are unknown to many compatible stores.
        checksums = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
        config = Config(
            connect_timeout=min(self._timeout, _CONNECT_SECONDS),
            read_timeout=self._timeout,
            retries={"mode": "standard", "total_max_attempts": 2},
            max_pool_connections=_THREADS,
            s3={"addressing_style": "path" if own else "auto"},
            **(checksums if own else {}),
        )
        return boto3.session.Session().client(
            "s3",
            region_name=settings.region,
            endpoint_url=settings.endpoint_url or None,
            aws_access_key_id=settings.access_key_id.get_secret_value() or None,
            aws_secret_access_key=settings.secret_access_key.get_secret_value() or None,
            config=config,
        )

    async def _run(self, right: str, call: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        with self._errors_as_ours(right):
            return await loop.run_in_executor(self._threads, call)

    @contextmanager
    def _errors_as_ours(self, right: str) -> Iterator[None]:
        bucket = self._settings.bucket
        try:
            yield
        except aws.ClientError as error:
            said = error.response.get("Error", {})
            code = str(said.get("Code", ""))
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            if code in ("NoSuchKey", "404"):
                raise BlobNotFound(str(said.get("Key", right)).removeprefix(self._prefix)) from None
            if code == "NoSuchBucket":
                raise StoreRefused(
                    f"S3 has no bucket {bucket!r} (S3_BUCKET); create it, or check S3_REGION and S3_ENDPOINT_URL"
                ) from None
            if code in _CREDENTIALS:
                raise StoreRefused(
                    f"S3 {_CREDENTIALS[code]} (bucket {bucket!r}, s3:{right}); the credentials need s3:GetObject,"
                    " s3:PutObject and s3:ListBucket"
                ) from None
            if code in _REGION or status in (301, 307):
                raise StoreRefused(
                    f"S3 keeps bucket {bucket!r} in another region than S3_REGION {self._settings.region!r}"
                ) from None
            if status >= 500 or status == 429 or code in _BUSY:
                raise StoreUnavailable("S3", f"cannot serve now: {code or status}") from None
            raise StoreRefused(f"S3 refuses {right} in bucket {bucket!r}: {code or status}") from None
        except (aws.NoCredentialsError, aws.PartialCredentialsError, aws.ProfileNotFound, aws.NoAuthTokenError):
            raise StoreRefused(
                "S3 needs credentials and none are found: set S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY, or give the"
                " pod or machine a role"
            ) from None
        except (aws.CredentialRetrievalError, aws.MetadataRetrievalError):
            raise StoreUnavailable("S3", "cannot be asked: the credentials of our role cannot be fetched now") from None
        except aws.SSLError:
            raise StoreUnavailable("S3", "shows a certificate that we cannot trust") from None
        except (aws.ConnectTimeoutError, aws.ReadTimeoutError):
            raise StoreUnavailable("S3", f"does not answer within {self._timeout:g} s") from None
        except (aws.HTTPClientError, aws.ConnectionError, aws.IncompleteReadError):
            where = self._settings.endpoint_url or f"region {self._settings.region}"
            raise StoreUnavailable("S3", f"cannot be reached ({where})") from None
        except aws.BotoCoreError as error:
            raise StoreRefused(f"S3 cannot be asked: {type(error).__name__}; check the S3 settings") from None


class _Upload:
    """One object on its way: in one request when it is small, else in parts of one size."""

    def __init__(self, blobs: S3Blobs, key: str) -> None:
        self._blobs = blobs
        self._key = key
        self._id = ""
        self._parts: list[dict[str, object]] = []
        self._size = 0

    async def part(self, content: bytes) -> None:
        """Send one more part, of `PART_BYTES`, or less when it is the last."""
        if len(self._parts) == _MOST_PARTS:
            raise BlobRefused(f"an object in S3 cannot be larger than {_MOST_PARTS * PART_BYTES >> 30} GiB")
        if not self._id:
            answer = await self._blobs.call("create_multipart_upload", "PutObject", Key=self._key)
            self._id = answer["UploadId"]
        number = len(self._parts) + 1
        sent = await self._blobs.call(
            "upload_part", "PutObject", Key=self._key, UploadId=self._id, PartNumber=number, Body=content
        )
        checksums = {
            name: value for name, value in sent.items() if name.startswith("Checksum") and name != "ChecksumType"
        }
        self._parts.append({"ETag": sent["ETag"], "PartNumber": number, **checksums})
        self._size += len(content)

    async def end(self, content: bytes) -> int:
        """Send what is left and make the object appear; returns its size in bytes."""
        if not self._id:
            await self._blobs.call("put_object", "PutObject", Key=self._key, Body=content)
            return len(content)
        await self.part(content)
        await self._blobs.call(
            "complete_multipart_upload",
            "PutObject",
            Key=self._key,
            UploadId=self._id,
            MultipartUpload={"Parts": self._parts},
        )
        return self._size
