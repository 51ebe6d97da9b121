"""The numbers of MQTT's packets, its versions and limits, and how lengths and texts are written: the codec's ground."""

from __future__ import annotations

import struct
from typing import Final

from coapgw.errors import PeerError
from coapgw.mqtt.reasons import MALFORMED_PACKET

CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBSCRIBE = range(1, 9)
SUBACK, UNSUBSCRIBE, UNSUBACK, PINGREQ, PINGRESP, DISCONNECT, AUTH = range(9, 16)
WILL: Final = 0  # no packet, but it has properties of its own

PROTOCOL_NAME: Final = b"MQTT"
LEVEL_3_1_1: Final = 4
LEVEL_5: Final = 5

TEXT_LIMIT: Final = 65_535  # bytes; section 1.5.3, a two-byte length
LENGTH_LIMIT: Final = 268_435_455  # section 2.2.3, four seven-bit groups

pack_two = struct.Struct("!H").pack


class MqttFormatError(PeerError):
    """The peer sent something that is no MQTT; the connection ends (section 4.8)."""

    def __init__(self, reason: str, code: int = MALFORMED_PACKET) -> None:
        """Say what is wrong, without quoting the peer, and with which reason *code* MQTT 5 has the peer told."""
        super().__init__(reason)
        self.reason = reason
        self.code = code


def encoded_length(length: int) -> bytes:
    """Write a variable byte integer (section 2.2.3).  Raises ValueError if it is too large."""
    if length > LENGTH_LIMIT:
        raise ValueError(f"a packet of {length} bytes, at most {LENGTH_LIMIT} can be written")
    written = bytearray()
    while length > 127:
        written.append(length & 127 | 128)
        length >>= 7
    written.append(length)
    return bytes(written)


def encoded_text(text: bytes) -> bytes:
    """Write a text or binary data, its length before it.  Raises ValueError if it is too long."""
    if len(text) > TEXT_LIMIT:
        raise ValueError(f"a text of {len(text)} bytes, at most {TEXT_LIMIT} can be written")
    return pack_two(len(text)) + text


def framed(first: int, body: bytes) -> bytes:
    """Write a packet: its first byte, its length, its *body*."""
    return bytes((first,)) + encoded_length(len(body)) + body
