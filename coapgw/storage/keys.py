"""The durable keys of devices: who chose them, when they are replaced."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import attrs
from sqlalchemy import Connection, delete, insert, select, update
from zope.interface import implementer

from coapgw.errors import DeviceNotFound, DeviceRefused, KeyNotFound, KeyRefused
from coapgw.interfaces import IDeviceKeys
from coapgw.model import DeviceKey, KeyFormat, WrittenKey, checked_iccid, checked_secret
from coapgw.storage.database import RegistryDatabase, Writing
from coapgw.storage.devices import CHUNK, find_device, pieces
from coapgw.storage.sealing import KeySeal
from coapgw.storage.tables import device_keys, devices

GENERATED_CHARACTERS: Final = 16  # of 62: 95 bits
_ALPHABET: Final = string.ascii_letters + string.digits

_COLUMNS: Final = (
    *(device_keys.c.iccid, device_keys.c.sealed, device_keys.c.format, device_keys.c.by_user),
    *(device_keys.c.serial, device_keys.c.created_at, device_keys.c.updated_at, device_keys.c.bootstrapped_at),
)


KeyOutcome: TypeAlias = "DeviceKey | DeviceNotFound | KeyRefused"


@attrs.frozen
class _Chosen:
    """A key before it is stored."""

    secret: bytes = attrs.field(repr=False)
    format: KeyFormat
    by_user: bool


@attrs.frozen
class _Stored:
    """A row of ``device_keys``; *bootstrapped_at* is when the device last asked for this key, None if it never did."""

    iccid: str
    sealed: bytes = attrs.field(repr=False)
    format: str
    by_user: bool
    serial: int
    created_at: int
    updated_at: int
    bootstrapped_at: int | None

    def is_due(self, now: int, after_seconds: int) -> bool:
        """Return whether a bootstrap call at *now* (milliseconds) finds a key that is to be replaced."""
        if self.by_user or self.bootstrapped_at is None:
            return False
        return max(0, now - self.bootstrapped_at) >= after_seconds * 1000


@implementer(IDeviceKeys)
class DeviceKeys:
    """The keys in the registry's database; every call may block, any thread may call.

    Args:
        database: as ``open_registry`` returns it.
        seal: as ``open_seal`` returns it.
        now_ms: milliseconds since the epoch.
    """

    def __init__(self, database: RegistryDatabase, seal: KeySeal, now_ms: Callable[[], int]) -> None:
        """Work on *database*."""
        self._database = database
        self._seal = seal
        self._now_ms = now_ms

    def get(self, iccid: str) -> DeviceKey:
        """Return a device's key.  Raises DeviceNotFound, KeyNotFound."""
        with self._database.reading() as connection:
            stored = _stored(connection, find_device(connection, iccid).iccid)
        if stored is None:
            raise KeyNotFound(iccid)
        return self._unsealed(stored)

    def set(self, iccid: str, written: str, key_format: KeyFormat) -> DeviceKey:
        """Give a device the key that a person has chosen, as *written* in *key_format*; return it.

        Raises DeviceNotFound, KeyRefused.
        """
        chosen = _Chosen(checked_secret(written, key_format), key_format, by_user=True)
        with self._writing() as writing:
            old = _stored(writing.connection, find_device(writing.connection, iccid).iccid)
            return self._replace(writing, iccid, old, chosen)

    def set_all(self, wanted: Iterable[WrittenKey]) -> Sequence[KeyOutcome]:
        """Give many devices the keys that a person has chosen, in one transaction.

        Returns, in the order of *wanted*, the key of each device or what is wrong with that item; the others are
        stored.  Raises StorageError, and then none is.
        """
        outcomes: list[KeyOutcome] = []
        good: dict[str, tuple[int, _Chosen]] = {}  # by ICCID: the place in *wanted*, and the key
        for place, item in enumerate(wanted):
            outcome: KeyOutcome = DeviceNotFound(item.iccid)  # until it is found
            try:
                if item.iccid in good:
                    raise KeyRefused("this device is in an earlier item already")
                chosen = _Chosen(checked_secret(item.written, item.format), item.format, by_user=True)
                good[checked_iccid(item.iccid)] = (place, chosen)
            except KeyRefused as refused:
                outcome = refused
            except DeviceRefused:
                pass  # what is no ICCID is nobody's
            outcomes.append(outcome)
        with self._writing() as writing:
            for some in pieces(list(good), CHUNK):
                for key in self._replace_all(writing, {iccid: good[iccid][1] for iccid in some}):
                    outcomes[good[key.iccid][0]] = key
        return outcomes

    def rotate(self, iccid: str) -> DeviceKey:
        """Give a device a new generated key, whoever chose the old one.  Raises DeviceNotFound.

        The device gets it with its next bootstrap call, however long ago the last one was.
        """
        with self._writing() as writing:
            old = _stored(writing.connection, find_device(writing.connection, iccid).iccid)
            return self._replace(writing, iccid, old, _generated())

    def bootstrap(self, iccid: str, rotate_after_seconds: int) -> DeviceKey:
        """Return the key that a device which asks for it gets, stored before this returns.

        None there: one is generated.  One that a person set is returned.  Another one is replaced if the device's last
        call was *rotate_after_seconds* ago or more; a clock that was put back makes that nothing, and the first call
        for a key is no reason to replace it.  Every call counts as the last.  Raises DeviceNotFound.
        """
        with self._writing() as writing:
            now = self._now_ms()
            old = _stored(writing.connection, find_device(writing.connection, iccid).iccid)
            if old is None or old.is_due(now, rotate_after_seconds):
                return self._replace(writing, iccid, old, _generated(), bootstrapped_at=now)
            key = self._unsealed(old)  # before the call counts: one that cannot be answered is none
            asked = update(device_keys).where(device_keys.c.iccid == iccid).values(bootstrapped_at=now)
            writing.connection.execute(asked)
            return key

    @contextmanager
    def _writing(self) -> Iterator[Writing]:
        """Write in one transaction, to a registry whose keys are sealed with our file.  Raises StorageError."""
        with self._database.writing() as writing:
            self._seal.expect_ours(writing.connection)
            yield writing

    def _replace(
        self, writing: Writing, iccid: str, old: _Stored | None, chosen: _Chosen, bootstrapped_at: int | None = None
    ) -> DeviceKey:
        """Write a device's new key over the *old* one."""
        new = self._sealed(iccid, writing.version, chosen, old, bootstrapped_at)
        if old is None:
            writing.connection.execute(insert(device_keys), attrs.asdict(new))
        else:
            changed = update(device_keys).where(device_keys.c.iccid == iccid).values(attrs.asdict(new))
            writing.connection.execute(changed)
        return _shown(new, chosen.secret)

    def _replace_all(self, writing: Writing, chosen: Mapping[str, _Chosen]) -> Iterator[DeviceKey]:
        """Write the keys of those devices (at most CHUNK) that there are; yield them."""
        connection = writing.connection
        known = connection.execute(select(devices.c.iccid).where(devices.c.iccid.in_(chosen))).scalars().all()
        rows = connection.execute(select(*_COLUMNS).where(device_keys.c.iccid.in_(known)))
        old = {stored.iccid: stored for stored in map(_of_row, rows)}
        new = [self._sealed(iccid, writing.version, chosen[iccid], old.get(iccid)) for iccid in known]
        connection.execute(delete(device_keys).where(device_keys.c.iccid.in_(known)))
        if new:
            connection.execute(insert(device_keys), [attrs.asdict(stored) for stored in new])
        for stored in new:
            yield _shown(stored, chosen[stored.iccid].secret)

    def _sealed(
        self, iccid: str, serial: int, chosen: _Chosen, old: _Stored | None, bootstrapped_at: int | None = None
    ) -> _Stored:
        """Return the row of a new key."""
        now = self._now_ms()
        return _Stored(
            iccid,
            self._seal.seal(chosen.secret, iccid, chosen.format, serial),
            chosen.format.value,
            chosen.by_user,
            serial,
            now if old is None else old.created_at,
            now,
            bootstrapped_at,
        )

    def _unsealed(self, stored: _Stored) -> DeviceKey:
        """Return the key of a row.  Raises StorageError."""
        secret = self._seal.unseal(stored.sealed, stored.iccid, KeyFormat(stored.format), stored.serial)
        return _shown(stored, secret)


def _generated() -> _Chosen:
    """Return a key that nobody chose."""
    characters = "".join(secrets.choice(_ALPHABET) for _ in range(GENERATED_CHARACTERS))
    return _Chosen(characters.encode(), KeyFormat.STRING, by_user=False)


def _stored(connection: Connection, iccid: str) -> _Stored | None:
    """Return the row of a device's key."""
    row = connection.execute(select(*_COLUMNS).where(device_keys.c.iccid == iccid)).one_or_none()
    return None if row is None else _of_row(row)


def _of_row(row: Sequence[Any]) -> _Stored:
    return _Stored(*row)


def _shown(stored: _Stored, secret: bytes) -> DeviceKey:
    return DeviceKey(
        stored.iccid,
        secret,
        KeyFormat(stored.format),
        stored.by_user,
        stored.serial,
        stored.created_at,
        stored.updated_at,
    )
