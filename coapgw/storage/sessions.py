"""MQTT sessions that are to survive a restart, in an SQLite file of their own.

Clients come, subscribe and go a few times a minute, so a thread that writes one change after the other is enough; of
several changes of one client that wait, only the newest is written.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from twisted.logger import Logger
from zope.interface import implementer

from coapgw.errors import StorageError
from coapgw.interfaces import ISessionStore, StoredSession

SCHEMA_VERSION = 1
RETRY_SECONDS = 5.0
RETRY_LIMIT = 100_000  # clients with changes that wait for a disk that fails; beyond it they are forgotten


@implementer(ISessionStore)
class SqliteSessionStore:
    """The sessions of one broker.  Raises StorageError from ``__init__`` and ``load``.

    A change that cannot be written is logged, once, and tried again: a persistent subscriber that was told its
    subscription stands must not be unknown after a restart, its messages gone, because the disk was full for a moment.

    Args:
        retry_seconds: from one attempt to the next.
    """

    log = Logger()

    def __init__(self, path: Path, *, retry_seconds: float = RETRY_SECONDS) -> None:
        """Open the file at *path*, or make it; start the writer."""
        self._path = path
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
        self._changes: dict[str, StoredSession | None] = {}
        self._closing = False
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="coapgw sessions", daemon=True)
        self._thread.start()

    def _prepare(self) -> None:
        database = self._database
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("PRAGMA foreign_keys=ON")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise StorageError(f"the MQTT sessions {self._path} were written by a newer coapgw (version {version})")
        for number in range(version + 1, SCHEMA_VERSION + 1):
            script = files("coapgw.storage").joinpath(f"schema/sessions-{number}.sql").read_text()
            database.executescript(f"BEGIN; {script} COMMIT;")

    def load(self) -> Sequence[StoredSession]:
        """Return every remembered session; blocks."""
        try:
            subscriptions: dict[str, list[tuple[str, int]]] = {}
            for client_id, topic_filter, qos in self._database.execute("SELECT * FROM subscription"):
                subscriptions.setdefault(client_id, []).append((topic_filter, qos))
            return [
                StoredSession(client_id, user, bool(persistent), tuple(subscriptions.get(client_id, ())))
                for client_id, user, persistent in self._database.execute("SELECT * FROM session").fetchall()
            ]
        except sqlite3.Error as refused:
            raise StorageError(f"the MQTT sessions {self._path} cannot be read: {refused}") from None

    def save(self, session: StoredSession) -> None:
        """Remember a session; written soon."""
        self._change(session.client_id, session)

    def forget(self, client_id: str) -> None:
        """Forget a session; written soon."""
        self._change(client_id, None)

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

    def _change(self, client_id: str, session: StoredSession | None) -> None:
        with self._changed:
            self._changes.pop(client_id, None)
            self._changes[client_id] = session
            self._changed.notify()

    # ------------------------------------------------------------------ in the writer's thread

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._changes and not self._closing:
                    self._changed.wait()
                changes, self._changes = self._changes, {}
            if not changes:
                self._database.close()
                return
            if not self._write(changes) and not self._retry(changes):
                self._database.close()
                return

    def _retry(self, changes: dict[str, StoredSession | None]) -> bool:
        """Put *changes* back behind newer ones and wait; return whether there is to be another attempt."""
        with self._changed:
            if self._closing:
                return False
            if len(changes) < RETRY_LIMIT:
                self._changes = {**changes, **self._changes}
            self._changed.wait_for(lambda: self._closing, self._retry_seconds)
            return True

    def _write(self, changes: dict[str, StoredSession | None]) -> bool:
        """Write the changes; return whether that worked."""
        database = self._database
        try:
            database.execute("BEGIN IMMEDIATE")
            for client_id, session in changes.items():
                database.execute("DELETE FROM session WHERE client_id = ?", (client_id,))
                if session is not None:
                    database.execute(
                        "INSERT INTO session VALUES (?, ?, ?)", (client_id, session.user, session.persistent)
                    )
                    rows = [(client_id, topic_filter, qos) for topic_filter, qos in session.subscriptions]
                    database.executemany("INSERT OR REPLACE INTO subscription VALUES (?, ?, ?)", rows)
            database.execute("COMMIT")
            self._failing = False
            return True
        except Exception as refused:  # noqa: BLE001 - this thread goes on, or no session would be stored any more
            if database.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    database.execute("ROLLBACK")
            if not self._failing:
                self.log.error("MQTT sessions cannot be stored: {reason}", reason=str(refused))
            self._failing = True
            return False
