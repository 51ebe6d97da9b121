"""storage/sessions.py: what is remembered of MQTT clients over a restart."""

from __future__ import annotations

import sqlite3
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from twisted.logger import LogLevel, capturedLogs
from zope.interface.verify import verifyObject

from coapgw.errors import StorageError
from coapgw.interfaces import ISessionStore, StoredSession
from coapgw.storage.sessions import SqliteSessionStore

ANNA = StoredSession("anna", "user", True, (("a/#", 1), ("b/+", 0)))
BERT = StoredSession("bert", None, False, ())


def until(holds: Callable[[], object]) -> None:
    """Wait for the writer's thread."""
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.001)


def _again(store: SqliteSessionStore, path: Path) -> list[StoredSession]:
    store.close()
    again = SqliteSessionStore(path)
    loaded = sorted(again.load())
    again.close()
    return loaded


def test_what_was_saved_is_there_after_a_restart(tmp_path: Path) -> None:
    store = SqliteSessionStore(tmp_path / "broker.db")
    verifyObject(ISessionStore, store)
    store.save(ANNA)
    store.save(BERT)
    assert _again(store, tmp_path / "broker.db") == [ANNA, BERT]
    assert stat.S_IMODE((tmp_path / "broker.db").stat().st_mode) == 0o600


def test_the_newest_state_of_a_client_counts(tmp_path: Path) -> None:
    store = SqliteSessionStore(tmp_path / "broker.db")
    for qos in range(100):
        store.save(StoredSession("anna", None, True, (("x", qos & 1), (f"y{qos}", 1))))
    store.save(BERT)
    store.forget("bert")
    assert _again(store, tmp_path / "broker.db") == [StoredSession("anna", None, True, (("x", 1), ("y99", 1)))]


def test_what_could_not_be_written_is_written_when_that_works_again(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    store = SqliteSessionStore(path, retry_seconds=0.01)
    with capturedLogs() as logged, sqlite3.connect(path, isolation_level=None) as other:
        other.execute("CREATE TRIGGER full BEFORE INSERT ON session BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
        store.save(StoredSession("anna", "user", True, (("old", 1),)))
        store.save(BERT)
        until(lambda: logged)
        store.save(ANNA)
        store.forget("bert")
        other.execute("DROP TRIGGER full")
    other.close()
    until(lambda: not store.is_failing)
    assert _again(store, path) == [ANNA]
    assert len([event for event in logged if event["log_level"] is LogLevel.error]) == 1


def test_closing_does_not_wait_for_a_disk_that_fails(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    store = SqliteSessionStore(path, retry_seconds=3600)
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("CREATE TRIGGER full BEFORE INSERT ON session BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
        store.save(ANNA)
        until(lambda: store.is_failing)
        assert _again(store, path) == []
    other.close()


def test_a_file_that_is_none_is_refused_with_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    path.write_bytes(b"this is no database, and long enough to be looked at by sqlite" * 20)
    with pytest.raises(StorageError, match=r"broker\.db"):
        SqliteSessionStore(path)


def test_file_that_is_refused_is_closed_again(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    for content in ("PRAGMA user_version = 999", None):
        path.unlink(missing_ok=True)
        if content is None:
            path.write_bytes(b"no database" * 1000)
        else:
            with sqlite3.connect(path) as made:
                made.execute(content)
            made.close()
        with pytest.raises(StorageError):
            SqliteSessionStore(path)
        opened = [link for link in Path("/proc/self/fd").iterdir() if link.exists() and link.samefile(path)]
        assert opened == []


def test_a_session_that_cannot_be_written_at_all_does_not_end_the_writer(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    store = SqliteSessionStore(path, retry_seconds=0.01)
    with capturedLogs() as logged:
        store.save(StoredSession("anna", None, True, (("x", 1 << 70),)))  # an integer SQLite has no room for
        until(lambda: logged)
        store.save(ANNA)
        until(lambda: not store.is_failing)
    assert _again(store, path) == [ANNA]
