"""Who has subscribed to what, and how a message that several filters match is delivered (MQTT 5 section 3.8.3)."""

from __future__ import annotations

from typing import Final, Generic, NamedTuple, TypeVar

import attrs

CACHE_ENTRIES: Final = 200_000  # remembered (topic, subscriber) pairs, about 20 MB
CACHED_TOPIC_BYTES: Final = 512  # a topic of the gateway has at most 20 + 1 + 253 bytes and the prefix
SHARED: Final = b"$share/"

Subscriber = TypeVar("Subscriber")


class Options(NamedTuple):
    """How a client wants a filter's messages; 3.1.1 knows only the QoS.  *identifier* 0 is none."""

    qos: int = 0
    no_local: bool = False
    retain_as_published: bool = False
    retain_handling: int = 0
    identifier: int = 0

    @property
    def byte(self) -> int:
        """The options as SUBSCRIBE has them (MQTT 5 section 3.8.3.1)."""
        return self.qos | self.no_local << 2 | self.retain_as_published << 3 | self.retain_handling << 4


PLAIN: Final = tuple(Options(qos) for qos in range(3))
"""What is used for subscriptions that ask for nothing but a QoS: one value for all of them, to save memory."""


def read_options(byte: int, identifier: int = 0) -> Options:
    """Return the options of a valid SUBSCRIBE byte."""
    if byte < 3 and not identifier:
        return PLAIN[byte]
    return Options(byte & 3, byte & 4 != 0, byte & 8 != 0, byte >> 4 & 3, identifier)


class Manner(NamedTuple):
    """What a delivery has beside its QoS: the publisher's retain flag, the identifiers of the filters that matched.

    *group* is the shared subscription that chose the client.
    """

    retain: bool = False
    identifiers: tuple[int, ...] = ()
    group: object = None


class Special(NamedTuple):
    """How one subscriber gets a message of others, and of its own: *own_qos* is -1 for not at all."""

    manner: Manner
    own_qos: int
    own_manner: Manner


Match = tuple[Subscriber, int, Special | None]
"""A subscriber, the highest QoS of its filters, and None unless there is more to say."""


def split_shared(topic_filter: bytes) -> tuple[bytes, bytes] | None:
    """Return share name and filter of a ``$share/name/filter``, None if it is not well made (MQTT 5 section 4.8.2)."""
    name, separator, wanted = topic_filter[len(SHARED) :].partition(b"/")
    if not name or not separator or not wanted or b"+" in name or b"#" in name:
        return None
    return name, wanted


@attrs.define(eq=False)
class _Node(Generic[Subscriber]):
    """One level of the tree: what may follow, and who asked for exactly this."""

    children: dict[bytes, _Node[Subscriber]] = attrs.Factory(dict)
    subscribers: dict[Subscriber, Options] = attrs.Factory(dict)


@attrs.define(eq=False)
class SubscriptionTree(Generic[Subscriber]):
    """Filters and their subscribers, with the answers for recent topics remembered.

    The memory is bounded by ``CACHE_ENTRIES`` and forgotten at every change.
    """

    _root: _Node[Subscriber] = attrs.Factory(_Node)
    _cache: dict[bytes, tuple[Match[Subscriber], ...]] = attrs.Factory(dict)
    _cached: int = 0

    def add(self, topic_filter: bytes, subscriber: Subscriber, options: Options) -> None:
        """Subscribe, or change the options of a subscription."""
        node = self._root
        for level in topic_filter.split(b"/"):
            child = node.children.get(level)
            if child is None:
                child = node.children[level] = _Node()
            node = child
        node.subscribers[subscriber] = options
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

    def has_below(self, first_level: bytes) -> bool:
        """Return whether anybody subscribed to a filter that begins with *first_level* itself, no wildcard."""
        return first_level in self._root.children

    def match(self, topic: bytes) -> tuple[Match[Subscriber], ...]:
        """Return every subscriber of *topic* once, with the highest QoS of its matching filters (section 3.3.5)."""
        found = self._cache.get(topic)
        if found is None:
            found = self.find(topic)
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

    def find(self, topic: bytes) -> tuple[Match[Subscriber], ...]:
        """Return the same, and do not remember it."""
        first: dict[Subscriber, Options] = {}
        several: dict[Subscriber, list[Options]] = {}
        for node in self._walk(topic):
            for subscriber, options in node.subscribers.items():
                if subscriber not in first:
                    first[subscriber] = options
                elif subscriber in several:
                    several[subscriber].append(options)
                else:
                    several[subscriber] = [first[subscriber], options]
        return tuple(
            (subscriber, *_combined(several.get(subscriber) or [options])) for subscriber, options in first.items()
        )

    def _walk(self, topic: bytes) -> list[_Node[Subscriber]]:
        """Return the nodes whose filters match *topic*."""
        found: list[_Node[Subscriber]] = []
        nodes = [self._root]
        wild = topic[:1] != b"$"  # section 4.7.2
        for level in topic.split(b"/"):
            following = []
            for node in nodes:
                children = node.children
                if wild:
                    if (rest := children.get(b"#")) is not None:
                        found.append(rest)
                    if (any_level := children.get(b"+")) is not None:
                        following.append(any_level)
                if (exact := children.get(level)) is not None:
                    following.append(exact)
            nodes = following
            if not nodes:
                return found
            wild = True
        for node in nodes:
            found.append(node)
            if (rest := node.children.get(b"#")) is not None:  # "sport/#" includes "sport"
                found.append(rest)
        return found


def _combined(asked: list[Options]) -> tuple[int, Special | None]:
    """Return how a client gets one copy for all its filters that match."""
    qos = max(one.qos for one in asked)
    if all(one is PLAIN[one.qos] for one in asked):
        return qos, None
    own = [one for one in asked if not one.no_local]
    own_qos = max((one.qos for one in own), default=-1)
    return qos, Special(_manner(asked), own_qos, _manner(own))


def _manner(asked: list[Options]) -> Manner:
    identifiers = tuple(one.identifier for one in asked if one.identifier)
    return Manner(any(one.retain_as_published for one in asked), identifiers)
