"""The tools by which agents read and write their tenant's vault files: vault_list, vault_read, vault_write.

What a model asked for wrongly (a name, an argument) is told to it, so that it can ask again. A store that is away or
refuses us is raised: it says nothing about the question.

A write names the call. When the call is made again after a crash, the same content for the same path is not written a
second time: what another run wrote in between stays. A note beside the run logs says what was written.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass

from synapse_worker.engine.json_values import JsonObject, JsonValue, dumps
from synapse_worker.engine.tools.toolbox import Calls, Tool, ToolFailed
from synapse_worker.errors import BlobNotFound, BlobRefused
from synapse_worker.store.blobs import Blobs, chunks_of, folder_name, vault_folder, vault_key

MOST_FILES = 1_000
"""Files in one answer of vault_list."""

READ_BYTES = 100_000
"""Bytes in one answer of vault_read; the rest is asked for by its offset."""

WRITE_CHARACTERS = 10_000_000
"""Longest content of one vault_write."""

_NOTE_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class Vault:
    """The files that a step's tools may see: those of one tenant."""

    blobs: Blobs
    tenant_id: str


def vault_tools(vault: Vault) -> list[Tool]:
    """Return the tools; their calls raise `StoreUnavailable` and `StoreRefused` as the store does."""
    blobs, tenant_id = vault.blobs, vault.tenant_id

    async def listed(arguments: JsonObject, key: str) -> JsonValue:
        return await vault_list(blobs, tenant_id, _text(arguments, "folder", ""))

    async def read(arguments: JsonObject, key: str) -> JsonValue:
        return await vault_read(blobs, tenant_id, _text(arguments, "path"), _number(arguments, "offset"))

    async def written(arguments: JsonObject, key: str) -> JsonValue:
        path, content = _text(arguments, "path"), _text(arguments, "content")
        return await vault_write(blobs, tenant_id, path, content, idempotency_key=key)

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
    """Write a text file, once for each content that a call gives the path in turn; returns path and size in bytes.

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
    """Return where it is noted what a call wrote to a path last; no run has logs in a folder of this name."""
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


def _told(call: Callable[[JsonObject, str], Awaitable[JsonValue]]) -> Calls:
    """Return the call as a toolbox makes it: the answer as JSON, and what the model did wrong as `ToolFailed`."""

    async def answer(arguments: JsonObject, key: str) -> str:
        try:
            return dumps(await call(arguments, key))
        except BlobNotFound:
            raise ToolFailed(
                f"there is no file {arguments.get('path')!a}; vault_list shows those that there are"
            ) from None
        except BlobRefused as error:
            raise ToolFailed(str(error)) from None

    return answer


def _text(arguments: Mapping[str, JsonValue], name: str, default: str | None = None) -> str:
    value = arguments.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise ToolFailed(f"the argument {name} is missing or not a text")
    return value


def _number(arguments: Mapping[str, JsonValue], name: str) -> int:
    value = arguments.get(name, 0)
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ToolFailed(f"the argument {name} is not a whole number from 0 on")
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
