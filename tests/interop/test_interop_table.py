"""The table of docs/interop.md itself: what is written, and what is found wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.interop_table import HEADER, OWN_CHOICE, InteropTable, read_rows

CLIENT = "gnutls-cli"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A page with a table that says that a client works."""
    made = tmp_path / "page.md"
    made.write_text(f"# Title\n\n{HEADER}\n|---|---|---|---|\n| {CLIENT} | 1.0 | {OWN_CHOICE} | works |\n")
    return made


def test_what_was_seen_is_written_and_the_rest_stays(page: Path) -> None:
    table = InteropTable(page, is_written=True)
    with table.row("openssl s_client", "2.0", None) as words:
        words.append("twice")
    table.write()
    assert page.read_text().startswith("# Title\n\n| client |")
    assert read_rows(page)["openssl s_client", OWN_CHOICE].result == "works, twice"
    assert read_rows(page)[CLIENT, OWN_CHOICE].result == "works"
    assert read_rows(page)[CLIENT, "ECDHE-PSK-AES128-CBC-SHA256"].result.startswith("not offered: ")


def test_a_failure_is_written_and_still_fails(page: Path) -> None:
    table = InteropTable(page, is_written=True)
    with pytest.raises(ConnectionError), table.row(CLIENT, "1.1", None):
        raise ConnectionError
    table.write()
    assert read_rows(page)[CLIENT, OWN_CHOICE].result == "FAILS"


def test_a_row_that_is_missing_or_says_otherwise_fails(page: Path) -> None:
    with pytest.raises(AssertionError, match="no such row"), InteropTable(page, is_written=False).row("new", "1", None):
        pass
    page.write_text(page.read_text().replace("works", "FAILS"))
    with pytest.raises(AssertionError, match="it works"), InteropTable(page, is_written=False).row(CLIENT, "1", None):
        pass


def test_nothing_is_written_unasked(page: Path) -> None:
    before = page.read_text()
    table = InteropTable(page, is_written=False)
    with table.row(CLIENT, "2.0", None):
        pass
    table.write()
    assert page.read_text() == before
