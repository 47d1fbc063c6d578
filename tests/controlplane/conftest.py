"""Fixtures of the control-plane tests: one control plane for the session, one operator for each module."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from tests.controlplane import harness
from tests.controlplane.harness import ControlPlane, Operator
from tests.controlplane.stores import Stores
from tests.controlplane.synced import Store
from tests.support.servers import PostgresServer, RedisServer

DEAD_REDIS = "redis://:hidden-redis-word@127.0.0.1:1/0"
DEAD_POSTGRES = "postgresql://synapse:hidden-postgres-word@127.0.0.1:1/synapse"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give these tests the time that real processes take; the first one also starts the control plane."""
    for item in items:
        if "controlplane" in item.nodeid:
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def plane() -> Iterator[ControlPlane]:
    """The control plane, with manifests/install.yaml applied."""
    plane = ControlPlane(f"test-{os.getpid()}")
    try:
        plane.start()
        yield plane
    finally:
        plane.remove()


@pytest.fixture(scope="module")
def operator(plane: ControlPlane) -> Iterator[Operator]:
    """The operator, leading."""
    with Operator(plane) as operator:
        yield operator.lead()
        operator.terminate()


@pytest.fixture
def ns(plane: ControlPlane) -> Iterator[str]:
    """A namespace with a Secret `stores` whose stores nobody serves."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    plane.apply(harness.namespace(name), harness.secret(name, DEAD_REDIS, DEAD_POSTGRES))
    yield name
    plane.kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")


@pytest.fixture
def live_ns(plane: ControlPlane, ns: str, redis_server: RedisServer, postgres_server: PostgresServer) -> str:
    """A namespace whose Secret leads to a real Redis and a real, empty database."""
    plane.apply(harness.secret(ns, redis_server.url, postgres_server.new_database()))
    return ns


@pytest.fixture
def stores(plane: ControlPlane, ns: str, postgres_server: PostgresServer) -> Iterator[Stores]:
    """Stores of the namespace's own: a Redis that can be stopped, a database with tables."""
    redis = RedisServer()
    redis.start()
    try:
        found = Stores(redis, postgres_server)
        plane.apply(harness.secret(ns, redis.url, found.postgres_url))
        yield found
    finally:
        redis.remove()


@pytest.fixture
def store(plane: ControlPlane, ns: str, redis_server: RedisServer, postgres_server: PostgresServer) -> Store:
    """A migrated database, which the Secret of the namespace leads to."""
    url = postgres_server.new_database()
    plane.apply(harness.secret(ns, redis_server.url, url))
    return Store(url)
