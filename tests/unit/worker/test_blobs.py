"""Names of artifacts: which paths a vault file may have, and that no tenant's folder is another's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_worker.errors import BlobRefused
from synapse_worker.store.blobs import checked_path, folder_name, logs_folder, vault_folder, vault_key


@pytest.mark.parametrize("path", ["a", "reports/june.md", "a b/ö.txt", "..a/b..", "x" * 200, "notes/👩\u200d🔬.md"])
def test_a_relative_path_may_name_a_file(path: str) -> None:
    assert vault_key("acme", path) == f"vault/acme/{path}"


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("", "is empty"),
        ("/etc/passwd", "begins with a slash"),
        ("../other/file", "has a part of dots only"),
        ("a/../../other", "has a part of dots only"),
        ("a/./b", "has a part of dots only"),
        ("a//b", "has an empty part"),
        ("a/", "has an empty part"),
        ("..\\other", "holds a backslash"),
        ("a\x00b", "holds a control character"),
        ("a\nb", "holds a control character"),
        ("a\u2028b", "holds a control character"),
        ("a\ud800b", "holds a control character, a line end or half a character"),
        ("x" * 201, "is too long"),
        ("ö" * 101, "is too long"),
        ("/".join(["x" * 100] * 6), "is too long"),
    ],
)
def test_any_other_is_refused_with_what_is_accepted(path: str, problem: str) -> None:
    with pytest.raises(BlobRefused) as caught:
        vault_key("acme", path)
    assert problem in str(caught.value)
    assert "accepted: a relative path such as 'reports/june.md'" in str(caught.value)
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


@given(st.text(max_size=255), st.text(max_size=255))
def test_folders_of_two_tenants_are_two(one: str, other: str) -> None:
    assert (folder_name(one) == folder_name(other)) == (one == other)


@given(st.text(max_size=255), st.text(max_size=300))
def test_a_path_stays_in_its_tenants_folder(tenant_id: str, path: str) -> None:
    folder = vault_folder(tenant_id)
    assert folder.count("/") == 2
    assert not {".", "..", ""} & set(folder[:-1].split("/"))
    try:
        checked = checked_path(path)
    except BlobRefused:
        return
    key = vault_key(tenant_id, checked)
    assert key.startswith(folder)
    assert not {".", "..", ""} & set(key.split("/"))
    assert len(key.encode()) < 1024 - 129


@pytest.mark.parametrize(
    ("tenant_id", "folder"),
    [
        ("default", "vault/default/"),
        ("..", "vault/%2E%2E/"),
        ("", "vault/=/"),
        ("a/b", "vault/a%2Fb/"),
        ("Ä" * 255, "vault/" + "%C3%84" * 13 + "%C=21b9"),
    ],
)
def test_a_folder_is_named_for_its_tenant(tenant_id: str, folder: str) -> None:
    assert vault_folder(tenant_id).startswith(folder[:80])


def test_a_long_name_is_cut_and_stays_one_of_its_own() -> None:
    long = [f"{'t' * 200}{number}" for number in range(3)]
    names = {folder_name(name) for name in long}
    assert len(names) == 3
    assert all(len(name) == 113 for name in names)
    assert logs_folder("acme", "run_1:x/y") == "logs/acme/run_1%3Ax%2Fy/"
