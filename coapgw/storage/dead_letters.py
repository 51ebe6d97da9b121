"""Dead letters: messages in the spool's file that a broker refused, and what an operator wants done with them.

The command line tool writes its wishes into a table, and the gateway, which alone moves messages, looks there once a
second; without a gateway the tool takes its place for a moment.
"""

from __future__ import annotations

import contextlib
import enum
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from coapgw.errors import StorageError
from coapgw.model import Spooled

REQUESTS_AT_ONCE: Final = 500  # done in one commit: a few milliseconds
_FIRST_VERSION: Final = 2  # of the file's schema


class DeadLetter(NamedTuple):
    """A Spooled, why the broker refused it, and when, in milliseconds since the epoch."""

    place: int
    received: int
    iccid: str
    message_id: str
    topic: bytes
    payload: bytes
    reason: str
    set_aside: int

    @property
    def message(self) -> Spooled:
        """The message as it was in the spool."""
        return Spooled(*self[:6])


class Wish(enum.Enum):
    """What is to become of a dead letter: sent again, after everything that waits now, or deleted."""

    REQUEUE = "requeue"
    DROP = "drop"


class Request(NamedTuple):
    """A dead letter and what is to become of it."""

    letter: DeadLetter
    wish: Wish


def read_requests(database: sqlite3.Connection, limit: int) -> list[Request]:
    """Return the first *limit* requests; raises sqlite3.Error."""
    rows = database.execute(
        "SELECT dead_letter.*, action FROM dead_letter_request JOIN dead_letter USING (place) ORDER BY place LIMIT ?",
        (limit,),
    )
    return [Request(DeadLetter(*row[:8]), Wish(row[8])) for row in rows]


def dead_letters(path: Path, after: int = 0, limit: int = 100) -> list[DeadLetter]:
    """Return up to *limit* dead letters of the spool at *path* from behind the place *after*.  Raises StorageError."""
    with _reading(path) as database:
        if database is None:
            return []
        rows = database.execute("SELECT * FROM dead_letter WHERE place > ? ORDER BY place LIMIT ?", (after, limit))
        return [DeadLetter(*row) for row in rows]


def open_requests(path: Path) -> int:
    """Return how many requests the gateway has not done yet.  Raises StorageError."""
    with _reading(path) as database:
        if database is None:
            return 0
        (count,) = database.execute("SELECT count(*) FROM dead_letter_request").fetchone()
        return int(count)


def write_requests(path: Path, wish: Wish, places: Sequence[int] | None) -> int:
    """Ask the gateway to do something with the dead letters at *places*, or with all of them.

    Return how many there are.  Raises StorageError.
    """
    with _telling(path), contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=5)) as database:
        if not _has_dead_letters(database):
            return 0
        database.execute("PRAGMA synchronous=FULL")
        database.execute("BEGIN IMMEDIATE")
        insert = "INSERT OR REPLACE INTO dead_letter_request SELECT place, ? FROM dead_letter"
        if places is None:
            count = database.execute(insert, (wish.value,)).rowcount
        else:
            each = (database.execute(f"{insert} WHERE place = ?", (wish.value, place)) for place in places)
            count = sum(done.rowcount for done in each)
        database.execute("COMMIT")
        return count


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection | None]:
    """Open the file to read, whether a gateway has it open or not; None if it holds no dead letters."""
    if not path.exists():
        yield None
        return
    with (
        _telling(path),
        contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as database,
    ):
        yield database if _has_dead_letters(database) else None


def _has_dead_letters(database: sqlite3.Connection) -> bool:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    return bool(version >= _FIRST_VERSION)


@contextlib.contextmanager
def _telling(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as refused:
        raise StorageError(f"the dead letters in {path} cannot be used: {refused}") from None
