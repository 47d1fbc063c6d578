"""The stores of artifacts: a folder and a bucket do the same, with the rights that the configuration page names."""

from __future__ import annotations

import asyncio
import signal
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from pydantic import SecretStr
from redis.asyncio import Redis

from synapse_worker.errors import BlobNotFound, BlobRefused, StoreRefused, StoreUnavailable
from synapse_worker.gate import StoreGate
from synapse_worker.store.blobs import Blobs, S3Settings, chunks_of, vault_key
from synapse_worker.store.database import Database
from synapse_worker.store.local_blobs import LocalBlobs
from synapse_worker.store.s3_blobs import PART_BYTES, S3Blobs
from tests.support.runs import eventually
from tests.support.s3 import Rights, S3Server
from tests.support.servers import free_port

KEY = vault_key("acme", "reports/june.md")


@pytest.fixture
def no_ambient_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials but those that a test gives."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))


async def content_of(blobs: Blobs, key: str) -> bytes:
    return b"".join([chunk async for chunk in blobs.get(key)])


async def test_what_was_put_is_there_whole(blobs: Blobs) -> None:
    assert await blobs.put(KEY, chunks_of(b"june\n")) == 5
    assert await content_of(blobs, KEY) == b"june\n"
    assert await blobs.exists(KEY)
    await blobs.put(KEY, chunks_of(b""))
    assert await content_of(blobs, KEY) == b""


async def test_what_is_not_there_is_not_found(blobs: Blobs) -> None:
    await blobs.put(KEY, chunks_of(b"june"))
    assert not await blobs.exists(KEY[:-1])  # a longer name begins with it
    assert not await blobs.exists(KEY + "x")
    with pytest.raises(BlobNotFound):
        await content_of(blobs, vault_key("acme", "reports/july.md"))
    assert [blob async for blob in blobs.walk("vault/nobody/")] == []


async def test_a_listing_holds_all_below_a_folder_in_order(blobs: Blobs) -> None:
    paths = ["b.txt", "a/2", "a/10", "a.txt", "ä/ö.txt"]
    for number, path in enumerate(paths):
        await blobs.put(vault_key("acme", path), chunks_of(b"x" * number))
    await blobs.put(vault_key("acme2", "other"), chunks_of(b"not acme's"))
    listed = [blob async for blob in blobs.walk("vault/acme/")]
    assert [blob.key for blob in listed] == sorted(vault_key("acme", path) for path in paths)
    assert {blob.key: blob.size for blob in listed}["vault/acme/ä/ö.txt"] == 4


async def test_a_large_object_goes_both_ways_in_bounded_memory(blobs: Blobs) -> None:
    parts, chunk = 8, bytes(range(256)) * 1024  # 256 KiB
    count = parts * PART_BYTES // len(chunk) + 1

    async def large() -> AsyncIterator[bytes]:
        for _ in range(count):
            yield chunk

    await blobs.put("vault/acme/small", chunks_of(b""))  # what the client needs once
    tracemalloc.start()
    try:
        assert await blobs.put("vault/acme/large", large()) == count * len(chunk)
        received = 0
        async with aclosing(blobs.get("vault/acme/large")) as content:
            async for piece in content:
                assert piece[:256] == chunk[:256]
                received += len(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert received == count * len(chunk)
    assert peak < 5 * PART_BYTES


async def test_an_object_whose_stream_breaks_does_not_appear(blobs: Blobs) -> None:
    await blobs.put(KEY, chunks_of(b"before"))

    async def breaks() -> AsyncIterator[bytes]:
        yield b"x" * (PART_BYTES + 1)
        raise ConnectionResetError("the client went away")

    with pytest.raises(ConnectionResetError):
        await blobs.put(KEY, breaks())
    assert await content_of(blobs, KEY) == b"before"


async def test_many_calls_at_once_do_not_hold_the_loop_up(blobs: Blobs) -> None:
    longest = 0.0

    async def ticks() -> None:
        nonlocal longest
        clock = asyncio.get_running_loop().time
        while True:
            before = clock()
            await asyncio.sleep(0.005)
            longest = max(longest, clock() - before)

    ticking = asyncio.create_task(ticks())
    await asyncio.gather(*(blobs.put(f"vault/acme/{number}", chunks_of(b"x" * 1000)) for number in range(100)))
    ticking.cancel()
    assert len([blob async for blob in blobs.walk("vault/acme/")]) == 100
    assert longest < 1.0


async def test_a_user_with_the_pages_rights_may_do_nothing_else(s3_server: S3Server) -> None:
    """The proof that the tests above use three rights only: their user is refused any other."""
    bucket = s3_server.new_bucket()
    client = s3_server.client(Rights.PAGE)
    client.put_object(Bucket=bucket, Key="k", Body=b"x")
    upload = client.create_multipart_upload(Bucket=bucket, Key="large")["UploadId"]
    for forbidden in (
        lambda: client.delete_object(Bucket=bucket, Key="k"),
        lambda: client.abort_multipart_upload(Bucket=bucket, Key="large", UploadId=upload),
        lambda: client.get_object_tagging(Bucket=bucket, Key="k"),
        lambda: client.list_object_versions(Bucket=bucket),
        lambda: client.get_bucket_location(Bucket=bucket),
    ):
        with pytest.raises(ClientError) as caught:
            forbidden()
        assert caught.value.response["Error"]["Code"] == "AccessDenied"


async def test_all_objects_are_below_the_prefix(s3_server: S3Server) -> None:
    bucket = s3_server.new_bucket()
    first, second = (S3Blobs(s3_server.settings(bucket, prefix=prefix)) for prefix in ("one", "two/three"))
    await first.put(KEY, chunks_of(b"first"))
    await second.put(KEY, chunks_of(b"second"))
    assert s3_server.keys(bucket) == ["one/vault/acme/reports/june.md", "two/three/vault/acme/reports/june.md"]
    assert await content_of(first, KEY) == b"first"
    assert [blob.key async for blob in second.walk("vault/acme/")] == [KEY]
    await first.close()
    await second.close()


def _wrong(server: S3Server, what: str) -> tuple[S3Settings, str]:
    good = server.settings(server.new_bucket())
    return {
        "bucket": (replace(good, bucket="no-such-bucket"), "S3 has no bucket 'no-such-bucket' (S3_BUCKET); create it"),
        "secret": (replace(good, secret_access_key=SecretStr("hush")), "S3 refuses the secret access key"),
        "key id": (replace(good, access_key_id=SecretStr("AKIANOBODY")), "S3 does not know the access key id"),
        "rights": (server.settings(good.bucket, Rights.READ), "S3 does not allow our user the call"),
        "no credentials": (
            replace(good, access_key_id=SecretStr(""), secret_access_key=SecretStr("")),
            "S3 needs credentials and none are found: set S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY",
        ),
    }[what]


@pytest.mark.usefixtures("no_ambient_credentials")
@pytest.mark.parametrize("what", ["bucket", "secret", "key id", "rights", "no credentials"])
async def test_what_s3_refuses_is_said_in_one_sentence(s3_server: S3Server, what: str) -> None:
    settings, sentence = _wrong(s3_server, what)
    blobs = S3Blobs(settings)
    with pytest.raises(StoreRefused) as caught:
        await blobs.put(KEY, chunks_of(b"x"))
    assert sentence in str(caught.value)
    assert "hush" not in str(caught.value)
    if what != "rights":
        with pytest.raises(StoreRefused):
            await blobs.ping()
    await blobs.close()


async def test_the_ambient_credentials_are_used_when_none_are_given(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = s3_server.user()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", user.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", user.secret_access_key)
    settings = s3_server.settings(s3_server.new_bucket())
    blobs = S3Blobs(replace(settings, access_key_id=SecretStr(""), secret_access_key=SecretStr("")))
    await blobs.put(KEY, chunks_of(b"x"))
    assert await blobs.exists(KEY)
    await blobs.close()


async def test_an_s3_that_is_away_is_unavailable(s3_server: S3Server) -> None:
    away = S3Blobs(replace(s3_server.settings("bucket"), endpoint_url=f"http://127.0.0.1:{free_port()}"))
    with pytest.raises(StoreUnavailable, match="S3 cannot be reached"):
        await away.ping()
    await away.close()


@pytest.fixture
def frozen_s3() -> Iterator[S3Server]:
    """An S3 that takes connections and does not answer; its settings are those of before."""
    server = S3Server()
    server.start()
    yield server
    server.signal(signal.SIGCONT)
    server.remove()


async def test_an_s3_that_does_not_answer_is_unavailable_in_time(frozen_s3: S3Server) -> None:
    blobs = S3Blobs(frozen_s3.settings(frozen_s3.new_bucket()), timeout=0.5)
    await blobs.ping()
    frozen_s3.signal(signal.SIGSTOP)
    with pytest.raises(StoreUnavailable, match=r"S3 does not answer within 0\.5 s"):
        await blobs.put(KEY, chunks_of(b"x"))
    frozen_s3.signal(signal.SIGCONT)
    await blobs.put(KEY, chunks_of(b"x"))
    await blobs.close()


async def test_work_is_suspended_while_s3_is_away_and_goes_on_by_itself(
    frozen_s3: S3Server, database: Database, redis_client: Redis
) -> None:
    blobs = S3Blobs(frozen_s3.settings(frozen_s3.new_bucket()), timeout=0.5)
    gate = StoreGate(database, redis_client)
    watching = asyncio.create_task(gate.watch())
    assert await gate.wait(10)
    gate.watch_also(blobs)
    assert not gate.is_open
    assert await gate.wait(10)

    frozen_s3.signal(signal.SIGSTOP)
    with pytest.raises(StoreUnavailable) as caught:
        await blobs.put(KEY, chunks_of(b"x"))
    gate.trip(caught.value)
    await eventually("the gate says why", lambda: "S3 does not answer" in gate.problem)
    assert not gate.is_open

    frozen_s3.signal(signal.SIGCONT)
    assert await gate.wait(20)
    await blobs.put(KEY, chunks_of(b"x"))
    watching.cancel()
    await blobs.close()


async def test_s3_costs_nothing_while_all_is_well(
    s3_server: S3Server, database: Database, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = S3Blobs(s3_server.settings(s3_server.new_bucket()))
    asked = 0
    ping = blobs.ping

    async def counted() -> None:
        nonlocal asked
        asked += 1
        await ping()

    monkeypatch.setattr(blobs, "ping", counted)
    monkeypatch.setattr("synapse_worker.gate._OPEN_PERIOD", 0.02)
    gate = StoreGate(database, redis_client)
    watching = asyncio.create_task(gate.watch())
    gate.watch_also(blobs)
    assert await gate.wait(10)
    looks = 0
    look = gate._look_at_postgres

    async def looked() -> None:
        nonlocal looks
        looks += 1
        await look()

    monkeypatch.setattr(gate, "_look_at_postgres", looked)
    await eventually("the gate has looked again and again", lambda: looks > 10)
    assert asked == 1
    watching.cancel()
    await blobs.close()


async def test_a_folder_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path / "data")
    await blobs.put("vault/acme/a", chunks_of(b"x"))
    for key in ("vault/acme/a/b", "vault/acme"):
        with pytest.raises(BlobRefused, match="cannot be a file here"):
            await blobs.put(key, chunks_of(b"y"))
    assert [blob.key async for blob in blobs.walk("vault/")] == ["vault/acme/a"]
    assert [path.name for path in (tmp_path / "data" / ".partial").iterdir()] == []


async def test_a_link_leads_nobody_out_of_the_folder(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path / "data")
    (tmp_path / "data/vault/acme").mkdir(parents=True)
    (tmp_path / "secret").write_text("hush")
    (tmp_path / "data/vault/acme/out").symlink_to(tmp_path)
    with pytest.raises(BlobRefused, match="leads out of"):
        await content_of(blobs, "vault/acme/out/secret")
    with pytest.raises(BlobRefused, match="leads out of"):
        await blobs.put("vault/acme/out/new", chunks_of(b"x"))


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    blobs = LocalBlobs(tmp_path / "file")
    with pytest.raises(BlobRefused, match="a file has the name of one of its folders"):
        await blobs.put(KEY, chunks_of(b"x"))
