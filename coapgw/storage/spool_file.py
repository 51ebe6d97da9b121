"""The spool's SQLite file: groups of messages in, in one durable transaction each; the oldest out.

WAL and ``synchronous=FULL``: when ``commit`` returns, its group survives kill -9 and power loss.  Everything here
blocks and belongs to one thread at a time.  docs/decisions/0004-spool.md has the measurements behind the choices.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import IO, Final

import attrs

from coapgw.errors import SpoolDamaged, SpoolFailing, StorageError
from coapgw.model import Spooled
from coapgw.storage.damage import is_damage, set_aside
from coapgw.storage.dead_letters import REQUESTS_AT_ONCE, DeadLetter, Request, Wish, read_requests, write_requests

SCHEMA_VERSION: Final = 2
OVERHEAD_BYTES: Final = 128  # of a message beside its topic and payload: ids, times, SQLite's own
ROWS_PER_STATEMENT: Final = 64  # powers of two up to this; each step of a statement gives the GIL away once
RESERVE_PLACES: Final = 1_000_000  # places set aside at a time, so that a commit need not remember the highest
CHECKPOINT_PAGES: Final = 1_000  # 4 MB of WAL, which stays in the caches; 500 and 4000 pages cost more
VACUUM_PAGES: Final = 256  # a step of tidying up, a few milliseconds
VACUUM_ABOVE_PAGES: Final = 4_096  # free pages that stay for reuse: 16 MB

# OR ROLLBACK: a conflict would undo the transaction, not the statement, so that no statement journal is written.
_INSERTS: Final = {
    rows: "INSERT OR ROLLBACK INTO message VALUES " + ",".join(["(?,?,?,?,?,?)"] * rows)
    for rows in (1, 2, 4, 8, 16, 32, 64)
}
_SIZE: Final = f"length(topic) + length(payload) + {OVERHEAD_BYTES}"


@attrs.frozen
class SpoolStatus:
    """What a spool holds; *oldest_received* in milliseconds since the epoch, None if no message waits."""

    messages: int
    bytes: int
    oldest_received: int | None
    dead_messages: int = 0
    dead_bytes: int = 0


class SpoolInUse(StorageError):
    """Another process has the spool."""


class SpoolFile:
    """An open spool, locked against every other gateway.

    Raises:
        StorageError: from ``__init__``, with a sentence for an operator; SpoolFailing from everything else.
    """

    def __init__(self, path: Path) -> None:
        """Open the spool at *path*, or make an empty one."""
        self.path = path
        self._lock = _locked(path.with_suffix(".lock"))
        with contextlib.ExitStack() as opened:
            opened.callback(self._lock.close)
            try:
                self._database = _opened(path)
                opened.callback(self._database.close)
                self._prepare()
            except (sqlite3.Error, OSError) as refused:
                kind = SpoolDamaged if is_damage(refused) else StorageError
                raise kind(f"the spool {path} cannot be used: {refused}") from None
            opened.pop_all()

    def replace(self, highest: int) -> Path:
        """Set the damaged file aside and go on with an empty one, whose places begin behind *highest*.

        Return where it is now.  Raises StorageError.
        """
        try:
            with contextlib.suppress(sqlite3.Error):
                self._database.close()
            aside = set_aside(self.path)
            self._database = _opened(self.path)
            self._prepare()
            self.begin_behind(highest)
        except (sqlite3.Error, OSError) as refused:
            raise StorageError(f"the spool {self.path} cannot be replaced: {refused}") from None
        return aside

    def _prepare(self) -> None:
        database = self._database
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version == 0:
            database.execute("PRAGMA auto_vacuum=INCREMENTAL")  # only counts before the first table
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("PRAGMA secure_delete=OFF")  # Debian compiles it ON: every deleted page would be written again
        database.execute("PRAGMA journal_size_limit=67108864")
        database.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
        if version > SCHEMA_VERSION:
            raise StorageError(f"the spool {self.path} was written by a newer coapgw (version {version})")
        for number in range(version + 1, SCHEMA_VERSION + 1):
            script = files("coapgw.storage").joinpath(f"schema/spool-{number}.sql").read_text()
            database.executescript(f"BEGIN; {script} COMMIT;")
        self.messages: int
        self.bytes: int
        self.reserved: int
        self.dead_messages: int
        self.dead_bytes: int
        totals = database.execute("SELECT messages, bytes, reserved, dead_messages, dead_bytes FROM totals").fetchone()
        if totals is None:
            raise SpoolDamaged(f"the spool {self.path} is damaged: its totals are missing")
        self.messages, self.bytes, self.reserved, self.dead_messages, self.dead_bytes = totals
        self.first_place = self.reserved + 1

    def begin_behind(self, highest: int) -> None:
        """Give no place up to *highest* again.  Raises SpoolFailing."""
        with self._failing():
            self._database.execute("UPDATE totals SET reserved=?", (highest,))
        self.reserved = highest
        self.first_place = highest + 1

    @property
    def held_bytes(self) -> int:
        """What the spool's limit is compared with: dead letters take room too."""
        return self.bytes + self.dead_bytes

    def introduced(self) -> set[tuple[str, int]]:
        """Return (iccid, born) of every device that had its introduction."""
        with self._failing():
            return set(self._database.execute("SELECT iccid, born FROM introduced"))

    def commit(
        self,
        messages: Sequence[Spooled],
        introduced: Sequence[tuple[str, int]],
        settled: Sequence[tuple[int, int]],
        set_aside: Sequence[DeadLetter] = (),
        buried: Sequence[int] = (),
    ) -> None:
        """Store and delete in one durable transaction.

        Args:
            messages: to store, lowest place first.
            introduced: (iccid, born) of those whose introduction is among the messages.
            settled: runs of places to delete, (first, last).
            set_aside: messages to keep as dead letters; their places are among *settled* as well.
            buried: places of dead letters to delete, with what was asked about them.
        """
        database = self._database
        with self._failing():
            database.execute("BEGIN IMMEDIATE")
            count, size = self.messages, self.bytes
            reserved = self.reserved
            if messages:
                reserved = self._insert(messages)
                count += len(messages)
                size += sum(len(m.topic) + len(m.payload) for m in messages) + OVERHEAD_BYTES * len(messages)
            if introduced:
                database.executemany("INSERT OR IGNORE INTO introduced VALUES (?,?)", introduced)
            for run in settled:
                gone, freed = database.execute(
                    f"SELECT count(*), ifnull(sum({_SIZE}), 0) FROM message WHERE place BETWEEN ? AND ?", run
                ).fetchone()
                database.execute("DELETE FROM message WHERE place BETWEEN ? AND ?", run)
                count -= gone
                size -= freed
            dead, dead_size = self.dead_messages, self.dead_bytes
            for letter in set_aside:
                if database.execute("INSERT OR IGNORE INTO dead_letter VALUES (?,?,?,?,?,?,?,?)", letter).rowcount:
                    dead += 1
                    dead_size += len(letter.topic) + len(letter.payload) + OVERHEAD_BYTES
            for place in buried:
                found = database.execute(f"SELECT {_SIZE} FROM dead_letter WHERE place = ?", (place,)).fetchone()
                if found is not None:
                    dead -= 1
                    dead_size -= found[0]
                database.execute("DELETE FROM dead_letter WHERE place = ?", (place,))
                database.execute("DELETE FROM dead_letter_request WHERE place = ?", (place,))
            database.execute(
                "UPDATE totals SET messages=?, bytes=?, reserved=?, dead_messages=?, dead_bytes=?",
                (count, size, reserved, dead, dead_size),
            )
            database.execute("COMMIT")
            self.messages, self.bytes, self.reserved = count, size, reserved
            self.dead_messages, self.dead_bytes = dead, dead_size

    def _insert(self, messages: Sequence[Spooled]) -> int:
        """Insert the messages, as many with one statement as may be; return the highest place set aside."""
        at, end = 0, len(messages)
        while at < end:
            rows = min(ROWS_PER_STATEMENT, 1 << (end - at).bit_length() - 1)
            self._database.execute(_INSERTS[rows], list(chain.from_iterable(messages[at : at + rows])))
            at += rows
        highest = messages[-1].place
        return self.reserved if highest <= self.reserved else highest + RESERVE_PLACES

    def read(self, after: int, limit: int) -> list[Spooled]:
        """Return up to *limit* messages from behind the place *after*, lowest first."""
        with self._failing():
            rows = self._database.execute(
                "SELECT * FROM message WHERE place > ? ORDER BY place LIMIT ?", (after, limit)
            )
            return [Spooled(*row) for row in rows.fetchall()]

    def requests(self) -> list[Request]:
        """Return what an operator wants done with dead letters, some of it if it is much."""
        with self._failing():
            return read_requests(self._database, REQUESTS_AT_ONCE)

    def tidy(self) -> bool:
        """Give a few free pages back to the disk; return whether there is more to do."""
        with self._failing():
            (free,) = self._database.execute("PRAGMA freelist_count").fetchone()
            if free <= VACUUM_ABOVE_PAGES:
                return False
            self._database.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})").fetchall()
            return True

    def close(self, highest: int) -> None:
        """Close; *highest* is the highest place that was given."""
        with contextlib.suppress(sqlite3.Error):
            self._database.execute("UPDATE totals SET reserved=?", (highest,))
        with contextlib.suppress(sqlite3.Error):
            self._database.close()
        self._lock.close()

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Turn what SQLite raises into SpoolFailing, and leave no transaction open."""
        try:
            yield
        except BaseException as failure:
            with contextlib.suppress(sqlite3.Error):
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                if not isinstance(failure, sqlite3.Error | OSError):
                    raise  # a mistake of our own
                # On a full disk this empties the write-ahead log, and the next commit may have room again.
                self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            kind = SpoolDamaged if is_damage(failure) else SpoolFailing
            raise kind(f"the spool {self.path}: {failure}") from None


def open_or_replace(path: Path, now_ms: int) -> tuple[SpoolFile, Path | None]:
    """Open the spool at *path*; if it is damaged, set it aside and begin an empty one.

    Return it, and where the damaged one is now.  Its places are not known any more: those of the new one begin behind
    the milliseconds since the epoch, where no spool has come by counting.  Raises StorageError.
    """
    try:
        return SpoolFile(path), None
    except SpoolDamaged:
        try:
            aside = set_aside(path)
        except OSError as refused:
            raise StorageError(f"the damaged spool {path} cannot be set aside: {refused.strerror}") from None
        file = SpoolFile(path)
        file.begin_behind(now_ms)
        return file, aside


def runs(places: Iterable[int]) -> list[tuple[int, int]]:
    """Return the contiguous runs of *places*, (first, last), lowest first."""
    out: list[tuple[int, int]] = []
    first = last = -1
    for place in sorted(places):
        if place > last + 1 or first < 0:
            if first >= 0:
                out.append((first, last))
            first = place
        last = place
    if first >= 0:
        out.append((first, last))
    return out


def spool_status(path: Path) -> SpoolStatus:
    """Return what the spool at *path* holds, whether a gateway has it open or not.  Raises StorageError."""
    if not path.exists():
        return SpoolStatus(0, 0, None)
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)
        ) as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            dead = "dead_messages, dead_bytes" if version > 1 else "0, 0"
            totals = database.execute(f"SELECT messages, bytes, {dead} FROM totals").fetchone()
            oldest = database.execute("SELECT received FROM message ORDER BY place LIMIT 1").fetchone()
    except sqlite3.Error as refused:
        raise StorageError(f"the spool {path} cannot be read: {refused}") from None
    if totals is None:
        raise StorageError(f"the spool {path} is damaged: its totals are missing")
    messages, size, dead_messages, dead_bytes = totals
    return SpoolStatus(messages, size, oldest[0] if oldest else None, dead_messages, dead_bytes)


def do_requests(path: Path, wish: Wish, places: Sequence[int] | None) -> int:
    """Do with dead letters what an operator wants, in place of a gateway; *places* None means all.

    Return how many there were.  Raises SpoolInUse if a gateway runs, StorageError.
    """
    if not path.exists():
        return 0
    file = SpoolFile(path)
    place = file.reserved
    try:
        count = write_requests(path, wish, places)
        while requests := file.requests():
            again = [request.letter.message for request in requests if request.wish is Wish.REQUEUE]
            renewed = [message._replace(place=place + 1 + at) for at, message in enumerate(again)]
            file.commit(renewed, (), (), buried=[request.letter.place for request in requests])
            place += len(renewed)
    finally:
        file.close(place)
    return count


def _locked(path: Path) -> IO[bytes]:
    """Take the lock that says whose spool this is; it goes with the process, however that ends."""
    try:
        lock = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "rb")
    except OSError as refused:
        raise StorageError(f"the spool's lock {path} cannot be opened: {refused.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise SpoolInUse(f"another gateway runs on {path.parent} (it holds {path.name})") from None
    return lock


def _opened(path: Path) -> sqlite3.Connection:
    """Open the database, readable by its owner only, for whichever thread has it at the time."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=64, timeout=5)
