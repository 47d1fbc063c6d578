"""A store that is dead or hangs costs its own scale some seconds and nobody else anything."""

from __future__ import annotations

import socket
import time

from tests.controlplane import harness
from tests.controlplane.harness import ControlPlane, Operator, eventually
from tests.support.servers import PostgresServer, RedisServer

HANGING = 12


def test_scales_whose_stores_hang_delay_nobody_else(plane: ControlPlane, live_ns: str, operator: Operator) -> None:
    # Accepts connections and never answers: the worst that a store can do.
    with socket.create_server(("127.0.0.1", 0), backlog=512) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        hanging = f"{live_ns}-hanging"
        plane.apply(
            harness.namespace(hanging),
            harness.secret(hanging, f"redis://{address}/0", f"postgresql://synapse@{address}/synapse"),
            *(harness.scale(hanging, f"s{index}") for index in range(HANGING)),
        )
        for index in range(HANGING):
            condition = plane.await_condition(hanging, "RedisReachable", "False", "RedisUnreachable", scale=f"s{index}")
            assert "does not answer" in condition["message"]
        assert "does not answer" in plane.await_condition(hanging, "PostgresReachable", "False", scale="s0")["message"]
        began = time.monotonic()
        plane.apply(harness.scale(live_ns))
        plane.await_condition(live_ns, "RedisReachable", "True", seconds=3)
        plane.await_condition(live_ns, "ChildrenApplied", "True", seconds=3)
        print(f"a scale beside {HANGING} hanging ones: {time.monotonic() - began:.1f} s")
        code, seconds = operator.terminate()
        assert code == 0
        assert seconds < 1.0, "what hangs does not delay the end either"
    plane.kubectl("delete", "namespace", hanging, "--wait=false")


def test_a_pool_follows_the_url(
    plane: ControlPlane, ns: str, postgres_server: PostgresServer, redis_server: RedisServer
) -> None:
    with Operator(plane) as operator:
        operator.lead()
        plane.apply(harness.scale(ns))
        plane.await_condition(ns, "RedisReachable", "False")
        plane.apply(harness.secret(ns, redis_server.url, postgres_server.new_database()))
        plane.await_condition(ns, "RedisReachable", "True")
        plane.await_condition(ns, "PostgresReachable", "True")
        connected = client_count(redis_server.port)
        assert connected >= 1
        plane.kubectl("delete", "sscale", "main", "-n", ns)
        eventually("the connections are closed", lambda: client_count(redis_server.port) < connected)
        operator.terminate()


def client_count(port: int) -> int:
    """Return how many clients a Redis has, this one aside."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"INFO clients\r\n")
        text = connection.recv(65536).decode()
    line = next(line for line in text.splitlines() if line.startswith("connected_clients:"))
    return int(line.split(":")[1]) - 1
