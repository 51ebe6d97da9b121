"""The fields of a packet, one after the other, strictly."""

from __future__ import annotations

import attrs

from coapgw.mqtt.packet_types import MqttFormatError
from coapgw.mqtt.properties import Properties, decode_properties
from coapgw.mqtt.reasons import PROTOCOL_ERROR, QUOTA_EXCEEDED
from coapgw.mqtt.topics import is_valid_filter, is_valid_text

FILTERS_LIMIT = 4096  # in one packet; four times what a client may have, and some ten milliseconds


@attrs.define(eq=False)
class Fields:
    """Reads fields off the *data* of a packet from *at* on; all raise MqttFormatError when it ends too soon."""

    data: bytes
    at: int = 0
    _filters: int = 0

    def more(self) -> bool:
        """Return whether anything is left."""
        return self.at < len(self.data)

    def byte(self) -> int:
        """Read one byte."""
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else _ended()

    def two(self) -> int:
        """Read a number of two bytes."""
        return self.byte() << 8 | self.byte()

    def binary(self) -> bytes:
        """Read bytes, their length before them."""
        size = self.two()
        self.at += size
        if self.at > len(self.data):
            _ended()
        return self.data[self.at - size : self.at]

    def text(self) -> str:
        """Read UTF-8."""
        value = self.binary()
        if not is_valid_text(value):
            raise MqttFormatError("a text is no UTF-8 or has a NUL")
        return value.decode()

    def packet_id(self) -> int:
        """Read a packet identifier, which is not 0."""
        return self.two() or _no_packet_id()

    def topic_filter(self) -> bytes:
        """Read a topic filter, one of FILTERS_LIMIT at most."""
        self._filters += 1
        if self._filters > FILTERS_LIMIT:
            raise MqttFormatError("too many topic filters in one packet", QUOTA_EXCEEDED)
        value = self.binary()
        if not is_valid_filter(value):
            raise MqttFormatError("a topic filter that is none")
        return value

    def properties(self, packet: int) -> Properties:
        """Read the properties of a *packet* of this type, or of WILL."""
        properties, self.at = decode_properties(self.data, self.at, len(self.data), packet)
        return properties

    def reason(self, known: frozenset[int]) -> int:
        """Read a reason code, one of those that are *known* in this packet."""
        code = self.byte()
        if code not in known:
            raise MqttFormatError("a reason code that this packet cannot have", PROTOCOL_ERROR)
        return code

    def end(self) -> None:
        """See that nothing is left."""
        if self.more():
            raise MqttFormatError("bytes after the end of a packet")


def _ended() -> int:
    raise MqttFormatError("a packet ends inside a field")


def _no_packet_id() -> int:
    raise MqttFormatError("packet identifier 0")
