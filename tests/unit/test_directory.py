"""The memory image: what it answers, and how it follows the registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer
from zope.interface.verify import verifyObject

from coapgw.errors import StorageError
from coapgw.interfaces import IDeviceDirectory
from coapgw.model import Device
from coapgw.storage.devices import Changes, DeviceRegistry
from coapgw.storage.directory import DeviceDirectory
from coapgw.storage.follower import POLL_SECONDS, STALE_SECONDS, RegistryFollower
from tests.fakes import MemoryDirectory
from tests.unit.registries import OpenRegistry, iccid, registry_in

Read = Callable[[], Changes | None]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[OpenRegistry]:
    with registry_in(tmp_path) as opened:
        yield opened


@pytest.fixture
def registry(opened: OpenRegistry) -> DeviceRegistry:
    return opened.devices


@pytest.fixture
def logged() -> Iterator[list[LogEvent]]:
    observer = EventList()
    globalLogPublisher.addObserver(observer)
    yield observer.events
    globalLogPublisher.removeObserver(observer)


@implementer(ILogObserver)
class EventList:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.events: list[LogEvent] = []

    def __call__(self, event: LogEvent) -> None:
        self.events.append(event)


def at_once(read: Read) -> Deferred[Changes | None]:
    """Read in the same thread, as nothing else goes on."""
    return maybeDeferred(read)


class OneThread:
    """A thread that a test moves on: what it is to read is read when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Read, Deferred[Changes | None]]] = []

    def call(self, read: Read) -> Deferred[Changes | None]:
        ended: Deferred[Changes | None] = Deferred()
        self.waiting.append((read, ended))
        return ended

    def finish(self) -> None:
        ((read, ended),) = self.waiting
        self.waiting.clear()
        ended.callback(read())


@pytest.mark.parametrize("empty", [lambda: DeviceDirectory(lambda version: None), MemoryDirectory])
def test_directory_is_what_the_interface_says(empty: Callable[[], IDeviceDirectory]) -> None:
    directory = empty()
    assert verifyObject(IDeviceDirectory, directory)
    assert directory.by_address("10.0.0.1") is None
    assert directory.by_iccid(iccid(1)) is None
    assert directory.generation == 0


def test_fake_directory_moves_an_address() -> None:
    directory = MemoryDirectory([Device(iccid(1), ip="10.0.0.1")])
    directory.put(Device(iccid(2), ip="10.0.0.1"))
    assert directory.by_address("10.0.0.1") == directory.by_iccid(iccid(2))
    directory.remove(iccid(2))
    assert directory.generation == 3


def test_load_reads_what_is_there(registry: DeviceRegistry) -> None:
    device = registry.add(Device(iccid(1), ip="10.0.0.1"))
    registry.add(Device(iccid(2)))
    directory = DeviceDirectory(registry.changes_since)
    directory.load()
    assert directory.by_address("10.0.0.1") == directory.by_iccid(iccid(1)) == device
    assert directory.by_iccid(iccid(2)) is not None
    assert len(directory) == 2


def test_load_of_a_failing_registry_says_so() -> None:
    with pytest.raises(StorageError, match="gone"):
        DeviceDirectory(failing).load()


def failing(version: int | None) -> Changes | None:
    raise StorageError("the device registry is gone")


class Following:
    """A directory that follows, by a clock that the test moves."""

    def __init__(self, read_changes: Callable[[int | None], Changes | None]) -> None:
        self.clock = Clock()
        self.directory = DeviceDirectory(read_changes)
        self.told: list[list[str]] = []
        self.directory.subscribe(lambda iccids: self.told.append(sorted(iccids)))
        self.service = RegistryFollower(self.directory, "devices", self.clock, at_once)
        self.service.startService()

    def poll(self) -> None:
        self.told.clear()
        self.clock.advance(POLL_SECONDS)


@pytest.fixture
def following(registry: DeviceRegistry) -> Iterator[Following]:
    following = Following(registry.changes_since)
    yield following
    following.service.stopService()


def test_image_follows_additions_changes_and_removals(registry: DeviceRegistry, following: Following) -> None:
    directory = following.directory
    registry.add(Device(iccid(1), ip="10.0.0.1"))
    registry.add(Device(iccid(2), ip="10.0.0.2"))
    assert directory.by_iccid(iccid(1)) is None
    following.poll()
    assert directory.by_address("10.0.0.1") == registry.get(iccid(1))
    assert following.told == [[iccid(1), iccid(2)]]
    registry.update(iccid(1), {"ip": "10.0.0.9"})
    registry.remove(iccid(2))
    following.poll()
    assert directory.by_address("10.0.0.1") is None
    assert directory.by_address("10.0.0.9") == registry.get(iccid(1))
    assert directory.by_address("10.0.0.2") is None
    assert directory.by_iccid(iccid(2)) is None
    assert following.told == [[iccid(1), iccid(2)]]


def test_generation_grows_once_a_look_and_only_with_changes(registry: DeviceRegistry, following: Following) -> None:
    registry.import_all([Device(iccid(number)) for number in range(5)])
    registry.update(iccid(1), {"name": "x"})
    before = following.directory.generation
    following.poll()
    assert following.directory.generation == before + 1
    following.poll()
    registry.update(iccid(1), {"name": "x"})  # changes nothing
    following.poll()
    assert following.directory.generation == before + 1
    assert following.told == []


def test_address_that_moved_between_two_looks_is_the_new_devices(
    registry: DeviceRegistry, following: Following
) -> None:
    for first, second in ((1, 2), (4, 3)):  # whichever is read first
        registry.add(Device(iccid(first), ip="10.0.0.1"))
        registry.add(Device(iccid(second)))
        following.poll()
        registry.update(iccid(first), {"ip": None})
        registry.update(iccid(second), {"ip": "10.0.0.1"})
        following.poll()
        assert following.directory.by_address("10.0.0.1") == registry.get(iccid(second))
        registry.update(iccid(second), {"ip": None})


def test_addresses_swapped_between_two_looks(registry: DeviceRegistry, following: Following) -> None:
    registry.import_all([Device(iccid(1), ip="10.0.0.1"), Device(iccid(2), ip="10.0.0.2")])
    following.poll()
    registry.update(iccid(1), {"ip": None})
    registry.update(iccid(2), {"ip": "10.0.0.1"})
    registry.update(iccid(1), {"ip": "10.0.0.2"})
    following.poll()
    assert following.directory.by_address("10.0.0.1") == registry.get(iccid(2))
    assert following.directory.by_address("10.0.0.2") == registry.get(iccid(1))


def test_device_that_came_back_is_there(registry: DeviceRegistry, following: Following) -> None:
    registry.add(Device(iccid(1), ip="10.0.0.1"))
    following.poll()
    registry.remove(iccid(1))
    registry.add(Device(iccid(1), ip="10.0.0.2"))
    following.poll()
    assert following.directory.by_address("10.0.0.1") is None
    assert following.directory.by_address("10.0.0.2") == registry.get(iccid(1))
    assert following.told == [[iccid(1)]]


def test_address_of_a_device_whose_removal_is_seen_later_stays_with_the_new_one() -> None:
    """Not every database reads devices and removals at one instant."""
    directory = DeviceDirectory(lambda version: None)
    directory.apply(Changes(1, [Device(iccid(1), ip="10.0.0.1")], complete=True))
    directory.apply(Changes(2, [Device(iccid(2), ip="10.0.0.1")]))
    directory.apply(Changes(3, [], [iccid(1)]))
    assert directory.by_address("10.0.0.1") == Device(iccid(2), ip="10.0.0.1")


def test_older_database_replaces_the_image() -> None:
    directory = DeviceDirectory(lambda version: None)
    kept, gone = Device(iccid(1), ip="10.0.0.1"), Device(iccid(2), ip="10.0.0.2")
    directory.apply(Changes(9, [kept, gone], complete=True))
    told: list[Sequence[str]] = []
    directory.subscribe(told.append)
    directory.apply(Changes(3, [kept], complete=True))
    assert told == [[iccid(2)]]
    assert directory.by_address("10.0.0.2") is None
    assert directory.by_address("10.0.0.1") == kept


CHANGE = st.tuples(st.integers(1, 4), st.sampled_from([None, "10.0.0.1", "10.0.0.2", "gone"]))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(CHANGE, max_size=6), max_size=6))
def test_image_is_the_registry_after_any_changes(looks: list[list[tuple[int, str | None]]]) -> None:
    """A registry in memory: every change is a version, an address goes from whoever had it."""
    devices: dict[str, tuple[int, Device]] = {}
    removed: dict[str, int] = {}
    now = 0

    def read_changes(version: int | None) -> Changes | None:
        since = version or 0
        changed = [device for stamp, device in devices.values() if stamp > since]
        return Changes(now, changed, [iccid for iccid, stamp in removed.items() if stamp > since], version is None)

    directory = DeviceDirectory(read_changes)
    directory.load()
    for changes in looks:
        for number, ip in changes:
            for holder, (_, device) in list(devices.items()):
                if ip is not None and device.ip == ip and holder != iccid(number):
                    now += 1
                    devices[holder] = (now, Device(holder))
            now += 1
            if ip != "gone":
                devices[iccid(number)] = (now, Device(iccid(number), ip=ip))
            elif devices.pop(iccid(number), None):
                removed[iccid(number)] = now
        directory.load()
        wanted = {device.ip: device for _, device in devices.values() if device.ip is not None}
        assert {ip: directory.by_address(ip) for ip in ("10.0.0.1", "10.0.0.2")} == {
            ip: wanted.get(ip) for ip in ("10.0.0.1", "10.0.0.2")
        }
        assert [directory.by_iccid(iccid(n)) for n in range(1, 5)] == [
            devices[iccid(n)][1] if iccid(n) in devices else None for n in range(1, 5)
        ]


def test_only_one_look_is_under_way(registry: DeviceRegistry) -> None:
    clock, thread = Clock(), OneThread()
    directory = DeviceDirectory(registry.changes_since)
    service = RegistryFollower(directory, "devices", clock, thread.call)
    service.startService()
    for _ in range(10):
        clock.advance(POLL_SECONDS)
    assert len(thread.waiting) == 1
    registry.add(Device(iccid(1)))
    thread.finish()
    assert directory.by_iccid(iccid(1)) is not None
    clock.advance(POLL_SECONDS)
    stopped: Any = service.stopService()
    assert not stopped.called
    registry.add(Device(iccid(2)))
    thread.finish()
    assert stopped.called
    assert directory.by_iccid(iccid(2)) is None  # too late
    assert clock.getDelayedCalls() == []


def test_who_cannot_wait_has_it_looked_at_now(registry: DeviceRegistry, following: Following) -> None:
    registry.add(Device(iccid(1)))
    assert following.service.look_now().called
    assert following.directory.by_iccid(iccid(1)) is not None
    following.service.stopService()
    assert following.service.look_now().called


def test_a_look_under_way_may_have_been_too_early(registry: DeviceRegistry) -> None:
    clock, thread = Clock(), OneThread()
    directory = DeviceDirectory(registry.changes_since)
    service = RegistryFollower(directory, "devices", clock, thread.call)
    service.startService()
    registry.add(Device(iccid(1)))
    looked = [service.look_now(), service.look_now()]
    thread.finish()
    assert not any(look.called for look in looked)
    thread.finish()
    assert all(look.called for look in looked)
    assert directory.by_iccid(iccid(1)) is not None
    clock.advance(POLL_SECONDS)
    assert len(thread.waiting) == 1  # it goes on
    thread.finish()
    service.stopService()
    assert clock.getDelayedCalls() == []


def test_service_starts_again_after_it_stopped(registry: DeviceRegistry, following: Following) -> None:
    assert following.service.stopService().called
    registry.add(Device(iccid(1)))
    following.clock.advance(10)
    assert following.directory.by_iccid(iccid(1)) is None
    following.service.startService()
    assert following.directory.by_iccid(iccid(1)) is not None


def test_failing_registry_is_logged_once_and_the_image_stays(registry: DeviceRegistry, logged: list[LogEvent]) -> None:
    broken = False

    def read_changes(version: int | None) -> Changes | None:
        return failing(version) if broken else registry.changes_since(version)

    following = Following(read_changes)
    device = registry.add(Device(iccid(1), ip="10.0.0.1"))
    following.poll()
    for _ in range(2):
        logged.clear()
        broken = True
        for _ in range(20):
            following.poll()
        assert following.directory.by_address("10.0.0.1") == device
        assert [event.get("reason") for event in logged] == ["the device registry is gone"]
        broken = False
        following.poll()
        following.poll()
        assert len(logged) == 2
    registry.remove(iccid(1))
    following.poll()
    assert following.directory.by_iccid(iccid(1)) is None
    following.service.stopService()


def test_health_follows_the_registry_and_the_time_a_look_takes(registry: DeviceRegistry) -> None:
    broken = False

    def read_changes(version: int | None) -> Changes | None:
        return failing(version) if broken else registry.changes_since(version)

    following = Following(read_changes)
    assert following.service.is_healthy()
    broken = True
    following.poll()
    assert not following.service.is_healthy()
    broken = False
    following.poll()
    assert following.service.is_healthy()
    following.service.stopService()
    clock = Clock()
    stuck = RegistryFollower(DeviceDirectory(registry.changes_since), "devices", clock, OneThread().call)
    stuck.startService()
    clock.advance(STALE_SECONDS - 1)
    assert stuck.is_healthy()
    clock.advance(1)
    assert not stuck.is_healthy()


def test_our_own_mistake_is_logged_with_its_traceback_and_survived(logged: list[LogEvent]) -> None:
    broken = True

    def read_changes(version: int | None) -> Changes | None:
        if broken:
            raise ZeroDivisionError
        return Changes(1, [Device(iccid(1))], complete=True)

    following = Following(read_changes)
    following.poll()
    assert [event["log_failure"].type for event in logged] == [ZeroDivisionError]
    broken = False
    following.poll()
    assert following.directory.by_iccid(iccid(1)) is not None
    following.service.stopService()


def test_subscriber_that_fails_stops_neither_the_others_nor_the_image(
    registry: DeviceRegistry, following: Following, logged: list[LogEvent]
) -> None:
    def fail(iccids: Sequence[str]) -> None:
        raise ZeroDivisionError

    told: list[Sequence[str]] = []
    following.directory.subscribe(fail)
    following.directory.subscribe(told.append)
    registry.add(Device(iccid(1)))
    following.poll()
    assert told == [[iccid(1)]]
    assert [event["log_failure"].type for event in logged] == [ZeroDivisionError]
