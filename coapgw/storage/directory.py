"""The memory image of the registry that the message path reads, and how it follows the database."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import TypeAlias

from twisted.logger import Logger
from zope.interface import implementer

from coapgw.interfaces import IDeviceDirectory
from coapgw.model import Device
from coapgw.storage.devices import Changes
from coapgw.storage.key_image import KeyImage, serial_of

ReadChanges: TypeAlias = Callable[[int | None], Changes | None]
"""``DeviceRegistry.changes_since``."""


@implementer(IDeviceDirectory)
class DeviceDirectory:
    """Every device, in memory; all calls from the reactor's thread, except that ``load`` may come before it runs.

    Args:
        read_changes: asks the registry what happened since a version; may block.
    """

    _log = Logger()

    def __init__(self, read_changes: ReadChanges) -> None:
        """Begin without devices."""
        self._read_changes = read_changes
        self._by_iccid: dict[str, Device] = {}
        self._by_address: dict[str, Device] = {}
        self._keys: dict[str, KeyImage] = {}
        self._version: int | None = None
        self._subscribers: list[Callable[[Sequence[str]], None]] = []
        self.generation = 0

    def __len__(self) -> int:
        """Return how many devices there are, whatever their status."""
        return len(self._by_iccid)

    def by_address(self, ip: str) -> Device | None:
        """Return the device with this source address (canonical text form), whatever its status."""
        return self._by_address.get(ip)

    def by_iccid(self, iccid: str) -> Device | None:
        """Return the device with this ICCID, whatever its status."""
        return self._by_iccid.get(iccid)

    def key_image(self, iccid: str) -> KeyImage | None:
        """Return the key of the device with this ICCID, still sealed, whatever the device's status."""
        return self._keys.get(iccid)

    def take_key(self, iccid: str, image: KeyImage) -> None:
        """Know a key that was stored a moment ago, before a look at the registry finds it, and tell the subscribers.

        A look that has seen the transaction which stored it knows better what became of it.
        """
        known = self._keys.get(iccid)
        seen = self._version if known is None else max(self._version or 0, serial_of(known))
        if seen is None or serial_of(image) <= seen or iccid not in self._by_iccid:
            return
        self._keys[self._by_iccid[iccid].iccid] = image
        self._tell([iccid])

    def subscribe(self, callback: Callable[[Sequence[str]], None]) -> None:
        """Tell *callback* from now on which devices (ICCIDs, each once) came, changed, got another key, or went.

        It is called in the reactor's thread, once for all that one look at the registry found, when the image and
        *generation* are those after the change.
        """
        self._subscribers.append(callback)

    def load(self) -> None:
        """Read what the registry has; blocks, so it is for the start.  Raises StorageError.

        Meanwhile no garbage is collected: walking a million new devices again and again doubles the time.
        """
        collecting = gc.isenabled()
        gc.disable()
        try:
            changes = self.read()
            if changes is not None:
                self.apply(changes)
        finally:
            if collecting:
                gc.enable()

    def read(self) -> Changes | None:
        """Return what ``apply`` has not seen yet; blocks, may be called from another thread.  Raises StorageError."""
        return self._read_changes(self._version)

    def apply(self, changes: Changes) -> None:
        """Bring the image to the state that *changes* leads to, in one go, and tell the subscribers."""
        touched = self._replace(changes) if changes.complete else self._amend(changes)
        self._version = changes.version
        if touched:
            self._tell(touched)

    def _tell(self, touched: Sequence[str]) -> None:
        self.generation += 1
        for callback in self._subscribers:
            with self._log.failuresHandled("telling of changed devices"):
                callback(touched)

    def _replace(self, everything: Changes) -> Sequence[str]:
        """Forget what was known; return the ICCIDs of what came, changed or went."""
        before, keys_before = self._by_iccid, self._keys
        devices = everything.changed
        known = self._by_iccid = {device.iccid: device for device in devices}
        self._by_address = {device.ip: device for device in devices if device.ip is not None}
        # One text for an ICCID, not two: of a million they are 68 MB.
        self._keys = {known[iccid].iccid if iccid in known else iccid: key for iccid, key in everything.keys.items()}
        touched = [
            device.iccid
            for device in devices
            if before.get(device.iccid) != device or keys_before.get(device.iccid) != self._keys.get(device.iccid)
        ]
        touched += before.keys() - known.keys()
        return touched

    def _amend(self, news: Changes) -> Sequence[str]:
        """Take in what changed; return the ICCIDs of what came, changed or went.

        Old addresses go before new ones come: one that moved from device to device must not be lost on the way.  And
        keys go with their device before keys come: one that came back may have another.
        """
        for iccid in news.removed:
            self._forget_address(iccid)
            self._keys.pop(iccid, None)
        for device in news.changed:
            self._forget_address(device.iccid)
        gone = [iccid for iccid in news.removed if self._by_iccid.pop(iccid, None) is not None]
        for device in news.changed:
            self._by_iccid[device.iccid] = device
            if device.ip is not None:
                self._by_address[device.ip] = device
        self._keys.update(news.keys)
        return list(dict.fromkeys([*gone, *(device.iccid for device in news.changed), *news.keys]))

    def _forget_address(self, iccid: str) -> None:
        """Take a device's address from it, unless it is another's by now."""
        old = self._by_iccid.get(iccid)
        if old is not None and old.ip is not None and self._by_address.get(old.ip) is old:
            del self._by_address[old.ip]
