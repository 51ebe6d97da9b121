"""Topic names and filters, and who has subscribed to what (MQTT 3.1.1 section 4.7).

Topics stay bytes here: UTF-8, as they were on the wire.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Generic, TypeVar

import attrs

LEVEL_LIMIT = 200  # levels of a filter; mosquitto's limit: one filter of 65,535 slashes would cost 15 MB of tree
CACHE_ENTRIES = 200_000  # remembered (topic, subscriber) pairs, about 20 MB
CACHED_TOPIC_BYTES = 512  # a topic of the gateway has at most 20 + 1 + 253 bytes and the prefix

Subscriber = TypeVar("Subscriber")


def is_valid_text(text: bytes) -> bool:
    """Return whether *text* is an MQTT string: well-formed UTF-8 without U+0000 (section 1.5.3)."""
    if b"\0" in text:
        return False
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def is_valid_topic(topic: bytes) -> bool:
    """Return whether *topic* may be published to: text, not empty, no wildcard (sections 3.3.2.1 and 4.7.3)."""
    return bool(topic) and b"+" not in topic and b"#" not in topic and is_valid_text(topic)


def is_valid_filter(topic_filter: bytes) -> bool:
    """Return whether *topic_filter* is one: ``+`` and ``#`` fill a whole level, ``#`` only the last (section 4.7.1)."""
    if not topic_filter or not is_valid_text(topic_filter):
        return False
    if b"#" in topic_filter[:-1] or (topic_filter[-1:] == b"#" and topic_filter[-2:] not in (b"#", b"/#")):
        return False
    return b"+" not in topic_filter or all(level == b"+" or b"+" not in level for level in topic_filter.split(b"/"))


def compiled_filter(topic_filter: bytes) -> re.Pattern[bytes]:
    """Return a pattern that fully matches the topics of a valid *topic_filter*; time linear in the topic."""
    levels = topic_filter.split(b"/")
    ending = b""
    if levels[-1] == b"#":
        levels.pop()
        ending = rb"(?:/.*)?" if levels else rb".*"
    pattern = b"/".join(b"[^/]*" if level == b"+" else re.escape(level) for level in levels)
    wild = rb"(?!\$)" if topic_filter[:1] in b"+#" else b""
    return re.compile(wild + pattern + ending, re.DOTALL)


def matches(topic_filter: bytes, topic: bytes) -> bool:
    """Return whether *topic* is one of those a valid *topic_filter* asks for."""
    return compiled_filter(topic_filter).fullmatch(topic) is not None


def covers(allowed: bytes, asked: bytes) -> bool:
    """Return whether every topic that matches the filter *asked* also matches the filter *allowed*.

    Both are valid filters; a topic is a filter too.
    """
    if allowed[:1] in (b"+", b"#") and asked[:1] == b"$":
        return False  # section 4.7.2: a leading wildcard does not reach $SYS
    ours, theirs = allowed.split(b"/"), asked.split(b"/")
    for at, level in enumerate(ours):
        if level == b"#":
            return True
        if at == len(theirs):
            return False
        if theirs[at] == b"#" or (level not in (b"+", theirs[at])):
            return False
    return len(ours) == len(theirs)


def covered_by_any(allowed: Iterable[bytes], asked: bytes) -> bool:
    """Return whether one of the *allowed* filters covers *asked*."""
    return any(covers(one, asked) for one in allowed)


@attrs.define(eq=False)
class _Node(Generic[Subscriber]):
    """One level of the tree: what may follow, and who asked for exactly this."""

    children: dict[bytes, _Node[Subscriber]] = attrs.Factory(dict)
    subscribers: dict[Subscriber, int] = attrs.Factory(dict)


@attrs.define(eq=False)
class SubscriptionTree(Generic[Subscriber]):
    """Filters and their subscribers, with the answers for recent topics remembered.

    The memory is bounded by ``CACHE_ENTRIES`` and forgotten at every change.
    """

    _root: _Node[Subscriber] = attrs.Factory(_Node)
    _cache: dict[bytes, tuple[tuple[Subscriber, int], ...]] = attrs.Factory(dict)
    _cached: int = 0

    def add(self, topic_filter: bytes, subscriber: Subscriber, qos: int) -> None:
        """Subscribe, or change the QoS of a subscription."""
        node = self._root
        for level in topic_filter.split(b"/"):
            child = node.children.get(level)
            if child is None:
                child = node.children[level] = _Node()
            node = child
        node.subscribers[subscriber] = qos
        self._forget_answers()

    def remove(self, topic_filter: bytes, subscriber: Subscriber) -> None:
        """Take a subscription out; no harm if it was not there."""
        path = []
        node = self._root
        for level in topic_filter.split(b"/"):
            child = node.children.get(level)
            if child is None:
                return
            path.append((node, level))
            node = child
        node.subscribers.pop(subscriber, None)
        for parent, level in reversed(path):
            child = parent.children[level]
            if child.children or child.subscribers:
                break
            del parent.children[level]
        self._forget_answers()

    def is_empty(self) -> bool:
        """Return whether nobody subscribed to anything."""
        return not self._root.children

    def match(self, topic: bytes) -> tuple[tuple[Subscriber, int], ...]:
        """Return every subscriber of *topic* once, with the highest QoS of its matching filters (section 3.3.5)."""
        found = self._cache.get(topic)
        if found is None:
            found = tuple(self._walk(topic).items())
            if len(topic) <= CACHED_TOPIC_BYTES:
                self._cached += 1 + len(found)
                if self._cached > CACHE_ENTRIES:
                    self._forget_answers()
                    self._cached = 1 + len(found)
                self._cache[topic] = found
        return found

    def _forget_answers(self) -> None:
        self._cache.clear()
        self._cached = 0

    def _walk(self, topic: bytes) -> dict[Subscriber, int]:
        best: dict[Subscriber, int] = {}

        def add(node: _Node[Subscriber]) -> None:
            for subscriber, qos in node.subscribers.items():
                if qos > best.get(subscriber, -1):
                    best[subscriber] = qos

        nodes = [self._root]
        wild = topic[:1] != b"$"  # section 4.7.2
        for level in topic.split(b"/"):
            following = []
            for node in nodes:
                children = node.children
                if wild:
                    if (rest := children.get(b"#")) is not None:
                        add(rest)
                    if (any_level := children.get(b"+")) is not None:
                        following.append(any_level)
                if (exact := children.get(level)) is not None:
                    following.append(exact)
            nodes = following
            if not nodes:
                return best
            wild = True
        for node in nodes:
            add(node)
            if (rest := node.children.get(b"#")) is not None:  # "sport/#" includes "sport"
                add(rest)
        return best
