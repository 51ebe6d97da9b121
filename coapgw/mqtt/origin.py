"""What MQTT 5 says beside a device's message: who sent it, which it is, and when it came."""

from __future__ import annotations

from typing import Final

from coapgw.model import Spooled

_USER_PROPERTIES: Final = b"\x26\0\x05iccid\0%c%b\x26\0\x02id\0%c%b\x26\0\x08received\0%c%b"  # none is over 255 bytes


def origin_properties(message: Spooled) -> bytes:
    """Return the user properties ``iccid``, ``id`` and ``received``, encoded, without their length."""
    iccid, message_id = message.iccid.encode(), message.message_id.encode()
    received = b"%d" % message.received
    return _USER_PROPERTIES % (len(iccid), iccid, len(message_id), message_id, len(received), received)
