"""How much is read of an answer: a provider or an MCP server may send without end, or pack much into little.

A hook for httpx2 clients: whoever reads the answer, such as a provider's package, reads a bounded one.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import cast

import httpx2

_PIECE = 64 * 1024
_EITHER_HEADER = 47  # zlib's number for: find out by the header whether it is gzip or zlib


class AnswerTooLong(httpx2.ReadError):
    """An answer is longer than it may be; the rest of it was not read."""


def bounded(most: int) -> dict[str, list[Callable[[httpx2.Response], Coroutine[object, object, None]]]]:
    """Return `event_hooks` of a client whose answers end in `AnswerTooLong` behind `most` unpacked bytes."""

    async def bound(response: httpx2.Response) -> None:
        response.stream = _Bounded(response, most)

    return {"response": [bound]}


class _Bounded(httpx2.AsyncByteStream):
    """An answer's body, unpacked."""

    def __init__(self, response: httpx2.Response, most: int) -> None:
        self._packed = cast(httpx2.AsyncByteStream, response.stream)
        self._most = most
        self._unpack = None
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding in ("gzip", "deflate"):
            self._unpack = zlib.decompressobj(_EITHER_HEADER)
            del response.headers["content-encoding"]
        elif encoding not in ("", "identity"):
            raise httpx2.DecodingError(f"the answer is packed in a way that was not asked for: {encoding[:40]!r}")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read = 0
        async for packed in self._packed:
            for piece in self._unpacked(packed):
                read += len(piece)
                if read > self._most:
                    raise AnswerTooLong(f"the answer is longer than {self._most} bytes")
                yield piece

    def _unpacked(self, packed: bytes) -> Iterator[bytes]:
        if self._unpack is None:
            yield packed
            return
        try:
            while packed:
                yield self._unpack.decompress(packed, _PIECE)
                packed = self._unpack.unconsumed_tail
        except zlib.error as error:
            raise httpx2.DecodingError(f"the answer cannot be unpacked: {error}") from None

    async def aclose(self) -> None:
        """Close the connection's part of it."""
        await self._packed.aclose()
