"""The command line: arguments to calls, and problems to exit codes.

    0  done
    1  it could not be done, or `status` found something dead
    2  the command line is wrong
    3  this machine cannot run a node

With CLUSTER=kind the commands that concern a cluster go to kind and Docker.
"""

import argparse
import re
import sys
from collections.abc import Sequence

from localcluster import images, machine, tools
from localcluster.errors import ClusterError
from localcluster.kind import Kind
from localcluster.native import Native
from localcluster.places import State
from localcluster.progress import say

DEFAULT_NAME = "synapse"
# Part of paths, of a cgroup's name, and of container names under kind.
NAME_PATTERN = re.compile(r"[a-z][a-z0-9-]{0,29}")
# Commands that hand on every word behind them, options too.
HANDING_ON = ("kubectl", "exec-node")


def _name(text: str) -> str:
    if not NAME_PATTERN.fullmatch(text):
        raise argparse.ArgumentTypeError("a name is 1 to 30 lower-case letters, digits and dashes, a letter first")
    return text


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="localcluster", description="A throw-away Kubernetes for demo and tests.")
    root.add_argument("--name", type=_name, default=DEFAULT_NAME, help="which cluster (default: %(default)s)")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=summary)
        # Accepted behind the command too, without a default that would undo the one in front.
        added.add_argument("--name", type=_name, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        return added

    up = command("up", "start the cluster, or repair it, and wait until it is ready")
    up.add_argument("--control-plane", action="store_true", help="without a node: no pods, and no root needed")
    command("down", "end the cluster and remove all of it")
    command("status", "show each component; exit code 1 when one is dead")
    command("kubeconfig", "print the path of the cluster's kubeconfig")
    load = command("load-image", "load images into the node; without a name, all of the project that are built")
    load.add_argument("images", nargs="*", metavar="NAME[:TAG]")
    command("images", "build the images that are out of date (IMAGE_PREFIX, IMAGE_TAG, BASE_IMAGE)")
    logs = command("logs", "print the log of a component, or `audit`")
    logs.add_argument("component")
    restart = command("restart", "stop a component and start it again")
    restart.add_argument("component")
    command("kubectl", "run kubectl against the cluster, with all words that follow")
    command("exec-node", "run the command that follows in the node's namespaces")
    command("tools", "build the programs that are missing and print their folder")
    return root


def split(arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Our own words, and those to hand on: argparse would take the options among them for ours."""
    for place, word in enumerate(arguments):
        if word in HANDING_ON and (place == 0 or arguments[place - 1] != "--name"):
            behind = arguments[place + 1 :]
            # exec-node has no words of its own to set apart, but many write the customary dashes.
            return arguments[: place + 1], behind[1:] if word == "exec-node" and behind[:1] == ["--"] else behind
    return arguments, ()


def dispatch(asked: argparse.Namespace, handed_on: Sequence[str]) -> bool:
    """Carries out a command; whether all is well."""
    if asked.command == "tools":
        print(tools.ensure())
        return True
    if asked.command == "images":
        images.build()
        return True
    state = State(asked.name)
    if asked.command == "kubeconfig":
        print(state.kubeconfig)
        return True
    cluster: Kind | Native = Kind(state) if machine.wants_kind() else Native(state)
    match asked.command:
        case "up":
            cluster.up(control_plane_only=asked.control_plane)
        case "down":
            cluster.down()
        case "status":
            return cluster.status()
        case "load-image":
            cluster.load(asked.images)
        case "logs":
            cluster.logs(asked.component)
        case "restart":
            cluster.restart(asked.component)
        case "kubectl":
            cluster.kubectl(handed_on)
        case "exec-node":
            if not handed_on:
                raise ClusterError("exec-node needs a command, for instance `exec-node ps aux`.")
            cluster.exec_node(handed_on)
    return True


def main() -> int:
    own, handed_on = split(sys.argv[1:])
    asked = parser().parse_args(own)
    machine.add_sbin_to_path()
    try:
        return 0 if dispatch(asked, handed_on) else 1
    except ClusterError as error:
        say(f"localcluster: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        say("localcluster: interrupted")
        return 130
