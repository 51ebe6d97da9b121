"""Topic names and filters (MQTT 3.1.1 section 4.7).

Topics stay bytes here: UTF-8, as they were on the wire.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

LEVEL_LIMIT = 200  # levels of a filter; mosquitto's limit: one filter of 65,535 slashes would cost 15 MB of tree


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


def level_count(topic_filter: bytes) -> int:
    """Return how many levels a filter has; what makes it shared counts with them."""
    return topic_filter.count(b"/") + 1


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
