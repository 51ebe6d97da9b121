"""How MQTT 5 writes and reads its packets: properties, reason codes, subscription options (chapter 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias, TypeVar

from coapgw.mqtt.fields import Fields
from coapgw.mqtt.packet_types import (
    AUTH,
    CONNACK,
    CONNECT,
    DISCONNECT,
    LEVEL_5,
    PINGREQ,
    PINGRESP,
    PROTOCOL_NAME,
    PUBACK,
    PUBCOMP,
    PUBREC,
    PUBREL,
    SUBACK,
    SUBSCRIBE,
    UNSUBACK,
    UNSUBSCRIBE,
    WILL,
    MqttFormatError,
    encoded_text,
    framed,
    pack_two,
)
from coapgw.mqtt.packets import (
    REFUSED_VERSION,
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PingReq,
    PingResp,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    UnsubAck,
    Unsubscribe,
    UnsupportedConnect,
    Will,
    encode,
    encode_publish,
)
from coapgw.mqtt.properties import NO_PROPERTIES, Properties, encode_properties
from coapgw.mqtt.reasons import PROTOCOL_ERROR
from coapgw.mqtt.topics import is_valid_topic

Decoders: TypeAlias = Mapping[int, Callable[[bytes], Packet]]

# Sections 3.2.2.2, 3.4.2.1, 3.6.2.1, 3.9.3, 3.11.3, 3.14.2.1, 3.15.2.1.
_CONNACK_REASONS: Final = frozenset((0, *range(0x80, 0x8B), 0x8C, 0x90, 0x95, 0x97, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9F))
_PUBLISH_REASONS: Final = frozenset((0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99))
_RELEASE_REASONS: Final = frozenset((0, 0x92))
_SUBACK_REASONS: Final = frozenset((0, 1, 2, 0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2))
_UNSUBACK_REASONS: Final = frozenset((0, 0x11, 0x80, 0x83, 0x87, 0x8F, 0x91))
_DISCONNECT_REASONS: Final = frozenset(
    (0, 4, *range(0x80, 0x84), 0x87, 0x89, 0x8B, 0x8D, 0x8E, 0x8F, 0x90, *range(0x93, 0xA3))
)
_AUTH_REASONS: Final = frozenset((0, 0x18, 0x19))

NO_LOCAL: Final = 0x04  # section 3.8.3.1, subscription options
RETAIN_AS_PUBLISHED: Final = 0x08
RETAIN_HANDLING_SHIFT: Final = 4
SHARED: Final = b"$share/"

# ---------------------------------------------------------------------- writing


def encode_5(packet: Packet) -> bytes:
    """Write any packet as MQTT 5 has it, the shortest way.  Raises ValueError if a text in it is too long."""
    match packet:
        case Publish():
            return encode_publish(*packet[:6], encode_properties(packet.properties))
        case PubAck() | PubRec() | PubRel() | PubComp():
            return _encoded_answer(_ANSWER_FIRST[type(packet)], packet.packet_id, packet.reason, packet.properties)
        case PingReq() | PingResp() | UnsupportedConnect():
            return encode(packet)
        case Disconnect():
            return _encoded_end(DISCONNECT << 4, packet.reason, packet.properties)
        case Auth():
            return _encoded_end(AUTH << 4, packet.reason, packet.properties)
        case ConnAck():
            head = bytes((packet.session_present, packet.code))
            return framed(CONNACK << 4, head + encode_properties(packet.properties))
        case SubAck():
            return framed(SUBACK << 4, _head(packet) + bytes(packet.codes))
        case UnsubAck():
            return framed(UNSUBACK << 4, _head(packet) + bytes(packet.codes))
        case Subscribe():
            wanted = b"".join(encoded_text(one) + bytes((options,)) for one, options in packet.filters)
            return framed(SUBSCRIBE << 4 | 2, _head(packet) + wanted)
        case Unsubscribe():
            return framed(UNSUBSCRIBE << 4 | 2, _head(packet) + b"".join(encoded_text(one) for one in packet.filters))
        case Connect():
            return _encoded_connect(packet)


_ANSWER_FIRST: Final = {PubAck: 0x40, PubRec: 0x50, PubRel: 0x62, PubComp: 0x70}


def _head(packet: Subscribe | SubAck | Unsubscribe | UnsubAck) -> bytes:
    return pack_two(packet.packet_id) + encode_properties(packet.properties)


def _encoded_answer(first: int, packet_id: int, reason: int, properties: Properties) -> bytes:
    body = pack_two(packet_id)
    if properties is not NO_PROPERTIES and properties != NO_PROPERTIES:
        return framed(first, body + bytes((reason,)) + encode_properties(properties))
    return framed(first, body + bytes((reason,)) if reason else body)


def _encoded_end(first: int, reason: int, properties: Properties) -> bytes:
    if properties is not NO_PROPERTIES and properties != NO_PROPERTIES:
        return framed(first, bytes((reason,)) + encode_properties(properties))
    return framed(first, bytes((reason,)) if reason else b"")


def _encoded_connect(packet: Connect) -> bytes:
    flags = packet.clean_session << 1
    fields = [encode_properties(packet.properties), encoded_text(packet.client_id.encode())]
    if packet.will is not None:
        will = packet.will
        flags |= 0x04 | will.qos << 3 | will.retain << 5
        fields += (encode_properties(will.properties), encoded_text(will.topic), encoded_text(will.payload))
    if packet.user is not None:
        flags |= 0x80
        fields.append(encoded_text(packet.user.encode()))
    if packet.password is not None:
        flags |= 0x40
        fields.append(encoded_text(packet.password))
    head = encoded_text(PROTOCOL_NAME) + bytes((LEVEL_5, flags)) + pack_two(packet.keepalive)
    return framed(CONNECT << 4, head + b"".join(fields))


# ---------------------------------------------------------------------- reading


def connect_fields(body: Fields, level: int) -> Connect:
    """Read a CONNECT of either version from behind its *level*.  Raises MqttFormatError."""
    is_5 = level == LEVEL_5
    flags, keepalive = body.byte(), body.two()
    will_qos = flags >> 3 & 3
    lone_password = flags & 0x40 and not flags & 0x80 and not is_5
    if flags & 1 or will_qos == 3 or (flags & 0x38 and not flags & 4) or lone_password:
        raise MqttFormatError("CONNECT flags contradict each other")
    properties = body.properties(CONNECT) if is_5 else NO_PROPERTIES
    client_id = body.text()
    will = None
    if flags & 4:
        will_properties = body.properties(WILL) if is_5 else NO_PROPERTIES
        topic, payload = body.binary(), body.binary()
        if not is_valid_topic(topic):
            raise MqttFormatError("will topic is empty, has a wildcard, or is no text")
        will = Will(topic, payload, will_qos, flags & 0x20 != 0, will_properties)
    user = body.text() if flags & 0x80 else None
    password = body.binary() if flags & 0x40 else None
    body.end()
    return Connect(client_id, flags & 2 != 0, keepalive, will, user, password, level, properties)


def _decode_connect_again(data: bytes) -> Packet:
    raise MqttFormatError("CONNECT twice", PROTOCOL_ERROR)


def _decode_connack(data: bytes) -> Packet:
    if data == bytes((0, REFUSED_VERSION)):
        return ConnAck(False, REFUSED_VERSION)  # a broker that knows 3.1.1 only says so in its own tongue
    body = Fields(data)
    flags, reason = body.byte(), body.reason(_CONNACK_REASONS)
    if flags > 1 or (flags and reason):
        raise MqttFormatError("CONNACK is wrong")
    properties = body.properties(CONNACK)
    body.end()
    return ConnAck(flags == 1, reason, properties)


_Answer = TypeVar("_Answer", PubAck, PubRec, PubRel, PubComp)


def _answer(
    kind: int, known: frozenset[int], make: Callable[[int, int, Properties], _Answer]
) -> Callable[[bytes], _Answer]:
    """Return a decoder of the answers to a PUBLISH; what is left out means success, and no properties."""

    def decode(data: bytes) -> _Answer:
        body = Fields(data)
        packet_id = body.packet_id()
        reason = body.reason(known) if body.more() else 0
        properties = body.properties(kind) if body.more() else NO_PROPERTIES
        body.end()
        return make(packet_id, reason, properties)

    return decode


_End = TypeVar("_End", Disconnect, Auth)


def _end(kind: int, known: frozenset[int], make: Callable[[int, Properties], _End]) -> Callable[[bytes], _End]:
    """Return a decoder of packets that are a reason and properties, or nothing."""

    def decode(data: bytes) -> _End:
        body = Fields(data)
        reason = body.reason(known) if body.more() else 0
        properties = body.properties(kind) if body.more() else NO_PROPERTIES
        body.end()
        return make(reason, properties)

    return decode


def _decode_subscribe(data: bytes) -> Packet:
    body = Fields(data)
    packet_id, properties = body.packet_id(), body.properties(SUBSCRIBE)
    filters: list[tuple[bytes, int]] = []
    while body.more() or not filters:
        topic_filter, options = body.topic_filter(), body.byte()
        if options & 0xC0:
            raise MqttFormatError("SUBSCRIBE options that are reserved")
        if options & 3 == 3 or options >> RETAIN_HANDLING_SHIFT == 3:
            raise MqttFormatError("SUBSCRIBE options that mean nothing", PROTOCOL_ERROR)
        if options & NO_LOCAL and topic_filter.startswith(SHARED):
            raise MqttFormatError("a shared subscription cannot leave out local messages", PROTOCOL_ERROR)
        filters.append((topic_filter, options))
    return Subscribe(packet_id, tuple(filters), properties)


def _decode_unsubscribe(data: bytes) -> Packet:
    body = Fields(data)
    packet_id, properties = body.packet_id(), body.properties(UNSUBSCRIBE)
    filters: list[bytes] = []
    while body.more() or not filters:
        filters.append(body.topic_filter())
    return Unsubscribe(packet_id, tuple(filters), properties)


_Codes = TypeVar("_Codes", SubAck, UnsubAck)


def _codes(
    kind: int, known: frozenset[int], make: Callable[[int, tuple[int, ...], Properties], _Codes]
) -> Callable[[bytes], _Codes]:
    """Return a decoder of packets with a code for each filter."""

    def decode(data: bytes) -> _Codes:
        body = Fields(data)
        packet_id, properties = body.packet_id(), body.properties(kind)
        codes = [body.reason(known)]
        while body.more():
            codes.append(body.reason(known))
        return make(packet_id, tuple(codes), properties)

    return decode


def _empty(make: Callable[[], Packet]) -> Callable[[bytes], Packet]:
    """Return a decoder of packets without a body."""

    def decode(data: bytes) -> Packet:
        Fields(data).end()
        return make()

    return decode


DECODERS_5: Final[Decoders] = {
    CONNECT: _decode_connect_again,
    CONNACK: _decode_connack,
    PUBACK: _answer(PUBACK, _PUBLISH_REASONS, PubAck),
    PUBREC: _answer(PUBREC, _PUBLISH_REASONS, PubRec),
    PUBREL: _answer(PUBREL, _RELEASE_REASONS, PubRel),
    PUBCOMP: _answer(PUBCOMP, _RELEASE_REASONS, PubComp),
    SUBSCRIBE: _decode_subscribe,
    SUBACK: _codes(SUBACK, _SUBACK_REASONS, SubAck),
    UNSUBSCRIBE: _decode_unsubscribe,
    UNSUBACK: _codes(UNSUBACK, _UNSUBACK_REASONS, UnsubAck),
    PINGREQ: _empty(PingReq),
    PINGRESP: _empty(PingResp),
    DISCONNECT: _end(DISCONNECT, _DISCONNECT_REASONS, Disconnect),
    AUTH: _end(AUTH, _AUTH_REASONS, Auth),
}
"""By packet type, of a connection whose CONNECT was of MQTT 5; the parser itself reads PUBLISH."""
