"""Keys in memory: the directory follows them, and DTLS gets what it asks for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from sqlalchemy import text
from twisted.logger import capturedLogs
from zope.interface.verify import verifyObject

from coapgw.interfaces import ICredentials
from coapgw.model import Credential, Device, DeviceKey, DeviceStatus, KeyFormat
from coapgw.storage.credentials import DeviceCredentials
from coapgw.storage.devices import Changes
from coapgw.storage.directory import DeviceDirectory
from coapgw.storage.key_image import image_of, parts_of, serial_of
from coapgw.storage.keys import DeviceKeys
from coapgw.storage.sealing import KeySeal, open_seal
from tests.unit.registries import START_MS, OpenRegistry, iccid, registry_in

IDENTITY = iccid(1).encode()


@attrs.define
class Rig:
    """A registry with an active device, a directory that looks when told to, and what DTLS would ask."""

    opened: OpenRegistry
    keys: DeviceKeys
    directory: DeviceDirectory
    credentials: DeviceCredentials
    told: list[list[str]] = attrs.field(factory=list)

    def look(self) -> list[list[str]]:
        self.told.clear()
        self.directory.load()
        return self.told

    def secret(self) -> bytes | None:
        found = self.credentials.credential(IDENTITY)
        return None if found is None else found.secret


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with registry_in(tmp_path) as opened:
        seal = open_seal(tmp_path, opened.database)
        opened.devices.add(Device(iccid(1), ip="10.0.0.1"))
        directory = DeviceDirectory(opened.devices.changes_since)
        keys = DeviceKeys(opened.database, seal, lambda: START_MS)
        rig = Rig(opened, keys, directory, DeviceCredentials(directory, seal))
        directory.subscribe(lambda iccids: rig.told.append(sorted(iccids)))
        rig.look()
        yield rig


def test_credentials_are_what_the_interface_says(rig: Rig) -> None:
    assert verifyObject(ICredentials, rig.credentials)


@pytest.mark.parametrize("key_format", KeyFormat)
def test_image_keeps_what_it_is_given(key_format: KeyFormat) -> None:
    image = image_of(2**40 + 7, key_format.value, b"sealed")
    assert parts_of(image) == (2**40 + 7, key_format, b"sealed")
    assert serial_of(image) == 2**40 + 7


def test_active_device_with_a_key_has_a_credential(rig: Rig) -> None:
    assert rig.secret() is None
    key = rig.keys.set(iccid(1), "00112233", KeyFormat.HEX)
    assert rig.look() == [[iccid(1)]]
    assert rig.credentials.credential(IDENTITY) == Credential(iccid(1), b"\x00\x11\x22\x33", key.serial)
    assert rig.credentials.is_current(iccid(1), key.serial)
    assert not rig.credentials.is_current(iccid(1), key.serial + 1)
    rig.opened.devices.update(iccid(1), {"status": "INACTIVE"})
    rig.look()
    assert rig.secret() is None
    assert not rig.credentials.is_current(iccid(1), key.serial)


@pytest.mark.parametrize(
    "identity",
    [
        b"",
        iccid(2).encode(),
        IDENTITY + b"\0",
        IDENTITY[:-1] + b"\xb2",
        b" " + IDENTITY,
        b"9" * 1000,
        b"x" * 19,
        bytes(19),
    ],
)
def test_anything_else_has_none(rig: Rig, identity: bytes) -> None:
    rig.keys.rotate(iccid(1))
    rig.look()
    assert rig.credentials.credential(identity) is None
    assert not rig.credentials.is_current(iccid(2), 1)


def test_subscribers_are_told_of_every_new_key_and_of_nothing_else(rig: Rig) -> None:
    first = rig.keys.bootstrap(iccid(1), 300)
    assert rig.look() == [[iccid(1)]]
    generation = rig.directory.generation
    rig.keys.bootstrap(iccid(1), 300)
    assert rig.look() == []
    assert rig.directory.generation == generation
    second = rig.keys.rotate(iccid(1))
    assert rig.look() == [[iccid(1)]]
    assert not rig.credentials.is_current(iccid(1), first.serial)
    assert rig.credentials.is_current(iccid(1), second.serial)
    assert rig.directory.generation == generation + 1


def test_key_goes_with_its_device_also_when_that_comes_back_between_two_looks(rig: Rig) -> None:
    rig.keys.rotate(iccid(1))
    rig.look()
    rig.opened.devices.remove(iccid(1))
    rig.opened.devices.add(Device(iccid(1)))
    assert rig.look() == [[iccid(1)]]
    assert rig.secret() is None
    rig.opened.devices.remove(iccid(1))
    rig.opened.devices.add(Device(iccid(1)))
    key = rig.keys.rotate(iccid(1))
    rig.look()
    assert rig.secret() == key.secret


def test_key_can_be_used_before_the_next_look(rig: Rig) -> None:
    first = rig.keys.bootstrap(iccid(1), 300)
    rig.look()
    rig.told.clear()
    second = rig.keys.bootstrap(iccid(1), 0)
    third = rig.keys.bootstrap(iccid(1), 0)
    for key in (second, third, second):
        rig.credentials.learn(key)
    assert rig.told == [[iccid(1)]] * 2
    assert rig.secret() == third.secret
    assert not rig.credentials.is_current(iccid(1), first.serial)
    rig.look()
    assert rig.secret() == third.secret


def test_key_that_a_look_has_seen_or_seen_removed_is_not_learned(rig: Rig) -> None:
    key = rig.keys.rotate(iccid(1))
    rig.opened.devices.remove(iccid(1))
    rig.credentials.learn(key)
    rig.opened.devices.add(Device(iccid(1)))
    rig.look()
    generation = rig.directory.generation
    rig.credentials.learn(key)
    rig.credentials.learn(attrs.evolve(key, iccid=iccid(2), serial=key.serial + 100))
    assert rig.secret() is None
    assert rig.directory.generation == generation


def test_image_that_starts_over_has_the_keys_too(rig: Rig) -> None:
    """A database that was put back to an older state, with another key for one device and none for the other."""
    directory = DeviceDirectory(lambda version: None)
    told: list[list[str]] = []
    devices = [Device(iccid(1)), Device(iccid(2)), Device(iccid(3))]
    old, new, kept = (image_of(serial, "STRING", b"") for serial in (5, 6, 7))
    directory.apply(Changes(9, devices, complete=True, keys={iccid(1): new, iccid(2): new, iccid(3): kept}))
    directory.subscribe(lambda iccids: told.append(sorted(iccids)))
    directory.apply(Changes(3, devices, complete=True, keys={iccid(1): old, iccid(3): kept}))
    assert told == [[iccid(1), iccid(2)]]
    assert directory.key_image(iccid(1)) == old
    assert directory.key_image(iccid(2)) is None


def test_key_that_cannot_be_unsealed_counts_as_none_and_is_logged_once(rig: Rig) -> None:
    secret = rig.keys.set(iccid(1), "Tr0ub4dor&3", KeyFormat.STRING).written
    with rig.opened.database.writing() as (connection, version):
        connection.execute(text(f"UPDATE device_keys SET serial = {version}"))
    rig.look()
    with capturedLogs() as events:
        assert [rig.secret() for _ in range(3)] == [None] * 3
    assert len(events) == 1
    assert iccid(1) in str(events)
    assert secret not in str(events)


def test_credential_shows_no_secret(rig: Rig) -> None:
    rig.keys.set(iccid(1), "Tr0ub4dor&3", KeyFormat.STRING)
    rig.look()
    assert "Tr0ub4" not in repr(rig.credentials.credential(IDENTITY)) + repr(rig.directory.key_image(iccid(1)))


class CountingSeal(KeySeal):
    """Counts what it unseals."""

    unsealed = 0

    def unseal(self, sealed: bytes, iccid: str, key_format: KeyFormat, serial: int) -> bytes:
        self.unsealed += 1
        return super().unseal(sealed, iccid, key_format, serial)


def test_identity_that_is_not_served_takes_as_much_work_as_one_that_is(rig: Rig) -> None:
    seal = CountingSeal(bytes(32), "here")
    credentials = DeviceCredentials(rig.directory, seal)
    served = DeviceKey(iccid(1), b"abcdefghijklmnop", KeyFormat.STRING, False, 1 << 40, 0, 0)
    credentials.learn(served)
    assert credentials.credential(IDENTITY) == Credential(iccid(1), served.secret, served.serial)
    assert seal.unsealed == 1
    assert credentials.credential(iccid(9).encode()) is None  # unknown
    assert seal.unsealed == 2
    rig.opened.devices.update(iccid(1), {"status": DeviceStatus.INACTIVE})
    rig.look()
    assert credentials.credential(IDENTITY) is None
    assert seal.unsealed == 3
    assert credentials.credential(b"00000000000000000000") is None  # whose key is unsealed instead
