"""The list of devices: what it takes, what it refuses, and what it tells of changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from zope.interface.verify import verifyObject

from coapgw.errors import DeviceExists, DeviceNotFound, DeviceRefused, ImportRefused, StorageError
from coapgw.interfaces import IDeviceRegistry
from coapgw.model import Device, DeviceStatus
from coapgw.storage.devices import DeviceRegistry
from tests.unit.registries import START_MS, OpenRegistry, iccid, registry_in


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[OpenRegistry]:
    with registry_in(tmp_path) as opened:
        yield opened


@pytest.fixture
def registry(opened: OpenRegistry) -> DeviceRegistry:
    return opened.devices


def version(registry: DeviceRegistry) -> int:
    changes = registry.changes_since(None)
    assert changes is not None
    return changes.version


def test_registry_is_what_the_interface_says(registry: DeviceRegistry) -> None:
    assert verifyObject(IDeviceRegistry, registry)


def test_added_device_is_stored_with_its_times(registry: DeviceRegistry) -> None:
    added = registry.add(Device(iccid(1), "901405100000001", "10.0.0.1", "one", DeviceStatus.INACTIVE, 5, 6))
    expected = (iccid(1), "901405100000001", "10.0.0.1", "one", DeviceStatus.INACTIVE, START_MS, START_MS)
    assert added == Device(*expected)
    assert registry.get(iccid(1)) == added


def test_address_is_kept_in_its_canonical_form(registry: DeviceRegistry) -> None:
    assert registry.add(Device(iccid(1), ip="2001:DB8::0001")).ip == "2001:db8::1"
    assert registry.add(Device(iccid(2), ip="::ffff:10.0.0.2")).ip == "10.0.0.2"


@pytest.mark.parametrize(
    ("device", "field"),
    [
        (Device("123"), "iccid"),
        (Device(iccid(1) + "x"), "iccid"),
        (Device(iccid(1), imsi="12"), "imsi"),
        (Device(iccid(1), ip="10.0.0.256"), "ip"),
        (Device(iccid(1), ip=""), "ip"),
        (Device(iccid(1), name="a\nb"), "name"),
        (Device(iccid(1), name="\udc80"), "name"),
        (Device(iccid(1), name=7), "name"),  # type: ignore[arg-type]  # what an API may be given
        (Device(None), "iccid"),  # type: ignore[arg-type]  # the same
        (Device(iccid(1), status="ACTIVE "), "status"),  # type: ignore[arg-type]  # the same
    ],
)
def test_wrong_value_is_refused_and_nothing_stored(registry: DeviceRegistry, device: Device, field: str) -> None:
    before = version(registry)
    with pytest.raises(DeviceRefused) as refused:
        registry.add(device)
    assert refused.value.field == field
    assert registry.list(10) == []
    assert version(registry) == before


def test_same_iccid_is_refused(registry: DeviceRegistry) -> None:
    registry.add(Device(iccid(1)))
    with pytest.raises(DeviceExists, match="registered already") as refused:
        registry.add(Device(iccid(1), name="again"))
    assert refused.value.field == "iccid"


def test_taken_address_is_refused_with_the_name_of_its_holder(registry: DeviceRegistry) -> None:
    registry.add(Device(iccid(1), ip="10.0.0.1"))
    registry.add(Device(iccid(2), ip="10.0.0.2"))
    with pytest.raises(DeviceExists, match=iccid(1)) as refused:
        registry.add(Device(iccid(3), ip="::ffff:10.0.0.1"))
    assert refused.value.field == "ip"
    with pytest.raises(DeviceExists, match=iccid(1)):
        registry.update(iccid(2), {"ip": "10.0.0.1"})
    assert registry.get(iccid(2)).ip == "10.0.0.2"


def test_database_itself_keeps_addresses_apart(opened: OpenRegistry) -> None:
    opened.devices.add(Device(iccid(1), ip="10.0.0.1"))
    opened.devices.add(Device(iccid(2)))
    with pytest.raises(StorageError, match="UNIQUE"), opened.database.writing() as (connection, _):
        connection.execute(text("UPDATE devices SET ip = '10.0.0.1'"))


def test_many_devices_go_without_an_address(registry: DeviceRegistry) -> None:
    registry.add(Device(iccid(1)))
    registry.add(Device(iccid(2)))
    assert len(registry.list(10)) == 2


def test_update_changes_what_is_named_and_none_empties(registry: DeviceRegistry) -> None:
    old = registry.add(Device(iccid(1), "901405100000001", "10.0.0.1", "one"))
    new = registry.update(iccid(1), {"ip": "10.0.0.9", "imsi": None, "status": "INACTIVE"})
    assert new == Device(
        iccid(1), None, "10.0.0.9", "one", DeviceStatus.INACTIVE, old.created_at, old.created_at + 1000
    )
    assert registry.get(iccid(1)) == new
    assert registry.update(iccid(1), {"ip": None, "name": None}).ip is None


def test_update_to_the_same_values_changes_nothing(registry: DeviceRegistry) -> None:
    added = registry.add(Device(iccid(1), ip="10.0.0.1"))
    assert registry.update(iccid(1), {"ip": "10.0.0.1", "status": DeviceStatus.ACTIVE}) == added
    assert registry.get(iccid(1)) == added


@pytest.mark.parametrize(
    ("field", "value"),
    [("iccid", iccid(2)), ("version", 3), ("imsi", "x"), ("status", None), ("status", []), ("ip", 1), ("name", "")],
)
def test_update_refuses_what_it_cannot_take(registry: DeviceRegistry, field: str, value: object) -> None:
    added = registry.add(Device(iccid(1)))
    with pytest.raises(DeviceRefused) as refused:
        registry.update(iccid(1), {field: value})
    assert refused.value.field == field
    assert registry.get(iccid(1)) == added


@pytest.mark.parametrize("unknown", [iccid(7), "", "x", "\udc80", "\0", "89882806660000000011111111111111"])
def test_unknown_device_is_not_found(registry: DeviceRegistry, unknown: str) -> None:
    for ask in (registry.get, registry.remove, lambda iccid: registry.update(iccid, {"name": "x"})):
        with pytest.raises(DeviceNotFound):
            ask(unknown)


def test_removed_device_leaves_room_for_another(registry: DeviceRegistry) -> None:
    first = registry.add(Device(iccid(1), ip="10.0.0.1"))
    registry.remove(iccid(1))
    assert registry.list(10) == []
    registry.add(Device(iccid(2), ip="10.0.0.1"))
    again = registry.add(Device(iccid(1)))
    assert again.created_at > first.created_at
    registry.remove(iccid(1))
    assert [device.iccid for device in registry.list(10)] == [iccid(2)]


def test_list_goes_page_by_page_in_order(registry: DeviceRegistry) -> None:
    for number in (5, 3, 1, 4, 2):
        registry.add(Device(iccid(number)))
    pages = [registry.list(2), registry.list(2, after=iccid(2)), registry.list(2, after=iccid(4))]
    assert [[device.iccid for device in page] for page in pages] == [
        [iccid(1), iccid(2)],
        [iccid(3), iccid(4)],
        [iccid(5)],
    ]
    assert registry.list(0) == []
    assert registry.list(-1) == []


@pytest.mark.parametrize(
    ("q", "found"),
    [
        ("", [1, 2, 3]),
        ("000000003", [3]),
        ("10.0.0.", [1, 2]),
        ("90140510000000", [2]),
        ("ROOM", [1]),
        ("_", [3]),
        ("%", [3]),
        ("nothing", []),
        ("\0", []),
        ("\udc80", []),
    ],
)
def test_search_finds_a_part_of_any_field(registry: DeviceRegistry, q: str, found: list[int]) -> None:
    registry.add(Device(iccid(1), ip="10.0.0.1", name="boiler room"))
    registry.add(Device(iccid(2), ip="10.0.0.2", imsi="901405100000002"))
    registry.add(Device(iccid(3), name="100 %_"))
    assert [device.iccid for device in registry.list(10, q=q)] == [iccid(number) for number in found]


def test_list_by_status(registry: DeviceRegistry) -> None:
    registry.add(Device(iccid(1)))
    registry.add(Device(iccid(2), status=DeviceStatus.INACTIVE))
    assert [device.iccid for device in registry.list(10, status="INACTIVE")] == [iccid(2)]
    with pytest.raises(DeviceRefused, match="ACTIVE or INACTIVE"):
        registry.list(10, status="ASLEEP")


def test_import_adds_all(registry: DeviceRegistry) -> None:
    new = [Device(iccid(number), ip=f"10.0.{number >> 8}.{number & 255}") for number in range(1200)]
    assert registry.import_all(iter(new)) == 1200
    assert [device.ip for device in registry.list(2000)] == [device.ip for device in new]
    assert version(registry) == 1


def test_import_of_nothing_is_fine(registry: DeviceRegistry) -> None:
    assert registry.import_all([]) == 0


def test_import_refuses_rows_that_are_wrong_or_repeat_each_other(registry: DeviceRegistry) -> None:
    rows = [
        Device(iccid(1), ip="10.0.0.1"),
        Device("x"),
        Device(iccid(2), ip="::ffff:10.0.0.1"),
        Device(iccid(1)),
        Device(iccid(3)),
    ]
    with pytest.raises(ImportRefused, match=r"^row 2: iccid 'x': .* \(and 2 more\)$") as refused:
        registry.import_all(rows)
    assert [(row, refusal.field) for row, refusal in refused.value.refusals] == [(2, "iccid"), (3, "ip"), (4, "iccid")]
    assert iccid(1) in str(refused.value.refusals[1][1])
    assert registry.list(10) == []


def test_import_refuses_rows_that_do_not_fit_what_is_there(registry: DeviceRegistry) -> None:
    registry.import_all([Device(iccid(1), ip="10.0.0.1"), Device(iccid(2), ip="10.0.0.2")])
    new = [Device(iccid(number)) for number in range(100, 700)]
    new[3] = Device(iccid(2))
    new[599] = Device(iccid(3), ip="10.0.0.1")
    before = version(registry)
    with pytest.raises(ImportRefused) as refused:
        registry.import_all(new)
    assert [(row, refusal.field) for row, refusal in refused.value.refusals] == [(4, "iccid"), (600, "ip")]
    assert iccid(1) in refused.value.refusals[1][1].reason
    assert len(registry.list(1000)) == 2
    assert version(registry) == before


def test_feed_gives_everything_at_first_and_then_what_is_new(registry: DeviceRegistry) -> None:
    one = registry.add(Device(iccid(1)))
    two = registry.add(Device(iccid(2)))
    first = registry.changes_since(None)
    assert first is not None
    assert (first.complete, list(first.changed), first.removed) == (True, [one, two], ())
    assert registry.changes_since(first.version) is None
    changed = registry.update(iccid(1), {"name": "x"})
    registry.remove(iccid(2))
    then = registry.changes_since(first.version)
    assert then is not None
    assert (then.complete, list(then.changed), then.removed) == (False, [changed], (iccid(2),))
    assert then.version == first.version + 2


def test_feed_names_a_device_that_came_back_as_changed(registry: DeviceRegistry) -> None:
    registry.add(Device(iccid(1)))
    before = version(registry)
    registry.remove(iccid(1))
    again = registry.add(Device(iccid(1)))
    changes = registry.changes_since(before)
    assert changes is not None
    assert (list(changes.changed), changes.removed) == ([again], (iccid(1),))


def test_feed_starts_over_when_the_database_is_an_older_one(registry: DeviceRegistry) -> None:
    one = registry.add(Device(iccid(1)))
    changes = registry.changes_since(100)
    assert changes is not None
    assert (changes.complete, list(changes.changed), changes.version) == (True, [one], 1)
