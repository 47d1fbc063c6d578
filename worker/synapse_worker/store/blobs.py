"""Artifacts (vault files, run logs) behind one interface, whether they are in a folder or in a bucket.

This module says what a store of artifacts can do, how its keys are made and which names are refused; the stores are
`local_blobs` and `s3_blobs`. Keys are `vault/<tenant>/<path>` and `logs/<tenant>/<run>/<name>`, below the folder or the
prefix that a store was opened with. Nothing is ever deleted: a bucket's lifecycle rule may do that.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from urllib.parse import quote

from pydantic import SecretStr

from synapse_worker.errors import BlobRefused

PATH_MAX_BYTES = 512
PART_MAX_BYTES = 200
PREFIX_MAX_BYTES = 128
_REFUSED_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")
_FOLDER_MAX_CHARACTERS = 120
_CUT_CHARACTERS = 80
CHUNK_BYTES = 1 << 20
"""Bytes in memory of an object that is read; a writer holds a few more (`s3_blobs.PART_BYTES`)."""


@dataclass(frozen=True, slots=True)
class S3Settings:
    """Where the bucket is and who asks; `bucket` "" = there is none, both keys "" = the ambient credential chain."""

    bucket: str
    region: str
    prefix: str
    access_key_id: SecretStr
    secret_access_key: SecretStr
    endpoint_url: str


@dataclass(frozen=True, slots=True)
class Blob:
    """An object in a listing; `size` in bytes."""

    key: str
    size: int
    modified: datetime


class Blobs(Protocol):
    """A store of artifacts. Safe to share between tasks of one loop; objects appear whole or not at all.

    Every call raises `StoreUnavailable` when the store does not answer, and `StoreRefused` when it answers and says no.
    """

    async def put(self, key: str, chunks: AsyncIterable[bytes]) -> int:
        """Write an object from a stream, in place of one of the same key; returns its size in bytes."""
        ...

    def get(self, key: str) -> AsyncGenerator[bytes]:
        """Yield an object's content in chunks of at most `CHUNK_BYTES`; close the iterator (`aclosing`) if you stop.

        Raises:
            BlobNotFound: there is no such object.
        """
        ...

    def walk(self, folder: str) -> AsyncGenerator[Blob]:
        """Yield all objects below a folder (a key that ends in `/`), in the order of their keys."""
        ...

    async def exists(self, key: str) -> bool:
        """Return whether there is an object of this key."""
        ...

    async def ping(self) -> None:
        """Ask the store whether it serves us; raises as every call does."""
        ...

    async def close(self) -> None:
        """Give up its connections and threads."""
        ...


async def chunks_of(content: bytes) -> AsyncIterator[bytes]:
    """Yield a content that is in memory, as `put` wants it."""
    yield content


def vault_folder(tenant_id: str) -> str:
    """Return the folder of a tenant's vault files; no path leads out of it into another tenant's."""
    return f"vault/{folder_name(tenant_id)}/"


def vault_key(tenant_id: str, path: str) -> str:
    """Return the key of a tenant's vault file.

    Raises:
        BlobRefused: `path` is not one that a vault file may have.
    """
    return vault_folder(tenant_id) + checked_path(path)


def logs_folder(tenant_id: str, run_id: str) -> str:
    """Return the folder of a run's logs."""
    return f"logs/{folder_name(tenant_id)}/{folder_name(run_id)}/"


def checked_path(path: str) -> str:
    """Return `path` if it may name a file: parts with `/` between them, relative, within one folder.

    Raises:
        BlobRefused: it may not; the sentence says why and what is accepted.
    """
    problem = _problem(path)
    if problem:
        shown = path[:60] + ("..." if len(path) > 60 else "")
        raise BlobRefused(
            f"the path {shown!a} {problem}; accepted: a relative path such as 'reports/june.md', of at most"
            f" {PATH_MAX_BYTES} bytes, each part of at most {PART_MAX_BYTES}"
        )
    return path


def _problem(path: str) -> str:
    """Return what is wrong with a path, "" = nothing."""
    if path == "":
        return "is empty"
    if any(unicodedata.category(character) in _REFUSED_CATEGORIES for character in path):
        return "holds a control character, a line end or half a character"
    if path.startswith("/"):
        return "begins with a slash"
    if "\\" in path:
        return "holds a backslash"
    parts = path.split("/")
    if "" in parts:
        return "has an empty part"
    if "." in parts or ".." in parts:
        return "has a part of dots only"
    if len(path.encode()) > PATH_MAX_BYTES or any(len(part.encode()) > PART_MAX_BYTES for part in parts):
        return "is too long"
    return ""


def folder_name(text: str) -> str:
    """Return one part of a key for any text, a different one for each.

    Letters, digits, `_`, `-`, `.` and `~` stay, all else is percent-encoded. A long name is cut and ends in `=` and a
    hash, which no other name does.
    """
    encoded = quote(text, safe="", errors="surrogatepass")
    if encoded.strip(".") == "":
        encoded = encoded.replace(".", "%2E") or "="
    if len(encoded) <= _FOLDER_MAX_CHARACTERS:
        return encoded
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]
    return f"{encoded[:_CUT_CHARACTERS]}={digest}"
