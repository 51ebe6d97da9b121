"""The topic a device may choose: the ``t`` of its request, and the MQTT topic that becomes of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from coapgw.errors import TopicRefused

TOPIC_LIMIT: Final = 253  # characters, so that "t=" and the topic fit the 255 bytes of a Uri-Query option
QUERY_LIMIT: Final = 255  # bytes of a Uri-Query option, RFC 7252 section 5.10
_ALLOWED: Final = re.compile(rb"[A-Za-z0-9_/]+")
_QUOTED_NAME: Final = b"?t="  # what a shipped client sends: it takes the question mark for a part of the query


def parse_topic(queries: Iterable[bytes]) -> bytes | None:
    """Return the topic that a request's Uri-Query options choose, None if they choose none.

    Raises:
        TopicRefused: ``t`` is there twice or without a value, or its value is no topic, or an option is too long.
    """
    topic: bytes | None = None
    quoted: bytes | None = None
    for query in queries:
        if len(query) > QUERY_LIMIT:
            raise TopicRefused(query, f"a query option of {len(query)} bytes, at most {QUERY_LIMIT} are allowed")
        if query == b"t":
            raise TopicRefused(b"", "t has no value")
        if query.startswith(b"t="):
            if topic is not None:
                raise TopicRefused(query[2:], "t is given twice")
            topic = checked_topic(query[2:])
        elif query.startswith(_QUOTED_NAME) and quoted is None:
            quoted = _valid_or_none(query[len(_QUOTED_NAME) :])
    return quoted if topic is None else topic


def checked_topic(topic: bytes) -> bytes:
    """Return *topic* if it is one: 1 to 253 characters of ``A-Z a-z 0-9 _ /``, no empty level inside.

    Raises TopicRefused.
    """
    if not topic:
        raise TopicRefused(topic, "t has no value")
    if len(topic) > TOPIC_LIMIT:
        raise TopicRefused(topic, f"a topic of {len(topic)} characters, at most {TOPIC_LIMIT} are allowed")
    if not _ALLOWED.fullmatch(topic):
        raise TopicRefused(topic, "a topic has only A-Z a-z 0-9 _ and /")
    if b"//" in topic:
        raise TopicRefused(topic, "a topic has no empty level (//)")
    return topic


def _valid_or_none(topic: bytes) -> bytes | None:
    try:
        return checked_topic(topic)
    except TopicRefused:
        return None


def mqtt_topic(prefix: bytes, iccid: str, topic: bytes | None) -> bytes:
    """Return the MQTT topic of a device's message; one leading slash of *topic* is dropped."""
    device = prefix + iccid.encode()
    return device if topic is None else device + b"/" + topic.removeprefix(b"/")
