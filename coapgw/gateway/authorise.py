"""Who is behind an address: a registered, active device, or a stranger."""

from __future__ import annotations

import ipaddress
from collections.abc import Hashable

from coapgw.interfaces import IDeviceDirectory
from coapgw.model import Device, DeviceStatus


class DevicesByAddress:
    """Knows devices by the source address of their datagrams, as the operator's network guarantees it."""

    def __init__(self, directory: IDeviceDirectory) -> None:
        """Look devices up in *directory*."""
        self._directory = directory

    @property
    def generation(self) -> int:
        """A number that grows when any device changed."""
        return self._directory.generation

    def identify(self, address: Hashable) -> Device | None:
        """Return the active device at *address* (a tuple that begins with the host), None for a stranger."""
        host = address[0] if isinstance(address, tuple) else ""
        if ":" in host:
            host = _canonical(host)
        device = self._directory.by_address(host)
        return device if device is not None and device.status is DeviceStatus.ACTIVE else None


class DevicesByAssociation:
    """Knows devices by the association of a secure transport: who has one has proved to be the device it names."""

    def __init__(self, directory: IDeviceDirectory) -> None:
        """Look devices up in *directory*."""
        self._directory = directory

    @property
    def generation(self) -> int:
        """A number that grows when any device changed."""
        return self._directory.generation

    def identify(self, address: Hashable) -> Device | None:
        """Return the active device behind an association (which has an *iccid*), None if it is active no more."""
        device = self._directory.by_iccid(getattr(address, "iccid", ""))
        return device if device is not None and device.status is DeviceStatus.ACTIVE else None


def _canonical(host: str) -> str:
    """Return an IPv6 host, as the socket wrote it, in the form the registry keeps; a zone is dropped."""
    address = ipaddress.IPv6Address(host.partition("%")[0])
    return str(address.ipv4_mapped or address)
