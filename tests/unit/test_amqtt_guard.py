"""What aMQTT gets to read of what clients send."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coapgw.mqtt.access import FAILURE_SECONDS, FAILURES_LIMIT, AccessList, AnonymousPolicy, BrokerUser
from coapgw.mqtt.amqtt_guard import ClientRefused, Guard
from coapgw.mqtt.broker import BrokerLimits
from coapgw.mqtt.packets import (
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PingReq,
    PubAck,
    Publish,
    Subscribe,
    Unsubscribe,
    Will,
    encode,
    encode_publish,
)
from coapgw.mqtt.parser import Parser

USERS = [BrokerUser("page", "secret", ("allowed/#",), ("allowed/#",))]
LIMITS = BrokerLimits(max_packet=1000, max_subscriptions=3, connect_timeout=10)


def new_guard(
    owners: dict[str, str | None] | None = None,
    limits: BrokerLimits = LIMITS,
    loopback: bool = True,
    has_room: bool = True,
    access: AccessList | None = None,
) -> Guard:
    sessions = owners or {}
    return Guard(
        access or AccessList(USERS, AnonymousPolicy.LOOPBACK),
        limits,
        loopback,
        lambda client_id: (sessions[client_id],) if client_id in sessions else None,
        lambda: has_room,
        lambda: "auto-1",
        0.0,
        host="192.0.2.1",
    )


def connected(guard: Guard, connect: Connect) -> Connect:
    """Return the CONNECT that aMQTT would read."""
    (read,) = Parser(10_000).packets(guard.receive(encode(connect), 1.0))
    assert isinstance(read, Connect)
    return read


def test_a_connect_loses_its_password_and_keepalive() -> None:
    guard = new_guard()
    read = connected(guard, Connect("one", False, 60, user="page", password=b"secret"))
    assert read == Connect("one", False, 0, user="page")
    assert guard.keepalive == 60


def test_a_host_that_fails_too_often_is_not_listened_to_for_a_while() -> None:
    access = AccessList(USERS)
    for attempt in range(FAILURES_LIMIT):
        with pytest.raises(ClientRefused):
            new_guard(access=access).receive(encode(Connect("one", user="page", password=b"%d" % attempt)), 1.0)
    right = encode(Connect("one", user="page", password=b"secret"))
    with pytest.raises(ClientRefused):
        new_guard(access=access).receive(right, 1.0)
    assert new_guard(access=access).receive(right, 1.0 + FAILURE_SECONDS)


def test_a_client_without_an_id_is_given_one() -> None:
    assert connected(new_guard(), Connect("")).client_id == "auto-1"


@pytest.mark.parametrize(("topic", "may"), [(b"allowed/x", True), (b"other", False), (b"$SYS/x", False)])
def test_a_will_its_user_may_not_publish_is_left_out(topic: bytes, may: bool) -> None:
    will = Will(topic, b"gone", 1)
    read = connected(new_guard(), Connect("one", user="page", password=b"secret", will=will))
    assert read.will == (will if may else None)


@pytest.mark.parametrize(
    ("connect", "code"),
    [
        (Connect("one", user="page", password=b"wrong"), 4),
        (Connect("one", user="nobody", password=b"secret"), 4),
        (Connect("x" * 300), 2),
        (Connect("", clean_session=False), 2),
        (Connect("taken"), 2),
        (Connect("taken", user="page", password=b"secret"), 2),
    ],
)
def test_who_may_not_connect_is_told_and_amqtt_hears_nothing(connect: Connect, code: int) -> None:
    guard = new_guard({"taken": "another"})
    with pytest.raises(ClientRefused) as refused:
        guard.receive(encode(connect), 1.0)
    assert refused.value.answer == encode(ConnAck(False, code))
    assert "secret" not in str(refused.value)
    assert guard.client is None


def test_a_session_is_its_users() -> None:
    assert connected(new_guard({"mine": "page"}), Connect("mine", user="page", password=b"secret")).user == "page"
    assert connected(new_guard({"mine": None}), Connect("mine")).user is None


def test_sessions_that_last_are_as_many_as_there_is_room_for() -> None:
    with pytest.raises(ClientRefused) as refused:
        new_guard(has_room=False).receive(encode(Connect("one", False)), 1.0)
    assert refused.value.answer == encode(ConnAck(False, 3))
    assert connected(new_guard({"one": None}, has_room=False), Connect("one", False)).client_id == "one"
    assert connected(new_guard(has_room=False), Connect("one")).client_id == "one"


def test_nobody_is_anonymous_elsewhere() -> None:
    with pytest.raises(ClientRefused) as refused:
        new_guard(loopback=False).receive(encode(Connect("one")), 1.0)
    assert refused.value.answer == encode(ConnAck(False, 5))


def test_other_versions_are_refused_in_their_words() -> None:
    for level, answer in ((3, b"\x20\x02\x00\x01"), (5, b"\x20\x03\x00\x84\x00")):
        with pytest.raises(ClientRefused) as refused:
            new_guard().receive(b"\x10\x10\x00\x04MQTT%c\x02\x00\x00\x00\x00\x03abc" % level, 1.0)
        assert refused.value.answer == answer


STREAM: list[Packet] = [
    Subscribe(1, ((b"a", 1), (b"b/#", 0))),
    Publish(b"allowed/1", b"x" * 200, 1, packet_id=2),
    PubAck(7),
    PingReq(),
    Unsubscribe(3, (b"a",)),
    Disconnect(),
]


@given(st.lists(st.integers(1, 40), max_size=30))
def test_bytes_get_through_as_they_came_however_they_are_cut(cuts: list[int]) -> None:
    guard = new_guard()
    data = encode(Connect("one")) + b"".join(encode(packet) for packet in STREAM)
    read, left = b"", data
    for size in [*cuts, len(data)]:
        read += guard.receive(left[:size], 1.0)
        left = left[size:]
    assert read == data


@pytest.mark.parametrize(
    "wrong",
    [
        encode(Connect("one")),
        encode(ConnAck(False, 0)),
        encode(Publish(b"t", b"x" * 1000)),
        b"\x30\xff\xff\xff\x7f",
        b"\x32\x05\x00\x01t\x00\x00",
        encode(Subscribe(1, ((b"1", 0), (b"2", 0), (b"3", 0), (b"4", 0)))),
        encode(Subscribe(1, ((b"/" * 250, 0),))),
    ],
)
def test_what_is_wrong_is_refused_once_connected(wrong: bytes) -> None:
    guard = new_guard()
    guard.receive(encode(Connect("one")), 1.0)
    with pytest.raises(ClientRefused):
        guard.receive(wrong, 2.0)


def test_subscriptions_are_counted_without_those_that_ended() -> None:
    guard = new_guard()
    guard.receive(encode(Connect("one")), 1.0)
    for number in range(10):
        name = b"%d" % number
        guard.receive(encode(Subscribe(1, ((name, 0),))) + encode(Unsubscribe(2, (name,))), 1.0)


@pytest.mark.parametrize("first", [encode(PingReq()), encode_publish(b"t", b"x"), b"\x10\xff\xff\xff\xff\x01"])
def test_the_first_packet_is_a_connect(first: bytes) -> None:
    with pytest.raises(ClientRefused):
        new_guard().receive(first, 1.0)


@given(st.binary(max_size=300))
def test_any_bytes_pass_or_are_refused(data: bytes) -> None:
    for before in (b"", encode(Connect("one"))):
        guard = new_guard()
        with suppress(ClientRefused):
            assert len(guard.receive(before + data, 1.0)) <= len(before + data)


def test_a_large_length_is_refused_before_it_is_kept() -> None:
    guard = new_guard()
    header = b"\x10\x80\x80\x01"
    assert guard.receive(header + bytes(990), 1.0) == b""
    with pytest.raises(ClientRefused):
        guard.receive(bytes(7), 1.0)


def test_silence_has_an_end() -> None:
    guard = new_guard()
    assert not guard.is_overdue(10.0)
    assert guard.is_overdue(10.1)
    guard.receive(encode(Connect("one", keepalive=60)), 10.0)
    assert not guard.is_overdue(100.0)
    assert guard.is_overdue(100.1)
    without = new_guard()
    without.receive(encode(Connect("one")), 0.0)
    assert not without.is_overdue(1e9)
