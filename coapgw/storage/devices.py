"""The durable list of devices, and the feed of what changed in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias, TypeVar

import attrs
from sqlalchemy import Connection, Select, delete, insert, or_, select, update
from zope.interface import implementer

from coapgw.errors import DeviceExists, DeviceNotFound, DeviceRefused, ImportRefused
from coapgw.interfaces import IDeviceRegistry
from coapgw.model import Device, DeviceStatus, checked_iccid, checked_imsi, checked_ip, checked_name, checked_status
from coapgw.storage.database import RegistryDatabase
from coapgw.storage.key_image import KeyImage, image_of
from coapgw.storage.tables import device_keys, devices, devices_removed, registry_version

CHUNK: Final = 500  # values in one IN (…): SQLite before 3.32 takes 999 in a statement
ROWS_AT_ONCE: Final = 10_000  # what one step of a long read or write holds in memory

_COLUMNS: Final = (
    *(devices.c.iccid, devices.c.imsi, devices.c.ip, devices.c.name),
    *(devices.c.status, devices.c.created_at, devices.c.updated_at),
)
_KEY: Final = (device_keys.c.iccid, device_keys.c.serial, device_keys.c.format, device_keys.c.sealed)
_STATUS: Final = {status.value: status for status in DeviceStatus}
_CHANGEABLE: Final = frozenset(("imsi", "ip", "name", "status"))

_Item = TypeVar("_Item")
_Devices: TypeAlias = list[Device]  # inside the class, "list" is a method


@attrs.frozen
class Changes:
    """What happened to the devices up to a version.

    Args:
        version: reading on from here misses nothing.
        changed: devices as they are now, in no order.
        removed: ICCIDs of devices that are gone, with their keys; one that came back is in *changed* too.
        complete: *changed* holds every device there is, *keys* every key, and *removed* nothing.
        keys: by ICCID, those that were set or replaced, as they are now.
    """

    version: int
    changed: Sequence[Device]
    removed: Sequence[str] = ()
    complete: bool = False
    keys: Mapping[str, KeyImage] = attrs.field(factory=dict, repr=False)


@implementer(IDeviceRegistry)
class DeviceRegistry:
    """The list of devices in the registry's database; every call may block, any thread may call.

    Args:
        database: as ``open_registry`` returns it.
        now_ms: milliseconds since the epoch.
    """

    def __init__(self, database: RegistryDatabase, now_ms: Callable[[], int]) -> None:
        """Work on *database*."""
        self._database = database
        self._now_ms = now_ms

    def add(self, device: Device) -> Device:
        """Store a new device; return it with its times.  Raises DeviceRefused, DeviceExists."""
        device = _born(device, self._now_ms())
        with self._database.writing() as (connection, version):
            for _, refusal in _conflicts(connection, [device]):
                raise refusal
            connection.execute(insert(devices), _row(device, version))
        return device

    def update(self, iccid: str, changes: dict[str, object]) -> Device:
        """Change the named fields of a device; None empties one.

        Raises DeviceRefused, DeviceExists, DeviceNotFound.
        """
        for field in changes.keys() - _CHANGEABLE:
            raise DeviceRefused(field, changes[field], "no field that can be changed")
        with self._database.writing() as (connection, version):
            old = find_device(connection, iccid)
            new = checked(attrs.evolve(old, **changes))  # type: ignore[arg-type]  # which is what it checks
            if new == old:
                return old
            if new.ip != old.ip:
                _expect_free(connection, new)
            new = attrs.evolve(new, updated_at=self._now_ms())
            connection.execute(update(devices).where(devices.c.iccid == iccid), _row(new, version))
        return new

    def remove(self, iccid: str) -> None:
        """Forget a device and its key.  Raises DeviceNotFound."""
        with self._database.writing() as (connection, version):
            find_device(connection, iccid)
            connection.execute(delete(device_keys).where(device_keys.c.iccid == iccid))
            connection.execute(delete(devices).where(devices.c.iccid == iccid))
            connection.execute(delete(devices_removed).where(devices_removed.c.iccid == iccid))
            connection.execute(insert(devices_removed), {"iccid": iccid, "version": version})

    def get(self, iccid: str) -> Device:
        """Return one device.  Raises DeviceNotFound."""
        with self._database.reading() as connection:
            return find_device(connection, iccid)

    def list(self, limit: int, after: str | None = None, status: str | None = None, q: str | None = None) -> _Devices:
        """Return up to *limit* devices in the order of their ICCIDs, from behind the ICCID *after*.

        *q* is part of an ICCID, IMSI, address or name, whatever its case.  Raises DeviceRefused for another *status*.
        """
        wanted = select(*_COLUMNS).order_by(devices.c.iccid).limit(max(limit, 0))
        if status is not None:
            wanted = wanted.where(devices.c.status == checked_status(status).value)
        if not ((q or "") + (after or "")).isprintable():
            return []  # nothing stored is like that, and not every database can be asked
        if after is not None:
            wanted = wanted.where(devices.c.iccid > after)
        if q:
            searched = (devices.c.iccid, devices.c.imsi, devices.c.ip, devices.c.name)
            wanted = wanted.where(or_(*(column.icontains(q, autoescape=True) for column in searched)))
        with self._database.reading() as connection:
            return [_device(row) for row in connection.execute(wanted)]

    def import_all(self, new: Iterable[Device]) -> int:
        """Add many devices in one transaction, or none of them; return how many.

        Raises:
            ImportRefused: a DeviceRefused that knows every row that cannot be added, and why.
        """
        born, refusals = self._all_born(new)
        if refusals:
            raise ImportRefused(refusals)
        with self._database.writing() as (connection, version):
            refusals = list(_conflicts(connection, born))
            if refusals:
                raise ImportRefused(refusals)
            for some in pieces(born, ROWS_AT_ONCE):
                connection.execute(insert(devices), [_row(device, version) for device in some])
        return len(born)

    def changes_since(self, version: int | None) -> Changes | None:
        """Return what happened after *version*, None if that was nothing; everything there is, for None.

        A database that is behind *version* has been put back to an older state: everything there is.
        """
        with self._database.reading() as connection:
            # The version comes first: what is committed while we read is read again next time, and nothing is missed.
            current: int = connection.execute(select(registry_version.c.n)).scalar_one()
            if current == version:
                return None
            if version is None or current < version:
                devices_there = _read(connection, select(*_COLUMNS))
                return Changes(current, devices_there, complete=True, keys=_read_keys(connection, select(*_KEY)))
            # Removals before changes: a device that comes back in between is there in the end.
            removed = connection.execute(select(devices_removed.c.iccid).where(devices_removed.c.version > version))
            gone = tuple(removed.scalars())
            changed = _read(connection, select(*_COLUMNS).where(devices.c.version > version))
            keys = _read_keys(connection, select(*_KEY).where(device_keys.c.serial > version))
            return Changes(current, changed, gone, keys=keys)

    def _all_born(self, new: Iterable[Device]) -> tuple[_Devices, Sequence[tuple[int, DeviceRefused]]]:
        """Return checked devices with their times, and a refusal for each that is wrong or repeats an earlier one."""
        born: list[Device] = []
        refusals: list[tuple[int, DeviceRefused]] = []
        holders: dict[str, str] = {}
        iccids: set[str] = set()
        now = self._now_ms()
        for row, candidate in enumerate(new, 1):
            try:
                device = _born(candidate, now)
                if device.iccid in iccids:
                    raise DeviceExists("iccid", device.iccid, "this device is in an earlier row already")
                if device.ip is not None and device.ip in holders:
                    other = holders[device.ip]
                    raise DeviceExists("ip", device.ip, f"device {other} in an earlier row has this address")
            except DeviceRefused as refusal:
                refusals.append((row, refusal))
                continue
            born.append(device)
            iccids.add(device.iccid)
            if device.ip is not None:
                holders[device.ip] = device.iccid
        return born, refusals


def checked(device: Device) -> Device:
    """Return *device* with its values in canonical form; raises DeviceRefused."""
    texts: dict[str, object] = {"iccid": device.iccid, "imsi": device.imsi, "ip": device.ip, "name": device.name}
    for field, value in texts.items():
        if not isinstance(value, str) and (value is not None or field == "iccid"):
            raise DeviceRefused(field, value, "not a text")
    status: Any = device.status  # from outside it may be text
    return attrs.evolve(
        device,
        iccid=checked_iccid(device.iccid),
        imsi=None if device.imsi is None else checked_imsi(device.imsi),
        ip=None if device.ip is None else checked_ip(device.ip),
        name=None if device.name is None else checked_name(device.name),
        status=status if isinstance(status, DeviceStatus) else checked_status(status),
    )


def _born(device: Device, now: int) -> Device:
    """Return *device*, checked, at the beginning of its life; raises DeviceRefused."""
    return attrs.evolve(checked(device), created_at=now, updated_at=now)


def find_device(connection: Connection, iccid: str) -> Device:
    """Return a device, as the transaction of *connection* sees it.  Raises DeviceNotFound."""
    try:
        row = connection.execute(select(*_COLUMNS).where(devices.c.iccid == checked_iccid(iccid))).one_or_none()
    except DeviceRefused:
        row = None  # what is no ICCID is nobody's
    if row is None:
        raise DeviceNotFound(iccid)
    return _device(row)


def _expect_free(connection: Connection, device: Device) -> None:
    """Raise DeviceExists if another device has the address of *device*."""
    if device.ip is None:
        return
    other = connection.execute(select(devices.c.iccid).where(devices.c.ip == device.ip)).scalar()
    if other not in (None, device.iccid):
        raise _address_taken(device.ip, other)


def _address_taken(ip: str, other: str | None) -> DeviceExists:
    return DeviceExists("ip", ip, f"device {other} has this address")


def _conflicts(connection: Connection, new: Sequence[Device]) -> Iterator[tuple[int, DeviceExists]]:
    """Yield the row (from 1) of each new device whose ICCID or address is taken, and what to say."""
    for piece, some in enumerate(pieces(new, CHUNK)):
        iccids = [device.iccid for device in some]
        known = set(connection.execute(select(devices.c.iccid).where(devices.c.iccid.in_(iccids))).scalars())
        ips = [device.ip for device in some if device.ip is not None]
        addressed = connection.execute(select(devices.c.ip, devices.c.iccid).where(devices.c.ip.in_(ips)))
        holders: dict[str | None, str] = {row[0]: row[1] for row in addressed}
        if not known and not holders:
            continue
        for row, device in enumerate(some, piece * CHUNK + 1):
            if device.iccid in known:
                yield row, DeviceExists("iccid", device.iccid, "this device is registered already")
            elif device.ip in holders:
                yield row, _address_taken(str(device.ip), holders[device.ip])


def pieces(whole: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    """Yield *whole* in pieces of at most *size*."""
    for start in range(0, len(whole), size):
        yield whole[start : start + size]


def _row(device: Device, version: int) -> dict[str, object]:
    """Return the columns of a device, as SQLAlchemy takes them."""
    return {
        "iccid": device.iccid,
        "imsi": device.imsi,
        "ip": device.ip,
        "name": device.name,
        "status": device.status.value,
        "created_at": device.created_at,
        "updated_at": device.updated_at,
        "version": version,
    }


def _device(row: Sequence[Any]) -> Device:
    iccid, imsi, ip, name, status, created_at, updated_at = row
    return Device(iccid, imsi, ip, name, _STATUS[status], created_at, updated_at)


def _read(connection: Connection, wanted: Select[Any]) -> list[Device]:
    """Return every device that *wanted* selects, never holding all of them twice."""
    rows = connection.execution_options(yield_per=ROWS_AT_ONCE).execute(wanted)
    return [_device(row) for row in rows]


def _read_keys(connection: Connection, wanted: Select[Any]) -> dict[str, KeyImage]:
    """Return every key that *wanted* selects, by the ICCID of its device."""
    rows = connection.execution_options(yield_per=ROWS_AT_ONCE).execute(wanted)
    return {iccid: image_of(serial, key_format, sealed) for iccid, serial, key_format, sealed in rows}
