"""The table of docs/interop.md: written from what the tests saw, and compared with what they see now."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from tests.interop.clients.all import CID_CLIENTS, CLIENTS
from tests.interop.suites import SUITES, Suite

PAGE = Path(__file__).parents[2] / "docs" / "interop.md"
HEADER = "| client | version | suite | result |"
WRITE = "WRITE_INTEROP_TABLE"
OWN_CHOICE, OTHERS, CONNECTION_IDS = "its own choice", "all others", "Connection IDs"
WORKS, FAILS, ABSENT = "works", "FAILS", "not offered"


@attrs.frozen
class Row:
    """One line of the table; *result* begins with WORKS, FAILS or ABSENT."""

    client: str
    version: str
    suite: str
    result: str

    def encode(self) -> str:
        """Return it as Markdown."""
        return f"| {self.client} | {self.version} | {self.suite} | {self.result} |"


def suite_name(suite: Suite | str | None) -> str:
    """Return what the column says."""
    if isinstance(suite, str):
        return suite
    return suite.name if suite else OWN_CHOICE


def expected_rows() -> list[tuple[str, str, str]]:
    """Return client, suite, and why it cannot be tried, or "", for every row there has to be, in order."""
    rows = []
    with_cid = {client.name for client in CID_CLIENTS}
    for client in CLIENTS:
        rows += [(client.name, suite_name(suite), "") for suite in (None, *client.suites)]
        others = [suite.name for suite in SUITES if suite not in client.suites]
        if others:
            rows.append((client.name, others[0] if len(others) == 1 else OTHERS, client.lacks))
        if client.name in with_cid:
            rows.append((client.name, CONNECTION_IDS, ""))
    return rows


def read_rows(page: Path = PAGE) -> dict[tuple[str, str], Row]:
    """Return the rows of a page by client and suite."""
    rows: dict[tuple[str, str], Row] = {}
    table = page.read_text().partition(HEADER)[2]
    for line in table.splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 4:
            break
        rows[cells[0], cells[2]] = Row(*cells)
    return rows


class InteropTable:
    """Takes rows while the tests run; WRITE_INTEROP_TABLE=1 in the environment writes them, else they are compared."""

    def __init__(self, page: Path = PAGE, is_written: bool | None = None) -> None:
        self.is_written = bool(os.environ.get(WRITE)) if is_written is None else is_written
        self._page = page
        self._seen: list[Row] = []
        self._committed = read_rows(page)

    @contextmanager
    def row(self, client: str, version: str, suite: Suite | str | None) -> Iterator[list[str]]:
        """Give a list that takes what worked, in a few words; a block that raises is a row that fails."""
        words: list[str] = []
        result = FAILS
        try:
            yield words
            result = ", ".join([WORKS, *words])
        finally:
            self._seen.append(Row(client, version, suite_name(suite), result))
        committed = self._committed.get((client, suite_name(suite)))
        if not self.is_written:
            assert committed is not None, f"docs/interop.md has no such row: {WRITE}=1 writes it"
            assert committed.result.startswith(WORKS), f"it works, and docs/interop.md says {committed.result!r}"

    def write(self) -> None:
        """Put the rows seen into the page, if asked to; those of other clients stay."""
        if not self.is_written:
            return
        rows = {**self._committed, **{(row.client, row.suite): row for row in self._seen}}
        versions = {row.client: row.version for row in rows.values()}
        lines = [HEADER, "|---|---|---|---|"]
        for client, suite, lacks in expected_rows():
            if lacks:
                lines.append(Row(client, versions.get(client, ""), suite, f"{ABSENT}: {lacks}").encode())
            elif (client, suite) in rows:
                lines.append(rows[client, suite].encode())
        before = self._page.read_text().partition(HEADER)[0]
        self._page.write_text(before + "\n".join(lines) + "\n")
