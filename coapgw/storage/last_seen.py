"""When devices were last heard: noted in memory with every message, on disk a minute later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from sqlalchemy import bindparam, or_, select, update
from zope.interface import implementer

from coapgw.interfaces import ILastSeen
from coapgw.model import Device
from coapgw.storage.database import RegistryDatabase
from coapgw.storage.tables import devices

ROWS_AT_ONCE: Final = 5_000  # in one transaction: everybody else who writes waits for it
CHUNK: Final = 500  # values in one IN (…), see storage/devices.py


@implementer(ILastSeen)
class LastSeen:
    """Remembers when devices were heard since it was last written down, and asks the registry for the others.

    ``heard`` is for the message path: ``heard[iccid] = received``, milliseconds since the epoch, in the reactor's
    thread.  It holds no more than the devices that were heard within a minute.
    """

    def __init__(self, database: RegistryDatabase) -> None:
        """Write to *database*."""
        self._database = database
        self.heard: dict[str, int] = {}
        self._taken: dict[str, int] = {}

    def of(self, wanted: Sequence[Device]) -> dict[str, int]:
        """Return, by ICCID, when the last message of each device arrived; blocks, any thread may call.

        Raises StorageError.
        """
        seen: dict[str, int] = {}
        elsewhere: list[str] = []
        for device in wanted:
            heard = self.heard.get(device.iccid) or self._taken.get(device.iccid)
            if heard is not None and heard >= device.created_at:
                seen[device.iccid] = heard
            else:
                elsewhere.append(device.iccid)
        if elsewhere:
            seen.update(self._written(elsewhere))
        return seen

    def take(self) -> Mapping[str, int]:
        """Return what was heard since the last ``take``; in the reactor's thread, and ``write`` comes next."""
        self._taken = dict(self.heard)
        self.heard.clear()
        return self._taken

    def put_back(self) -> None:
        """Remember again what ``take`` returned, because it could not be written; in the reactor's thread."""
        for iccid, heard in self._taken.items():
            self.heard.setdefault(iccid, heard)

    def write(self, taken: Mapping[str, int]) -> None:
        """Write down what ``take`` returned; blocks, any thread may call.  Raises StorageError.

        A device that was removed, or began a new life, is left as it is.
        """
        noted = (
            update(devices)
            .where(devices.c.iccid == bindparam("heard_iccid"), devices.c.created_at <= bindparam("heard_at"))
            .where(or_(devices.c.last_seen_at.is_(None), devices.c.last_seen_at < bindparam("heard_at")))
            .values(last_seen_at=bindparam("heard_at"))
        )
        rows = [{"heard_iccid": iccid, "heard_at": heard} for iccid, heard in sorted(taken.items())]
        for start in range(0, len(rows), ROWS_AT_ONCE):
            with self._database.writing() as (connection, _):
                connection.execute(noted, rows[start : start + ROWS_AT_ONCE])

    def _written(self, iccids: Sequence[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        with self._database.reading() as connection:
            for start in range(0, len(iccids), CHUNK):
                some = iccids[start : start + CHUNK]
                rows = connection.execute(
                    select(devices.c.iccid, devices.c.last_seen_at).where(
                        devices.c.iccid.in_(some), devices.c.last_seen_at.is_not(None)
                    )
                )
                found.update((row[0], row[1]) for row in rows)
        return found
