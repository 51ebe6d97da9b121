"""What MQTT 5 lets a client say beside a message, and what has to hold then (section 3.3.2.3)."""

from __future__ import annotations

from typing import Final

import attrs

from coapgw.mqtt.packets import MqttFormatError, Publish
from coapgw.mqtt.reasons import PAYLOAD_FORMAT_INVALID, PROTOCOL_ERROR, QUOTA_EXCEEDED, TOPIC_ALIAS_INVALID

RECEIVE_MAXIMUM: Final = 1000  # QoS 1 and 2 messages of a client that are not acknowledged, or not released
ALIAS_MAXIMUM: Final = 100
ALIASED_BYTES: Final = 131_072  # of all topics behind one client's aliases


@attrs.define(eq=False)
class Incoming5:
    """The topics behind a client's aliases."""

    _topics: dict[int, bytes] | None = None
    _bytes: int = 0

    def examined(self, packet: Publish) -> tuple[bytes, int]:
        """Return the topic of a message with properties, and a reason not to take it, or 0.

        Raises MqttFormatError if the connection has to end.
        """
        topic, properties = packet.topic, packet.properties
        if properties.subscription_identifiers:
            raise MqttFormatError("a subscription identifier from a client", PROTOCOL_ERROR)
        alias = properties.topic_alias
        if alias is not None:
            topic = self._topic(alias, topic)
        if properties.payload_format and not _is_text(packet.payload):
            return topic, PAYLOAD_FORMAT_INVALID
        return topic, 0

    def _topic(self, alias: int, topic: bytes) -> bytes:
        topics = self._topics
        if topics is None:
            topics = self._topics = {}
        known = topics.get(alias)
        if topic:
            if alias > ALIAS_MAXIMUM:
                raise MqttFormatError("a topic alias over the maximum", TOPIC_ALIAS_INVALID)
            self._bytes += len(topic) - len(known or b"")
            if self._bytes > ALIASED_BYTES:
                raise MqttFormatError("topics with aliases are too long together", QUOTA_EXCEEDED)
            topics[alias] = topic
            return topic
        if known is None:
            raise MqttFormatError("a topic alias that means nothing yet", TOPIC_ALIAS_INVALID)
        return known


def _is_text(payload: bytes) -> bool:
    try:
        payload.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
