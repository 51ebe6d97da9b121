"""Bytes in, MQTT packets out: strict, incremental, linear however they are cut (MQTT 3.1.1 chapter 3)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import attrs

from coapgw.mqtt.fields import Fields
from coapgw.mqtt.packets import (
    CONNACK,
    CONNECT,
    DISCONNECT,
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
    SUBSCRIBE_FAILED,
    UNSUBACK,
    UNSUBSCRIBE,
    ConnAck,
    Connect,
    Disconnect,
    MqttFormatError,
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
)
from coapgw.mqtt.properties import NO_PROPERTIES, decode_properties
from coapgw.mqtt.reasons import NO_SUBSCRIBERS, PACKET_TOO_LARGE
from coapgw.mqtt.topics import is_valid_topic
from coapgw.mqtt.version_5 import DECODERS_5, Decoders, connect_fields

REMEMBERED_TOPICS = 8192  # topics found valid before need not be decoded again; with the next limit at most 2 MB
REMEMBERED_TOPIC_BYTES = 256

_PUBLISH_FLAGS = tuple(  # QoS, retain, DUP; QoS 3 and a repeat at QoS 0 are none (sections 3.3.1.1 and 3.3.1.2)
    None if qos == 3 or (dup and not qos) else (qos, retain, dup)
    for dup in (False, True)
    for qos in range(4)
    for retain in (False, True)
)
_new_tuple = tuple.__new__  # half the price of calling the NamedTuple


@attrs.define(eq=False)
class ValidTopics:
    """Topics that were found valid, bounded; one may serve many parsers."""

    topics: set[bytes] = attrs.Factory(set)

    def check(self, topic: bytes) -> None:
        """Raise MqttFormatError unless *topic* may be published to; remember it if it may."""
        if not is_valid_topic(topic):
            raise MqttFormatError("PUBLISH topic is empty, has a wildcard, or is no text")
        if len(topic) <= REMEMBERED_TOPIC_BYTES:
            if len(self.topics) >= REMEMBERED_TOPICS:
                self.topics.clear()
            self.topics.add(topic)


@attrs.define(eq=False)
class Parser:
    """Reads the packets of one connection.

    Args:
        max_packet: bytes of the largest packet that is taken, header included; it may be changed between packets.
        valid_topics: shared memory of topics.
        level: of the protocol, which a CONNECT may change.
        takes_5: whether a CONNECT of MQTT 5 is read; otherwise it is an UnsupportedConnect.
    """

    max_packet: int
    valid_topics: ValidTopics = attrs.Factory(ValidTopics)
    level: int = LEVEL_3_1_1
    takes_5: bool = False
    _pending: bytearray = attrs.Factory(bytearray)
    _needed: int = 0
    _failed: bool = False

    def packets(self, data: bytes) -> Iterator[Packet]:  # noqa: PLR0912, PLR0915 - one loop: calls cost a third more
        """Yield the packets that *data* completes, in order; keep what is left for the next call.

        Iterate to the end, or never call it again.  Raises MqttFormatError at the first packet that is wrong, after
        which the parser is of no use; a packet over ``max_packet`` is wrong as soon as its length is known, before any
        of it is kept.
        """
        if self._failed:
            raise MqttFormatError("more after an error")
        if self._pending:
            self._pending += data
            if len(self._pending) < self._needed:
                return
            data = bytes(self._pending)
            self._pending = bytearray()
        size = len(data)
        start = 0
        needed = 2
        known_topics = self.valid_topics.topics
        properties = NO_PROPERTIES
        is_5 = self.level == LEVEL_5
        decoders = self._decoders()
        self._failed = True  # unless the end is reached
        while size - start >= 2:
            first = data[start]
            length = data[start + 1]
            body = start + 2
            if length & 0x80:
                length, body = _long_length(data, start, size)
                if not body:
                    _check_first_byte(first, decoders)
                    needed = size - start + 1
                    break
            end = body + length
            if end - start > self.max_packet:
                raise MqttFormatError(
                    f"packet of {end - start} bytes, at most {self.max_packet} are taken", PACKET_TOO_LARGE
                )
            if end > size:
                _check_first_byte(first, decoders)
                needed = end - start
                break
            if first & 0xF0 == 0x30:
                flags = _PUBLISH_FLAGS[first & 15]
                if length < 2 or flags is None:
                    raise MqttFormatError("PUBLISH is too short or its flags are wrong")
                qos, retain, dup = flags
                at = body + 2 + (data[body] << 8 | data[body + 1])
                topic = data[body + 2 : at]
                packet_id = 0
                if qos:
                    if at + 2 > end or not (packet_id := data[at] << 8 | data[at + 1]):
                        raise MqttFormatError("PUBLISH has no packet identifier")
                    at += 2
                elif at > end:
                    raise MqttFormatError("PUBLISH topic is longer than the packet")
                if is_5:
                    properties, at = decode_properties(data, at, end, PUBLISH)
                if topic not in known_topics and (topic or properties.topic_alias is None):
                    self.valid_topics.check(topic)
                yield _new_tuple(Publish, (topic, data[at:end], qos, retain, dup, packet_id, properties))
            elif first == 0x40 and (length == 2 or (length == 3 and is_5 and data[body + 2] == NO_SUBSCRIBERS)):
                packet_id = data[body] << 8 | data[body + 1]
                if not packet_id:
                    raise MqttFormatError("packet identifier 0")
                yield _new_tuple(PubAck, (packet_id, NO_SUBSCRIBERS if length == 3 else 0, NO_PROPERTIES))
            else:
                _check_first_byte(first, decoders)
                packet = decoders[first >> 4](data[body:end])
                if type(packet) is Connect:
                    self.level = packet.level
                    is_5 = self.level == LEVEL_5
                    decoders = self._decoders()
                yield packet
            start = end
        if start < size:
            self._pending += data[start:]
            self._needed = needed
        self._failed = False

    def _decoders(self) -> Decoders:
        if self.level == LEVEL_5:
            return DECODERS_5
        return _DECODERS_UNTIL_CONNECT if self.takes_5 else _DECODERS


def _long_length(data: bytes, start: int, size: int) -> tuple[int, int]:
    """Return the remaining length of a packet and where its body begins, or 0 there if more bytes must come."""
    length = data[start + 1] & 0x7F
    for group in range(1, 4):
        at = start + 1 + group
        if at >= size:
            return 0, 0
        length |= (data[at] & 0x7F) << 7 * group
        if not data[at] & 0x80:
            return length, at + 1
    raise MqttFormatError("remaining length of more than four bytes")


def _check_first_byte(first: int, decoders: Decoders) -> None:
    """Refuse unknown types and flags that are reserved (table 2.2)."""
    kind = first >> 4
    if kind == 3:
        return
    if kind not in decoders or first & 15 != (2 if kind in (PUBREL, SUBSCRIBE, UNSUBSCRIBE) else 0):
        raise MqttFormatError(f"no packet begins with 0x{first:02x}")


def _decode_connect(data: bytes, levels: tuple[int, ...] = (LEVEL_3_1_1,)) -> Packet:
    body = Fields(data)
    name, level = body.binary(), body.byte()
    if name != PROTOCOL_NAME or level not in levels:
        return UnsupportedConnect(name[:16], level)
    return connect_fields(body, level)


def _decode_connack(data: bytes) -> Packet:
    if len(data) != 2 or data[0] > 1 or (data[0] and data[1]):
        raise MqttFormatError("CONNACK is wrong")
    return ConnAck(data[0] == 1, data[1])


def _decode_subscribe(data: bytes) -> Packet:
    body = Fields(data)
    packet_id = body.packet_id()
    filters: list[tuple[bytes, int]] = []
    while body.more() or not filters:
        filters.append((body.topic_filter(), body.byte()))
        if filters[-1][1] > 2:
            raise MqttFormatError("SUBSCRIBE asks for a QoS over 2")
    return Subscribe(packet_id, tuple(filters))


def _decode_suback(data: bytes) -> Packet:
    body = Fields(data)
    packet_id = body.packet_id()
    codes = tuple(data[2:])
    if not codes or any(code > 2 and code != SUBSCRIBE_FAILED for code in codes):
        raise MqttFormatError("SUBACK has no return code, or an unknown one")
    return SubAck(packet_id, codes)


def _decode_unsubscribe(data: bytes) -> Packet:
    body = Fields(data)
    packet_id = body.packet_id()
    filters: list[bytes] = []
    while body.more() or not filters:
        filters.append(body.topic_filter())
    return Unsubscribe(packet_id, tuple(filters))


def _identified(make: Callable[[int], Packet]) -> Callable[[bytes], Packet]:
    """Return a decoder of packets that are a packet identifier and nothing else."""

    def decode(data: bytes) -> Packet:
        body = Fields(data)
        packet_id = body.packet_id()
        body.end()
        return make(packet_id)

    return decode


def _empty(make: Callable[[], Packet]) -> Callable[[bytes], Packet]:
    """Return a decoder of packets without a body."""

    def decode(data: bytes) -> Packet:
        Fields(data).end()
        return make()

    return decode


_DECODERS: Decoders = {
    CONNECT: _decode_connect,
    CONNACK: _decode_connack,
    PUBACK: _identified(PubAck),
    PUBREC: _identified(PubRec),
    PUBREL: _identified(PubRel),
    PUBCOMP: _identified(PubComp),
    SUBSCRIBE: _decode_subscribe,
    SUBACK: _decode_suback,
    UNSUBSCRIBE: _decode_unsubscribe,
    UNSUBACK: _identified(UnsubAck),
    PINGREQ: _empty(PingReq),
    PINGRESP: _empty(PingResp),
    DISCONNECT: _empty(Disconnect),
}
_DECODERS_UNTIL_CONNECT: Decoders = {
    **_DECODERS,
    CONNECT: functools.partial(_decode_connect, levels=(LEVEL_3_1_1, LEVEL_5)),
}
