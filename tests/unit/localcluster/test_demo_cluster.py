"""What the demo shows when the cluster does not bring what it waits for."""

from __future__ import annotations

import pytest

from localcluster.demo import cluster
from localcluster.errors import ClusterError


@pytest.mark.parametrize("namespace", [cluster.NAMESPACE, cluster.OPERATOR])
@pytest.mark.parametrize("words", [("wait", "--for=condition=Available", "deploy/late"), ("rollout", "status")])
def test_what_does_not_come_is_shown_where_it_should_be(
    monkeypatch: pytest.MonkeyPatch, namespace: str, words: tuple[str, ...]
) -> None:
    asked: list[tuple[str, ...]] = []

    def kubectl(*arguments: str, capture: bool = False, check: bool = True) -> str:
        asked.append(arguments)
        if arguments[0] != "get":
            raise ClusterError("kubectl failed: timed out waiting for the condition on deployments/late")
        return ""

    monkeypatch.setattr(cluster, "kubectl", kubectl)
    with pytest.raises(ClusterError, match=r"the late one did not come within 5 s \(.*deployments/late\)"):
        cluster.wait_for("the late one", *words, seconds=5, namespace=namespace)
    waited, *shown = asked
    assert waited == (*words, "-n", namespace, "--timeout=5s")
    assert [words[1] for words in shown] == ["sscale,deploy,pods", "events"]
    assert all(words[-2:] == ("-n", namespace) for words in shown)
