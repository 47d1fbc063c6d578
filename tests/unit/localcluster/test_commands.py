"""The command line, exit codes, and what is asked of the machine."""

import os

import pytest

from localcluster import cli, clusters
from localcluster.api import node_schedulable
from localcluster.errors import ClusterError, NoNodeError
from localcluster.machine import missing_packages
from localcluster.pki import openssl_config


def test_words_behind_kubectl_are_handed_on_untouched() -> None:
    own, handed_on = cli.split(["--name", "other", "kubectl", "-n", "x", "get", "pods", "--name", "y"])
    assert cli.parser().parse_args(own).name == "other"
    assert handed_on == ["-n", "x", "get", "pods", "--name", "y"]


def test_a_cluster_may_be_called_like_a_command() -> None:
    assert cli.split(["--name", "kubectl", "down"]) == (["--name", "kubectl", "down"], ())


def test_dashes_before_a_command_for_the_node_are_dropped() -> None:
    assert cli.split(["exec-node", "--", "ps", "--", "aux"])[1] == ["ps", "--", "aux"]
    assert cli.split(["kubectl", "--", "x"])[1] == ["--", "x"]


def test_the_name_may_stand_on_either_side() -> None:
    assert cli.parser().parse_args(["up", "--name", "a", "--control-plane"]).name == "a"
    assert cli.parser().parse_args(["--name", "a", "up"]).name == "a"
    assert cli.parser().parse_args(["up"]).name == cli.DEFAULT_NAME


@pytest.mark.parametrize("name", ["", "A", "1a", "a/b", "a.b", "a" * 31])
def test_a_name_that_would_not_do_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.parser().parse_args(["--name", name, "up"])
    assert ended.value.code == 2
    assert "lower-case letters" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "code"), [(ClusterError("no"), 1), (NoNodeError("no"), 3)])
def test_errors_become_exit_codes(
    error: ClusterError, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> bool:
        raise error

    monkeypatch.setattr(cli, "dispatch", fail)
    monkeypatch.setattr("sys.argv", ["localcluster", "status"])
    monkeypatch.setenv("PATH", os.environ["PATH"])
    assert cli.main() == code
    assert capsys.readouterr().err == "localcluster: no\n"


def test_only_missing_packages_are_asked_for() -> None:
    programs = {"ip": "iproute2", "mount": "mount", "nsenter": "util-linux", "unshare": "util-linux"}
    assert missing_packages(programs, ["ip", "mount"]) == ["util-linux"]
    assert missing_packages(programs, programs) == []


@pytest.mark.parametrize(
    ("ready", "taints", "schedulable"),
    [("True", None, True), ("True", [{"key": "node.kubernetes.io/not-ready"}], False), ("False", None, False)],
)
def test_a_node_is_ready_once_pods_may_go_there(ready: str, taints: object, schedulable: bool) -> None:
    node = {"spec": {"taints": taints}, "status": {"conditions": [{"type": "Ready", "status": ready}]}}
    assert node_schedulable(node) is schedulable


def test_a_node_that_is_not_there_is_not_ready() -> None:
    assert node_schedulable({}) is False


def test_a_process_is_told_from_a_later_one_with_its_number() -> None:
    assert clusters.born(os.getpid()) > 0
    # Numbers end well below this one.
    assert clusters.born(2**30) == 0


def test_the_server_is_certified_for_every_name_that_pods_use() -> None:
    config = openssl_config([])
    assert "DNS:kubernetes.default.svc," in config
    assert "DNS:kubernetes.default.svc.cluster.local" in config
