"""The packets of MQTT 3.1.1 as values, and how they are written; ``parser`` reads them.

One codec for both roles.  PUBLISH and PUBACK are tuples, because there is one of each per message; the rest are frozen
values.  Text that only names things (client id, user) is str; topics and payloads stay bytes.

The seam for MQTT 5: its packets have the same first bytes, a property list at a fixed place and reason codes, so it
needs a ``properties`` field here, one function that writes it, and ``Parser.version``.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, TypeAlias

import attrs

from coapgw.errors import PeerError

CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBSCRIBE = range(1, 9)
SUBACK, UNSUBSCRIBE, UNSUBACK, PINGREQ, PINGRESP, DISCONNECT = range(9, 15)

PROTOCOL_NAME = b"MQTT"
LEVEL_3_1_1 = 4
LEVEL_5 = 5

ACCEPTED = 0x00  # table 3.1, CONNACK return codes
REFUSED_VERSION = 0x01
REFUSED_CLIENT_ID = 0x02
REFUSED_UNAVAILABLE = 0x03
REFUSED_PASSWORD = 0x04
REFUSED_NOT_AUTHORISED = 0x05
SUBSCRIBE_FAILED = 0x80  # section 3.9.3
CONNACK_5_UNSUPPORTED_VERSION = b"\x20\x03\x00\x84\x00"  # MQTT 5 section 3.2: flags, reason, no properties

TEXT_LIMIT = 65_535  # bytes; section 1.5.3, a two-byte length
REMAINING_LENGTH_LIMIT = 268_435_455  # section 2.2.3, four seven-bit groups


class MqttFormatError(PeerError):
    """The peer sent something that is no MQTT; the connection ends (section 4.8)."""

    def __init__(self, reason: str) -> None:
        """Say what is wrong, without quoting the peer."""
        super().__init__(reason)
        self.reason = reason


class Publish(NamedTuple):
    """A PUBLISH; *packet_id* is 0 at QoS 0."""

    topic: bytes
    payload: bytes
    qos: int = 0
    retain: bool = False
    dup: bool = False
    packet_id: int = 0


class PubAck(NamedTuple):
    """QoS 1: the message with this packet identifier has arrived."""

    packet_id: int


@attrs.frozen
class PubRec:
    """QoS 2, first answer: received."""

    packet_id: int


@attrs.frozen
class PubRel:
    """QoS 2, second part: released."""

    packet_id: int


@attrs.frozen
class PubComp:
    """QoS 2, last answer: complete."""

    packet_id: int


@attrs.frozen
class Will:
    """What the broker publishes if the client vanishes."""

    topic: bytes
    payload: bytes
    qos: int = 0
    retain: bool = False


@attrs.frozen
class Connect:
    """The first packet of a client; *keepalive* in seconds, 0 for none."""

    client_id: str
    clean_session: bool = True
    keepalive: int = 0
    will: Will | None = None
    user: str | None = None
    password: bytes | None = attrs.field(default=None, repr=False)


@attrs.frozen
class UnsupportedConnect:
    """A CONNECT of another protocol version: nothing after the *level* byte was looked at."""

    name: bytes
    level: int


@attrs.frozen
class ConnAck:
    """The broker's answer to CONNECT."""

    session_present: bool
    code: int


@attrs.frozen
class Subscribe:
    """Filters, each with the highest QoS that is wanted."""

    packet_id: int
    filters: tuple[tuple[bytes, int], ...]


@attrs.frozen
class SubAck:
    """What was granted for each filter: a QoS or SUBSCRIBE_FAILED."""

    packet_id: int
    codes: tuple[int, ...]


@attrs.frozen
class Unsubscribe:
    """Filters that are not wanted any more."""

    packet_id: int
    filters: tuple[bytes, ...]


@attrs.frozen
class UnsubAck:
    """The answer to UNSUBSCRIBE."""

    packet_id: int


@attrs.frozen
class PingReq:
    """Are you there?"""


@attrs.frozen
class PingResp:
    """Yes."""


@attrs.frozen
class Disconnect:
    """A client leaves in peace: no will."""


Packet: TypeAlias = (
    Publish
    | PubAck
    | PubRec
    | PubRel
    | PubComp
    | Connect
    | UnsupportedConnect
    | ConnAck
    | Subscribe
    | SubAck
    | Unsubscribe
    | UnsubAck
    | PingReq
    | PingResp
    | Disconnect
)

_pack_two = struct.Struct("!H").pack
_PUBLISH_FIRST = tuple(bytes((PUBLISH << 4 | flags,)) for flags in range(16))
_ID_FIRST = {PubRec: b"\x50\x02", PubRel: b"\x62\x02", PubComp: b"\x70\x02", UnsubAck: b"\xb0\x02"}
_EMPTY = {PingReq: b"\xc0\x00", PingResp: b"\xd0\x00", Disconnect: b"\xe0\x00"}


def _encoded_length(length: int) -> bytes:
    """Write a remaining length (section 2.2.3)."""
    if length > REMAINING_LENGTH_LIMIT:
        raise ValueError(f"a packet of {length} bytes, at most {REMAINING_LENGTH_LIMIT} can be written")
    written = bytearray()
    while length > 127:
        written.append(length & 127 | 128)
        length >>= 7
    written.append(length)
    return bytes(written)


_SHORT_LENGTHS = tuple(_encoded_length(length) for length in range(2048))


def encode_publish(  # noqa: PLR0917 - the message path calls it, by position
    topic: bytes, payload: bytes, qos: int = 0, retain: bool = False, dup: bool = False, packet_id: int = 0
) -> bytes:
    """Write a PUBLISH; *packet_id* only at QoS 1 and 2.  Raises ValueError if *topic* or all of it is too long."""
    topic_bytes = len(topic)
    if topic_bytes > TEXT_LIMIT:
        raise ValueError(f"a topic of {topic_bytes} bytes, at most {TEXT_LIMIT} can be written")
    length = topic_bytes + len(payload) + (4 if qos else 2)
    return b"".join(
        (
            _PUBLISH_FIRST[dup << 3 | qos << 1 | retain],
            _SHORT_LENGTHS[length] if length < 2048 else _encoded_length(length),
            _pack_two(topic_bytes),
            topic,
            _pack_two(packet_id) if qos else b"",
            payload,
        )
    )


def encode_puback(packet_id: int) -> bytes:
    """Write a PUBACK."""
    return b"\x40\x02" + _pack_two(packet_id)


def encode(packet: Packet) -> bytes:
    """Write any packet.  Raises ValueError if a text in it is too long."""
    match packet:
        case Publish():
            return encode_publish(*packet)
        case PubAck(packet_id):
            return encode_puback(packet_id)
        case PubRec() | PubRel() | PubComp() | UnsubAck():
            return _ID_FIRST[type(packet)] + _pack_two(packet.packet_id)
        case PingReq() | PingResp() | Disconnect():
            return _EMPTY[type(packet)]
        case ConnAck():
            return bytes((CONNACK << 4, 2, packet.session_present, packet.code))
        case SubAck():
            return _framed(SUBACK << 4, _pack_two(packet.packet_id) + bytes(packet.codes))
        case Subscribe():
            wanted = b"".join(_text(one) + bytes((qos,)) for one, qos in packet.filters)
            return _framed(SUBSCRIBE << 4 | 2, _pack_two(packet.packet_id) + wanted)
        case Unsubscribe():
            return _framed(
                UNSUBSCRIBE << 4 | 2, _pack_two(packet.packet_id) + b"".join(_text(one) for one in packet.filters)
            )
        case Connect():
            return _encoded_connect(packet)
        case UnsupportedConnect():
            return _framed(CONNECT << 4, _text(packet.name) + bytes((packet.level,)))


def _encoded_connect(packet: Connect) -> bytes:
    flags = packet.clean_session << 1
    fields = [_text(packet.client_id.encode())]
    if packet.will is not None:
        flags |= 0x04 | packet.will.qos << 3 | packet.will.retain << 5
        fields += (_text(packet.will.topic), _text(packet.will.payload))
    if packet.user is not None:
        flags |= 0x80
        fields.append(_text(packet.user.encode()))
    if packet.password is not None:
        flags |= 0x40
        fields.append(_text(packet.password))
    head = _text(PROTOCOL_NAME) + bytes((LEVEL_3_1_1, flags)) + _pack_two(packet.keepalive)
    return _framed(CONNECT << 4, head + b"".join(fields))


def _framed(first: int, body: bytes) -> bytes:
    return bytes((first,)) + _encoded_length(len(body)) + body


def _text(text: bytes) -> bytes:
    if len(text) > TEXT_LIMIT:
        raise ValueError(f"a text of {len(text)} bytes, at most {TEXT_LIMIT} can be written")
    return _pack_two(len(text)) + text
