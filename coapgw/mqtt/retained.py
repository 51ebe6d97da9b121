"""The last retained message of each topic, bounded (MQTT 3.1.1 section 3.3.1.3)."""

from __future__ import annotations

import attrs

from coapgw.mqtt.session import Publication
from coapgw.mqtt.topics import compiled_filter


@attrs.define(eq=False)
class RetainedMessages:
    """Retained messages by topic.

    Args:
        max_messages: topics that may have one.
        max_bytes: topics and payloads together.
    """

    max_messages: int
    max_bytes: int
    _messages: dict[bytes, Publication] = attrs.Factory(dict)
    _bytes: int = 0

    def __len__(self) -> int:
        """Return how many topics have a retained message."""
        return len(self._messages)

    def keep(self, topic: bytes, payload: bytes, qos: int) -> bool:
        """Replace the retained message of *topic*, or remove it if *payload* is empty; return False if it is full.

        What was retained before is then gone all the same: it is not the last message any more.
        """
        old = self._messages.pop(topic, None)
        if old is not None:
            self._bytes -= len(topic) + len(old.payload)
        if not payload:
            return True
        size = len(topic) + len(payload)
        if len(self._messages) >= self.max_messages or self._bytes + size > self.max_bytes:
            return False
        self._messages[topic] = Publication(topic, payload, qos, retained=True)
        self._bytes += size
        return True

    def matching(self, topic_filter: bytes) -> list[Publication]:
        """Return the retained messages for a new subscription; one look without a wildcard, one per topic with it."""
        if b"+" not in topic_filter and b"#" not in topic_filter:
            message = self._messages.get(topic_filter)
            return [] if message is None else [message]
        asked = compiled_filter(topic_filter).fullmatch
        return [message for topic, message in self._messages.items() if asked(topic)]
