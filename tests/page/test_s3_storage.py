"""The page's section on S3 storage, statement by statement, against an S3 that checks signatures and rights."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator

import pytest
from redis.asyncio import Redis

from synapse_worker import settings
from synapse_worker.connections import open_blobs
from synapse_worker.errors import ConfigurationError
from synapse_worker.store.blobs import chunks_of
from synapse_worker.store.database import Database
from synapse_worker.store.s3_blobs import S3Blobs
from tests.page.conftest import StartHere
from tests.page.support import eventually, printing
from tests.support.runs import enqueue, store, until
from tests.support.s3 import REGION, Rights, S3Server
from tests.support.servers import free_port
from tests.support.workers import command, environment

UNUSED = "redis://unused:1"


def vault(postgres_url: str, *words: str, **variables: str) -> str:
    """Run a `vault` command that succeeds and return what it prints."""
    done = command(UNUSED, postgres_url, "vault", *words, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def _store_settings(database: Database, **values: str) -> None:
    for key, value in values.items():
        await database.execute(
            "INSERT INTO scale_settings (key, value, updated_at) VALUES ($1, $2, now())"
            " ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value",
            key,
            json.dumps(value),
        )


async def test_vault_files_and_execution_logs_are_stored_in_s3(
    database: Database, redis_client: Redis, s3_server: S3Server, start_here: StartHere
) -> None:
    """With the three rights that the page names, and no other."""
    bucket = s3_server.new_bucket()
    worker = await start_here(**s3_server.environment(bucket, Rights.PAGE))
    await worker.ready()
    await store(database, printing("greet"))
    run_id = await enqueue(database, redis_client, "greet")
    await until(database, run_id, "completed")

    async def logged() -> bool:
        return any(key.startswith(f"synapse/logs/default/{run_id}/") for key in s3_server.keys(bucket))

    await eventually("the run's log is in the bucket", logged)


def test_a_file_that_one_process_writes_another_sees(
    postgres_url: str, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bucket = s3_server.new_bucket()
    machines = [
        {**s3_server.environment(bucket), "SYNAPSE_DATA_DIR": str(tmp_path_factory.mktemp(name))}
        for name in ("worker-a", "worker-b")
    ]
    source = tmp_path_factory.mktemp("files") / "june.md"
    source.write_text("# June\n")
    vault(postgres_url, "put", "reports/june.md", str(source), **machines[0])
    assert vault(postgres_url, "get", "reports/june.md", **machines[1]) == "# June\n"


def test_without_s3_each_worker_has_its_own_local_disk(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folders = [tmp_path_factory.mktemp(name) for name in ("worker-a", "worker-b")]
    source = tmp_path_factory.mktemp("files") / "june.md"
    source.write_text("# June\n")
    vault(postgres_url, "put", "reports/june.md", str(source), SYNAPSE_DATA_DIR=str(folders[0]))
    assert (folders[0] / "vault/default/reports/june.md").read_text() == "# June\n"
    assert vault(postgres_url, "ls", SYNAPSE_DATA_DIR=str(folders[1])) == "no files\n"


async def test_the_bucket_must_already_exist(s3_server: S3Server, start_here: StartHere) -> None:
    worker = await start_here(**{**s3_server.environment("not-there"), "K8S_MODE": "1"})

    async def said() -> bool:
        return "S3 has no bucket 'not-there' (S3_BUCKET); create it" in (await worker.get("/readyz")).body

    await eventually("the worker says that the bucket is missing", said)
    assert "not-there" not in s3_server.client().list_buckets()["Buckets"]


class _Recorder(http.server.BaseHTTPRequestHandler):
    """Answers every request with an empty listing and notes it."""

    seen: list[tuple[str, str]]

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers.get("Authorization", "")))
        body = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def recorder() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """An endpoint, and the paths and Authorization headers that it is asked with."""
    seen: list[tuple[str, str]] = []
    handler = type("Handler", (_Recorder,), {"seen": seen})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", free_port()), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("region", "signed_for"), [("", "us-east-1"), ("eu-north-1", "eu-north-1")])
async def test_requests_are_signed_for_the_region(
    recorder: tuple[str, list[tuple[str, str]]], region: str, signed_for: str
) -> None:
    """The region is part of the signature, so it must match the bucket's; the default is us-east-1."""
    endpoint, seen = recorder
    variables = {
        "S3_BUCKET": "vault",
        "S3_REGION": region,
        "S3_ENDPOINT_URL": endpoint,
        "S3_ACCESS_KEY_ID": "AKIA",
        "S3_SECRET_ACCESS_KEY": "secret",
    }
    loaded = settings.load(environment(UNUSED, "postgresql://p/d", **variables))
    blobs = open_blobs(loaded.s3, loaded.data_dir)
    await blobs.ping()
    await blobs.close()
    ((path, authorization),) = seen
    assert path.startswith("/vault?")  # the endpoint's host is used as it is
    assert f"/{signed_for}/s3/aws4_request" in authorization


@pytest.mark.parametrize(("prefix", "key"), [("", "synapse/vault/default/a"), ("team-a", "team-a/vault/default/a")])
def test_all_objects_are_under_the_prefix(postgres_url: str, s3_server: S3Server, prefix: str, key: str) -> None:
    bucket = s3_server.new_bucket()
    done = command(
        UNUSED, postgres_url, "vault", "put", "a", "/dev/null", **s3_server.environment(bucket), S3_PREFIX=prefix
    )
    assert done.returncode == 0, done.stderr
    assert s3_server.keys(bucket) == [key]


async def test_both_keys_blank_use_the_ambient_credentials(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = s3_server.user()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", user.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", user.secret_access_key)
    variables = s3_server.environment(s3_server.new_bucket())
    blank = {**variables, "S3_ACCESS_KEY_ID": "", "S3_SECRET_ACCESS_KEY": ""}
    loaded = settings.load(environment(UNUSED, "postgresql://p/d", **blank))
    blobs = open_blobs(loaded.s3, loaded.data_dir)
    assert isinstance(blobs, S3Blobs)
    await blobs.put("vault/default/a", chunks_of(b"x"))
    await blobs.close()


@pytest.mark.parametrize(
    ("given", "missing"),
    [("S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY"), ("S3_SECRET_ACCESS_KEY", "S3_ACCESS_KEY_ID")],
)
def test_only_one_key_is_an_error_at_start(given: str, missing: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings.load(environment(UNUSED, "postgresql://p/d", **{given: "hush"}))
    assert f"{given} is set and {missing} is not; accepted: both, or neither" in str(caught.value)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://minio-host:9000",
        "https://account.r2.cloudflarestorage.com",
        "https://s3.eu-central-003.backblazeb2.com",
        "https://fra1.digitaloceanspaces.com",
    ],
)
def test_endpoints_of_compatible_stores_are_accepted(endpoint: str) -> None:
    loaded = settings.load(environment(UNUSED, "postgresql://p/d", S3_BUCKET="vault", S3_ENDPOINT_URL=endpoint))
    assert loaded.s3.endpoint_url == endpoint


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"S3_BUCKET": "s3://vault"}, "S3_BUCKET is 's3://vault'; accepted: the name of a bucket"),
        ({"S3_REGION": "eu central"}, "S3_REGION is 'eu central'; accepted: the name of a region"),
        ({"S3_PREFIX": "../other"}, "S3_PREFIX is '../other'; accepted: a path of at most 128 bytes"),
        ({"S3_ENDPOINT_URL": "minio:9000"}, "S3_ENDPOINT_URL cannot be used; accepted: an http:// or https:// URL"),
        ({"S3_ENDPOINT_URL": "http://me:hush@minio"}, "without user name"),
    ],
)
def test_what_cannot_be_used_is_named(variables: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings.load(environment(UNUSED, "postgresql://p/d", **variables))
    assert sentence in str(caught.value)
    assert "hush" not in str(caught.value)


async def test_saved_settings_stand_in_for_variables_that_are_not_set(
    database: Database, postgres_url: str, s3_server: S3Server
) -> None:
    bucket, other = s3_server.new_bucket(), s3_server.new_bucket()
    user = s3_server.user()
    await _store_settings(
        database,
        s3_bucket=bucket,
        s3_region=REGION,
        s3_prefix="saved",
        s3_endpoint_url=s3_server.url,
        s3_access_key_id=user.access_key_id,
        s3_secret_access_key=user.secret_access_key,
    )
    vault(postgres_url, "put", "a", "/dev/null")
    vault(postgres_url, "put", "a", "/dev/null", S3_BUCKET=other, S3_PREFIX="set")
    assert (s3_server.keys(bucket), s3_server.keys(other)) == (["saved/vault/default/a"], ["set/vault/default/a"])


async def test_half_a_saved_pair_of_keys_is_an_error(database: Database, postgres_url: str) -> None:
    await _store_settings(database, s3_bucket="vault", s3_access_key_id="AKIA")
    done = command(UNUSED, postgres_url, "vault", "ls")
    assert done.returncode == 1
    assert "the stored setting s3_access_key_id is set and S3_SECRET_ACCESS_KEY is not" in done.stderr
