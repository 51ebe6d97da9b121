"""What is published: the JSON envelopes of PRODUCT section 6, written as bytes.

Every value that is put in is known to need no escaping (digits, addresses, base64, the characters of a topic, JSON), so
an envelope is a concatenation; the tests parse it with ``json`` and compare it with the published example.
"""

from __future__ import annotations

import json
from binascii import b2a_base64
from collections.abc import Callable
from typing import Final

from coapgw.model import Device

_ID_BYTES: Final = 12
_IDS_PER_POOL: Final = 256  # one call of the CSPRNG for so many ids
_DEVICES_REMEMBERED: Final = 65_536
_NOBODY: Final = (None, b"")


class MessageIds:
    """Ids ``1-<8 hex: seconds>-<24 hex random>``, unique, the consumer's key for dropping a repeat.

    Args:
        random_bytes: a CSPRNG, ``os.urandom``-like.
    """

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        """Draw the random part from *random_bytes*."""
        self._random_bytes = random_bytes
        self._pool = ""
        self._at = 0
        self._second = -1
        self._head = ""

    def next(self, received: int) -> str:
        """Return an id for a message received at *received* (milliseconds since the epoch)."""
        second = received // 1000
        if second != self._second:
            self._second = second
            self._head = f"1-{second & 0xFFFFFFFF:08x}-"
        at = self._at
        if at == len(self._pool):
            self._pool = self._random_bytes(_ID_BYTES * _IDS_PER_POOL).hex()
            at = 0
        self._at = at + 2 * _ID_BYTES
        return self._head + self._pool[at : self._at]


class EnvelopeWriter:
    """Writes envelopes; remembers the part that is the same for all messages of a device."""

    def __init__(self) -> None:
        """Begin with no device remembered."""
        self._devices: dict[str, tuple[Device, bytes]] = {}

    def telemetry(self, device: Device, message_id: str, received: int, payload: bytes, topic: bytes | None) -> bytes:
        """Return the envelope of a payload as it came (type STRING, base64)."""
        value = b'"payload":{"type":"STRING","encoding":"base64","value":"' + b2a_base64(payload, newline=False)
        return self._head("TELEMETRY_DATA", device, message_id, received) + value + b'"' + _topic(topic) + b"}}"

    def translated(self, device: Device, message_id: str, received: int, document: bytes, topic: bytes | None) -> bytes:
        """Return the envelope of a payload that a template turned into the JSON *document*."""
        value = b'"payload":{"type":"JSON","value":' + document
        return self._head("TELEMETRY_DATA", device, message_id, received) + value + _topic(topic) + b"}}"

    def lifecycle(self, device: Device, message_id: str, received: int) -> bytes:
        """Return the event that a device was heard for the first time."""
        event = (
            '"lifecycle":{"type":"DEVICE_FIRST_TIME_REGISTERED","message":'
            f'"New Device successfully registered for the first time - {device.iccid}"}}}}'
        )
        return self._head("LIFECYCLE", device, message_id, received) + event.encode()

    def error(self, device: Device, message_id: str, received: int, description: str, payload: bytes) -> bytes:
        """Return the event that a payload could not be translated; it holds the payload as it came (base64)."""
        event = (
            f'"error":{{"id":"{message_id}","type":"DEVICE","message":"Translator[UserPayloadError]",'
            f'"description":{json.dumps(description, ensure_ascii=False)},"payloadExists":true,"payload":"'
        )
        return (
            self._head("ERROR", device, message_id, received)
            + event.encode()
            + b2a_base64(payload, newline=False)
            + b'"}}'
        )

    def location(self, device: Device, message_id: str, received: int, location: tuple[str, str]) -> bytes:
        """Return the event that a device is at (longitude, latitude), as text."""
        event = f'"location":{{"source":"GPS","coordinates":["{location[0]}","{location[1]}"]}}}}'
        return self._head("LOCATION", device, message_id, received) + event.encode()

    def _head(self, kind: str, device: Device, message_id: str, received: int) -> bytes:
        head = f'{{"type":"{kind}","version":"1.0.0","id":"{message_id}","received":"{received}","source":"COAP",'
        known, part = self._devices.get(device.iccid, _NOBODY)
        return head.encode() + (part if known is device else self._device(device))

    def _device(self, device: Device) -> bytes:
        """Return the device's part of an envelope, and remember it."""
        fields = [f'"iccid":"{device.iccid}"']
        if device.ip is not None:
            fields.append(f'"ip":"{device.ip}"')
        if device.imsi is not None:
            fields.append(f'"imsi":"{device.imsi}"')
        part = f'"device":{{{",".join(fields)}}},'.encode()
        if len(self._devices) >= _DEVICES_REMEMBERED:
            self._devices.clear()
        self._devices[device.iccid] = (device, part)
        return part


def _topic(topic: bytes | None) -> bytes:
    return b"" if topic is None else b',"topic":"' + topic + b'"'
