"""Devices' keys: what one may be, who chose it, when a bootstrap call replaces it, and what is on disk."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from zope.interface.verify import verifyObject

from coapgw.errors import DeviceNotFound, KeyNotFound, KeyRefused, StorageError
from coapgw.interfaces import IDeviceKeys
from coapgw.model import Device, DeviceKey, KeyFormat, WrittenKey, checked_secret
from coapgw.storage.devices import DeviceRegistry
from coapgw.storage.keys import DeviceKeys
from coapgw.storage.sealing import KeySeal, open_seal
from tests.fakes import LostKeys
from tests.unit.registries import START_MS, OpenRegistry, iccid, registry_in

RULE = 300  # seconds
STRING, HEX = KeyFormat.STRING, KeyFormat.HEX
GENERATED = re.compile(r"[A-Za-z0-9]{16}")


@attrs.define
class Rig:
    """A registry with one device, its keys, and a clock that a test moves."""

    opened: OpenRegistry
    seal: KeySeal
    keys: DeviceKeys = attrs.field(init=False)
    now_ms: int = START_MS

    def __attrs_post_init__(self) -> None:
        self.keys = DeviceKeys(self.opened.database, self.seal, lambda: self.now_ms)
        self.devices.add(Device(iccid(1)))

    @property
    def devices(self) -> DeviceRegistry:
        return self.opened.devices

    def bootstrap(self, seconds_later: float = 0) -> DeviceKey:
        self.now_ms += round(seconds_later * 1000)
        return self.keys.bootstrap(iccid(1), RULE)

    def changed_since(self, version: int) -> bool:
        changes = self.devices.changes_since(version)
        return changes is not None and bool(changes.changed or changes.removed or changes.keys)

    def version(self) -> int:
        changes = self.devices.changes_since(None)
        assert changes is not None
        return changes.version


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with registry_in(tmp_path) as opened:
        yield Rig(opened, open_seal(tmp_path, opened.database))


def test_keys_are_what_the_interface_says(rig: Rig) -> None:
    for keys in (rig.keys, LostKeys()):
        assert verifyObject(IDeviceKeys, keys)


# ---------------------------------------------------------------------- what a key may be


@pytest.mark.parametrize(
    ("written", "key_format", "secret"),
    [
        ("q8Yt2LmZ", STRING, b"q8Yt2LmZ"),
        ("x" * 256, STRING, b"x" * 256),
        ("~!\"#$%&'()*+-./ :;<=>?@[\\]^_`{|}", STRING, b"~!\"#$%&'()*+-./ :;<=>?@[\\]^_`{|}"),
        ("00c0FFEE", HEX, b"\0\xc0\xff\xee"),
        ("2c" * 128, HEX, b"," * 128),
        ("0badf00d", STRING, b"0badf00d"),
    ],
)
def test_key_is_taken(rig: Rig, written: str, key_format: KeyFormat, secret: bytes) -> None:
    key = rig.keys.set(iccid(1), written, key_format)
    assert (key.secret, key.format, key.by_user) == (secret, key_format, True)
    assert key.written == (written if key_format is STRING else written.lower())
    assert rig.keys.get(iccid(1)) == key


@pytest.mark.parametrize(
    ("written", "key_format"),
    [
        ("", STRING),
        ("1234567", STRING),
        ("x" * 257, STRING),
        ("12345,678", STRING),
        ("1234567\n", STRING),
        ("1234567\0", STRING),
        ("1234\x7f5678", STRING),
        (" 12345678", STRING),
        ("12345678 ", STRING),
        ("schlüssel", STRING),
        ("1234567\udc80", STRING),
        ("123456", HEX),
        ("123456789", HEX),
        ("1234567g", HEX),
        ("12 34 56 78", HEX),
        ("١٢٣٤٥٦٧٨", HEX),
        ("00" * 129, HEX),
        ("12345678\n", HEX),
    ],
)
def test_key_is_refused_and_not_told(rig: Rig, written: str, key_format: KeyFormat) -> None:
    with pytest.raises(KeyRefused) as refused:
        rig.keys.set(iccid(1), written, key_format)
    assert not written or written not in str(refused.value)
    with pytest.raises(KeyNotFound):
        rig.keys.get(iccid(1))


@given(st.text(alphabet=st.characters(max_codepoint=300), min_size=8, max_size=256))
def test_string_that_is_taken_is_one_field_of_a_line(written: str) -> None:
    try:
        secret = checked_secret(written, STRING)
    except KeyRefused:
        return
    assert secret.decode("latin-1") == written == written.strip()
    assert all(0x20 <= byte < 0x7F and byte != 0x2C for byte in secret)


# ---------------------------------------------------------------------- set, get, rotate


def test_device_without_a_key_has_none(rig: Rig) -> None:
    with pytest.raises(KeyNotFound, match=iccid(1)):
        rig.keys.get(iccid(1))


@pytest.mark.parametrize("unknown", [iccid(7), "", "x", "\udc80", "\0"])
def test_unknown_device_is_not_found(rig: Rig, unknown: str) -> None:
    for ask in (
        rig.keys.get,
        rig.keys.rotate,
        lambda iccid: rig.keys.set(iccid, "12345678", STRING),
        lambda iccid: rig.keys.bootstrap(iccid, RULE),
    ):
        with pytest.raises(DeviceNotFound):
            ask(unknown)


def test_every_new_secret_has_a_serial_of_its_own(rig: Rig) -> None:
    serials = [rig.bootstrap().serial]
    serials += [rig.keys.set(iccid(1), "12345678", STRING).serial for _ in range(2)]
    rig.devices.remove(iccid(1))
    rig.devices.add(Device(iccid(1)))
    serials += [rig.keys.rotate(iccid(1)).serial, rig.keys.set_all([WrittenKey(iccid(1), "12345678")])[0].serial]  # type: ignore[union-attr]  # it has the key
    assert serials == sorted(set(serials))


def test_times_of_a_key(rig: Rig) -> None:
    first = rig.keys.rotate(iccid(1))
    rig.now_ms += 5000
    second = rig.keys.set(iccid(1), "12345678", STRING)
    rig.bootstrap(7)
    assert (first.created_at, first.updated_at) == (START_MS, START_MS)
    assert (second.created_at, second.updated_at) == (START_MS, START_MS + 5000)
    assert rig.keys.get(iccid(1)) == second


def test_removed_device_loses_its_key_also_when_it_comes_back(rig: Rig) -> None:
    rig.bootstrap()
    rig.devices.remove(iccid(1))
    with pytest.raises(DeviceNotFound):
        rig.keys.get(iccid(1))
    rig.devices.add(Device(iccid(1)))
    with pytest.raises(KeyNotFound):
        rig.keys.get(iccid(1))


def test_generated_keys_differ_and_have_16_letters_and_digits(rig: Rig) -> None:
    written = {rig.keys.rotate(iccid(1)).written for _ in range(50)}
    assert len(written) == 50
    assert all(GENERATED.fullmatch(key) for key in written)
    assert len(set("".join(written))) > 55  # of 62; fewer in 800 draws is one in a million


def test_no_file_and_no_text_shows_a_secret(rig: Rig, tmp_path: Path) -> None:
    key = rig.keys.set(iccid(1), "Tr0ub4dor&3-correct", STRING)
    assert key.written not in repr(key) + repr(rig.keys) + repr(WrittenKey(iccid(1), key.written))
    for path in tmp_path.iterdir():
        assert key.secret not in path.read_bytes(), path


# ---------------------------------------------------------------------- the five-minute rule


def test_first_call_makes_a_key_that_is_stored(rig: Rig) -> None:
    key = rig.bootstrap()
    assert GENERATED.fullmatch(key.written)
    assert not key.by_user
    assert rig.keys.get(iccid(1)) == key


def test_key_is_replaced_five_minutes_after_the_last_call_to_the_second(rig: Rig) -> None:
    first = rig.bootstrap()
    assert rig.bootstrap(RULE - 0.001) == first
    assert rig.bootstrap(RULE - 1) == first  # every call restarts the time
    second = rig.bootstrap(RULE)
    assert second.secret != first.secret
    assert second.serial > first.serial
    assert rig.bootstrap() == second
    assert rig.bootstrap(RULE * 1000).secret != second.secret


def test_time_of_the_last_call_is_durable(rig: Rig, tmp_path: Path) -> None:
    first = rig.bootstrap()
    with registry_in(tmp_path) as again:
        other = DeviceKeys(again.database, rig.seal, lambda: START_MS + 299_999)
        assert other.bootstrap(iccid(1), RULE) == first
    assert rig.bootstrap(RULE) == first  # 299.999 s after nothing, but 1 ms after that call


def test_key_of_a_user_is_never_replaced_by_a_call(rig: Rig) -> None:
    rig.bootstrap()
    key = rig.keys.set(iccid(1), "12345678", STRING)
    assert [rig.bootstrap(seconds) for seconds in (0, RULE, RULE * 1000)] == [key] * 3
    generated = rig.keys.rotate(iccid(1))
    assert not generated.by_user
    assert generated.secret != key.secret


def test_key_that_was_generated_for_an_operator_is_what_the_first_call_gets(rig: Rig) -> None:
    rig.bootstrap()
    rotated = rig.keys.rotate(iccid(1))
    assert rig.bootstrap(RULE * 10) == rotated
    assert rig.bootstrap(RULE - 1) == rotated
    assert rig.bootstrap(RULE) != rotated


def test_clock_that_is_put_back_replaces_nothing_and_the_rule_goes_on(rig: Rig) -> None:
    rig.now_ms += 10**9
    first = rig.bootstrap()
    assert rig.bootstrap(-(10**6)) == first
    assert rig.bootstrap(RULE - 1) == first
    assert rig.bootstrap(RULE) != first


def test_no_rule_at_all_replaces_with_every_call(rig: Rig) -> None:
    assert rig.keys.bootstrap(iccid(1), 0) != rig.keys.bootstrap(iccid(1), 0)


def test_call_that_replaces_nothing_is_no_change(rig: Rig) -> None:
    rig.bootstrap()
    before = rig.version()
    rig.bootstrap(1)
    assert not rig.changed_since(before)
    rig.bootstrap(RULE)
    assert rig.changed_since(before)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["call", "set", "rotate"]), st.integers(-RULE, 2 * RULE)), max_size=8))
def test_rule_holds_for_any_calls(rig: Rig, steps: list[tuple[str, int]]) -> None:
    key, last = rig.keys.rotate(iccid(1)), None
    for what, seconds in steps:
        rig.now_ms += seconds * 1000
        if what == "call":
            due = not key.by_user and last is not None and rig.now_ms - last >= RULE * 1000
            got = rig.bootstrap()
            assert (got != key) == due
            key, last = got, rig.now_ms
        else:
            key = rig.keys.rotate(iccid(1)) if what == "rotate" else rig.keys.set(iccid(1), "12345678", STRING)
            last = None


# ---------------------------------------------------------------------- many at once


def test_many_keys_are_set_and_each_wrong_one_is_told(rig: Rig) -> None:
    rig.devices.import_all([Device(iccid(number)) for number in range(100, 1300)])
    old = rig.keys.rotate(iccid(100))
    rig.now_ms += 1000
    items = [WrittenKey(iccid(number), f"secret-{number}") for number in range(100, 1300)]
    items[5] = WrittenKey(iccid(105), "short")
    items[6] = WrittenKey(iccid(9999), "12345678")
    items[7] = WrittenKey("no ICCID", "12345678")
    items[8] = WrittenKey(iccid(100), "12345678")
    items[9] = WrittenKey(iccid(109), "c0ffeec0ffee", HEX)
    before = rig.version()
    outcomes = rig.keys.set_all(iter(items))
    assert rig.version() == before + 1
    wrong = {place: type(outcome) for place, outcome in enumerate(outcomes) if not isinstance(outcome, DeviceKey)}
    assert wrong == {5: KeyRefused, 6: DeviceNotFound, 7: DeviceNotFound, 8: KeyRefused}
    stored = [outcome for outcome in outcomes if isinstance(outcome, DeviceKey)]
    assert [key.iccid for key in stored] == [item.iccid for place, item in enumerate(items) if place not in wrong]
    assert all(rig.keys.get(key.iccid) == key for key in (stored[0], stored[5], stored[-1]))
    assert (stored[0].created_at, stored[0].updated_at) == (old.created_at, old.created_at + 1000)
    assert stored[0].by_user
    assert stored[5].secret == b"\xc0\xff\xee\xc0\xff\xee"
    with pytest.raises(KeyNotFound):
        rig.keys.get(iccid(105))


def test_setting_no_keys_is_fine(rig: Rig) -> None:
    assert rig.keys.set_all([]) == []


# ---------------------------------------------------------------------- what fails


def test_key_that_cannot_be_unsealed_is_our_error_and_the_call_does_not_count(rig: Rig) -> None:
    rig.bootstrap()
    with rig.opened.database.writing() as (connection, _):
        connection.execute(text("UPDATE device_keys SET serial = serial + 1000"))
    for ask in (rig.keys.get, lambda iccid: rig.keys.bootstrap(iccid, RULE)):
        with pytest.raises(StorageError, match="cannot be unsealed"):
            ask(iccid(1))
    assert rig.keys.set(iccid(1), "12345678", STRING).secret == b"12345678"


def test_database_that_will_not_be_written_gives_no_key(rig: Rig) -> None:
    first = rig.bootstrap()
    with rig.opened.database.reading() as connection:
        connection.exec_driver_sql("PRAGMA query_only=ON")  # stays with the pooled connection
    for seconds in itertools.repeat(RULE, 2):
        with pytest.raises(StorageError, match="readonly"):
            rig.bootstrap(seconds)
    assert rig.keys.get(iccid(1)) == first


def test_database_keeps_keys_of_devices_only(rig: Rig) -> None:
    rig.bootstrap()
    with pytest.raises(StorageError, match="FOREIGN KEY"), rig.opened.database.writing() as (connection, _):
        connection.execute(text("DELETE FROM devices"))
