"""Stand-ins for parts of coapgw that implement its interfaces in memory; each passes verifyObject in a test."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from zope.interface import implementer

from coapgw.errors import DeviceNotFound, KeyRefused, StorageError
from coapgw.interfaces import IDeviceDirectory, IDeviceKeys
from coapgw.model import Device, DeviceKey, KeyFormat, WrittenKey


@implementer(IDeviceDirectory)
class MemoryDirectory:
    """Devices that a test puts in and takes out."""

    def __init__(self, devices: Iterable[Device] = ()) -> None:
        self._devices: dict[str, Device] = {}
        self.generation = 0
        for device in devices:
            self.put(device)

    def put(self, device: Device) -> None:
        """Add a device, or change it; the address it has is taken from whoever had it."""
        self._devices.pop(device.iccid, None)
        self._devices[device.iccid] = device
        self.generation += 1

    def remove(self, iccid: str) -> None:
        """Forget a device."""
        del self._devices[iccid]
        self.generation += 1

    def by_address(self, ip: str) -> Device | None:
        holders = [device for device in self._devices.values() if device.ip == ip]
        return holders[-1] if holders else None

    def by_iccid(self, iccid: str) -> Device | None:
        return self._devices.get(iccid)


@implementer(IDeviceKeys)
class LostKeys:
    """Keys in a database that fails, whatever is asked of it."""

    def get(self, iccid: str) -> DeviceKey:
        raise StorageError("the device registry is gone")

    def set(self, iccid: str, written: str, key_format: KeyFormat) -> DeviceKey:
        return self.get(iccid)

    def set_all(self, wanted: Iterable[WrittenKey]) -> Sequence[DeviceKey | DeviceNotFound | KeyRefused]:
        return [self.get(key.iccid) for key in wanted]

    def rotate(self, iccid: str) -> DeviceKey:
        return self.get(iccid)

    def bootstrap(self, iccid: str, rotate_after_seconds: int) -> DeviceKey:
        return self.get(iccid)
