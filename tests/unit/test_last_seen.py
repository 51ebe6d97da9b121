"""When devices were last heard: in memory at once, in the registry within a minute, never in the way of anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs
from zope.interface.verify import verifyObject

from coapgw.errors import StorageError
from coapgw.interfaces import ILastSeen
from coapgw.model import Device
from coapgw.storage.last_seen import ROWS_AT_ONCE, LastSeen
from coapgw.storage.periodic import WRITE_SECONDS, PeriodicWriter
from tests.unit.registries import START_MS, OpenRegistry, iccid, registry_in

LATER = START_MS + 50_000


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[OpenRegistry]:
    with registry_in(tmp_path) as registry:
        registry.devices.import_all([Device(iccid(1)), Device(iccid(2))])
        yield registry


@pytest.fixture
def logged() -> Iterator[Sequence[LogEvent]]:
    with capturedLogs() as events:
        yield events


class Thread:
    """Does what it is given when it is told to, or at once."""

    def __init__(self) -> None:
        self.waits = False
        self.waiting: list[tuple[Deferred[None], Callable[[], None]]] = []

    def call(self, function: Callable[[], None]) -> Deferred[None]:
        if not self.waits:
            return maybeDeferred(function)
        done: Deferred[None] = Deferred()
        self.waiting.append((done, function))
        return done

    def go_on(self) -> None:
        waiting, self.waiting = self.waiting, []
        for done, function in waiting:
            maybeDeferred(function).chainDeferred(done)


def seen(last_seen: LastSeen, opened: OpenRegistry, *numbers: int) -> dict[str, int]:
    return last_seen.of([opened.devices.get(iccid(number)) for number in numbers])


def test_it_is_what_the_interface_says(opened: OpenRegistry) -> None:
    assert verifyObject(ILastSeen, LastSeen(opened.database))


def test_memory_is_asked_first_then_the_registry(opened: OpenRegistry) -> None:
    last_seen = LastSeen(opened.database)
    assert seen(last_seen, opened, 1, 2) == {}
    last_seen.heard[iccid(1)] = LATER
    assert seen(last_seen, opened, 1, 2) == {iccid(1): LATER}
    last_seen.write(last_seen.take())
    last_seen.heard[iccid(2)] = LATER + 1
    assert seen(last_seen, opened, 1, 2) == {iccid(1): LATER, iccid(2): LATER + 1}
    last_seen.write(last_seen.take())
    assert seen(LastSeen(opened.database), opened, 1, 2) == {iccid(1): LATER, iccid(2): LATER + 1}


def test_writing_changes_no_device(opened: OpenRegistry) -> None:
    before = opened.devices.changes_since(None)
    assert before is not None
    last_seen = LastSeen(opened.database)
    last_seen.heard |= {iccid(1): LATER, iccid(2): LATER}
    last_seen.write(last_seen.take())
    changes = opened.devices.changes_since(before.version)
    assert changes is not None
    assert (changes.changed, changes.removed) == ([], ())
    assert opened.devices.list(9) == before.changed


def test_earlier_time_does_not_replace_a_later_one(opened: OpenRegistry) -> None:
    last_seen = LastSeen(opened.database)
    last_seen.write({iccid(1): LATER})
    last_seen.write({iccid(1): LATER - 1})
    assert seen(last_seen, opened, 1) == {iccid(1): LATER}


def test_device_that_came_back_was_not_heard_yet(opened: OpenRegistry) -> None:
    last_seen = LastSeen(opened.database)
    last_seen.heard[iccid(1)] = START_MS
    last_seen.write({iccid(1): START_MS})
    opened.devices.remove(iccid(1))
    opened.devices.add(Device(iccid(1)))
    assert seen(last_seen, opened, 1) == {}
    last_seen.write(last_seen.take())
    assert seen(last_seen, opened, 1) == {}


def test_what_is_no_device_any_more_is_left_out(opened: OpenRegistry) -> None:
    LastSeen(opened.database).write({iccid(9): LATER})
    assert [device.iccid for device in opened.devices.list(9)] == [iccid(1), iccid(2)]


def test_more_than_one_transaction_holds_is_written(opened: OpenRegistry) -> None:
    count = ROWS_AT_ONCE + 2
    opened.devices.import_all(Device(iccid(number)) for number in range(10, 10 + count))
    LastSeen(opened.database).write({iccid(number): LATER + number for number in range(10, 10 + count)})
    found = LastSeen(opened.database).of(opened.devices.list(count + 2))
    assert len(found) == count


class Writing:
    """A writer, its clock and its thread."""

    def __init__(self, opened: OpenRegistry) -> None:
        self.clock, self.thread = Clock(), Thread()
        self.last_seen = LastSeen(opened.database)
        self.service = PeriodicWriter(self.last_seen, "when devices were last heard is", self.clock, self.thread.call)
        self.service.startService()


def test_it_is_written_once_a_minute_and_at_the_end(opened: OpenRegistry) -> None:
    writing = Writing(opened)
    writing.last_seen.heard[iccid(1)] = LATER
    writing.clock.advance(WRITE_SECONDS - 1)
    assert seen(LastSeen(opened.database), opened, 1, 2) == {}
    writing.clock.advance(1)
    assert seen(LastSeen(opened.database), opened, 1, 2) == {iccid(1): LATER}
    assert writing.last_seen.heard == {}
    writing.last_seen.heard[iccid(2)] = LATER + 1
    assert writing.service.stopService().called
    assert seen(LastSeen(opened.database), opened, 1, 2) == {iccid(1): LATER, iccid(2): LATER + 1}
    assert writing.clock.getDelayedCalls() == []


def test_end_waits_for_what_is_being_written(opened: OpenRegistry) -> None:
    writing = Writing(opened)
    writing.thread.waits = True
    writing.last_seen.heard[iccid(1)] = LATER
    writing.clock.advance(WRITE_SECONDS)
    assert seen(writing.last_seen, opened, 1) == {iccid(1): LATER}
    writing.last_seen.heard[iccid(1)] = LATER + 1
    stopped: Any = writing.service.stopService()
    writing.thread.go_on()
    assert not stopped.called
    writing.thread.go_on()
    assert stopped.called
    assert seen(LastSeen(opened.database), opened, 1) == {iccid(1): LATER + 1}


def test_registry_that_fails_is_logged_once_and_nothing_is_forgotten(
    opened: OpenRegistry, logged: Sequence[LogEvent]
) -> None:
    writing = Writing(opened)
    write, broken = writing.thread.call, True

    def failing(function: Callable[[], None]) -> Deferred[None]:
        def refuse() -> None:
            raise StorageError("the disk is gone")

        return write(refuse if broken else function)

    writing.service._call_in_thread = failing
    writing.last_seen.heard |= {iccid(1): LATER, iccid(2): LATER}
    for _ in range(5):
        writing.clock.advance(WRITE_SECONDS)
        writing.last_seen.heard[iccid(2)] = LATER + 7
    assert len(logged) == 1
    broken = False
    writing.clock.advance(WRITE_SECONDS)
    assert len(logged) == 2
    assert seen(LastSeen(opened.database), opened, 1, 2) == {iccid(1): LATER, iccid(2): LATER + 7}
    writing.service.stopService()
