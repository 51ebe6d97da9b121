"""A device as JSON shows it, here and on the command line."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from coapgw.model import Device, WireBytes

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def device_json(device: Device, last_seen: int | None = None, wire_bytes: WireBytes | None = None) -> dict[str, object]:
    """Return the fields of PRODUCT section 8; what is not known is absent.

    Args:
        last_seen: milliseconds since the epoch.
        wire_bytes: over DTLS, since the gateway started.
    """
    fields = {
        "iccid": device.iccid,
        "imsi": device.imsi,
        "ip": device.ip,
        "name": device.name,
        "status": device.status.value,
        "createdAt": time_text(device.created_at),
        "updatedAt": time_text(device.updated_at),
        "lastSeenAt": None if last_seen is None else time_text(last_seen),
        "wireBytes": None if wire_bytes is None else wire_bytes._asdict(),
    }
    return {name: value for name, value in fields.items() if value is not None}


def time_text(milliseconds: int) -> str:
    """Return ISO 8601 with milliseconds, UTC as Z; *milliseconds* since the epoch."""
    moment = _EPOCH + timedelta(milliseconds=milliseconds)
    return moment.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"
