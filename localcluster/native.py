"""The commands on a cluster of our own, a node or a bare control plane."""

import os
import shutil
import sys
import time
from collections.abc import Sequence

from localcluster import clusters, control_plane, loading, node, tools
from localcluster.api import Api
from localcluster.errors import ClusterError
from localcluster.places import State
from localcluster.progress import duration, say


class Native:
    def __init__(self, state: State) -> None:
        self.state = state

    def up(self, *, control_plane_only: bool) -> None:
        if control_plane_only:
            control_plane.up(self.state)
        else:
            node.up(self.state)
        say(f"cluster {self.state.name} is up")

    def down(self) -> None:
        with self.state.locked():
            clusters.clear(self.state)
            self.state.lock.unlink()
        say(f"cluster {self.state.name} is down")

    def status(self) -> bool:
        """Prints a line for each component; whether all of them run."""
        record = clusters.found(self.state)
        healthy = record.ready
        lines = [f"cluster {self.state.name}, {record.kind}, {record.server}" + ("" if healthy else ", not ready yet")]
        for name, child in clusters.ask(self.state, "status").items():
            if child["running"]:
                what = f"runs for {duration(time.time() - child['since'])} as process {child['pid']}"
            else:
                what = f"dead, {child['exit']}" if child["exit"] else "not started"
                healthy = False
            lines.append(f"  {name:<24} {what}")
        print("\n".join(lines))
        return healthy

    def load(self, names: Sequence[str]) -> None:
        record = clusters.found(self.state)
        if record.kind != "node":
            raise ClusterError(f"Cluster {self.state.name} is a control plane without a node, so it runs no images.")
        programs = tools.ensure()
        with self.state.locked():
            if names:
                loaded = loading.load_named(self.state, programs, names)
            else:
                loaded = loading.load_known(self.state, programs)
        for name in loaded:
            print(f"loaded {name}")

    def logs(self, component: str) -> None:
        log = self.state.logs / f"{component}.log"
        if not log.exists():
            known = ", ".join(sorted(path.stem for path in self.state.logs.glob("*.log"))) or "none"
            raise ClusterError(f"There is no log of {component}; there are: {known}.")
        with log.open("rb") as source:
            shutil.copyfileobj(source, sys.stdout.buffer)

    def kubectl(self, arguments: Sequence[str]) -> None:
        env = dict(os.environ)
        if arguments[:1] != ["kustomize"]:  # which renders files and asks no cluster
            clusters.found(self.state)
            # What it learns of this API server is of no use to the next one on the same port.
            cache = str(self.state.root / "kubectl-cache")
            env |= {"KUBECONFIG": str(self.state.kubeconfig), "KUBECACHEDIR": cache}
        os.execve(tools.ensure() / "node", ["node", "kubectl", *arguments], env)  # noqa: S606 - no shell wanted

    def exec_node(self, argv: Sequence[str]) -> None:
        record = clusters.found(self.state)
        if record.kind != "node":
            raise ClusterError(f"Cluster {self.state.name} has no node to run a command on.")
        os.execvp("nsenter", ["nsenter", f"--target={record.pid}", "--net", "--pid", "--mount", "--", *argv])  # noqa: S606

    def restart(self, component: str) -> None:
        record = clusters.found(self.state)
        with self.state.locked():
            if component not in clusters.ask(self.state, "status"):
                raise ClusterError(f"Cluster {self.state.name} has no component {component}, see `status`.")
            clusters.ask(self.state, "restart", component)
            clusters.await_ready(self.state, f"The restart of {component}", Api(self.state, record.server).ready)
        say(f"{component} was restarted")
