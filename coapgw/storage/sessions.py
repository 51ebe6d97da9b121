"""MQTT sessions that are to survive a restart, what they are owed, and retained messages, in an SQLite file.

A thread writes one group of changes after the other, each in one transaction that is on disk when it is committed.
While it writes, the broker gathers the next group: at a high rate a commit carries hundreds of messages.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from twisted.logger import Logger
from zope.interface import implementer

from coapgw.errors import StorageError
from coapgw.interfaces import (
    ISessionStore,
    SessionChanges,
    StoredClaim,
    StoredMessage,
    StoredSession,
    StoredState,
    Written,
)
from coapgw.metrics import BrokerCounters
from coapgw.storage.damage import is_damage, set_aside

SCHEMA_VERSION: Final = 2
RETRY_SECONDS: Final = 5.0
CALM_SECONDS: Final = 60.0  # from one damaged file to the next, or it is the disk
JOURNAL_BYTES: Final = 64 << 20  # what the write-ahead log shrinks to

_OUR_MISTAKES: Final = (
    *(sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError, sqlite3.DataError),
    *(OverflowError, ValueError, TypeError),  # what has no place in SQLite: integers of 65 bits, half a surrogate pair
)

_Write = tuple[SessionChanges, Callable[[Written], None]]


@implementer(ISessionStore)
class SqliteSessionStore:
    """The sessions of one broker.  Raises StorageError from ``__init__`` and ``load``.

    A group that cannot be written is logged, once, and tried again: a persistent subscriber that was told its
    subscription stands must not be unknown after a restart, its messages gone, because the disk was full for a moment.

    A file that is damaged is set aside, and an empty one takes its place.

    Args:
        call: hands a call to the reactor's thread.
        retry_seconds: from one attempt to the next.
    """

    log = Logger()

    def __init__(
        self,
        path: Path,
        call: Callable[[Callable[[], None]], Any],
        counters: BrokerCounters | None = None,
        *,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        """Open the file at *path*, or make it; start the writer."""
        self._path = path
        self._call = call
        self._counters = counters or BrokerCounters()
        self._retry_seconds = retry_seconds
        self._damaged_at: float | None = None  # when damage was seen last, by the monotonic clock
        self._is_spoiled = False  # the file has to be set aside before another is opened
        try:
            try:
                self._database: sqlite3.Connection | None = self._opened()
            except (sqlite3.Error, OSError) as refused:
                if not is_damage(refused):
                    raise
                self._set_aside()
                self._database = self._opened()
        except (sqlite3.Error, OSError) as refused:
            raise StorageError(f"the MQTT sessions {path} cannot be used: {refused}") from None
        self._changed = threading.Condition()
        self._waiting: deque[_Write] = deque()
        self._closing = False
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="coapgw sessions", daemon=True)
        self._thread.start()

    def _opened(self) -> sqlite3.Connection:
        """Open the file, or make it.  Raises StorageError, sqlite3.Error and OSError."""
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with contextlib.ExitStack() as opened:
            database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=5)
            opened.callback(database.close)
            self._prepare(database)
            opened.pop_all()
        return database

    def _set_aside(self) -> None:
        """Give the damaged file another name.  Raises OSError."""
        aside = set_aside(self._path)
        self._is_spoiled = False
        self._damaged_at = time.monotonic()
        self._counters.replaced += 1
        self.log.error(
            "the MQTT sessions {path} were damaged: they are {aside} now, and an empty file takes their place "
            "(docs/reliability.md)",
            path=self._path,
            aside=aside,
        )

    def _prepare(self, database: sqlite3.Connection) -> None:
        database.execute("PRAGMA auto_vacuum=INCREMENTAL")  # before the first table; an older file stays as it is
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute(f"PRAGMA journal_size_limit={JOURNAL_BYTES}")
        database.execute("PRAGMA foreign_keys=ON")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise StorageError(f"the MQTT sessions {self._path} were written by a newer coapgw (version {version})")
        for number in range(version + 1, SCHEMA_VERSION + 1):
            script = files("coapgw.storage").joinpath(f"schema/sessions-{number}.sql").read_text()
            database.executescript(f"BEGIN; {script} COMMIT;")

    def load(self) -> StoredState:
        """Return everything, or nothing if the file is damaged; blocks."""
        try:
            return self._load()
        except (sqlite3.Error, ValueError) as refused:
            if not is_damage(refused):
                raise StorageError(f"the MQTT sessions {self._path} cannot be read: {refused}") from None
        try:
            self._replace()
            return self._load()
        except (sqlite3.Error, OSError) as refused:
            raise StorageError(f"the MQTT sessions {self._path} cannot be replaced: {refused}") from None

    def _load(self) -> StoredState:
        run = self._in_use().execute
        subscriptions: dict[str, list[tuple[str, int, int]]] = {}
        for client_id, *subscription in run("SELECT client_id, filter, options, identifier FROM subscription"):
            subscriptions.setdefault(client_id, []).append(tuple(subscription))
        return StoredState(
            sessions=[
                StoredSession(client_id, user, expiry, tuple(subscriptions.get(client_id, ())), expires)
                for client_id, user, expiry, expires in run("SELECT client_id, user_name, expiry, expires FROM session")
            ],
            messages=[
                StoredMessage(number, topic, payload, qos, bool(retain), properties, expires, origin)
                for number, topic, payload, qos, retain, properties, expires, origin in run("SELECT * FROM message")
            ],
            claims=[
                StoredClaim(serial, client_id, number, qos, bool(retain), _numbers(identifiers), packet_id)
                for serial, client_id, number, qos, retain, identifiers, packet_id in run(
                    "SELECT * FROM claim ORDER BY serial"
                )
            ],
            received=run("SELECT client_id, packet_id FROM received").fetchall(),
            retained=[
                StoredMessage(0, topic, payload, qos, True, properties, expires)
                for topic, payload, qos, properties, expires in run("SELECT * FROM retained")
            ],
        )

    def write(self, changes: SessionChanges, done: Callable[[Written], None]) -> None:
        """Write *changes* soon, then have *done* called in the reactor's thread."""
        with self._changed:
            self._waiting.append((changes, done))
            self._changed.notify()

    @property
    def is_failing(self) -> bool:
        """Whether the last attempt to write failed."""
        return self._failing

    def close(self) -> None:
        """Write what waits, and close; blocks until that is done."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    # ------------------------------------------------------------------ in the writer's thread

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                if not self._waiting:
                    break
                changes, done = self._waiting[0]
            written = self._write(changes)
            if written is not None:
                self._waiting.popleft()
                self._call(partial(done, written))
            elif not self._pause():
                break
        if self._database is not None:
            self._database.close()

    def _pause(self) -> bool:
        """Wait for another attempt; return whether there is to be one."""
        with self._changed:
            if not self._closing:
                self._changed.wait_for(lambda: self._closing, self._retry_seconds)
                return True
            return False

    def _write(self, changes: SessionChanges) -> Written | None:
        """Write the changes; return what became of them, or None if it is to be tried again."""
        try:
            written = self._written(changes)
        except (sqlite3.Error, OSError, StorageError, MemoryError) as refused:
            self._fail(refused)
            return None
        except Exception:  # noqa: BLE001 - this thread goes on, or no session would be stored any more
            self.log.failure("changes of MQTT sessions are left out")
            return Written.REFUSED  # everybody would wait behind them for ever
        self._failing = False
        return written

    def _written(self, changes: SessionChanges) -> Written:
        """Write the changes, or have an empty file take the place of a damaged one.  Raises what SQLite does."""
        if self._database is None:
            self._replace()
            return Written.LOST
        try:
            return self._commit(self._database, changes)
        except sqlite3.Error as refused:
            if not is_damage(refused) or not self._may_replace():
                raise
        self._replace()
        return Written.LOST

    def _commit(self, database: sqlite3.Connection, changes: SessionChanges) -> Written:
        """Write the changes in one transaction; without single rows, if there are any that SQLite does not take."""
        try:
            with _transaction(database):
                _apply(changes, database.executemany)
        except _OUR_MISTAKES:
            self.log.failure("rows of MQTT sessions that SQLite does not take are left out")
            with _transaction(database):
                _apply(changes, partial(_one_by_one, database))
            return Written.REFUSED
        return Written.YES

    def _fail(self, reason: Exception) -> None:
        if not self._failing:
            self.log.error("MQTT sessions cannot be stored: {reason}", reason=str(reason))
        self._failing = True

    # ------------------------------------------------------------------ a damaged file

    def _may_replace(self) -> bool:
        """Return whether another file may help: not if the last one was damaged a moment ago, or at the end."""
        now = time.monotonic()
        before, self._damaged_at = self._damaged_at, now
        return not self._closing and (before is None or now - before > CALM_SECONDS)

    def _replace(self) -> None:
        """Set the damaged file aside and make another one.  Raises sqlite3.Error, OSError and StorageError."""
        database, self._database = self._database, None
        if database is not None:
            self._is_spoiled = True
            with contextlib.suppress(sqlite3.Error):
                database.close()
        if self._is_spoiled:
            self._set_aside()
        self._database = self._opened()

    def _in_use(self) -> sqlite3.Connection:
        assert self._database is not None, "no file is open"
        return self._database


@contextlib.contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Commit what is done inside, or nothing of it."""
    try:
        database.execute("BEGIN IMMEDIATE")
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                database.execute("ROLLBACK")
        raise


def _one_by_one(database: sqlite3.Connection, statement: str, rows: Iterable[Sequence[Any]]) -> None:
    """Do what ``executemany`` does, but for the rows that SQLite does not take."""
    for row in rows:
        with contextlib.suppress(*_OUR_MISTAKES):
            database.execute(statement, row)


def _apply(changes: SessionChanges, many: Callable[[str, Iterable[Sequence[Any]]], object]) -> None:
    """Make the changes, in the order that SessionChanges names; *many* executes a statement for each row."""
    for table in ("session", "claim", "received"):
        many(f"DELETE FROM {table} WHERE client_id = ?", [(one,) for one in changes.ended])
    sessions = changes.sessions
    many("DELETE FROM session WHERE client_id = ?", [(client_id,) for client_id in sessions])
    many(
        "INSERT INTO session (client_id, user_name, expiry, expires) VALUES (?, ?, ?, ?)",
        [(client_id, one.user, one.expiry, one.expires) for client_id, one in sessions.items()],
    )
    many(
        "INSERT OR REPLACE INTO subscription (client_id, filter, options, identifier) VALUES (?, ?, ?, ?)",
        [(client_id, *subscription) for client_id, one in sessions.items() for subscription in one.subscriptions],
    )
    many("INSERT OR REPLACE INTO message VALUES (?, ?, ?, ?, ?, ?, ?, ?)", changes.messages.values())
    many(
        "INSERT OR REPLACE INTO claim VALUES (?, ?, ?, ?, ?, ?, ?)",
        [(*one[:5], " ".join(map(str, one.identifiers)), one.packet_id) for one in changes.claims.values()],
    )
    many("UPDATE claim SET packet_id = ? WHERE serial = ?", [(one, serial) for serial, one in changes.sent.items()])
    many("UPDATE claim SET number = NULL WHERE serial = ?", [(serial,) for serial in changes.half_done])
    many("DELETE FROM claim WHERE serial = ?", [(serial,) for serial in changes.paid])
    many("DELETE FROM message WHERE number = ?", [(number,) for number in changes.dropped])
    received = changes.received.items()
    many("INSERT OR IGNORE INTO received VALUES (?, ?)", [one for one, is_unreleased in received if is_unreleased])
    many(
        "DELETE FROM received WHERE client_id = ? AND packet_id = ?",
        [one for one, is_unreleased in received if not is_unreleased],
    )
    retained = changes.retained
    many("DELETE FROM retained WHERE topic = ?", [(topic,) for topic, message in retained.items() if message is None])
    many(
        "INSERT OR REPLACE INTO retained VALUES (?, ?, ?, ?, ?)",
        [(topic, one.payload, one.qos, one.properties, one.expires) for topic, one in retained.items() if one],
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split())
