"""The last retained message of each topic, bounded (MQTT 3.1.1 section 3.3.1.3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs

from coapgw.mqtt.publication import Publication
from coapgw.mqtt.subscriptions import Manner, Options, SubscriptionTree


@attrs.define(eq=False)
class RetainedMessages:
    """Retained messages by topic.

    Args:
        max_messages: topics that may have one.
        max_bytes: topics, payloads and properties together.
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

    def __iter__(self) -> Iterator[Publication]:
        """Return every retained message."""
        return iter(self._messages.values())

    def keep(self, message: Publication) -> Publication | None:
        """Replace the retained message of its topic by *message*; return the copy for new subscribers.

        What was retained before is gone, even if there is no room for the new one: it is not the last message any more.
        """
        topic = message.topic
        self.remove(topic)
        size = _size(message)
        if len(self._messages) >= self.max_messages or self._bytes + size > self.max_bytes:
            return None
        copy = Publication(topic, message.payload, message.qos)
        copy.retained = True
        copy.properties, copy.expires, copy.stored_block = message.properties, message.expires, message.stored_block
        self._messages[topic] = copy
        self._bytes += size
        return copy

    def remove(self, topic: bytes) -> bool:
        """Forget the retained message of *topic*; return whether there was one."""
        old = self._messages.pop(topic, None)
        if old is None:
            return False
        self._bytes -= _size(old)
        return True

    def matching(
        self, filters: Mapping[bytes, Options], now: float
    ) -> Iterator[tuple[Publication, int, Manner | None]]:
        """Yield the retained messages for new subscriptions, each once, with the highest QoS of the filters it matches.

        However many filters there are, every message is looked at once: a client may ask again and again.
        """
        wanted = SubscriptionTree[None]()
        is_wild = False
        for topic_filter, options in filters.items():
            is_wild = is_wild or b"+" in topic_filter or b"#" in topic_filter
            wanted.add(topic_filter, None, options)
        if is_wild:
            self.scans += 1
            candidates = list(self._messages)
        else:
            candidates = [topic for topic in filters if topic in self._messages]
        for topic in candidates:
            for _, qos, special in wanted.find(topic):
                message = self._messages[topic]
                if message.expires is None or message.expires > now:
                    yield message, qos, None if special is None else special.manner
                else:
                    self.remove(topic)


def _size(message: Publication) -> int:
    return len(message.topic) + len(message.payload) + len(message.block())
