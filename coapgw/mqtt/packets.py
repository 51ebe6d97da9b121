"""The packets of MQTT as values, and how 3.1.1 writes them; ``parser`` reads them.

One codec for both roles.  PUBLISH and PUBACK are tuples, because there is one of each per message; the rest are frozen
values.  Text that only names things (client id, user) is str; topics and payloads stay bytes.

What only MQTT 5 says has a default, so that 3.1.1 need not know of it; ``version_5`` writes and reads it.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import attrs

from coapgw.mqtt.packet_types import (
    AUTH,
    CONNACK,
    CONNECT,
    DISCONNECT,
    LENGTH_LIMIT,
    LEVEL_3_1_1,
    LEVEL_5,
    PINGREQ,
    PINGRESP,
    PROTOCOL_NAME,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    SUBACK,
    SUBSCRIBE,
    TEXT_LIMIT,
    UNSUBACK,
    UNSUBSCRIBE,
    MqttFormatError,
    encoded_length,
    encoded_text,
    framed,
    pack_two,
)
from coapgw.mqtt.properties import NO_PROPERTIES, Properties

REMAINING_LENGTH_LIMIT = LENGTH_LIMIT

ACCEPTED = 0x00  # table 3.1, CONNACK return codes
REFUSED_VERSION = 0x01
REFUSED_CLIENT_ID = 0x02
REFUSED_UNAVAILABLE = 0x03
REFUSED_PASSWORD = 0x04
REFUSED_NOT_AUTHORISED = 0x05
SUBSCRIBE_FAILED = 0x80  # section 3.9.3
CONNACK_5_UNSUPPORTED_VERSION = b"\x20\x03\x00\x84\x00"  # MQTT 5 section 3.2: flags, reason, no properties


class Publish(NamedTuple):
    """A PUBLISH; *packet_id* is 0 at QoS 0."""

    topic: bytes
    payload: bytes
    qos: int = 0
    retain: bool = False
    dup: bool = False
    packet_id: int = 0
    properties: Properties = NO_PROPERTIES


class PubAck(NamedTuple):
    """QoS 1: the message with this packet identifier has arrived, or was refused: *reason* is 0x80 or above."""

    packet_id: int
    reason: int = 0
    properties: Properties = NO_PROPERTIES


@attrs.frozen
class PubRec:
    """QoS 2, first answer: received."""

    packet_id: int
    reason: int = 0
    properties: Properties = NO_PROPERTIES


@attrs.frozen
class PubRel:
    """QoS 2, second part: released."""

    packet_id: int
    reason: int = 0
    properties: Properties = NO_PROPERTIES


@attrs.frozen
class PubComp:
    """QoS 2, last answer: complete."""

    packet_id: int
    reason: int = 0
    properties: Properties = NO_PROPERTIES


@attrs.frozen
class Will:
    """What the broker publishes if the client vanishes."""

    topic: bytes
    payload: bytes
    qos: int = 0
    retain: bool = False
    properties: Properties = NO_PROPERTIES


@attrs.frozen
class Connect:
    """The first packet of a client; *keepalive* in seconds, 0 for none.

    Of MQTT 5 if *level* says so; *clean_session* is its Clean Start.
    """

    client_id: str
    clean_session: bool = True
    keepalive: int = 0
    will: Will | None = None
    user: str | None = None
    password: bytes | None = attrs.field(default=None, repr=False)
    level: int = LEVEL_3_1_1
    properties: Properties = attrs.field(default=NO_PROPERTIES, repr=False)  # may hold authentication data


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
    properties: Properties = NO_PROPERTIES


@attrs.frozen
class Subscribe:
    """Filters, each with the highest QoS that is wanted; in MQTT 5 that is the lower half of its options."""

    packet_id: int
    filters: tuple[tuple[bytes, int], ...]
    properties: Properties = NO_PROPERTIES


@attrs.frozen
class SubAck:
    """What was granted for each filter: a QoS or SUBSCRIBE_FAILED."""

    packet_id: int
    codes: tuple[int, ...]
    properties: Properties = NO_PROPERTIES


@attrs.frozen
class Unsubscribe:
    """Filters that are not wanted any more."""

    packet_id: int
    filters: tuple[bytes, ...]
    properties: Properties = NO_PROPERTIES


@attrs.frozen
class UnsubAck:
    """The answer to UNSUBSCRIBE; MQTT 5 has a code for each filter."""

    packet_id: int
    codes: tuple[int, ...] = ()
    properties: Properties = NO_PROPERTIES


@attrs.frozen
class PingReq:
    """Are you there?"""


@attrs.frozen
class PingResp:
    """Yes."""


@attrs.frozen
class Disconnect:
    """A client leaves in peace: no will.  In MQTT 5 either side says why; 4 is "with will"."""

    reason: int = 0
    properties: Properties = NO_PROPERTIES


@attrs.frozen
class Auth:
    """One step of an authentication in several, MQTT 5 only."""

    reason: int = 0
    properties: Properties = attrs.field(default=NO_PROPERTIES, repr=False)


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
    | Auth
)

_PUBLISH_FIRST = tuple(bytes((PUBLISH << 4 | flags,)) for flags in range(16))
_ID_FIRST = {PubRec: b"\x50\x02", PubRel: b"\x62\x02", PubComp: b"\x70\x02", UnsubAck: b"\xb0\x02"}
_EMPTY = {PingReq: b"\xc0\x00", PingResp: b"\xd0\x00", Disconnect: b"\xe0\x00"}


_SHORT_LENGTHS = tuple(encoded_length(length) for length in range(2048))


def encode_publish(  # noqa: PLR0917 - the message path calls it, by position
    topic: bytes,
    payload: bytes,
    qos: int = 0,
    retain: bool = False,
    dup: bool = False,
    packet_id: int = 0,
    properties: bytes = b"",
) -> bytes:
    """Write a PUBLISH; *packet_id* only at QoS 1 and 2.  Raises ValueError if *topic* or all of it is too long.

    *properties* are none in 3.1.1, and encoded in 5: at least their length, 0.
    """
    topic_bytes = len(topic)
    if topic_bytes > TEXT_LIMIT:
        raise ValueError(f"a topic of {topic_bytes} bytes, at most {TEXT_LIMIT} can be written")
    length = topic_bytes + len(payload) + len(properties) + (4 if qos else 2)
    return b"".join(
        (
            _PUBLISH_FIRST[dup << 3 | qos << 1 | retain],
            _SHORT_LENGTHS[length] if length < 2048 else encoded_length(length),
            pack_two(topic_bytes),
            topic,
            pack_two(packet_id) if qos else b"",
            properties,
            payload,
        )
    )


def encode_puback(packet_id: int) -> bytes:
    """Write a PUBACK."""
    return b"\x40\x02" + pack_two(packet_id)


def encode(packet: Packet) -> bytes:
    """Write any packet as 3.1.1 has it, properties and reasons left out.

    Raises ValueError if a text in it is too long, or if only MQTT 5 has such a packet.
    """
    match packet:
        case Publish():
            return encode_publish(*packet[:6])
        case PubAck(packet_id):
            return encode_puback(packet_id)
        case PubRec() | PubRel() | PubComp() | UnsubAck():
            return _ID_FIRST[type(packet)] + pack_two(packet.packet_id)
        case PingReq() | PingResp() | Disconnect():
            return _EMPTY[type(packet)]
        case ConnAck():
            return bytes((CONNACK << 4, 2, packet.session_present, packet.code))
        case SubAck():
            return framed(SUBACK << 4, pack_two(packet.packet_id) + bytes(packet.codes))
        case Subscribe():
            wanted = b"".join(encoded_text(one) + bytes((qos,)) for one, qos in packet.filters)
            return framed(SUBSCRIBE << 4 | 2, pack_two(packet.packet_id) + wanted)
        case Unsubscribe():
            return framed(
                UNSUBSCRIBE << 4 | 2, pack_two(packet.packet_id) + b"".join(encoded_text(one) for one in packet.filters)
            )
        case Connect(level=level) if level == LEVEL_3_1_1:
            return _encoded_connect(packet)
        case Auth() | Connect():
            raise ValueError("only MQTT 5 has such a packet")
        case UnsupportedConnect():
            return framed(CONNECT << 4, encoded_text(packet.name) + bytes((packet.level,)))


def _encoded_connect(packet: Connect) -> bytes:
    flags = packet.clean_session << 1
    fields = [encoded_text(packet.client_id.encode())]
    if packet.will is not None:
        flags |= 0x04 | packet.will.qos << 3 | packet.will.retain << 5
        fields += (encoded_text(packet.will.topic), encoded_text(packet.will.payload))
    if packet.user is not None:
        flags |= 0x80
        fields.append(encoded_text(packet.user.encode()))
    if packet.password is not None:
        flags |= 0x40
        fields.append(encoded_text(packet.password))
    head = encoded_text(PROTOCOL_NAME) + bytes((LEVEL_3_1_1, flags)) + pack_two(packet.keepalive)
    return framed(CONNECT << 4, head + b"".join(fields))


__all__ = [
    "ACCEPTED",
    "AUTH",
    "CONNACK",
    "CONNACK_5_UNSUPPORTED_VERSION",
    "CONNECT",
    "DISCONNECT",
    "LEVEL_3_1_1",
    "LEVEL_5",
    "PINGREQ",
    "PINGRESP",
    "PROTOCOL_NAME",
    "PUBACK",
    "PUBCOMP",
    "PUBLISH",
    "PUBREC",
    "PUBREL",
    "REFUSED_CLIENT_ID",
    "REFUSED_NOT_AUTHORISED",
    "REFUSED_PASSWORD",
    "REFUSED_UNAVAILABLE",
    "REFUSED_VERSION",
    "REMAINING_LENGTH_LIMIT",
    "SUBACK",
    "SUBSCRIBE",
    "SUBSCRIBE_FAILED",
    "TEXT_LIMIT",
    "UNSUBACK",
    "UNSUBSCRIBE",
    "Auth",
    "ConnAck",
    "Connect",
    "Disconnect",
    "MqttFormatError",
    "Packet",
    "PingReq",
    "PingResp",
    "PubAck",
    "PubComp",
    "PubRec",
    "PubRel",
    "Publish",
    "SubAck",
    "Subscribe",
    "UnsubAck",
    "Unsubscribe",
    "UnsupportedConnect",
    "Will",
    "encode",
    "encode_puback",
    "encode_publish",
]
