"""The operator's rules by their text: what they must never hold.

That they cover the calls and nothing more is shown against an API server in tests/controlplane/test_rbac.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from synapse_operator import naming
from synapse_operator.__main__ import LEASE_NAME
from synapse_operator.cluster.apply import CONTRADICTABLE, DELETABLE
from synapse_operator.cluster.hashkey import SECRET_NAME
from synapse_operator.naming import WATCHED, Kind

BASE = Path(__file__).parents[2] / "manifests" / "base"

Rule = dict[str, Any]


def rules(file: str) -> list[Rule]:
    """All rules of the roles in a file."""
    objects = yaml.safe_load_all((BASE / file).read_text())
    return [rule for each in objects if each["kind"] in ("ClusterRole", "Role") for rule in each["rules"]]


def verbs(found: list[Rule], group: str, resource: str) -> set[str]:
    return {
        verb for rule in found if group in rule["apiGroups"] and resource in rule["resources"] for verb in rule["verbs"]
    }


@pytest.mark.parametrize("file", ["rbac-cluster.yaml", "rbac-own-namespace.yaml", "rbac-users.yaml"])
def test_nothing_is_granted_by_wildcard(file: str) -> None:
    for rule in rules(file):
        assert "*" not in (*rule["apiGroups"], *rule["resources"], *rule["verbs"])
        assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])


def test_secrets_are_read_by_name_only_and_never_changed() -> None:
    assert verbs(rules("rbac-cluster.yaml"), "", "secrets") == {"get", "create"}
    assert verbs(rules("rbac-own-namespace.yaml"), "", "secrets") == {"create", "get"}


def test_a_scale_is_never_written_but_for_its_status() -> None:
    assert verbs(rules("rbac-cluster.yaml"), naming.GROUP, naming.SCALE_PLURAL) == {"get", "list", "watch"}
    assert verbs(rules("rbac-cluster.yaml"), naming.GROUP, f"{naming.SCALE_PLURAL}/status") == {"patch"}


def test_a_tenant_is_never_written_but_for_its_finalizer_and_its_status() -> None:
    assert verbs(rules("rbac-cluster.yaml"), naming.GROUP, naming.TENANT_PLURAL) == {"list", "watch", "patch"}
    assert verbs(rules("rbac-cluster.yaml"), naming.GROUP, f"{naming.TENANT_PLURAL}/status") == {"patch"}


def test_pods_are_marked_and_never_made_or_taken() -> None:
    assert verbs(rules("rbac-cluster.yaml"), "", "pods") == {"list", "patch"}


@pytest.mark.parametrize("kind", Kind)
def test_each_kind_of_child_can_be_watched_and_applied(kind: Kind) -> None:
    granted = verbs(rules("rbac-cluster.yaml"), kind.group, kind.plural)
    assert {"list", "create", "patch"} <= granted
    assert ("watch" in granted) == (kind in WATCHED)
    assert ("update" in granted) == (kind in CONTRADICTABLE)
    assert ("delete" in granted) == (kind in DELETABLE)


def test_the_names_of_the_own_objects_are_those_of_the_code() -> None:
    named = {name for rule in rules("rbac-own-namespace.yaml") for name in rule.get("resourceNames", [])}
    assert named == {LEASE_NAME, SECRET_NAME}
