"""The last retained message of each topic, bounded (MQTT 3.1.1 section 3.3.1.3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs

from coapgw.mqtt.session import Publication
from coapgw.mqtt.topics import SubscriptionTree


@attrs.define(eq=False)
class RetainedMessages:
    """Retained messages by topic.

    Args:
        max_messages: topics that may have one.
        max_bytes: topics and payloads together.
        scans: how often all of them were looked at, for a filter with a wildcard.
    """

    max_messages: int
    max_bytes: int
    _messages: dict[bytes, Publication] = attrs.Factory(dict)
    _bytes: int = 0
    scans: int = 0

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

    def matching(self, filters: Mapping[bytes, int]) -> Iterator[tuple[Publication, int]]:
        """Yield the retained messages for new subscriptions, each once, with the highest QoS of the filters it matches.

        However many filters there are, every message is looked at once: a client may ask again and again.
        """
        wildcards = SubscriptionTree[None]()
        for topic_filter, qos in filters.items():
            if b"+" in topic_filter or b"#" in topic_filter:
                wildcards.add(topic_filter, None, qos)
        if wildcards.is_empty():
            found = ((self._messages[topic], qos) for topic, qos in filters.items() if topic in self._messages)
            yield from found
            return
        self.scans += 1
        for topic, message in self._messages.items():
            qos = max((qos for _, qos in wildcards.match(topic)), default=-1)
            qos = max(qos, filters.get(topic, -1))
            if qos >= 0:
                yield message, qos
