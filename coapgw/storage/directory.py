"""The memory image of the registry that the message path reads, and how it follows the database."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from coapgw.errors import StorageError
from coapgw.interfaces import IDeviceDirectory
from coapgw.model import Device
from coapgw.storage.devices import Changes
from coapgw.storage.key_image import KeyImage, serial_of

STALE_SECONDS: Final = 30.0  # a look that takes this long is not coming back soon
POLL_SECONDS: Final = 0.25  # a change shall be seen within a second, also on a machine that is busy

ReadChanges: TypeAlias = Callable[[int | None], Changes | None]
"""``DeviceRegistry.changes_since``."""

CallInThread: TypeAlias = Callable[[Callable[[], Changes | None]], "Deferred[Changes | None]"]
"""Calls a function that blocks somewhere else; the Deferred fires here."""


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

    def follow(
        self, reactor: Any, call_in_thread: CallInThread | None = None, interval: float = POLL_SECONDS
    ) -> RegistryFollower:
        """Return a service that keeps the image up to date while it runs.

        Args:
            reactor: gives the time, and threads unless *call_in_thread* does.
            call_in_thread: where reading happens, which may block.
            interval: seconds between looks at the registry.
        """
        return RegistryFollower(self, reactor, call_in_thread or _pool_of(reactor), interval)

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


class RegistryFollower(Service):
    """Looks into the registry now and then, with one look at a time, and has the image take in what is new.

    A registry that fails is logged once and looked at again; the devices stay as they were.
    """

    _log = Logger()

    def __init__(self, directory: DeviceDirectory, clock: Any, call_in_thread: CallInThread, interval: float) -> None:
        """Keep *directory* up to date, by *clock*."""
        self._directory = directory
        self._call_in_thread = call_in_thread
        self._interval = interval
        self._loop = LoopingCall(self._look)
        self._loop.clock = clock
        self._looking: Deferred[None] | None = None
        self._failing = False
        self._clock = clock
        self._looked_at = clock.seconds()

    def is_healthy(self) -> bool:
        """Whether the last look at the registry went well, and was not too long ago."""
        return not self._failing and self._clock.seconds() - self._looked_at < STALE_SECONDS

    def startService(self) -> None:
        """Begin to look."""
        super().startService()
        self._loop.start(self._interval, now=True)

    def stopService(self) -> Deferred[None]:
        """Look no more; fires when a look that is under way has ended."""
        super().stopService()
        if self._loop.running:
            self._loop.stop()
        if self._looking is None:
            return succeed(None)
        ended: Deferred[None] = Deferred()
        self._looking.addBoth(lambda _: ended.callback(None))
        return ended

    def _look(self) -> Deferred[None]:
        """Read, elsewhere, and apply, here; never fails.  The loop waits for it before it looks again."""
        looking = self._call_in_thread(self._directory.read).addCallback(self._seen).addErrback(self._failed)
        self._looking = looking
        return looking.addBoth(self._looked)

    def _seen(self, changes: Changes | None) -> None:
        if self._failing:
            self._failing = False
            self._log.info("the device registry can be read again")
        if changes is not None and self.running:
            self._directory.apply(changes)

    def _failed(self, failure: Failure) -> None:
        if self._failing:
            return
        self._failing = True
        if failure.check(StorageError):
            self._log.error("devices stay as they were: {reason}", reason=failure.getErrorMessage())
        else:
            self._log.failure("devices stay as they were", failure)

    def _looked(self, _: object) -> None:
        self._looking = None
        self._looked_at = self._clock.seconds()


def _pool_of(reactor: Any) -> CallInThread:
    """Return a CallInThread that uses the threads of *reactor*, which has none before it runs."""

    def call_in_thread(read: Callable[[], Changes | None]) -> Deferred[Changes | None]:
        return deferToThreadPool(reactor, reactor.getThreadPool(), read)

    return call_in_thread
