"""Finding the lines of keys in a TOML document."""

from __future__ import annotations

import time
import tomllib

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from coapgw.config_text import DEPTH_LIMIT, KeyPath, key_lines

TABLE: list[tuple[str, str, dict[KeyPath, int]]] = [
    ("nothing", "", {}),
    ("comments and blanks", "# a = 1\n\n   \n\t# b\na = 1 # c\n\nb = 2", {("a",): 5, ("b",): 7}),
    ("dotted keys", "a.b.c = 1\na.d = 2", {("a",): 1, ("a", "b"): 1, ("a", "b", "c"): 1, ("a", "d"): 2}),
    ("tables", "[a]\nb = 1\n\n[c.d]\ne = 1", {("a",): 1, ("a", "b"): 2, ("c",): 4, ("c", "d"): 4, ("c", "d", "e"): 5}),
    ("empty inline table is no header", "[a]\nb = {}\nc = 1", {("a",): 1, ("a", "b"): 2, ("a", "c"): 3}),
    ("quoted names", "'a.b'.\"c d\" = 1", {("a.b",): 1, ("a.b", "c d"): 1}),
    ("header with blanks and comment", " [ a . 'b' ] # [c]\n x = 1", {("a",): 1, ("a", "b"): 1, ("a", "b", "x"): 2}),
    (
        "array over lines",
        "a = [ # first,\n  1, # ]\n\n  2,\n] # end\nb = 1",
        {("a",): 1, ("a", 0): 1, ("a", 1): 1, ("b",): 6},
    ),
    ("text over lines", 'a = """\n[b]\nc = 1\n"""\nd = 1', {("a",): 1, ("d",): 5}),
    ("literal text over lines", "a = '''\n# '' ,\nb = 1'''\nd = 1", {("a",): 1, ("d",): 4}),
    ("carriage returns", "a = 1\r\n\r\nb = [\r\n1,\r\n]\r\nc = 1\r\n", {("a",): 1, ("b",): 3, ("b", 0): 3, ("c",): 6}),
    ("odd line ends inside text", "a = '\u2028\x85'\nb = 1", {("a",): 1, ("b",): 2}),
    (
        "array of tables",
        "[[a]]\nx = 1\n[[a]]\nx = 2\n[b]\n[[a]]\ny = 3",
        {
            ("a",): 1, ("a", 0): 1, ("a", 0, "x"): 2, ("a", 1): 3, ("a", 1, "x"): 4,
            ("b",): 5, ("a", 2): 6, ("a", 2, "y"): 7,
        },
    ),
    (
        "tables in arrays of tables",
        "[[a]]\n[a.b]\nx = 1\n[[a]]\n[[a.c]]\ny = 1\n[[a.c]]\ny = 2",
        {
            ("a",): 1, ("a", 0): 1, ("a", 0, "b"): 2, ("a", 0, "b", "x"): 3, ("a", 1): 4, ("a", 1, "c"): 5,
            ("a", 1, "c", 0): 5, ("a", 1, "c", 0, "y"): 6, ("a", 1, "c", 1): 7, ("a", 1, "c", 1, "y"): 8,
        },
    ),
    (
        "inline tables in a list",
        "[t]\na = [\n  {x = 1},\n  {y = 2}]\n",
        {("t",): 1, ("t", "a"): 2, ("t", "a", 0): 2, ("t", "a", 0, "x"): 2, ("t", "a", 1): 2, ("t", "a", 1, "y"): 2},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "lines"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_a_key_stands_where_its_statement_begins(text: str, lines: dict[KeyPath, int]) -> None:
    tomllib.loads(text)  # the table is right
    assert key_lines(text) == lines


STATEMENTS = st.sampled_from(
    ["a = 1", "b.c = [1,\n 2]", "[t]", "[[u]]", "[u.v]", "[[u.w]]", "[t.s]", "d = {e = [{f = 1}]}",
     "g = '''\n[[u]]\n'''", "# x,", "", "h = [\n {i = '#'}, # ,\n {i = 2},\n]", '"" = 1', "[x.y.z]", "j = []", "k = {}"]
)  # fmt: skip


def paths(value: object, path: KeyPath = ()) -> set[KeyPath]:
    items: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    return {(*path, name) for name, _ in items}.union(*(paths(inner, (*path, name)) for name, inner in items))


@settings(max_examples=200, deadline=None)
@given(st.lists(STATEMENTS, max_size=8).map("\n".join))
def test_every_key_of_a_document_has_a_line_and_no_other(text: str) -> None:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        assume(False)
    lines = key_lines(text)
    assert set(lines) == paths(document)
    # Without what follows its line, a document does not have the key yet (the idea that defines a key's line).
    for path, line in lines.items():
        before = "\n".join(text.split("\n")[: line - 1])
        assert path not in paths(tomllib.loads(before))


def test_deep_keys_cost_nothing() -> None:
    text = "[" + ".".join("a" * 2_000) + "]\n" + ".".join("b" * 2_000) + " = 1"
    assert max(map(len, key_lines(text))) <= 3 * DEPTH_LIMIT


def test_an_endless_list_ends_the_search_and_not_the_patience() -> None:
    text = "a = 1\nb = [\n" + '  "#",\n' * 20_000 + "]\nc = 1"
    begin = time.process_time()
    assert key_lines(text) == {("a",): 1}
    assert time.process_time() - begin < 20


def test_a_long_list_without_comments_is_read_once() -> None:
    lines = key_lines("b = [\n" + "  1,\n" * 20_000 + "]\nc = 1")
    assert lines["c",] == 20_003
