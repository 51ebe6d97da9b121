"""MQTT sessions that are to survive a restart, what they are owed, and retained messages, in an SQLite file.

A thread writes one group of changes after the other, each in one transaction that is on disk when it is committed.
While it writes, the broker gathers the next group: at a high rate a commit carries hundreds of messages.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
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
)

SCHEMA_VERSION: Final = 2
RETRY_SECONDS: Final = 5.0
JOURNAL_BYTES: Final = 64 << 20  # what the write-ahead log shrinks to

_OUR_MISTAKES: Final = (sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError, sqlite3.DataError)

_Write = tuple[SessionChanges, Callable[[], None]]


@implementer(ISessionStore)
class SqliteSessionStore:
    """The sessions of one broker.  Raises StorageError from ``__init__`` and ``load``.

    A group that cannot be written is logged, once, and tried again: a persistent subscriber that was told its
    subscription stands must not be unknown after a restart, its messages gone, because the disk was full for a moment.

    Args:
        call: hands a call to the reactor's thread.
        retry_seconds: from one attempt to the next.
    """

    log = Logger()

    def __init__(
        self, path: Path, call: Callable[[Callable[[], None]], Any], *, retry_seconds: float = RETRY_SECONDS
    ) -> None:
        """Open the file at *path*, or make it; start the writer."""
        self._path = path
        self._call = call
        self._retry_seconds = retry_seconds
        try:
            with contextlib.suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
        except (sqlite3.Error, OSError) as refused:
            raise StorageError(f"the MQTT sessions {path} cannot be used: {refused}") from None
        try:
            self._prepare()
        except sqlite3.Error as refused:
            self._database.close()
            raise StorageError(f"the MQTT sessions {path} cannot be used: {refused}") from None
        except BaseException:
            self._database.close()
            raise
        self._changed = threading.Condition()
        self._waiting: deque[_Write] = deque()
        self._closing = False
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="coapgw sessions", daemon=True)
        self._thread.start()

    def _prepare(self) -> None:
        database = self._database
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
        """Return everything; blocks."""
        run = self._database.execute
        try:
            subscriptions: dict[str, list[tuple[str, int, int]]] = {}
            for client_id, *subscription in run("SELECT client_id, filter, options, identifier FROM subscription"):
                subscriptions.setdefault(client_id, []).append(tuple(subscription))
            return StoredState(
                sessions=[
                    StoredSession(client_id, user, expiry, tuple(subscriptions.get(client_id, ())), expires)
                    for client_id, user, expiry, expires in run(
                        "SELECT client_id, user_name, expiry, expires FROM session"
                    )
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
        except (sqlite3.Error, ValueError) as refused:
            raise StorageError(f"the MQTT sessions {self._path} cannot be read: {refused}") from None

    def write(self, changes: SessionChanges, done: Callable[[], None]) -> None:
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
            if self._write(changes):
                self._waiting.popleft()
                self._call(done)
            elif not self._pause():
                break
        self._database.close()

    def _pause(self) -> bool:
        """Wait for another attempt; return whether there is to be one."""
        with self._changed:
            if not self._closing:
                self._changed.wait_for(lambda: self._closing, self._retry_seconds)
                return True
            return False

    def _write(self, changes: SessionChanges) -> bool:
        """Write the changes; return whether that worked."""
        database = self._database
        try:
            database.execute("BEGIN IMMEDIATE")
            _apply(database, changes)
            database.execute("COMMIT")
            self._failing = False
            return True
        except Exception as refused:  # noqa: BLE001 - this thread goes on, or no session would be stored any more
            if database.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    database.execute("ROLLBACK")
            if not isinstance(refused, sqlite3.Error) or isinstance(refused, _OUR_MISTAKES):
                self.log.failure("changes of MQTT sessions that SQLite does not take are left out")
                return True  # no other attempt would do better, and everybody would wait behind it for ever
            if not self._failing:
                self.log.error("MQTT sessions cannot be stored: {reason}", reason=str(refused))
            self._failing = True
            return False


def _apply(database: sqlite3.Connection, changes: SessionChanges) -> None:
    """Make the changes, in the order that SessionChanges names."""
    many = database.executemany
    for table in ("session", "claim", "received"):
        many(f"DELETE FROM {table} WHERE client_id = ?", ((one,) for one in changes.ended))
    _apply_sessions(database, changes)
    many("INSERT OR REPLACE INTO message VALUES (?, ?, ?, ?, ?, ?, ?, ?)", changes.messages.values())
    many(
        "INSERT OR REPLACE INTO claim VALUES (?, ?, ?, ?, ?, ?, ?)",
        ((*one[:5], " ".join(map(str, one.identifiers)), one.packet_id) for one in changes.claims.values()),
    )
    many("UPDATE claim SET packet_id = ? WHERE serial = ?", ((one, serial) for serial, one in changes.sent.items()))
    many("UPDATE claim SET number = NULL WHERE serial = ?", ((serial,) for serial in changes.half_done))
    many("DELETE FROM claim WHERE serial = ?", ((serial,) for serial in changes.paid))
    many("DELETE FROM message WHERE number = ?", ((number,) for number in changes.dropped))
    for (client_id, packet_id), is_unreleased in changes.received.items():
        database.execute(
            "INSERT OR IGNORE INTO received VALUES (?, ?)"
            if is_unreleased
            else "DELETE FROM received WHERE client_id = ? AND packet_id = ?",
            (client_id, packet_id),
        )
    for topic, message in changes.retained.items():
        if message is None:
            database.execute("DELETE FROM retained WHERE topic = ?", (topic,))
        else:
            row = (topic, message.payload, message.qos, message.properties, message.expires)
            database.execute("INSERT OR REPLACE INTO retained VALUES (?, ?, ?, ?, ?)", row)


def _apply_sessions(database: sqlite3.Connection, changes: SessionChanges) -> None:
    for client_id, session in changes.sessions.items():
        database.execute("DELETE FROM session WHERE client_id = ?", (client_id,))
        row = (client_id, session.user, session.expiry, session.expires)
        database.execute("INSERT INTO session (client_id, user_name, expiry, expires) VALUES (?, ?, ?, ?)", row)
        database.executemany(
            "INSERT OR REPLACE INTO subscription (client_id, filter, options, identifier) VALUES (?, ?, ?, ?)",
            ((client_id, *subscription) for subscription in session.subscriptions),
        )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split())
