"""gateway/topics.py: PRODUCT section 3, the query option t."""

from __future__ import annotations

import pytest

from coapgw.errors import TopicRefused
from coapgw.gateway.topics import mqtt_topic, parse_topic


@pytest.mark.parametrize(
    ("queries", "topic"),
    [
        ([], None),
        ([b""], None),
        ([b"x=1", b"topic=a", b"T=a"], None),  # other names are ignored
        ([b"t=greetings"], b"greetings"),
        ([b"a=1", b"t=x", b"b"], b"x"),
        ([b"t=/a/b/"], b"/a/b/"),
        ([b"t=/"], b"/"),
        ([b"t=" + b"a" * 253], b"a" * 253),
        ([b"t=azAZ09_/x"], b"azAZ09_/x"),
        ([b"?t=hello"], b"hello"),  # a shipped client
        ([b"?t=hello-world"], None),
        ([b"?t="], None),
        ([b"?t=a//b"], None),
        ([b"t=mine", b"?t=other"], b"mine"),
    ],
)
def test_the_topic_a_request_chooses(queries: list[bytes], topic: bytes | None) -> None:
    assert parse_topic(queries) == topic


@pytest.mark.parametrize(
    ("queries", "reason"),
    [
        ([b"t"], "no value"),
        ([b"t="], "no value"),
        ([b"t=a", b"t=b"], "twice"),
        ([b"t=a", b"t=a"], "twice"),
        ([b"t=a//b"], "empty level"),
        ([b"t=//"], "empty level"),
        ([b"t=hello-world"], "A-Z a-z 0-9 _ and /"),
        ([b"t=a b"], "A-Z a-z 0-9 _ and /"),
        ([b"t=a+"], "A-Z a-z 0-9 _ and /"),
        ([b"t=#"], "A-Z a-z 0-9 _ and /"),
        ([b"t=a\n"], "A-Z a-z 0-9 _ and /"),
        ([b"t=\xc3\xa4"], "A-Z a-z 0-9 _ and /"),
        ([b"t=" + b"a" * 254], "255 are allowed"),
        ([b"t=" + b"a" * 300], "255"),
        ([b"x" * 256], "255"),
    ],
)
def test_what_is_no_topic_is_refused_with_a_reason(queries: list[bytes], reason: str) -> None:
    with pytest.raises(TopicRefused) as refused:
        parse_topic(queries)
    assert reason in refused.value.reason


@pytest.mark.parametrize(
    ("topic", "published"),
    [
        (None, b"pre/8988280666000000017"),
        (b"a", b"pre/8988280666000000017/a"),
        (b"/a/b/", b"pre/8988280666000000017/a/b/"),
        (b"/", b"pre/8988280666000000017/"),
    ],
)
def test_one_leading_slash_is_dropped_on_mqtt(topic: bytes | None, published: bytes) -> None:
    assert mqtt_topic(b"pre/", "8988280666000000017", topic) == published
