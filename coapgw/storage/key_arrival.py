"""Between a key that was just stored and the memory image that DTLS asks, which follows within a second.

A device that is told its key shakes hands at once, and some never try again: it is told when the handshake can succeed.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred, succeed

from coapgw.model import DeviceKey
from coapgw.storage.directory import DeviceDirectory
from coapgw.storage.key_image import serial_of


class KeyArrival:
    """Holds stored keys back until *directory* has them, or something newer.

    Who asks has a limit of its own on how many may wait.
    """

    def __init__(self, directory: DeviceDirectory) -> None:
        """Follow *directory*."""
        self._directory = directory
        self._waiting: dict[str, list[tuple[DeviceKey, Deferred[DeviceKey]]]] = {}
        directory.subscribe(self._changed)

    def when_known(self, key: DeviceKey) -> Deferred[DeviceKey]:
        """Return a Deferred that fires with *key*: now if it is known already or its device is gone, else soon."""
        image = self._directory.key_image(key.iccid)
        if self._directory.by_iccid(key.iccid) is None or (image is not None and serial_of(image) >= key.serial):
            return succeed(key)
        known: Deferred[DeviceKey] = Deferred()
        self._waiting.setdefault(key.iccid, []).append((key, known))
        return known

    def _changed(self, iccids: Sequence[str]) -> None:
        if not self._waiting:
            return
        for iccid in iccids:
            for key, known in self._waiting.pop(iccid, ()):
                self.when_known(key).chainDeferred(known)
