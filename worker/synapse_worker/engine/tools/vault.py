"""The tools by which agents read and write their tenant's vault files: vault_list, vault_read, vault_write.

What a model asked for wrongly (a name, an argument) is an answer with `error` in it, so that it can ask again. A store
that is away or refuses us is raised: it says nothing about the question.

A write names the step's visit. When the visit is done again after a crash, the same content for the same path is not
written a second time: what another run wrote in between stays. A note beside the run logs says what was written.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import NamedTuple

from synapse_worker.engine.json_values import JsonObject, JsonValue
from synapse_worker.errors import BlobNotFound, BlobRefused
from synapse_worker.store.blobs import Blobs, chunks_of, folder_name, vault_folder, vault_key

MOST_FILES = 1_000
"""Files in one answer of vault_list."""

READ_BYTES = 100_000
"""Bytes in one answer of vault_read; the rest is asked for by its offset."""

WRITE_CHARACTERS = 10_000_000
"""Longest content of one vault_write."""

_NOTE_BYTES = 16_384


class Tool(NamedTuple):
    """A tool as agents are offered it.

    Attributes:
        name: what the model calls it by.
        description: what the model is told about it.
        schema: JSON Schema of its arguments.
        call: does it; takes the arguments as the model gave them and returns what the model is told.
    """

    name: str
    description: str
    schema: JsonObject
    call: Callable[[Mapping[str, JsonValue]], Awaitable[JsonValue]]


class _WrongArgument(Exception):
    """An argument is missing or of the wrong kind; `str()` is what the model is told."""


def vault_tools(blobs: Blobs, tenant_id: str, key_prefix: str) -> list[Tool]:
    """Return the tools for one visit of a step; their calls raise `StoreUnavailable` and `StoreRefused`.

    Args:
        blobs: the store of artifacts.
        tenant_id: whose vault it is; nothing else can be named.
        key_prefix: the visit's idempotency key, the same when the visit is done again.
    """

    async def listed(arguments: Mapping[str, JsonValue]) -> JsonValue:
        return await vault_list(blobs, tenant_id, _text(arguments, "folder", ""))

    async def read(arguments: Mapping[str, JsonValue]) -> JsonValue:
        return await vault_read(blobs, tenant_id, _text(arguments, "path"), _number(arguments, "offset"))

    async def written(arguments: Mapping[str, JsonValue]) -> JsonValue:
        path, content = _text(arguments, "path"), _text(arguments, "content")
        return await vault_write(blobs, tenant_id, path, content, idempotency_key=key_prefix)

    return [
        Tool(
            "vault_list",
            f"List the files of the vault, the storage that all runs share, at most {MOST_FILES} of them.",
            _schema({"folder": _property("string", "Folder to list, for example `reports`; empty: all files.")}, ()),
            _told(listed),
        ),
        Tool(
            "vault_read",
            f"Read a text file of the vault, at most {READ_BYTES} bytes; `next_offset` in the answer says where the"
            " rest begins.",
            _schema(
                {
                    "path": _property("string", "Path of the file, for example `reports/june.md`."),
                    "offset": _property("integer", "Byte to begin at. Default: 0."),
                },
                ("path",),
            ),
            _told(read),
        ),
        Tool(
            "vault_write",
            "Write a text file of the vault; one of the same path is replaced. Other runs can read it.",
            _schema(
                {
                    "path": _property("string", "Path of the file, for example `reports/june.md`."),
                    "content": _property("string", "The whole content."),
                },
                ("path", "content"),
            ),
            _told(written),
        ),
    ]


async def vault_list(blobs: Blobs, tenant_id: str, folder: str = "") -> JsonValue:
    """Return the files below a folder: path, size in bytes and time of the last write of each.

    Raises:
        BlobRefused: the folder cannot exist.
    """
    root = vault_folder(tenant_id)
    below = vault_key(tenant_id, folder.rstrip("/")) + "/" if folder.rstrip("/") else root
    files: list[JsonValue] = []
    async with aclosing(blobs.walk(below)) as found:
        async for blob in found:
            if len(files) == MOST_FILES:
                return {"files": files, "more": True}
            files.append(
                {
                    "path": blob.key.removeprefix(root),
                    "size": blob.size,
                    "modified": blob.modified.isoformat(timespec="seconds"),
                }
            )
    return {"files": files, "more": False}


async def vault_read(blobs: Blobs, tenant_id: str, path: str, offset: int = 0) -> JsonValue:
    """Return a part of a text file that begins at a byte; `next_offset` is None when it is the last one.

    Raises:
        BlobNotFound: there is no such file.
        BlobRefused: the path cannot exist, or the file is no UTF-8 text.
    """
    content = bytearray()
    passed = 0
    more = False
    async with aclosing(blobs.get(vault_key(tenant_id, path))) as chunks:
        async for chunk in chunks:
            content += chunk[max(0, offset - passed) :]
            passed += len(chunk)
            if len(content) > READ_BYTES:
                more = True
                break
    try:
        text, used = codecs.utf_8_decode(bytes(content[:READ_BYTES]), "strict", not more)
    except UnicodeDecodeError:
        raise BlobRefused(f"{path!a} is not UTF-8 text from byte {offset} on; only text can be read") from None
    return {"path": path, "content": text, "next_offset": offset + used if more else None}


async def vault_write(blobs: Blobs, tenant_id: str, path: str, content: str, *, idempotency_key: str) -> JsonValue:
    """Write a text file, once for each content that a visit gives the path in turn; returns path and size in bytes.

    Raises:
        BlobRefused: the path cannot exist, or the content is too long or no Unicode text.
    """
    key = vault_key(tenant_id, path)
    if len(content) > WRITE_CHARACTERS:
        raise BlobRefused(f"the content is longer than {WRITE_CHARACTERS} characters; write several files")
    try:
        data = content.encode()
    except UnicodeEncodeError:
        raise BlobRefused("the content holds half a character, which no text file can") from None
    note_key = _note_key(tenant_id, idempotency_key, path)
    note: JsonObject = {"path": path, "sha256": hashlib.sha256(data).hexdigest(), "by": idempotency_key}
    if await _read_note(blobs, note_key) != note:
        await blobs.put(key, chunks_of(data))
        await blobs.put(note_key, chunks_of(json.dumps(note).encode()))
    return {"path": path, "size": len(data)}


def _note_key(tenant_id: str, idempotency_key: str, path: str) -> str:
    """Return where it is noted what a visit wrote to a path last; no run has logs in a folder of this name."""
    digest = hashlib.sha256(f"{idempotency_key}\n{path}".encode(errors="surrogatepass")).hexdigest()
    return f"logs/{folder_name(tenant_id)}/=writes/{digest}.json"


async def _read_note(blobs: Blobs, key: str) -> JsonValue:
    content = b""
    try:
        async with aclosing(blobs.get(key)) as chunks:
            async for chunk in chunks:
                content += chunk
                if len(content) > _NOTE_BYTES:
                    return None
        note: JsonValue = json.loads(content)
    except (BlobNotFound, ValueError):
        return None
    return note


def _told(
    call: Callable[[Mapping[str, JsonValue]], Awaitable[JsonValue]],
) -> Callable[[Mapping[str, JsonValue]], Awaitable[JsonValue]]:
    """Return the call with what the model did wrong as its answer."""

    async def answer(arguments: Mapping[str, JsonValue]) -> JsonValue:
        try:
            return await call(arguments)
        except BlobNotFound:
            return {"error": f"there is no file {arguments.get('path')!a}; vault_list shows those that there are"}
        except (BlobRefused, _WrongArgument) as error:
            return {"error": str(error)}

    return answer


def _text(arguments: Mapping[str, JsonValue], name: str, default: str | None = None) -> str:
    value = arguments.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise _WrongArgument(f"the argument {name} is missing or not a text")
    return value


def _number(arguments: Mapping[str, JsonValue], name: str) -> int:
    value = arguments.get(name, 0)
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _WrongArgument(f"the argument {name} is not a whole number from 0 on")
    return value


def _property(kind: str, description: str) -> JsonObject:
    return {"type": kind, "description": description}


def _schema(properties: Mapping[str, JsonObject], required: tuple[str, ...]) -> JsonObject:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(required),
        "additionalProperties": False,
    }
