"""Topic filters: the examples of MQTT 3.1.1 section 4.7, and the tree against the definition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coapgw.mqtt import subscriptions
from coapgw.mqtt.subscriptions import PLAIN, SubscriptionTree
from coapgw.mqtt.topics import covers, is_valid_filter, is_valid_topic, matches

EXAMPLES = [
    (b"sport/tennis/player1/#", b"sport/tennis/player1", True),
    (b"sport/tennis/player1/#", b"sport/tennis/player1/ranking", True),
    (b"sport/tennis/player1/#", b"sport/tennis/player1/score/wimbledon", True),
    (b"sport/#", b"sport", True),
    (b"sport/#", b"sports", False),
    (b"#", b"a/b", True),
    (b"#", b"/", True),
    (b"sport/tennis/+", b"sport/tennis/player1", True),
    (b"sport/tennis/+", b"sport/tennis/player1/ranking", False),
    (b"sport/+", b"sport", False),
    (b"sport/+", b"sport/", True),
    (b"+/+", b"/finance", True),
    (b"/+", b"/finance", True),
    (b"+", b"/finance", False),
    (b"#", b"$SYS/x", False),
    (b"+/monitor/Clients", b"$SYS/monitor/Clients", False),
    (b"$SYS/#", b"$SYS/x", True),
    (b"$SYS/#", b"$SYS", True),
    (b"$SYS/monitor/+", b"$SYS/monitor/Clients", True),
    (b"ACCOUNTS", b"Accounts", False),
    (b"a/+/c", b"a//c", True),
    (b"a\n/+", b"a\n/\n", True),
    (b"+/#", b"a", True),
    (b"a.c", b"abc", False),
]


@pytest.mark.parametrize(("topic_filter", "topic", "expected"), EXAMPLES)
def test_filters_match_as_the_specification_says(topic_filter: bytes, topic: bytes, expected: bool) -> None:
    tree: SubscriptionTree[str] = SubscriptionTree()
    tree.add(topic_filter, "x", PLAIN[1])
    assert matches(topic_filter, topic) is expected
    assert bool(tree.match(topic)) is expected
    assert covers(topic_filter, topic) is expected


@pytest.mark.parametrize("good", [b"#", b"+", b"/", b"a/#", b"+/a/#", b"a/+/b", b"a//b", b"$SYS/#", b" "])
def test_filters_that_are_filters(good: bytes) -> None:
    assert is_valid_filter(good)


@pytest.mark.parametrize("bad", [b"", b"a#", b"#/a", b"a+", b"+a/b", b"a/b#", b"\0", b"\xff", b"##", b"#/#"])
def test_filters_that_are_none(bad: bytes) -> None:
    assert not is_valid_filter(bad)


def test_topic_names_have_no_wildcards() -> None:
    assert [is_valid_topic(one) for one in (b"a/b", b"/", b"", b"a/+", b"#", b"a\0", b"\xc3")] == [True] * 2 + [
        False
    ] * 5


@pytest.mark.parametrize(
    ("allowed", "asked", "expected"),
    [
        (b"#", b"#", True),
        (b"#", b"+/a", True),
        (b"#", b"$SYS/a", False),
        (b"+/a", b"$SYS/a", False),
        (b"$SYS/#", b"$SYS/a/+", True),
        (b"a/#", b"a", True),
        (b"a/#", b"a/#", True),
        (b"a/#", b"a/+/b/#", True),
        (b"a/#", b"+", False),
        (b"a/#", b"#", False),
        (b"a/+", b"a/#", False),
        (b"a/+", b"a/+", True),
        (b"a/+", b"a/b", True),
        (b"a/b", b"a/+", False),
        (b"+/b", b"a/b", True),
        (b"+", b"a/b", False),
        (b"+/+", b"+/#", False),
    ],
)
def test_a_filter_covers_another(allowed: bytes, asked: bytes, expected: bool) -> None:
    assert covers(allowed, asked) is expected


names = st.lists(st.sampled_from([b"a", b"b", b"", b"$x"]), min_size=1, max_size=4).map(b"/".join).filter(bool)
filters = (
    st.tuples(st.lists(st.sampled_from([b"a", b"b", b"", b"+", b"$x"]), max_size=4), st.sampled_from([[], [b"#"]]))
    .map(lambda parts: b"/".join(parts[0] + parts[1]))
    .filter(is_valid_filter)
)


@given(filters, filters, names)
def test_what_a_covered_filter_matches_the_covering_one_matches_too(allowed: bytes, asked: bytes, topic: bytes) -> None:
    if covers(allowed, asked) and matches(asked, topic):
        assert matches(allowed, topic)


@given(st.lists(st.tuples(filters, st.integers(0, 3), st.integers(0, 2), st.booleans()), max_size=20), names)
def test_the_tree_agrees_with_the_definition(changes: list[tuple[bytes, int, int, bool]], topic: bytes) -> None:
    tree: SubscriptionTree[int] = SubscriptionTree()
    model: dict[tuple[bytes, int], int] = {}
    for topic_filter, subscriber, qos, stays in changes:
        tree.match(topic)  # fills the cache, which must not survive a change
        tree.add(topic_filter, subscriber, PLAIN[qos])
        model[topic_filter, subscriber] = qos
        if not stays:
            tree.remove(topic_filter, subscriber)
            del model[topic_filter, subscriber]
    best: dict[int, int] = {}
    for (topic_filter, subscriber), qos in model.items():
        if matches(topic_filter, topic):
            best[subscriber] = max(qos, best.get(subscriber, 0))
    assert {subscriber: qos for subscriber, qos, _ in tree.match(topic)} == best
    assert {subscriber: qos for subscriber, qos, _ in tree.match(topic)} == best


def test_a_removed_filter_leaves_nothing_in_the_tree() -> None:
    tree: SubscriptionTree[str] = SubscriptionTree()
    tree.add(b"a/b/c", "x", PLAIN[0])
    tree.add(b"a/#", "x", PLAIN[0])
    tree.remove(b"a/b/c", "x")
    tree.remove(b"a/#", "x")
    tree.remove(b"never/there", "x")
    assert not tree._root.children


def test_the_match_cache_is_bounded() -> None:
    tree: SubscriptionTree[int] = SubscriptionTree()
    for subscriber in range(1000):
        tree.add(b"#", subscriber, PLAIN[0])
    for number in range(300):
        assert len(tree.match(b"t/%d" % number)) == 1000
    assert sum(1 + len(found) for found in tree._cache.values()) <= subscriptions.CACHE_ENTRIES
    tree.match(b"x" * 1000)
    assert b"x" * 1000 not in tree._cache
