"""Documents are found with the lines that they begin at, and nothing in a text can exhaust whoever reads it."""

from __future__ import annotations

import json
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from synapse_worker.engine.json_values import MAX_DEPTH
from synapse_worker.sync.text import MAX_NODES, Located, Unreadable, read_json, read_yaml
from tests.unit.worker.engine.documents import searched


def located(found: list[Located | Unreadable]) -> list[Located]:
    assert all(isinstance(each, Located) for each in found), found
    return [each for each in found if isinstance(each, Located)]


def refused(found: list[Located | Unreadable]) -> Unreadable:
    (only,) = [each for each in found if isinstance(each, Unreadable)]
    return only


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters="\x7f"))
objects = st.dictionaries(texts, texts | st.integers() | st.none() | st.lists(texts, max_size=3), max_size=4)


def line_of(text: str, marker: str) -> int:
    return text[: text.index(marker)].count("\n") + 1


@searched
@given(st.lists(objects, max_size=5), st.sampled_from([None, 1, 4]), st.integers(0, 3))
def test_the_items_of_a_list_have_their_lines(
    documents: list[dict[str, object]], indent: int | None, above: int
) -> None:
    marked = [{f"id-{number}": number, **document} for number, document in enumerate(documents)]
    as_json = "\n" * above + json.dumps(marked, indent=indent, ensure_ascii=False)
    as_yaml = "\n" * above + yaml.safe_dump(marked, indent=indent, sort_keys=False, allow_unicode=True)
    for text, found in ((as_json, located(read_json(as_json))), (as_yaml, located(read_yaml(as_yaml)))):
        assert [each.value for each in found] == marked
        for number, each in enumerate(found):
            member = line_of(text, f"id-{number}")
            assert each.line_of(f"id-{number}") == member
            assert each.line in (member, member - 1), "the brace may stand on a line of its own"


@searched
@given(st.dictionaries(st.sampled_from("abc"), st.lists(objects, min_size=1, max_size=4), min_size=1))
def test_the_items_of_members_have_their_lines(bundle: dict[str, list[dict[str, object]]]) -> None:
    marked = {key: [{f"{key}-{n}": 0, **each} for n, each in enumerate(items)] for key, items in bundle.items()}
    text = json.dumps(marked, indent=2)
    as_yaml = yaml.safe_dump(marked, sort_keys=False)
    for read, form in ((read_json, text), (read_yaml, as_yaml)):
        (document,) = located(read(form))
        for key, items in marked.items():
            for number in range(len(items)):
                line = line_of(form, f"{key}-{number}")
                assert document.line_of(key, number) in (line, line - 1)


def test_several_yaml_documents() -> None:
    found = located(read_yaml("id: a\n---\n# a remark\nid: b\n---\n- id: c\n-\n  id: d\n---\n"))
    assert [(each.line, each.value) for each in found[:-1]] == [
        (1, {"id": "a"}),
        (4, {"id": "b"}),
        (6, {"id": "c"}),
        (8, {"id": "d"}),
    ]
    assert found[-1].value is None
    assert read_yaml("") == []


def test_a_date_is_text_as_it_is_in_json() -> None:
    (document,) = located(read_yaml("created: 2026-01-02\nat: 2026-01-02T03:04:05Z\n"))
    assert document.value == {"created": "2026-01-02", "at": "2026-01-02T03:04:05Z"}


def test_an_unknown_member_is_at_the_documents_line() -> None:
    (document,) = located(read_json('\n\n{"a": 1}'))
    assert (document.line, document.line_of("b"), document.line_of("a", 3)) == (3, 3, 3)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('{"a": 1,\n\n "b": }', 3, "not JSON: Expecting value"),
        ('{"a": NaN}', 1, "it holds what JSON cannot"),
        ('[{"a": 1},\n {"a": 1e999}]', 2, "it holds what JSON cannot"),
        ("1" * 5000, None, "a number is too long"),
        ("[" * 500_000, None, "it nests too deeply"),
        ("[" * 150 + "]" * 150, None, f"it nests deeper than {MAX_DEPTH} levels"),
    ],
)
def test_what_json_is_refused(text: str, line: int | None, words: str) -> None:
    found = refused(read_json(text))
    assert words in found.shown
    assert line is None or found.line == line


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb:\n\tc: 2\n", 3, "not YAML: found character that cannot start any token"),
        ("a: 1\nb: *nothing\n", 2, "not YAML: found undefined alias"),
        ("a: !python/object:os.system x\n", 1, "not YAML: could not determine a constructor"),
        ("a: !!int x\n", 1, "not YAML: a value does not fit its type"),
        ("a: .inf\n", 1, "it holds what JSON cannot"),
        ("a: !!binary aGVsbG8=\n", 1, "it holds what JSON cannot"),
        ("a: \x01\n", None, "a character that YAML does not allow"),
        ("x: 1\na: &a\n  b: *a\n", 2, "a reference leads back to itself"),
        ("- " * 100_000 + "a", 1, f"it nests deeper than {MAX_DEPTH} levels"),
        ("[" * 100_000, 1, "nest"),
    ],
)
def test_what_yaml_is_refused(text: str, line: int | None, words: str) -> None:
    found = refused(read_yaml(text))
    assert words in found.shown
    assert found.line == line


@pytest.mark.parametrize("reference", ["[{}]", "{{<<: [{}]}}"])
def test_references_that_multiply_are_refused_at_once(reference: str) -> None:
    tenfold = (reference.format(", ".join([f"*a{level}"] * 10)) for level in range(11))
    text = "a0: &a0 {x: 1}\n" + "".join(f"a{level}: &a{level} {each}\n" for level, each in enumerate(tenfold, 1))
    began = time.monotonic()
    assert f"more than {MAX_NODES} values" in refused(read_yaml(text)).shown
    assert time.monotonic() - began < 2


def test_references_as_people_use_them_are_read() -> None:
    found = located(read_yaml("base: &base {type: print}\nsteps:\n- {<<: *base, id: a}\n- {<<: *base, id: b}\n"))
    assert found[0].value == {
        "base": {"type": "print"},
        "steps": [{"type": "print", "id": "a"}, {"type": "print", "id": "b"}],
    }


def test_documents_around_a_bad_one_are_read() -> None:
    found = read_yaml("id: a\n---\nid: !strange b\n---\nid: c\n---\nid: [\n")
    assert [each.value for each in found if isinstance(each, Located)] == [{"id": "a"}, {"id": "c"}]
    assert [each.line for each in found if isinstance(each, Unreadable)] == [3, 8]


def test_the_plain_reason_holds_no_word_of_the_text() -> None:
    for text in ("key: *sk-hidden\n", "key: !sk-hidden x\n", "key: {sk-hidden: 1, sk-hidden", "sk-hidden: .nan"):
        found = refused(read_yaml(text))
        assert "hidden" not in found.plain
