"""storage/spool.py on a real file: durable before it is said, in order, bounded, and never a place twice."""

from __future__ import annotations

import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from zope.interface.verify import verifyObject

from coapgw.errors import SpoolFailing, SpoolFull, StorageError
from coapgw.interfaces import ISpool
from coapgw.model import Introduction, Outgoing, Spooled
from coapgw.storage.dead_letters import Wish, dead_letters, open_requests, write_requests
from coapgw.storage.spool import CALM_SECONDS, GATHER_SECONDS, RETRY_SECONDS, SETTLE_SECONDS, Spool, open_spool
from coapgw.storage.spool_file import (
    OVERHEAD_BYTES,
    RESERVE_PLACES,
    SpoolFile,
    SpoolStatus,
    open_or_replace,
    runs,
    spool_status,
)

ICCID = "8988280666000000017"
ROOM = 1 << 30


class ThreadClock(Clock):
    """A Clock whose calls from threads wait until the test takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.from_threads: SimpleQueue[tuple[Callable[..., object], tuple[object, ...]]] = SimpleQueue()

    def callFromThread(self, call: Callable[..., object], *arguments: object) -> None:
        self.from_threads.put((call, arguments))

    def take(self) -> None:
        """Wait for one call from a thread, and do it."""
        call, arguments = self.from_threads.get(timeout=10)
        call(*arguments)

    def until(self, holds: Callable[[], object]) -> None:
        while not holds():
            self.take()


class Rig:
    """A spool, what it says, and a second life of it."""

    def __init__(self, path: Path, max_bytes: int = ROOM) -> None:
        self.path = path
        self.clock = ThreadClock()
        self.spool: Spool = open_spool(path, self.clock, max_bytes)
        self.stored: list[tuple[int, Exception | None]] = []
        self.groups: list[list[Spooled]] = []
        self.spool.follow(lambda group: self.groups.append(list(group)))

    def append(
        self, payload: bytes = b"x", introduction: Introduction | None = None, event: Outgoing | None = None
    ) -> int:
        place = 0

        def stored(failure: Exception | None) -> None:
            self.stored.append((place, failure))

        place = self.spool.append(_message(payload), stored, introduction, event)
        return place

    def commit(self) -> None:
        """End the reactor's turn, and wait for what it brought."""
        expected = self.spool.counters.commits + 1
        self.clock.advance(GATHER_SECONDS)
        self.clock.until(lambda: self.spool.counters.commits >= expected)

    def read(self, after: int = 0, limit: int = 1 << 20) -> list[Spooled]:
        got: list[list[Spooled]] = []
        self.spool.read(after, limit).addCallback(got.append)
        self.clock.until(lambda: got)
        return got[0]

    def close(self) -> None:
        closed: list[object] = []
        self.spool.close().addCallback(closed.append)
        self.clock.until(lambda: closed)

    def reopened(self) -> Rig:
        self.close()
        return Rig(self.path)


def _message(payload: bytes = b"x") -> Outgoing:
    return Outgoing(1670598749915, ICCID, "1-6393505d-67fa8489fb9c791fcddd43f0", b"topic", payload)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "spool.db")
    yield made
    made.close()


def test_it_is_a_spool_readable_by_its_owner_only(rig: Rig) -> None:
    verifyObject(ISpool, rig.spool)
    for name in ("spool.db", "spool.lock"):
        assert stat.S_IMODE(rig.path.with_name(name).stat().st_mode) == 0o600


def test_nothing_is_said_before_it_is_on_disk(rig: Rig) -> None:
    rig.append(b"a")
    rig.append(b"b")
    assert rig.stored == []
    rig.clock.advance(GATHER_SECONDS)
    assert rig.stored == []
    rig.clock.take()
    with sqlite3.connect(rig.path) as looking:
        assert [row[0] for row in looking.execute("SELECT payload FROM message")] == [b"a", b"b"]
    assert rig.stored == [(1, None), (2, None)]
    assert [message.place for message in rig.groups[0]] == [1, 2]


def test_what_one_turn_brought_is_one_commit(rig: Rig) -> None:
    for _ in range(500):
        rig.append()
    rig.commit()
    assert rig.spool.counters.commits == 1
    assert len(rig.stored) == 500
    assert [message.place for message in rig.read()] == list(range(1, 501))


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 127, 130, 2500])
def test_groups_of_any_size_are_stored_whole_and_in_order(rig: Rig, count: int) -> None:
    for number in range(count):
        rig.append(b"%d" % number)
    rig.commit()
    assert [message.payload for message in rig.read()] == [b"%d" % number for number in range(count)]


def test_groups_are_spaced_so_that_they_gather_something(rig: Rig) -> None:
    rig.append(b"first")
    rig.clock.advance(0)
    rig.append(b"second")
    rig.clock.advance(GATHER_SECONDS / 2)
    rig.append(b"third")
    rig.clock.advance(GATHER_SECONDS / 2)
    rig.clock.until(lambda: len(rig.stored) == 3)
    assert [[message.payload for message in group] for group in rig.groups] == [[b"first"], [b"second", b"third"]]


def test_a_message_comes_back_as_it_was(rig: Rig) -> None:
    message = Outgoing(5, ICCID, "id", "tópic".encode(), bytes(range(256)))
    rig.spool.append(message, None)
    rig.commit()
    assert rig.read() == [Spooled(1, *message)]


def test_settled_messages_leave_with_the_next_commit(rig: Rig) -> None:
    for _ in range(5):
        rig.append()
    rig.commit()
    rig.spool.settle([1, 2, 4])
    rig.append()
    rig.commit()
    assert [message.place for message in rig.read()] == [3, 5, 6]


def test_settled_messages_leave_soon_when_no_commit_comes(rig: Rig) -> None:
    rig.append()
    rig.commit()
    rig.spool.settle([1])
    rig.clock.advance(SETTLE_SECONDS)
    rig.clock.take()
    assert rig.read() == []
    rig.spool.settle([1, 77])  # known to nobody any more: harmless
    rig.clock.advance(SETTLE_SECONDS)
    rig.clock.take()
    assert spool_status(rig.path).messages == 0


def test_reading_goes_on_from_a_place_and_stops_at_the_limit(rig: Rig) -> None:
    for _ in range(10):
        rig.append()
    rig.commit()
    assert [message.place for message in rig.read(3, 4)] == [4, 5, 6, 7]
    assert rig.read(10) == []


def test_what_was_appended_before_a_read_is_in_it(rig: Rig) -> None:
    rig.append(b"a")
    rig.clock.advance(GATHER_SECONDS)
    assert [message.payload for message in rig.read()] == [b"a"]


def test_everything_is_there_again_after_a_restart_and_places_go_on(rig: Rig) -> None:
    for _ in range(3):
        rig.append()
    rig.commit()
    rig.spool.settle([1, 2, 3])
    again = rig.reopened()
    assert again.read() == []
    assert again.append() == 4
    again.commit()
    assert [message.place for message in again.read()] == [4]
    again.close()


def test_no_place_is_given_twice_after_a_crash(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool.db")
    for _ in range(3):
        rig.append()
    rig.commit()
    rig.spool.settle([3])
    rig.clock.advance(SETTLE_SECONDS)
    rig.clock.take()
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    for name in ("spool.db", "spool.db-wal"):
        shutil.copy(tmp_path / name, crashed / name)
    after = Rig(crashed / "spool.db")
    assert [message.place for message in after.read()] == [1, 2]
    assert after.append() > 3
    assert after.spool.last_place() <= 3 + RESERVE_PLACES + 1
    after.close()
    rig.close()


def test_event_has_the_place_behind_its_message(rig: Rig) -> None:
    assert rig.append(b"first", Introduction(ICCID, 5, _message(b"new")), _message(b"event")) == 2
    assert rig.append(b"second") == 4
    rig.commit()
    assert rig.stored == [(2, None), (4, None)]
    expected = [(1, b"new"), (2, b"first"), (3, b"event"), (4, b"second")]
    assert [(message.place, message.payload) for message in rig.read()] == expected


def test_follower_that_fails_keeps_nobody_waiting(rig: Rig) -> None:
    rig.spool.follow(lambda group: 1 / 0)  # type: ignore[arg-type]
    rig.append()
    with capturedLogs() as logged:
        rig.commit()
    assert rig.stored == [(1, None)]
    assert [event["log_failure"].type for event in logged] == [ZeroDivisionError]


def test_an_introduction_is_stored_with_its_message_and_known_from_then_on(rig: Rig) -> None:
    event = Introduction(ICCID, 5, _message(b"event"))
    assert not rig.spool.is_introduced(ICCID, 5)
    assert rig.append(b"first", event) == 2
    assert rig.spool.is_introduced(ICCID, 5)
    rig.commit()
    assert [(message.place, message.payload) for message in rig.read()] == [(1, b"event"), (2, b"first")]
    assert rig.stored == [(2, None)]
    again = rig.reopened()
    assert again.spool.is_introduced(ICCID, 5)
    assert not again.spool.is_introduced(ICCID, 6)
    again.close()


def test_a_full_spool_refuses_until_something_is_settled(tmp_path: Path) -> None:
    size = len(b"topic") + 100 + OVERHEAD_BYTES
    rig = Rig(tmp_path / "spool.db", max_bytes=3 * size)
    for _ in range(3):
        rig.append(b"x" * 100)
    with pytest.raises(SpoolFull):
        rig.append(b"x" * 100)
    rig.commit()
    with pytest.raises(SpoolFull):
        rig.append(b"x" * 100)
    assert rig.spool.fill == 1
    rig.spool.settle([2])
    rig.clock.advance(SETTLE_SECONDS)
    rig.clock.take()
    rig.append(b"x" * 100)
    with pytest.raises(SpoolFull):
        rig.append(b"x" * 100)
    rig.close()
    again = Rig(tmp_path / "spool.db", max_bytes=3 * size)
    with pytest.raises(SpoolFull):
        again.append(b"x" * 100)
    again.close()


def test_a_spool_is_full_for_what_it_refused_last_until_that_would_fit(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool.db", max_bytes=10_000)
    assert not rig.spool.is_full()
    places = [rig.append(b"x" * 2_000) for _ in range(3)]
    assert not rig.spool.is_full()
    with pytest.raises(SpoolFull):
        rig.append(b"x" * 4_000)
    assert rig.spool.is_full()
    rig.commit()
    assert rig.spool.is_full()
    rig.spool.settle(places[:1])
    rig.clock.advance(SETTLE_SECONDS)
    rig.clock.until(lambda: not rig.spool.is_full())
    assert rig.spool.counters.settled == 1
    with pytest.raises(SpoolFull):
        rig.append(b"x" * 20_000)
    assert rig.spool.is_full()
    rig.spool.settle(places[1:])
    rig.clock.advance(SETTLE_SECONDS)
    rig.clock.until(lambda: not rig.spool.is_full())
    rig.close()


def test_a_commit_that_fails_says_so_and_the_next_one_that_works_heals(rig: Rig) -> None:
    rig.append(b"before")
    rig.commit()
    with sqlite3.connect(rig.path, isolation_level=None) as other:
        other.execute("CREATE TRIGGER full BEFORE INSERT ON message BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
        rig.append(b"lost", Introduction(ICCID, 5, _message(b"event")))
        rig.spool.settle([1])
        rig.commit()
        _, failure = rig.stored[-1]
        assert isinstance(failure, SpoolFailing)
        assert not rig.spool.is_healthy()
        assert not rig.spool.is_introduced(ICCID, 5)
        assert len(rig.groups) == 1
        other.execute("DROP TRIGGER full")
    other.close()
    rig.append(b"after")
    rig.commit()
    assert rig.stored[-1][1] is None
    assert rig.spool.is_healthy()
    assert [message.payload for message in rig.read()] == [b"after"]  # and what was settled is gone after all
    assert rig.spool.counters.failed_commits == 1


def test_a_deletion_that_failed_is_tried_again_although_nothing_new_comes(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool.db", max_bytes=OVERHEAD_BYTES + 10)
    rig.append()
    rig.commit()
    with pytest.raises(SpoolFull):  # so nothing will take the deletion along
        rig.append()
    with sqlite3.connect(rig.path, isolation_level=None) as other:
        other.execute("CREATE TRIGGER full BEFORE DELETE ON message BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
        rig.spool.settle([1])
        rig.clock.advance(SETTLE_SECONDS)
        rig.clock.take()
        assert not rig.spool.is_healthy()
        other.execute("DROP TRIGGER full")
    other.close()
    rig.clock.advance(RETRY_SECONDS)
    rig.clock.until(rig.spool.is_healthy)
    rig.append()
    rig.commit()
    assert rig.stored[-1][1] is None
    rig.close()


def test_mistake_of_our_own_is_told_to_devices_and_does_not_end_the_writer(rig: Rig) -> None:
    rig.spool.append(_message(), lambda failure: rig.stored.append((1, failure)))
    with capturedLogs() as logged:
        rig.spool._group.messages.append(None)  # type: ignore[arg-type]
        rig.commit()
        rig.clock.until(lambda: rig.stored)
    ((_, failure),) = rig.stored
    assert isinstance(failure, SpoolFailing)
    assert "by a mistake of its own" in str(failure)
    assert not rig.spool.is_healthy()
    rig.spool._group.messages.append(None)  # type: ignore[arg-type]
    rig.append(b"again")
    rig.commit()
    (event,) = logged  # once, with a traceback
    assert event["log_level"].name == "critical"
    assert "in _commit_all" in event["log_failure"].getTraceback()
    assert rig.spool.counters.committed == 0
    rig.append(b"after")
    rig.commit()
    assert rig.stored[-1][1] is None
    assert [message.payload for message in rig.read()] == [b"after"]


def test_read_that_fails_is_counted_and_told_as_such(rig: Rig) -> None:
    failures: list[object] = []
    with sqlite3.connect(rig.path, isolation_level=None) as other, capturedLogs() as logged:
        other.execute("ALTER TABLE message RENAME TO away")
        rig.spool.read(0, 1).addErrback(lambda failure: failures.append(failure.type))
        rig.clock.until(lambda: failures)
        assert rig.spool.is_healthy()
        assert not rig.spool.is_readable()
        other.execute("ALTER TABLE away RENAME TO message")
        assert rig.read() == []
        assert rig.spool.is_readable()
        rig.clock.advance(CALM_SECONDS)
    other.close()
    assert failures == [SpoolFailing]
    assert (rig.spool.counters.failed_reads, rig.spool.counters.failed_commits) == (1, 0)
    assert [event.get("consequence") for event in logged] == ["subscribers wait", None]  # and that it works again


def test_a_disk_that_fails_now_and_then_is_logged_once_until_it_is_calm_again(rig: Rig) -> None:
    rig.append()
    rig.commit()
    with capturedLogs() as logged, sqlite3.connect(rig.path, isolation_level=None) as other:
        for _ in range(5):
            other.execute("CREATE TRIGGER full BEFORE INSERT ON message BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
            rig.append()
            rig.commit()
            assert not rig.spool.is_healthy()
            other.execute("DROP TRIGGER full")
            rig.append()
            rig.commit()
            assert rig.spool.is_healthy()
        assert [str(event["log_level"]) for event in logged] == ["<LogLevel=error>"]
        rig.clock.advance(CALM_SECONDS)
        assert [str(event["log_level"]) for event in logged] == ["<LogLevel=error>", "<LogLevel=info>"]
    other.close()
    assert rig.spool.counters.failed_commits == 5


def test_closing_stores_what_was_appended_and_then_refuses(rig: Rig) -> None:
    rig.append(b"last")
    rig.close()
    assert rig.stored == [(1, None)]
    with pytest.raises(SpoolFailing):
        rig.append()
    assert spool_status(rig.path).messages == 1


def test_two_gateways_cannot_share_a_spool(rig: Rig) -> None:
    with pytest.raises(StorageError, match="another gateway runs on"):
        SpoolFile(rig.path)


@pytest.mark.parametrize("content", [b"no database " * 200, b"SQLite format 3\0" + b"\xff" * 4000])
def test_a_file_that_is_no_spool_is_refused_with_a_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "spool.db").write_bytes(content)
    with pytest.raises(StorageError, match=r"spool\.db"):
        SpoolFile(tmp_path / "spool.db")


def test_a_spool_without_its_totals_is_refused_with_a_sentence(rig: Rig) -> None:
    rig.close()
    with sqlite3.connect(rig.path) as other:
        other.execute("DELETE FROM totals")
    other.close()
    with pytest.raises(StorageError, match="is damaged"):
        SpoolFile(rig.path)
    with pytest.raises(StorageError, match="is damaged"):
        spool_status(rig.path)


def test_a_spool_of_a_newer_version_is_refused(rig: Rig) -> None:
    rig.close()
    with sqlite3.connect(rig.path) as other:
        other.execute("PRAGMA user_version = 99")
    other.close()
    with pytest.raises(StorageError, match="newer") as refused:
        SpoolFile(rig.path)
    assert refused.traceback  # which keeps the file's object alive
    opened = [link for link in Path("/proc/self/fd").iterdir() if link.exists() and link.samefile(rig.path)]
    assert opened == []


def test_the_status_can_be_read_beside_a_running_gateway(rig: Rig) -> None:
    assert spool_status(rig.path.with_name("none.db")) == spool_status(rig.path)
    rig.append(b"12345")
    rig.commit()
    status = spool_status(rig.path)
    assert (status.messages, status.bytes, status.oldest_received) == (1, 10 + OVERHEAD_BYTES, 1670598749915)


def test_a_file_that_held_much_shrinks_again(rig: Rig) -> None:
    for _ in range(2000):
        rig.append(b"x" * 20_000)
    rig.commit()
    places = [message.place for message in rig.read()]
    rig.spool.settle(places)
    rig.clock.advance(SETTLE_SECONDS)
    rig.clock.take()
    rig.close()
    again = Rig(rig.path)
    while again.spool._writer._file.tidy():
        pass
    again.close()
    assert rig.path.stat().st_size < 24 << 20


@given(st.sets(st.integers(1, 60)))
def test_runs_cover_exactly_the_places(places: set[int]) -> None:
    covered = runs(places)
    assert {place for first, last in covered for place in range(first, last + 1)} == places
    assert all(first > last + 1 for (_, last), (first, _) in pairwise(covered))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["append", "commit", "settle", "restart"]), st.integers(0, 40)), max_size=30))
def test_whatever_happens_it_holds_what_was_stored_and_not_settled(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    rig = Rig(tmp_path_factory.mktemp("spool") / "spool.db")
    given_places: list[int] = []
    live: dict[int, bytes] = {}
    for step, number in steps:
        if step == "append":
            for each in range(number):
                payload = b"%d" % each
                live[rig.append(payload)] = payload
            given_places += [place for place in live if place not in given_places]
        elif step == "settle":
            stored = [place for place, _ in rig.stored if place in live][:number]
            rig.spool.settle(stored)
            for place in stored:
                del live[place]
        elif step == "restart":
            rig = rig.reopened()
            rig.stored = [(place, None) for place in live]
        else:
            rig.clock.advance(1)
            rig.read()
    rig.clock.advance(1)
    assert {message.place: message.payload for message in rig.read()} == live
    assert len(given_places) == len(set(given_places))
    assert given_places == sorted(given_places)
    rig.close()


# ------------------------------------------------------------------ dead letters


def test_a_file_of_version_1_is_brought_to_this_version(tmp_path: Path) -> None:
    script = files("coapgw.storage").joinpath("schema/spool-1.sql").read_text()
    with closing(sqlite3.connect(tmp_path / "spool.db")) as old:
        old.executescript(f"PRAGMA auto_vacuum=INCREMENTAL; {script}")
        old.execute("INSERT INTO message VALUES (7, 1, '1', 'id', x'74', x'70')")
        old.execute("UPDATE totals SET messages = 1, bytes = 130, reserved = 9")
        old.commit()
    assert spool_status(tmp_path / "spool.db") == SpoolStatus(1, 130, 1, 0, 0)
    file = SpoolFile(tmp_path / "spool.db")
    assert file.read(0, 10) == [Spooled(7, 1, "1", "id", b"t", b"p")]
    assert (file.messages, file.bytes, file.first_place, file.dead_messages) == (1, 130, 10, 0)
    file.close(9)


def test_what_is_set_aside_is_kept_but_not_read_and_takes_room(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool.db")
    for number in range(3):
        rig.spool.append(Outgoing(1, ICCID, f"id{number}", b"t", b"p"), None)
    rig.clock.advance(GATHER_SECONDS)
    rig.clock.until(lambda: rig.groups)
    fill = rig.spool.fill
    rig.spool.set_aside(rig.groups[0][1], "not authorised")
    rig.clock.advance(SETTLE_SECONDS)
    rig.clock.take()
    assert rig.spool.fill == fill
    (letter,) = dead_letters(rig.path)
    assert (letter.message_id, letter.reason) == ("id1", "not authorised")
    assert spool_status(rig.path).dead_messages == 1
    assert spool_status(rig.path).messages == 2
    rig.close()


def test_what_an_operator_wants_done_is_done_at_the_next_look(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool.db")
    for number in range(4):
        rig.spool.append(Outgoing(1, ICCID, f"id{number}", b"t", b"p"), None)
    rig.clock.advance(GATHER_SECONDS)
    rig.clock.until(lambda: rig.groups)
    for message in rig.groups[0]:
        rig.spool.set_aside(message, "no")
    rig.clock.advance(SETTLE_SECONDS)
    rig.clock.take()
    assert write_requests(rig.path, Wish.REQUEUE, [1, 3, 99]) == 2
    assert write_requests(rig.path, Wish.DROP, [2]) == 1
    rig.spool.look_at_requests()
    rig.spool.look_at_requests()
    rig.clock.until(lambda: len(rig.groups) == 2)
    assert [(message.place, message.message_id) for message in rig.groups[1]] == [(5, "id0"), (6, "id2")]
    assert [letter.message_id for letter in dead_letters(rig.path)] == ["id3"]
    assert open_requests(rig.path) == 0
    rig.close()


def damaged_in(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if ".damaged-" in path.name)


@pytest.mark.parametrize("content", [b"no database " * 200, b"SQLite format 3\0" + b"\xff" * 4000])
def test_damaged_spool_is_set_aside_at_the_start(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "spool.db"
    path.write_bytes(content)
    with capturedLogs() as logged:
        file, aside = open_or_replace(path, 1_700_000_000_000)
    assert logged == []  # who opens it says so
    assert damaged_in(tmp_path) == [aside]
    assert aside is not None
    assert aside.read_bytes() == content
    assert file.first_place == 1_700_000_000_001
    file.close(file.reserved)
    again, nothing = open_or_replace(path, 5)
    assert nothing is None
    assert again.first_place == 1_700_000_000_001
    again.close(again.reserved)


def test_spool_that_is_damaged_while_it_is_used_is_replaced_and_devices_are_served(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool.db")
    for _ in range(40):
        rig.append(b"x" * 100_000)
    rig.commit()
    other = sqlite3.connect(rig.path)
    other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    other.close()
    with rig.path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 2_000_000)
    with capturedLogs() as logged:
        assert rig.read() == []
        rig.append(b"after")
        rig.commit()
    assert [event["log_level"].name for event in logged] == ["error"]
    assert rig.stored[-1][1] is None
    assert [(message.place, message.payload) for message in rig.read()] == [(41, b"after")]
    assert rig.spool.counters.replaced == 1
    assert len([path for path in damaged_in(tmp_path) if path.name.endswith("Z")]) == 1
    assert rig.spool.is_healthy()
    rig.close()
