"""storage/key_arrival.py: a key that was stored is told when the image has it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from coapgw.model import Device, DeviceKey, KeyFormat
from coapgw.storage.directory import DeviceDirectory
from coapgw.storage.key_arrival import KeyArrival
from coapgw.storage.keys import DeviceKeys
from coapgw.storage.sealing import open_seal
from tests.unit.registries import START_MS, OpenRegistry, iccid, registry_in


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[OpenRegistry]:
    with registry_in(tmp_path) as opened:
        opened.devices.add(Device(iccid(1)))
        opened.devices.add(Device(iccid(2)))
        yield opened


@pytest.fixture
def keys(opened: OpenRegistry, tmp_path: Path) -> DeviceKeys:
    return DeviceKeys(opened.database, open_seal(tmp_path, opened.database), lambda: START_MS)


@pytest.fixture
def directory(opened: OpenRegistry) -> DeviceDirectory:
    """An image that looks when it is told to."""
    directory = DeviceDirectory(opened.devices.changes_since)
    directory.load()
    return directory


def told(arrival: KeyArrival, key: DeviceKey) -> list[DeviceKey]:
    """Return a list that gets the key when it is known."""
    fired: list[DeviceKey] = []
    arrival.when_known(key).addCallback(fired.append)
    return fired


def test_a_new_key_is_told_with_the_look_that_finds_it(keys: DeviceKeys, directory: DeviceDirectory) -> None:
    arrival = KeyArrival(directory)
    key, other = keys.bootstrap(iccid(1), 300), keys.bootstrap(iccid(2), 300)
    first, second, others = told(arrival, key), told(arrival, key), told(arrival, other)
    assert first == second == others == []
    directory.load()
    assert (first, second, others) == ([key], [key], [other])
    assert told(arrival, key) == [key]  # now it is known already


def test_a_key_that_was_replaced_meanwhile_is_told_too(keys: DeviceKeys, directory: DeviceDirectory) -> None:
    arrival = KeyArrival(directory)
    key = keys.bootstrap(iccid(1), 300)
    keys.set(iccid(1), "a key of one's own", KeyFormat.STRING)
    waiting = told(arrival, key)
    directory.load()
    assert waiting == [key]


def test_a_change_of_something_else_is_not_the_key(
    keys: DeviceKeys, opened: OpenRegistry, directory: DeviceDirectory
) -> None:
    arrival = KeyArrival(directory)
    opened.devices.update(iccid(1), {"name": "boiler"})
    changes = directory.read()
    key = keys.bootstrap(iccid(1), 300)
    waiting = told(arrival, key)
    assert changes is not None
    directory.apply(changes)  # read before the key was there
    assert waiting == []
    directory.load()
    assert waiting == [key]


def test_the_key_of_a_device_that_is_gone_is_not_waited_for(
    keys: DeviceKeys, opened: OpenRegistry, directory: DeviceDirectory
) -> None:
    arrival = KeyArrival(directory)
    key = keys.bootstrap(iccid(1), 300)
    waiting = told(arrival, key)
    opened.devices.remove(iccid(1))
    directory.load()
    assert waiting == [key]
    assert told(arrival, key) == [key]
