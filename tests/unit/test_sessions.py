"""The file of MQTT sessions: what was written is there after a restart, also from a file of an older version."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

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
    Written,
)
from coapgw.metrics import BrokerCounters
from coapgw.storage.damage import set_aside
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


def _write(store: SqliteSessionStore, changes: SessionChanges) -> Written:
    written = threading.Event()
    outcomes: list[Written] = []

    def done(outcome: Written) -> None:
        outcomes.append(outcome)
        written.set()

    store.write(changes, done)
    assert written.wait(5)
    return outcomes[0]


def _one(session: StoredSession) -> SessionChanges:
    changes = SessionChanges()
    changes.sessions = {session.client_id: session}
    return changes


def _spoil(path: Path) -> None:
    """Write over every page but the first, and have whoever uses the file read them again."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("DELETE FROM session WHERE client_id = ''")
    other.execute("PRAGMA user_version = 2")
    other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    other.close()
    pages = bytearray(path.read_bytes())
    pages[4096:] = b"\xa5" * (len(pages) - 4096)
    path.write_bytes(pages)


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
    changes.paid = {8: None}
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
    written = threading.Event()
    store.write(_one(ANNA), lambda _: written.set())
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
    store.write(_one(ANNA), lambda _: None)
    store.close()
    other.close()
    assert store.is_failing


def _aside(path: Path) -> list[Path]:
    return sorted(path.parent.glob("broker.db.damaged-*Z"))


@pytest.mark.parametrize("is_none", [True, False])
def test_a_file_that_is_damaged_is_set_aside_at_the_start(path: Path, is_none: bool) -> None:
    if is_none:
        path.write_bytes(b"this is no database" * 100)
    else:
        _filled(path).close()
        _spoil(path)
    counters = BrokerCounters()
    with capturedLogs() as logged:
        store = SqliteSessionStore(path, call, counters)
        assert store.load() == StoredState([], [], [], [], [])
    assert _write(store, _one(ANNA)) is Written.YES
    assert _again(store, path).sessions == [ANNA]
    assert len(_aside(path)) == 1
    assert counters.replaced == 1
    assert [str(event["path"]) for event in logged] == [str(path)]


def test_a_file_that_is_damaged_while_it_is_used_is_replaced_and_who_writes_is_told(path: Path) -> None:
    _filled(path).close()
    store = SqliteSessionStore(path, call, retry_seconds=0.01)
    _spoil(path)
    with capturedLogs() as logged:
        assert _write(store, _one(BERT)) is Written.LOST
        assert _write(store, _one(ANNA)) is Written.YES
    assert (len(_aside(path)), len(logged)) == (1, 1)
    _spoil(path)  # a disk that damages one file after the other is not given more of them
    written = threading.Event()
    ended = SessionChanges()
    ended.ended = {"anna": None}
    store.write(ended, lambda _: written.set())
    assert not written.wait(0.1)
    assert store.is_failing
    assert len(_aside(path)) == 1
    store.close()


def test_a_damaged_file_that_cannot_be_replaced_is_tried_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _filled(path).close()
    store = SqliteSessionStore(path, call, retry_seconds=0.01)
    _spoil(path)
    opened: Callable[..., sqlite3.Connection] = sqlite3.connect
    attempts = []

    def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
        attempts.append(arguments)
        if len(attempts) < 3:
            raise sqlite3.OperationalError("disk I/O error")
        return opened(*arguments, **options)

    monkeypatch.setattr(sqlite3, "connect", connect)
    assert _write(store, _one(BERT)) is Written.LOST
    assert len(attempts) == 3
    assert _write(store, _one(BERT)) is Written.YES
    assert not store.is_failing
    assert _again(store, path).sessions == [BERT]


def test_a_file_that_cannot_be_opened_is_refused_with_a_sentence(path: Path) -> None:
    path.mkdir()
    with pytest.raises(StorageError, match="cannot be used"):
        SqliteSessionStore(path, call)


def test_a_file_of_a_newer_version_is_refused_with_a_sentence(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StorageError, match="newer coapgw"):
        SqliteSessionStore(path, call)


def test_a_file_that_is_refused_is_closed_again(path: Path) -> None:
    with sqlite3.connect(path) as made:
        made.execute("PRAGMA user_version = 999")
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
        assert _write(store, impossible) is Written.REFUSED
    assert len(logged) == 1
    assert _write(store, _one(BERT)) is Written.YES
    assert _again(store, path).sessions == [BERT]


def test_one_row_that_cannot_be_written_keeps_no_other_from_the_disk(path: Path) -> None:
    store = SqliteSessionStore(path, call)
    _write(store, _one(ANNA))
    changes = SessionChanges()
    changes.sessions = {"bert": BERT, "carl": ANNA._replace(client_id="carl", expiry=1 << 70)}
    changes.ended = {"anna": None}
    retained = StoredMessage(0, b"t", b"1", 1, True, b"", None)
    changes.retained = {b"t": retained, b"u": retained._replace(topic=b"u", qos=1 << 70)}
    with capturedLogs():
        assert _write(store, changes) is Written.REFUSED
    state = _again(store, path)
    assert state.sessions == [BERT]
    assert [one.topic for one in state.retained] == [b"t"]


def test_a_damaged_file_that_cannot_be_renamed_is_not_taken_for_an_empty_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _filled(path).close()
    counters = BrokerCounters()
    store = SqliteSessionStore(path, call, counters, retry_seconds=0.01)
    _spoil(path)
    attempts = []

    def rename(damaged: Path) -> Path:
        attempts.append(damaged)
        if len(attempts) < 3:
            raise OSError("read-only")
        return set_aside(damaged)

    monkeypatch.setattr("coapgw.storage.sessions.set_aside", rename)
    assert _write(store, _one(BERT)) is Written.LOST
    assert (len(attempts), counters.replaced, len(_aside(path))) == (3, 1, 1)
    assert _write(store, _one(BERT)) is Written.YES
    assert _again(store, path).sessions == [BERT]


def test_a_disk_that_spoils_every_file_does_not_end_the_writer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _filled(path).close()
    store = SqliteSessionStore(path, call, retry_seconds=0.01)
    _spoil(path)
    monkeypatch.setattr("coapgw.storage.sessions.CALM_SECONDS", 0.0)
    opened: Callable[..., sqlite3.Connection] = sqlite3.connect
    attempts = []

    def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
        attempts.append(arguments)
        if len(attempts) < 4:
            path.write_bytes(b"no database at all" * 100)
        elif len(attempts) == 4:
            path.unlink()
        return opened(*arguments, **options)

    monkeypatch.setattr(sqlite3, "connect", connect)
    assert _write(store, _one(BERT)) is Written.LOST
    assert (len(attempts), len(_aside(path))) == (4, 1)
    assert _write(store, _one(BERT)) is Written.YES
    store.close()
