"""How many bytes devices sent and were sent over DTLS: what an operator charges for, without IP and UDP headers."""

from __future__ import annotations

from zope.interface import implementer

from coapgw.interfaces import IWireBytes
from coapgw.model import WireBytes


@implementer(IWireBytes)
class DtlsTraffic:
    """Bytes of UDP payload by ICCID, since the gateway started.

    The dicts are the front's: ``received[iccid] += size``.  Only who proved to be a device is in them; a handshake
    counts when it is complete, and what was not authentic does not.
    """

    __slots__ = ("received", "sent")

    def __init__(self) -> None:
        """Begin with nobody."""
        self.received: dict[str, int] = {}
        self.sent: dict[str, int] = {}

    def took(self, iccid: str, size: int) -> None:
        """Count what a device sent."""
        self.received[iccid] = self.received.get(iccid, 0) + size

    def gave(self, iccid: str, size: int) -> None:
        """Count what a device was sent."""
        self.sent[iccid] = self.sent.get(iccid, 0) + size

    def of(self, iccid: str) -> WireBytes | None:
        """Return what was counted of a device, None if nothing was; any thread may call."""
        received, sent = self.received.get(iccid), self.sent.get(iccid)
        return None if received is None and sent is None else WireBytes(received or 0, sent or 0)
