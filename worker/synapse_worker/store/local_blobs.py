"""Artifacts in a folder of this machine: what a single worker needs, and what several cannot share.

Files are written beside their place and renamed, so that nobody reads half of one. File calls run in threads. Of the
logs only the newest are kept: a pod whose disk is full would be evicted.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from synapse_worker.errors import BlobNotFound, BlobRefused, StoreRefused, StoreUnavailable
from synapse_worker.store.blobs import CHUNK_BYTES, Blob

T = TypeVar("T")

_PARTIAL = ".partial"
_LOGS = "logs/"
_TRIM_SECONDS = 60.0
MOST_LOG_BYTES = 256 << 20
"""Bytes of logs that are kept, but for what comes within a minute."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)


class _Writing:
    """An object on its way: the file beside its place, once it is open, and the place itself."""

    __slots__ = ("file", "path", "place")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = path
        self.file: BinaryIO | None = None

    def give_up(self) -> None:
        """Close and remove what was written."""
        if self.file is not None:
            with suppress(OSError):  # what is left in its buffer may not fit on the disk
                self.file.close()
            with suppress(OSError):
                self.path.unlink()


class LocalBlobs:
    """A store of artifacts in a folder, which is made when something is first written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._trimmed_at = -_TRIM_SECONDS

    async def put(self, key: str, chunks: AsyncIterable[bytes]) -> int:
        """See `Blobs.put`."""
        writing = _Writing(self._folder / _PARTIAL / uuid.uuid4().hex)
        size, held = 0, 0
        piece: list[bytes] = []
        try:
            async for chunk in chunks:
                piece.append(chunk)
                held += len(chunk)
                if held >= CHUNK_BYTES:
                    await self._write(key, writing, piece)
                    size, held, piece = size + held, 0, []
            await self._write(key, writing, piece, last=True)
            if key.startswith(_LOGS) and time.monotonic() - self._trimmed_at > _TRIM_SECONDS:
                self._trimmed_at = time.monotonic()
                await self._run(key, self.trim)
        except BaseException:
            writing.give_up()
            raise
        return size + held

    async def get(self, key: str) -> AsyncGenerator[bytes]:
        """See `Blobs.get`."""
        file = await self._run(key, lambda: self._place(key).open("rb"))
        try:
            while chunk := await self._run(key, partial(file.read, CHUNK_BYTES)):
                yield chunk
        finally:
            file.close()

    async def walk(self, folder: str) -> AsyncGenerator[Blob]:
        """See `Blobs.walk`."""
        for blob in await self._run(folder, lambda: self._files(self._place(folder))):
            yield blob

    async def exists(self, key: str) -> bool:
        """See `Blobs.exists`."""
        return await self._run(key, lambda: self._place(key).is_file())

    async def ping(self) -> None:
        """Say nothing: a folder that cannot be written concerns what writes there, not the worker's other work."""

    async def close(self) -> None:
        """Do nothing: no file stays open between calls."""

    def trim(self, most_bytes: int = MOST_LOG_BYTES) -> None:
        """Remove the oldest logs until no more bytes of them are left; takes time, so call it in a thread."""
        left = most_bytes
        for blob in sorted(self._files(self._place(_LOGS)), key=lambda blob: blob.modified, reverse=True):
            left -= blob.size
            if left < 0:
                self._place(blob.key).unlink(missing_ok=True)

    def _place(self, key: str) -> Path:
        """Return where an object is, which no symbolic link may put outside the folder."""
        root = os.path.realpath(self._folder)
        place = os.path.realpath(os.path.join(root, key))
        if os.path.commonpath((root, place)) != root:
            raise BlobRefused(f"{key!a} leads out of {root}; nothing outside that folder is read or written")
        return Path(place)

    async def _write(self, key: str, writing: _Writing, piece: Sequence[bytes], *, last: bool = False) -> None:
        """Write a piece in a thread, which is waited for however this call ends: nobody else would close the file."""
        call = asyncio.ensure_future(self._run(key, lambda: self._write_now(key, writing, piece, last=last)))
        try:
            await asyncio.shield(call)
        except asyncio.CancelledError:
            await asyncio.wait({call})  # a moment
            raise

    def _write_now(self, key: str, writing: _Writing, piece: Sequence[bytes], *, last: bool) -> None:
        if writing.file is None:
            writing.place = self._place(key)
            os.makedirs(writing.place.parent, exist_ok=True)
            os.makedirs(writing.path.parent, exist_ok=True)
            writing.file = writing.path.open("xb")
        for chunk in piece:
            writing.file.write(chunk)
        if last:
            writing.file.close()
            os.replace(writing.path, writing.place)

    def _files(self, folder: Path) -> list[Blob]:
        found: list[Blob] = []
        root = self._folder.resolve()
        for place, _, names in os.walk(folder):
            for name in names:
                path = Path(place, name)
                with suppress(FileNotFoundError):  # gone meanwhile
                    seen = path.stat()
                    modified = datetime.fromtimestamp(seen.st_mtime, UTC)
                    found.append(Blob(path.relative_to(root).as_posix(), seen.st_size, modified))
        return sorted(found, key=lambda blob: blob.key)

    async def _run(self, key: str, call: Callable[[], T]) -> T:
        """Make a call for an object in a thread; its errors become ours."""
        try:
            return await asyncio.to_thread(call)
        except FileNotFoundError:
            raise BlobNotFound(key) from None
        except (IsADirectoryError, NotADirectoryError, FileExistsError):
            raise BlobRefused(
                f"{key!a} cannot be a file here: a folder has this name, or a file has the name of one of its folders"
            ) from None
        except OSError as error:
            why = f"{self._folder} (SYNAPSE_DATA_DIR): {error.strerror or type(error).__name__}"
            if error.errno in _FULL:
                raise StoreUnavailable("The local disk", f"cannot serve {why}") from None
            raise StoreRefused(f"The local disk does not let us use {why}") from None
