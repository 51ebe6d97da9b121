"""Every established association of a server, whichever socket it came by: who goes when there are too many.

A front (``front.py``) finds an association by what a datagram shows: today its source address.  The table knows all of
them in the order in which they were last heard, and by device.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from itertools import islice
from typing import Final, Protocol

import attrs

from coapgw.dtls.cid import CidAssociation
from coapgw.dtls.connection import ConnectionAssociation
from coapgw.dtls.traffic import DtlsTraffic
from coapgw.metrics import DtlsCounters

CANDIDATES: Final = 64  # of the oldest connections the idlest goes: nobody waits while ten thousand are looked at
PER_DEVICE: Final = 4  # a device has one; a new port after a NAT forgot the old one makes another, reboots more


class Association(Protocol):
    """An established peer: opens its records and seals ours."""

    address: Hashable
    iccid: str
    serial: int
    last_heard: float

    @property
    def cid(self) -> bytes:
        """What its records are found by; empty: their address."""

    def __hash__(self) -> int:
        """Every association is equal to itself only."""

    def open(self, record: bytes) -> bytes | None:
        """Return the plaintext of an authentic record that was not seen before, None for any other."""

    def seal(self, content_type: int, plaintext: bytes) -> bytes:
        """Return a record."""

    def is_worn(self) -> bool:
        """Return whether it is time for new keys."""

    def repeat_flight(self) -> list[bytes] | None:
        """Return the last flight of the handshake anew, for a client that lost it."""


class Owner(Protocol):
    """Who serves an association."""

    def forget(self, association: Association, notify: bool) -> None:
        """Let go of it; *notify*: tell the peer."""


@attrs.frozen
class AssociationLimits:
    """How many associations there may be.

    Args:
        associations: of all devices.
        connections: of these, such as stay with OpenSSL: they cost a hundred times as much.
        per_device: of one device; a further one ends the one that was heard least recently.
        idle_seconds: without an authentic record.
    """

    associations: int = 200_000
    connections: int = 10_000
    per_device: int = PER_DEVICE
    idle_seconds: float = 604_800.0


class AssociationTable:
    """The associations of all sockets, the longest idle first.

    Args:
        is_current: whether a device may still use the key with this serial.
    """

    def __init__(
        self,
        limits: AssociationLimits,
        is_current: Callable[[str, int], bool],
        counters: DtlsCounters | None = None,
    ) -> None:
        """Begin with none."""
        self._limits = limits
        self._is_current = is_current
        self.counters = counters or DtlsCounters()
        self.traffic = DtlsTraffic()
        self._owners: OrderedDict[Association, Owner] = OrderedDict()
        self._of_device: dict[str, tuple[Association, ...]] = {}
        self._connections: dict[Association, None] = {}  # the oldest first
        self.by_cid: dict[bytes, CidAssociation] = {}
        self.is_open = self._owners.__contains__
        self.heard = self._owners.move_to_end
        """Called with an association that sent an authentic record."""

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._owners)

    def add(self, association: Association, owner: Owner) -> None:
        """Take in a new association, as the one that was heard last; who is too much for the limits goes."""
        siblings = self._of_device.get(association.iccid, ())
        if len(siblings) >= self._limits.per_device:
            self.close(min(siblings, key=_last_heard), notify=True)
            self.counters.superseded += 1
        if len(self._owners) >= self._limits.associations:
            self.close(next(iter(self._owners)), notify=True)
            self.counters.evicted += 1
        if isinstance(association, ConnectionAssociation):
            if len(self._connections) >= self._limits.connections:
                self.close(min(islice(self._connections, CANDIDATES), key=_last_heard), notify=True)
                self.counters.evicted += 1
            self._connections[association] = None
        if isinstance(association, CidAssociation):
            self.by_cid[association.cid] = association
        self._owners[association] = owner
        self._of_device[association.iccid] = (*self._of_device.get(association.iccid, ()), association)

    def remove(self, association: Association) -> Owner | None:
        """Forget an association; return who served it, None if it was not there."""
        owner = self._owners.pop(association, None)
        if owner is not None:
            self._connections.pop(association, None)
            if association.cid:
                del self.by_cid[association.cid]
            left = tuple(other for other in self._of_device[association.iccid] if other is not association)
            if left:
                self._of_device[association.iccid] = left
            else:
                del self._of_device[association.iccid]
        return owner

    def close(self, association: Association, *, notify: bool) -> None:
        """End an association, if it is there."""
        owner = self.remove(association)
        if owner is not None:
            owner.forget(association, notify)

    def is_of(self, association: Association, owner: Owner) -> bool:
        """Return whether an association is served by *owner*."""
        return self._owners.get(association) is owner

    def moved(self, association: Association, owner: Owner) -> None:
        """Have an association served by another owner: where its device is heard now."""
        self._owners[association] = owner

    def close_idle(self, now: float) -> None:
        """End those that were idle for too long."""
        while self._owners:
            oldest = next(iter(self._owners))
            if now - oldest.last_heard < self._limits.idle_seconds:
                return
            self.close(oldest, notify=True)
            self.counters.idle += 1

    def next_idle(self) -> float | None:
        """Return when ``close_idle`` has something to do."""
        return next(iter(self._owners)).last_heard + self._limits.idle_seconds if self._owners else None

    def is_current(self, association: Association) -> bool:
        """Return whether its device may still use the key it proved to have."""
        return self._is_current(association.iccid, association.serial)

    def devices_changed(self, iccids: Iterable[str]) -> None:
        """End the associations of those devices that may no longer use the key they proved to have."""
        for iccid in iccids:
            for association in self._of_device.get(iccid, ()):
                if not self.is_current(association):
                    self.close(association, notify=True)
                    self.counters.revoked += 1

    def of_device(self, iccid: str) -> Iterable[Association]:
        """Return the associations of a device."""
        return self._of_device.get(iccid, ())

    def all(self) -> Iterable[Association]:
        """Return every association, the longest idle first."""
        return self._owners.keys()


def _last_heard(association: Association) -> float:
    return association.last_heard
