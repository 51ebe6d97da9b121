"""The properties of MQTT 5 (section 2.2.2): one record for all packets, and a table that says which may hold what.

What names things to people is str; what a broker passes on unread (user properties, content type, response topic) stays
bytes, UTF-8 that was checked.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from coapgw.mqtt.packet_types import (
    AUTH,
    CONNACK,
    CONNECT,
    DISCONNECT,
    LENGTH_LIMIT,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    SUBACK,
    SUBSCRIBE,
    UNSUBACK,
    UNSUBSCRIBE,
    WILL,
    MqttFormatError,
    encoded_length,
    encoded_text,
)
from coapgw.mqtt.reasons import PROTOCOL_ERROR
from coapgw.mqtt.topics import is_valid_text, is_valid_topic


class Properties(NamedTuple):
    """What a packet says beside its fields; None and () mean that it does not.  A tuple, because messages have them.

    Times are in seconds.  *subscription_identifiers* has several only in a PUBLISH.
    """

    payload_format: int | None = None  # 1: the payload is UTF-8
    message_expiry: int | None = None
    content_type: bytes | None = None
    response_topic: bytes | None = None
    correlation_data: bytes | None = None
    subscription_identifiers: tuple[int, ...] = ()
    session_expiry: int | None = None
    assigned_client_id: str | None = None
    server_keepalive: int | None = None
    authentication_method: str | None = None
    authentication_data: bytes | None = None
    request_problem_information: int | None = None
    will_delay: int | None = None
    request_response_information: int | None = None
    response_information: str | None = None
    server_reference: str | None = None
    reason_string: str | None = None
    receive_maximum: int | None = None
    topic_alias_maximum: int | None = None
    topic_alias: int | None = None
    maximum_qos: int | None = None
    retain_available: int | None = None
    user_properties: tuple[tuple[bytes, bytes], ...] = ()
    maximum_packet_size: int | None = None
    wildcard_subscription_available: int | None = None
    subscription_identifier_available: int | None = None
    shared_subscription_available: int | None = None


NO_PROPERTIES: Final = Properties()
NO_PROPERTIES_ENCODED: Final = b"\0"


class _Kind(enum.Enum):
    """How a value is written (table 2-4)."""

    FLAG = "one byte, 0 or 1"
    TWO = "two bytes"
    FOUR = "four bytes"
    LENGTH = "variable byte integer"
    NAME = "UTF-8, for us"
    TEXT = "UTF-8, passed on"
    BINARY = "bytes"
    PAIR = "two of UTF-8"


class _Rule(NamedTuple):
    """One row of table 2-4: where a property may be; *repeats* says where more than once; 0 may be *zero*."""

    field: str
    kind: _Kind
    packets: frozenset[int]
    zero: bool = True
    repeats: frozenset[int] = frozenset()


_ACKS: Final = frozenset((PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK, UNSUBACK))
_MESSAGES: Final = frozenset((PUBLISH, WILL))
_EVERYWHERE: Final = _ACKS | _MESSAGES | {CONNECT, CONNACK, SUBSCRIBE, UNSUBSCRIBE, DISCONNECT, AUTH}


def _only(*packets: int) -> frozenset[int]:
    return frozenset(packets)


_RULES: Final = {
    0x01: _Rule("payload_format", _Kind.FLAG, _MESSAGES),
    0x02: _Rule("message_expiry", _Kind.FOUR, _MESSAGES),
    0x03: _Rule("content_type", _Kind.TEXT, _MESSAGES),
    0x08: _Rule("response_topic", _Kind.TEXT, _MESSAGES),
    0x09: _Rule("correlation_data", _Kind.BINARY, _MESSAGES),
    0x0B: _Rule("subscription_identifiers", _Kind.LENGTH, _only(PUBLISH, SUBSCRIBE), False, _only(PUBLISH)),
    0x11: _Rule("session_expiry", _Kind.FOUR, _only(CONNECT, CONNACK, DISCONNECT)),
    0x12: _Rule("assigned_client_id", _Kind.NAME, _only(CONNACK)),
    0x13: _Rule("server_keepalive", _Kind.TWO, _only(CONNACK)),
    0x15: _Rule("authentication_method", _Kind.NAME, _only(CONNECT, CONNACK, AUTH)),
    0x16: _Rule("authentication_data", _Kind.BINARY, _only(CONNECT, CONNACK, AUTH)),
    0x17: _Rule("request_problem_information", _Kind.FLAG, _only(CONNECT)),
    0x18: _Rule("will_delay", _Kind.FOUR, _only(WILL)),
    0x19: _Rule("request_response_information", _Kind.FLAG, _only(CONNECT)),
    0x1A: _Rule("response_information", _Kind.NAME, _only(CONNACK)),
    0x1C: _Rule("server_reference", _Kind.NAME, _only(CONNACK, DISCONNECT)),
    0x1F: _Rule("reason_string", _Kind.NAME, _ACKS | {CONNACK, DISCONNECT, AUTH}),
    0x21: _Rule("receive_maximum", _Kind.TWO, _only(CONNECT, CONNACK), False),
    0x22: _Rule("topic_alias_maximum", _Kind.TWO, _only(CONNECT, CONNACK)),
    0x23: _Rule("topic_alias", _Kind.TWO, _only(PUBLISH), False),
    0x24: _Rule("maximum_qos", _Kind.FLAG, _only(CONNACK)),
    0x25: _Rule("retain_available", _Kind.FLAG, _only(CONNACK)),
    0x26: _Rule("user_properties", _Kind.PAIR, _EVERYWHERE, True, _EVERYWHERE),
    0x27: _Rule("maximum_packet_size", _Kind.FOUR, _only(CONNECT, CONNACK), False),
    0x28: _Rule("wildcard_subscription_available", _Kind.FLAG, _only(CONNACK)),
    0x29: _Rule("subscription_identifier_available", _Kind.FLAG, _only(CONNACK)),
    0x2A: _Rule("shared_subscription_available", _Kind.FLAG, _only(CONNACK)),
}
_PLACES: Final = {identifier: Properties._fields.index(rule.field) for identifier, rule in _RULES.items()}
_MANY: Final = frozenset((0x0B, 0x26))

# ---------------------------------------------------------------------- writing


def encode_properties(properties: Properties) -> bytes:
    """Write *properties*, their length before them.  Raises ValueError if a text is too long."""
    if properties is NO_PROPERTIES:
        return NO_PROPERTIES_ENCODED
    parts: list[bytes] = []
    for identifier, rule in _RULES.items():
        value = properties[_PLACES[identifier]]
        write = _WRITERS[rule.kind]
        if identifier in _MANY:
            parts += [bytes((identifier,)) + write(one) for one in value]  # type: ignore[union-attr]  # these are tuples
        elif value is not None:
            parts.append(bytes((identifier,)) + write(value))
    block = b"".join(parts)
    return encoded_length(len(block)) + block


_WRITERS: Final[dict[_Kind, Callable[[Any], bytes]]] = {
    _Kind.FLAG: lambda value: value.to_bytes(1, "big"),
    _Kind.TWO: lambda value: value.to_bytes(2, "big"),
    _Kind.FOUR: lambda value: value.to_bytes(4, "big"),
    _Kind.LENGTH: encoded_length,
    _Kind.NAME: lambda value: encoded_text(value.encode()),
    _Kind.TEXT: encoded_text,
    _Kind.BINARY: encoded_text,
    _Kind.PAIR: lambda value: encoded_text(value[0]) + encoded_text(value[1]),
}

# ---------------------------------------------------------------------- reading


def decode_properties(data: bytes, at: int, end: int, packet: int) -> tuple[Properties, int]:
    """Read the properties of a *packet* (its type, or WILL) that begin at *at*; return them and where they end.

    Raises MqttFormatError: its code is 0x81 for what cannot be read and 0x82 for what must not be there.
    """
    if at < end and not data[at]:
        return NO_PROPERTIES, at + 1
    length, at = read_length(data, at, end)
    stop = at + length
    if stop > end:
        raise MqttFormatError("properties are longer than the packet")
    values: list[Any] = list(NO_PROPERTIES)
    seen = set()
    while at < stop:
        identifier = data[at]
        rule = _RULES.get(identifier)
        if rule is None:
            raise MqttFormatError(f"there is no property 0x{identifier:02x}")
        if packet not in rule.packets:
            raise MqttFormatError(f"property 0x{identifier:02x} in a packet that has none", PROTOCOL_ERROR)
        if identifier in seen and packet not in rule.repeats:
            raise MqttFormatError(f"property 0x{identifier:02x} twice", PROTOCOL_ERROR)
        seen.add(identifier)
        value, at = _READERS[rule.kind](data, at + 1, stop)
        if not (value or rule.zero):
            raise MqttFormatError(f"property 0x{identifier:02x} is 0", PROTOCOL_ERROR)
        place = _PLACES[identifier]
        values[place] = (*values[place], value) if identifier in _MANY else value
    properties = Properties._make(values)
    if properties.response_topic is not None and not is_valid_topic(properties.response_topic):
        raise MqttFormatError("the response topic is empty or has a wildcard", PROTOCOL_ERROR)
    if properties.authentication_data is not None and properties.authentication_method is None:
        raise MqttFormatError("authentication data without a method", PROTOCOL_ERROR)
    return properties, stop


def read_length(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Read a variable byte integer, which has to be as short as may be (section 1.5.5)."""
    length = 0
    for group in range(4):
        if at >= end:
            raise MqttFormatError("a packet ends inside a length")
        byte = data[at]
        at += 1
        length |= (byte & 0x7F) << 7 * group
        if byte < 0x80:
            if group and not byte:
                raise MqttFormatError("a length has more bytes than it needs")
            return length, at
    raise MqttFormatError("a length of more than four bytes")


def _read_number(size: int) -> Callable[[bytes, int, int], tuple[int, int]]:
    def read(data: bytes, at: int, end: int) -> tuple[int, int]:
        if at + size > end:
            raise MqttFormatError("properties end inside a number")
        return int.from_bytes(data[at : at + size], "big"), at + size

    return read


def _read_flag(data: bytes, at: int, end: int) -> tuple[int, int]:
    if at >= end:
        raise MqttFormatError("properties end inside a number")
    if data[at] > 1:
        raise MqttFormatError("a property is neither 0 nor 1", PROTOCOL_ERROR)
    return data[at], at + 1


def _read_binary(data: bytes, at: int, end: int) -> tuple[bytes, int]:
    begin = at + 2
    if begin > end:
        raise MqttFormatError("properties end inside a length")
    stop = begin + (data[at] << 8 | data[at + 1])
    if stop > end:
        raise MqttFormatError("properties end inside a text")
    return data[begin:stop], stop


def _read_text(data: bytes, at: int, end: int) -> tuple[bytes, int]:
    value, at = _read_binary(data, at, end)
    if not is_valid_text(value):
        raise MqttFormatError("a text is no UTF-8 or has a NUL")
    return value, at


def _read_name(data: bytes, at: int, end: int) -> tuple[str, int]:
    value, at = _read_text(data, at, end)
    return value.decode(), at


def _read_pair(data: bytes, at: int, end: int) -> tuple[tuple[bytes, bytes], int]:
    name, at = _read_text(data, at, end)
    value, at = _read_text(data, at, end)
    return (name, value), at


_READERS: Final[dict[_Kind, Callable[[bytes, int, int], tuple[Any, int]]]] = {
    _Kind.FLAG: _read_flag,
    _Kind.TWO: _read_number(2),
    _Kind.FOUR: _read_number(4),
    _Kind.LENGTH: read_length,
    _Kind.NAME: _read_name,
    _Kind.TEXT: _read_text,
    _Kind.BINARY: _read_binary,
    _Kind.PAIR: _read_pair,
}

__all__ = [
    "LENGTH_LIMIT",
    "NO_PROPERTIES",
    "NO_PROPERTIES_ENCODED",
    "Properties",
    "decode_properties",
    "encode_properties",
    "read_length",
]
