"""The same commands on kind and Docker, chosen with CLUSTER=kind.

kind does the work; this only says each command in its words, so that the
Makefile and the tests need not know which cluster they have.
"""

import os
import shutil
from collections.abc import Sequence

from localcluster import images
from localcluster.commands import follow, run, succeeds
from localcluster.errors import ClusterError, NoNodeError
from localcluster.places import REPOSITORY, State
from localcluster.progress import say, step

CONFIG = REPOSITORY / "kind-config.yaml"
# As kind-config.yaml tells the API server.
AUDIT_LOG = "/var/log/kubernetes/audit.log"
SYSTEM_UNITS = ("kubelet", "containerd")


class Kind:
    def __init__(self, state: State) -> None:
        self.state = state
        self.node = f"{state.name}-control-plane"
        for program in ("docker", "kind", "kubectl"):
            if shutil.which(program) is None:
                raise NoNodeError(f"CLUSTER=kind needs {program}; install it, or unset CLUSTER.")

    def up(self, *, control_plane_only: bool) -> None:
        if control_plane_only:
            raise ClusterError("A control plane alone is not made with kind, unset CLUSTER for it.")
        with self.state.locked():
            if not self._exists():
                self.state.root.mkdir(mode=0o700, exist_ok=True)
                create = ["kind", "create", "cluster", "--name", self.state.name, "--config", str(CONFIG)]
                kubeconfig = ["--kubeconfig", str(self.state.kubeconfig), "--wait", "180s"]
                with step(f"kind cluster {self.state.name}") as current:
                    # kind finds the file that its configuration mounts from the folder it is called in.
                    follow([*create, *kubeconfig], current.advance, cwd=REPOSITORY)
            self.load([])
        say(f"cluster {self.state.name} is up")

    def down(self) -> None:
        with self.state.locked():
            run(["kind", "delete", "cluster", "--name", self.state.name, "--kubeconfig", str(self.state.kubeconfig)])
            if self.state.root.exists():
                shutil.rmtree(self.state.root)
            self.state.lock.unlink()
        say(f"cluster {self.state.name} is down")

    def status(self) -> bool:
        if not self._exists():
            raise ClusterError(
                f"There is no kind cluster {self.state.name}, start it with `python3 -m localcluster up`."
            )
        ready = ["wait", "--for=condition=Ready", "node", "--all", "--timeout=5s"]
        print(run(["kubectl", "--kubeconfig", str(self.state.kubeconfig), "get", "nodes"]), end="")
        return succeeds(["kubectl", "--kubeconfig", str(self.state.kubeconfig), *ready])

    def load(self, names: Sequence[str]) -> None:
        """Without names: what was built of the project's own images."""
        known = [image.name for image in images.programs("localhost", "dev", None)]
        wanted = names or [name for name in known if succeeds(["docker", "image", "inspect", name])]
        if wanted:
            run(["kind", "load", "docker-image", "--name", self.state.name, *wanted])
        for name in wanted:
            print(f"loaded {name}")

    def logs(self, component: str) -> None:
        if component == "audit":
            self._become(["docker", "exec", self.node, "cat", AUDIT_LOG])
        if component in SYSTEM_UNITS:
            self._become(["docker", "exec", self.node, "journalctl", "--no-pager", "--unit", component])
        self.kubectl(["logs", "--namespace=kube-system", f"{component}-{self.node}"])

    def kubectl(self, arguments: Sequence[str]) -> None:
        self._become(["kubectl", "--kubeconfig", str(self.state.kubeconfig), *arguments])

    def exec_node(self, argv: Sequence[str]) -> None:
        self._become(["docker", "exec", "--interactive", self.node, *argv])

    def restart(self, component: str) -> None:
        """The kubelet starts a stopped part of the control plane again."""
        ids = run(["docker", "exec", self.node, "crictl", "ps", "--quiet", "--name", component]).split()
        if not ids:
            raise ClusterError(f"No container {component} runs in kind cluster {self.state.name}.")
        run(["docker", "exec", self.node, "crictl", "stop", *ids])

    def _exists(self) -> bool:
        return self.state.name in run(["kind", "get", "clusters"]).split()

    @staticmethod
    def _become(argv: list[str]) -> None:
        os.execvp(argv[0], argv)  # noqa: S606 - no shell wanted
