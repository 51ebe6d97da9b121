"""The file of MQTT sessions: what was written is there after a restart, also from a file of an older version."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
from twisted.logger import capturedLogs
from zope.interface.verify import verifyObject

from coapgw.errors import StorageError
from coapgw.interfaces import (
    ISessionStore,
    SessionChanges,
    StoredClaim,
    StoredMessage,
    StoredSession,
    StoredState,
)
from coapgw.storage.sessions import SqliteSessionStore

ANNA = StoredSession("anna", "user", 0xFFFF_FFFF, (("a/#", 1, 0), ("b/+", 0x2C, 7)))
BERT = StoredSession("bert", None, 60, (), 1234.5)
MESSAGE = StoredMessage(3, b"t", b"\0payload", 2, True, b"\x01\x01", 99.5, "1-id")
PLAIN = StoredMessage(4, b"t", b"", 1, False, b"")
CLAIMS = [
    StoredClaim(7, "anna", 3, 2, True, (1, 200), None),
    StoredClaim(8, "bert", 3, 1, False),
    StoredClaim(9, "anna", 4, 1, False),
]


def call(done: Callable[[], None]) -> None:
    done()


def _write(store: SqliteSessionStore, changes: SessionChanges) -> None:
    written = threading.Event()
    store.write(changes, written.set)
    assert written.wait(5)


def _again(store: SqliteSessionStore, path: Path) -> StoredState:
    store.close()
    again = SqliteSessionStore(path, call)
    try:
        return again.load()
    finally:
        again.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "broker.db"


def _filled(path: Path) -> SqliteSessionStore:
    store = SqliteSessionStore(path, call)
    assert verifyObject(ISessionStore, store)
    changes = SessionChanges()
    changes.sessions = {"anna": ANNA, "bert": BERT}
    changes.messages = {3: MESSAGE, 4: PLAIN}
    changes.claims = {one.serial: one for one in CLAIMS}
    changes.received = {("anna", 11): True, ("anna", 12): True}
    changes.retained = {b"r": StoredMessage(0, b"r", b"x", 1, True, b"\x01\x00", 5.0)}
    _write(store, changes)
    return store


def test_what_was_written_is_there_after_a_restart(path: Path) -> None:
    state = _again(_filled(path), path)
    assert state.sessions == [ANNA, BERT]
    assert state.messages == [MESSAGE, PLAIN]
    assert state.claims == CLAIMS
    assert state.received == [("anna", 11), ("anna", 12)]
    assert state.retained == [StoredMessage(0, b"r", b"x", 1, True, b"\x01\x00", 5.0)]
    assert path.stat().st_mode & 0o777 == 0o600


def test_changes_change_and_remove(path: Path) -> None:
    store = _filled(path)
    changes = SessionChanges()
    changes.sent = {7: 500}
    changes.half_done = {7: None}
    changes.paid = [8]
    changes.received = {("anna", 11): False, ("anna", 12): True}
    changes.retained = {b"r": None}
    changes.sessions = {"anna": ANNA._replace(subscriptions=(("x", 1, 0),))}
    _write(store, changes)
    state = _again(store, path)
    assert state.sessions[0].subscriptions == (("x", 1, 0),)
    assert state.claims == [CLAIMS[0]._replace(packet_id=500, number=None), CLAIMS[2]]
    assert (state.received, state.retained) == ([("anna", 12)], [])


def test_a_session_that_ends_takes_all_that_is_its_own_and_may_begin_again_in_one_group(path: Path) -> None:
    store = _filled(path)
    changes = SessionChanges()
    changes.ended = {"anna": None}
    changes.dropped = [4]
    changes.sessions = {"anna": ANNA}
    changes.claims = {20: StoredClaim(20, "anna", 3, 1, False)}
    _write(store, changes)
    state = _again(store, path)
    assert sorted(state.sessions) == [ANNA, BERT]
    assert state.messages == [MESSAGE]
    assert [one.serial for one in state.claims] == [8, 20]
    assert state.received == []


def test_a_file_of_the_first_version_is_upgraded(path: Path) -> None:
    database = sqlite3.connect(path)
    database.executescript(files("coapgw.storage").joinpath("schema/sessions-1.sql").read_text())
    database.execute("INSERT INTO session VALUES ('anna', 'user', 1), ('bert', NULL, 0)")
    database.execute("INSERT INTO subscription VALUES ('anna', 'a/#', 1), ('bert', 'x', 0)")
    database.commit()
    database.close()
    store = SqliteSessionStore(path, call)
    assert store.load().sessions == [
        StoredSession("anna", "user", 0xFFFF_FFFF, (("a/#", 1, 0),)),
        StoredSession("bert", None, 0, (("x", 0, 0),)),
    ]
    store.close()


def test_what_could_not_be_written_is_written_when_that_works_again(path: Path) -> None:
    store = SqliteSessionStore(path, call, retry_seconds=0.01)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("ALTER TABLE session RENAME TO hidden")
    changes = SessionChanges()
    changes.sessions = {"anna": ANNA}
    written = threading.Event()
    store.write(changes, written.set)
    assert not written.wait(0.05)
    assert store.is_failing
    other.execute("ALTER TABLE hidden RENAME TO session")
    other.close()
    assert written.wait(5)
    assert _again(store, path).sessions == [ANNA]


def test_closing_does_not_wait_for_a_disk_that_fails(path: Path) -> None:
    store = SqliteSessionStore(path, call)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("DROP TABLE subscription")
    other.execute("DROP TABLE session")
    changes = SessionChanges()
    changes.sessions = {"anna": ANNA}
    store.write(changes, lambda: None)
    store.close()
    other.close()
    assert store.is_failing


def test_a_file_that_is_none_is_refused_with_a_sentence(path: Path) -> None:
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(StorageError, match="cannot be used"):
        SqliteSessionStore(path, call)


def test_a_file_of_a_newer_version_is_refused_with_a_sentence(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StorageError, match="newer coapgw"):
        SqliteSessionStore(path, call)


def test_a_file_that_is_refused_is_closed_again(path: Path) -> None:
    for content in ("PRAGMA user_version = 999", None):
        path.unlink(missing_ok=True)
        if content is None:
            path.write_bytes(b"no database" * 1000)
        else:
            with sqlite3.connect(path) as made:
                made.execute(content)
            made.close()
        with pytest.raises(StorageError):
            SqliteSessionStore(path, call)
        opened = [link for link in Path("/proc/self/fd").iterdir() if link.exists() and link.samefile(path)]
        assert opened == []


def test_changes_that_cannot_be_written_at_all_do_not_keep_others_waiting(path: Path) -> None:
    store = SqliteSessionStore(path, call)
    impossible = SessionChanges()
    impossible.sessions = {"anna": ANNA._replace(expiry=1 << 70)}  # an integer SQLite has no room for
    with capturedLogs() as logged:
        _write(store, impossible)
    assert len(logged) == 1
    possible = SessionChanges()
    possible.sessions = {"bert": BERT}
    _write(store, possible)
    assert _again(store, path).sessions == [BERT]
