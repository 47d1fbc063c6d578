"""What the operator does when the API server, or its own kind, goes away and comes back."""

from __future__ import annotations

import subprocess
import sys

from synapse_operator import naming
from tests.controlplane import harness
from tests.controlplane.harness import ControlPlane, Operator, eventually

CRD = f"{naming.SCALE_PLURAL}.{naming.GROUP}"


def test_after_a_restart_of_the_api_server_the_operator_works_on(plane: ControlPlane, ns: str) -> None:
    with Operator(plane) as operator:
        operator.lead()
        plane.apply(harness.scale(ns))
        plane.await_children(ns)
        subprocess.run(
            [sys.executable, "-m", "localcluster", "restart", "kube-apiserver", "--name", plane.name],
            cwd=harness.ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        eventually("the API server answers", lambda: plane.try_kubectl("get", "ns").returncode == 0, seconds=40)
        plane.kubectl("scale", "sscale/main", "-n", ns, "--replicas=4")

        def done() -> bool:
            if not operator.running:  # it lost the Lease meanwhile; kubelet would start it again
                assert operator.await_end(0) == 1
                operator.start()
            return bool(plane.child(ns, "Deployment")["spec"]["replicas"] == 4)

        eventually("four replicas", done, seconds=60)
        assert operator.probe("/livez") == (200, "ok")
        operator.terminate()


def await_collector(plane: ControlPlane, ns: str) -> None:
    """Wait until the garbage collector watches our kind: it learns of new kinds every 30 s.

    An owner whose end it did not see, of a kind that is gone, is one it cannot ask for: children stay for ever.
    """
    plane.apply(harness.scale(ns, "canary"))
    plane.await_children(ns, "canary")
    plane.kubectl("delete", "sscale", "canary", "-n", ns)
    eventually("the canary's children went with it", lambda: not plane.children(ns, "canary"), seconds=120)


def test_an_operator_that_is_installed_before_its_crd_waits_for_it_and_one_that_loses_it_ends(
    plane: ControlPlane, ns: str
) -> None:
    try:
        with Operator(plane) as operator:
            operator.lead()
            plane.apply(harness.scale(ns))
            plane.await_children(ns)
            await_collector(plane, ns)
            plane.kubectl("delete", "crd", CRD, "--timeout=60s")
            assert operator.await_end(40) == 1
            assert "watch" in operator.log
            eventually("the children went with it", lambda: not plane.children(ns), seconds=40)

        with Operator(plane) as operator:
            operator.lead()
            eventually("it says what is missing", lambda: "install the CRDs" in operator.log)
            assert operator.probe("/livez") == (200, "ok")
            plane.kubectl("apply", "--server-side", "-f", str(harness.ROOT / "manifests" / "install.yaml"))
            plane.kubectl("wait", "--for=condition=Established", "crd", CRD)
            plane.apply(harness.scale(ns))
            plane.await_children(ns)
            operator.terminate()
    finally:
        plane.kubectl("apply", "--server-side", "-f", str(harness.ROOT / "manifests" / "install.yaml"))
