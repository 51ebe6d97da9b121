"""What translating came to: counted in memory with every message, added up on disk a minute later."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Final, TypeAlias

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update
from zope.interface import implementer

from coapgw.interfaces import ISavings
from coapgw.model import Saved, Savings
from coapgw.storage.database import RegistryDatabase
from coapgw.storage.devices import CHUNK, pieces
from coapgw.storage.tables import translations

DAY_MS: Final = 86_400_000
KEPT_DAYS: Final = 62  # twice what can be asked for, and today

_NOTHING: Final = Saved()
_SUMS: Final = (
    func.coalesce(func.sum(translations.c.messages), 0),
    func.coalesce(func.sum(translations.c.payload_bytes), 0),
    func.coalesce(func.sum(translations.c.document_bytes), 0),
)
_GAIN: Final = func.sum(translations.c.document_bytes) - func.sum(translations.c.payload_bytes)

Counts: TypeAlias = dict[tuple[int, str], Saved]
"""By day since the epoch and ICCID."""


@implementer(ISavings)
class TranslationCounts:
    """Counts translated messages and their bytes, by day (UTC) and device.

    Memory holds what was counted within a minute; a gateway that is killed forgets that much.

    Args:
        now_ms: milliseconds since the epoch.
    """

    def __init__(self, database: RegistryDatabase, now_ms: Callable[[], int]) -> None:
        """Add to what *database* has."""
        self._database = database
        self._now_ms = now_ms
        self._counted: Counts = {}
        self._taken: Counts = {}

    def count(self, iccid: str, received: int, payload_bytes: int, document_bytes: int) -> None:
        """Count a message that was *received* then (milliseconds since the epoch); in the reactor's thread."""
        key = (received // DAY_MS, iccid)
        messages, before, after = self._counted.get(key, _NOTHING)
        self._counted[key] = Saved(messages + 1, before + payload_bytes, after + document_bytes)

    # ------------------------------------------------------------------ what is noted (storage/periodic.py)

    def take(self) -> Counts:
        """Return what was counted since the last ``take``."""
        self._taken, self._counted = self._counted, {}
        return self._taken

    def put_back(self) -> None:
        """Count what ``take`` returned again, because it could not be written."""
        for key, saved in self._taken.items():
            self._counted[key] = _sum(self._counted.get(key, _NOTHING), saved)
        self._taken = {}

    def write(self, taken: Counts) -> None:
        """Add what ``take`` returned to what is on disk; forget what is too old.  Raises StorageError.

        In one transaction: what was written by half could not be put back.
        """
        oldest = self._now_ms() // DAY_MS - KEPT_DAYS
        with self._database.writing() as (connection, _):
            for day, keys in groupby(sorted(taken), key=itemgetter(0)):
                for some in pieces([iccid for _, iccid in keys], CHUNK):
                    _add(connection, day, {iccid: taken[day, iccid] for iccid in some})
            connection.execute(delete(translations).where(translations.c.day < oldest))
        self._taken = {}

    # ------------------------------------------------------------------ what is asked

    def report(self, days: int, iccid: str | None = None) -> Savings:
        """Return the sums of the last so many *days*, today included, and of as many before."""
        tomorrow = self._now_ms() // DAY_MS + 1
        return Savings(
            self._sum(tomorrow - days, tomorrow, iccid), self._sum(tomorrow - 2 * days, tomorrow - days, iccid)
        )

    def by_day(self, days: int) -> Sequence[tuple[int, Saved]]:
        """Return the sums of each of the last so many *days*, the last first."""
        tomorrow = self._now_ms() // DAY_MS + 1
        found = dict.fromkeys(range(tomorrow - 1, tomorrow - days - 1, -1), _NOTHING)
        wanted = select(translations.c.day, *_SUMS).where(translations.c.day >= tomorrow - days)
        with self._database.reading() as connection:
            for day, *sums in connection.execute(wanted.group_by(translations.c.day)):
                if day in found:
                    found[day] = Saved(*map(int, sums))
        for (day, _), saved in self._unwritten():
            if day in found:
                found[day] = _sum(found[day], saved)
        return list(found.items())

    def by_device(self, days: int, limit: int) -> Sequence[tuple[str, Saved]]:
        """Return the devices that saved most, as far as that is written down, with what is not."""
        first = self._now_ms() // DAY_MS + 1 - days
        wanted = select(translations.c.iccid, *_SUMS).where(translations.c.day >= first)
        best = wanted.group_by(translations.c.iccid).order_by(_GAIN.desc(), translations.c.iccid).limit(limit)
        with self._database.reading() as connection:
            found = {iccid: Saved(*map(int, sums)) for iccid, *sums in connection.execute(best)}
        for (day, iccid), saved in self._unwritten():
            if day >= first:
                found[iccid] = _sum(found.get(iccid, _NOTHING), saved)
        ranked = sorted(found.items(), key=lambda item: (item[1].payload_bytes - item[1].document_bytes, item[0]))
        return ranked[:limit]

    def _sum(self, first: int, end: int, iccid: str | None) -> Saved:
        wanted = select(*_SUMS).where(translations.c.day >= first, translations.c.day < end)
        if iccid is not None:
            wanted = wanted.where(translations.c.iccid == iccid)
        with self._database.reading() as connection:
            total = Saved(*map(int, connection.execute(wanted).one()))
        for (day, device), saved in self._unwritten():
            if first <= day < end and iccid in (None, device):
                total = _sum(total, saved)
        return total

    def _unwritten(self) -> Iterator[tuple[tuple[int, str], Saved]]:
        """Yield what is in memory only, of which other threads see a copy."""
        yield from list(self._taken.items())
        yield from list(self._counted.items())


def _sum(one: Saved, other: Saved) -> Saved:
    return Saved(*(a + b for a, b in zip(one, other, strict=True)))


def _add(connection: Connection, day: int, more: Mapping[str, Saved]) -> None:
    """Add to the rows of one day, or make them; nobody else writes meanwhile."""
    today = translations.c.day == day
    there = set(connection.execute(select(translations.c.iccid).where(today, translations.c.iccid.in_(more))).scalars())
    table = translations.c
    added = (
        update(translations)
        .where(today, table.iccid == bindparam("of"))
        .values(
            messages=table.messages + bindparam("more_messages"),
            payload_bytes=table.payload_bytes + bindparam("more_payload"),
            document_bytes=table.document_bytes + bindparam("more_document"),
        )
    )
    rows = [
        {"of": iccid, "more_messages": saved[0], "more_payload": saved[1], "more_document": saved[2]}
        for iccid, saved in more.items()
        if iccid in there
    ]
    if rows:
        connection.execute(added, rows)
    new = [{"day": day, "iccid": iccid, **saved._asdict()} for iccid, saved in more.items() if iccid not in there]
    if new:
        connection.execute(insert(translations), new)
