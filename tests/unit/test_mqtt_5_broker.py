"""The broker towards clients of MQTT 5, with bytes moved in memory."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coapgw.metrics import BrokerCounters
from coapgw.model import Spooled
from coapgw.mqtt.access import AccessList, BrokerUser
from coapgw.mqtt.broker import Broker, BrokerLimits
from coapgw.mqtt.connection import Closing
from coapgw.mqtt.incoming_5 import ALIAS_MAXIMUM, ALIASED_BYTES, RECEIVE_MAXIMUM
from coapgw.mqtt.packets import (
    LEVEL_5,
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    UnsubAck,
    Unsubscribe,
    Will,
    encode_publish,
)
from coapgw.mqtt.properties import Properties
from coapgw.mqtt.publication import Publication
from coapgw.mqtt.writer_5 import ALIAS_LIMIT
from tests.unit.mqtt_5_wire_cases import BAD_5, BAD_CONNECTS, GOOD_5, Bad5
from tests.unit.mqtt_peers import Peer, connected, connected_5
from tests.unit.session_store import RememberedSessions

NO_LOCAL, AS_PUBLISHED, NEW_ONLY, NO_RETAINED = 0x04, 0x08, 0x10, 0x20


def make_broker(users: tuple[BrokerUser, ...] = (), **limits: int) -> Broker:
    return Broker(AccessList(users), BrokerLimits(**limits))


@pytest.fixture
def broker() -> Broker:
    return make_broker()


def disconnected(peer: Peer) -> int:
    """Return the reason of the DISCONNECT that is the last thing the broker says."""
    last = peer.receive()[-1]
    assert isinstance(last, Disconnect)
    assert peer.connection.closing is Closing.FLUSH
    return last.reason


# ---------------------------------------------------------------------- CONNECT


def test_connack_says_what_the_broker_can(broker: Broker) -> None:
    peer = Peer(broker, level=LEVEL_5).send(Connect("", level=LEVEL_5))
    (answer,) = peer.receive()
    assert isinstance(answer, ConnAck)
    said = answer.properties
    assert (answer.code, answer.session_present) == (0, False)
    assert said.assigned_client_id in broker.sessions
    assert said.receive_maximum == RECEIVE_MAXIMUM
    assert said.topic_alias_maximum == ALIAS_MAXIMUM
    assert said.maximum_packet_size == broker.limits.max_packet
    assert said.server_keepalive is None


def test_a_keepalive_over_the_limit_is_cut() -> None:
    broker = make_broker(max_keepalive=60)
    for asked in (120, 0):
        peer = Peer(broker, level=LEVEL_5).send(Connect("c", True, asked, level=LEVEL_5))
        answer = peer.receive()[0]
        assert isinstance(answer, ConnAck)
        assert answer.properties.server_keepalive == 60
    broker.handle_timer(90.0)
    assert disconnected(peer) == 0x8D


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (Connect("c", user="u", password=b"wrong", level=LEVEL_5), 0x86),
        (Connect("x" * 300, level=LEVEL_5), 0x85),
        (Connect("c", level=LEVEL_5, properties=Properties(authentication_method="SCRAM")), 0x8C),
    ],
)
def test_a_refusal_has_a_reason(broker: Broker, packet: Connect, reason: int) -> None:
    peer = Peer(broker, level=LEVEL_5).send(packet)
    assert peer.receive() == [ConnAck(False, reason)]
    assert peer.connection.closing is Closing.FLUSH


def test_a_session_lasts_as_long_as_its_expiry_says(broker: Broker) -> None:
    for_ten = Properties(session_expiry=10)
    connected_5(broker, "c", (b"t", 1), said=for_ten).lose()
    broker.handle_timer(9.0)
    broker.publish(Publication(b"t", b"x", 1))
    again = Peer(broker, level=LEVEL_5, now=9.0)
    again.send(Connect("c", False, level=LEVEL_5, properties=for_ten))
    answer, message = again.receive()
    assert isinstance(answer, ConnAck)
    assert answer.session_present
    assert message == Publish(b"t", b"x", 1, packet_id=1)
    broker.handle_timer(20.0)
    assert "c" in broker.sessions
    again.now = 20.0
    again.lose()
    broker.handle_timer(30.0)
    assert "c" not in broker.sessions


def test_a_disconnect_may_change_the_expiry_but_not_make_one(broker: Broker) -> None:
    kept = connected_5(broker, "kept", said=Properties(session_expiry=100))
    kept.send(Disconnect(0, Properties(session_expiry=0)))
    assert "kept" not in broker.sessions
    wrong = connected_5(broker, "wrong").send(Disconnect(0, Properties(session_expiry=5)))
    assert disconnected(wrong) == 0x82


def test_deadlines_of_sessions_that_come_back_again_and_again_do_not_pile_up(broker: Broker) -> None:
    for number in range(5000):
        said = Properties(session_expiry=1000 + number * 7)
        connected_5(broker, "c", said=said, clean=False).lose()
    assert len(broker._absences._seconds) < 2500
    for number in range(5000):
        will = Will(b"w", b"", properties=Properties(will_delay=100_000 + number * 7))
        said = Properties(session_expiry=1_000_000 + number * 3)
        connected_5(broker, "c", said=said, clean=number % 2 == 0, will=will).lose()
    assert len(broker._absences._seconds) < 2500
    assert sum(map(len, broker._absences._items.values())) == 2
    connected_5(broker, "c")
    assert not any(broker._absences._items.values())


def test_taking_a_session_over_is_told(broker: Broker) -> None:
    old = connected_5(broker, "c", said=Properties(session_expiry=10))
    connected_5(broker, "c", clean=False)
    assert disconnected(old) == 0x8E


def test_the_end_of_the_broker_is_told_to_those_who_understand(broker: Broker) -> None:
    new, old = connected_5(broker, "new"), connected(broker, "old")
    broker.stop()
    assert disconnected(new) == 0x8B
    assert old.receive() == []
    assert old.is_open


def test_authentication_in_steps_is_a_protocol_error(broker: Broker) -> None:
    assert disconnected(connected_5(broker).send(Auth(0x18, Properties(authentication_method="x")))) == 0x82


# ---------------------------------------------------------------------- what is passed on


def test_what_was_said_beside_a_message_is_passed_on_unchanged_in_order(broker: Broker) -> None:
    said = Properties(
        payload_format=1,
        content_type=b"text/plain",
        response_topic=b"answer/here",
        correlation_data=b"\0\xff",
        user_properties=((b"a", b"1"), (b"a", b"2"), (b"b", b"")),
    )
    new, old = connected_5(broker, "new", (b"#", 2)), connected(broker, "old", (b"#", 2))
    connected_5(broker, "p").send(Publish(b"t", b"x", 1, False, False, 9, said))
    assert new.messages() == [Publish(b"t", b"x", 1, packet_id=1, properties=said)]
    assert old.messages() == [Publish(b"t", b"x", 1, packet_id=1)]


def test_a_payload_that_is_not_the_text_it_claims_to_be_is_refused(broker: Broker) -> None:
    seen = connected_5(broker, "seen", (b"#", 1))
    text = Properties(payload_format=1)
    peer = connected_5(broker, "p")
    peer.send(
        Publish(b"t", b"\xff", 0, properties=text),
        Publish(b"t", b"\xff", 1, False, False, 1, text),
        Publish(b"t", b"\xff", 2, False, False, 2, text),
        Publish(b"t", "ü".encode(), 2, False, False, 2, text),
    )
    assert peer.receive() == [PubAck(1, 0x99), PubRec(2, 0x99), PubRec(2)]
    assert len(seen.messages()) == 1


def test_the_gateways_own_messages_say_where_they_are_from(broker: Broker) -> None:
    message = Spooled(1, 1670598749915, "8988280666000000017", "1-6393505d-67fa", b"t", b"x")
    new, old = connected_5(broker, "new", (b"#", 1)), connected(broker, "old", (b"#", 1))
    broker.publish(Publication(message.topic, message.payload, 1, origin=message))
    assert new.messages()[0].properties.user_properties == (
        (b"iccid", b"8988280666000000017"),
        (b"id", b"1-6393505d-67fa"),
        (b"received", b"1670598749915"),
    )
    assert old.messages() == [Publish(b"t", b"x", 1, packet_id=1)]


def test_a_message_expires_and_says_how_long_it_has(broker: Broker) -> None:
    connected_5(broker, "c", (b"#", 1), said=Properties(session_expiry=100)).lose()
    publisher = connected_5(broker, "p")
    for packet_id, seconds in ((1, 10), (2, 30)):
        expiry = Properties(message_expiry=seconds)
        publisher.send(Publish(b"t", b"%d" % seconds, 1, True, False, packet_id, expiry))
    again = Peer(broker, now=20.0, level=LEVEL_5)
    again.send(Connect("c", False, level=LEVEL_5, properties=Properties(session_expiry=100)))
    (message,) = again.messages()
    assert (message.payload, message.properties.message_expiry) == (b"30", 10)
    late = connected_5(broker, "late", now=25.0).send(Subscribe(1, ((b"t", 0),)))
    assert [message.properties.message_expiry for message in late.messages()] == [5]
    later = connected_5(broker, "later", now=31.0).send(Subscribe(1, ((b"t", 0),)))
    assert later.messages() == []


# ---------------------------------------------------------------------- subscriptions


def test_identifiers_of_all_filters_that_match_come_with_one_copy(broker: Broker) -> None:
    peer = connected_5(broker)
    peer.send(
        Subscribe(1, ((b"a/#", 0),), Properties(subscription_identifiers=(7,))),
        Subscribe(2, ((b"+/b", 1),), Properties(subscription_identifiers=(268_435_455,))),
        Subscribe(3, ((b"#", 0),)),
    )
    peer.receive()
    broker.publish(Publication(b"a/b", b"", 1))
    broker.publish(Publication(b"x", b"", 1))
    first, second = peer.messages()
    assert (first.qos, sorted(first.properties.subscription_identifiers)) == (1, [7, 268_435_455])
    assert second.properties.subscription_identifiers == ()


def test_no_local_leaves_out_a_clients_own_messages(broker: Broker) -> None:
    peer = connected_5(broker, "c", (b"a/#", 1 | NO_LOCAL), (b"a/both", 0))
    peer.send(Publish(b"a/b", b"own", 1, packet_id=1), Publish(b"a/both", b"own", 1, packet_id=2))
    assert [(message.topic, message.qos) for message in peer.messages()] == [(b"a/both", 0)]
    connected_5(broker, "other").send(Publish(b"a/b", b"theirs", 1, packet_id=1))
    assert [message.payload for message in peer.messages()] == [b"theirs"]


def test_the_retain_flag_stays_if_that_is_asked_for(broker: Broker) -> None:
    peer = connected_5(broker, "c", (b"as/#", 1 | AS_PUBLISHED), (b"un/#", 1))
    sender = connected_5(broker, "p")
    sender.send(*(Publish(topic, b"x", 0, retain) for topic in (b"as/1", b"un/1") for retain in (True, False)))
    assert [message.retain for message in peer.messages()] == [True, False, False, False]


def test_retained_messages_come_always_or_once_or_never(broker: Broker) -> None:
    connected_5(broker, "p").send(Publish(b"t", b"x", 0, True))
    peer = connected_5(broker)
    for options, expected in ((NO_RETAINED, 0), (NEW_ONLY, 0), (0, 1), (0, 1)):
        assert len(peer.send(Subscribe(1, ((b"t", options),))).messages()) == expected
    assert len(peer.send(Subscribe(1, ((b"+", NEW_ONLY),))).messages()) == 1


def test_why_there_is_no_subscription() -> None:
    users = (BrokerUser("u", "p", subscribe=["a/#"]),)
    broker = make_broker(users, max_subscriptions=2)
    peer = Peer(broker, level=LEVEL_5).send(Connect("c", user="u", password=b"p", level=LEVEL_5))
    peer.receive()
    filters = (b"a/1", b"b", b"$share/g/b", b"$share/g/a/2", b"a/" * 201 + b"x", b"a/3", b"a/1")
    peer.send(Subscribe(1, tuple((one, 1) for one in filters)), Unsubscribe(2, (b"a/1", b"never")))
    assert peer.receive() == [SubAck(1, (1, 0x87, 0x87, 1, 0x97, 0x97, 1)), UnsubAck(2, (0, 0x11))]


# ---------------------------------------------------------------------- shared subscriptions


def test_a_shared_subscription_hands_each_message_to_one_in_turn(broker: Broker) -> None:
    members = [connected_5(broker, name, (b"$share/g/t/#", 1)) for name in "abc"]
    alone = connected_5(broker, "alone", (b"$share/other/t/1", 1), (b"t/1", 0))
    for number in range(9):
        broker.publish(Publication(b"t/1", b"%d" % number, 1))
    got = [[message.payload for message in member.messages()] for member in members]
    assert [len(one) for one in got] == [3, 3, 3]
    assert sorted(payload for one in got for payload in one) == [b"%d" % number for number in range(9)]
    assert len(alone.messages()) == 18


def test_what_a_member_that_is_gone_was_owed_goes_to_the_others(broker: Broker) -> None:
    settled: list[object] = []
    stays, goes = (connected_5(broker, name, (b"$share/g/t", 1)) for name in "ab")
    for number in range(4):
        broker.publish(Publication(b"t", b"%d" % number, 1, False, settled.append, number))
    assert len(stays.messages()) == 2
    goes.lose()
    rest = stays.messages()
    assert len(rest) == 2
    assert settled == []
    stays.send(*(PubAck(packet_id) for packet_id in range(1, 5)))
    assert sorted(settled, key=str) == [0, 1, 2, 3]


def test_a_member_that_is_away_gets_what_nobody_else_can_take(broker: Broker) -> None:
    said = Properties(session_expiry=100)
    here = connected_5(broker, "here", (b"$share/g/t", 1))
    connected_5(broker, "away", (b"$share/g/t", 1), said=said).lose()
    for _ in range(3):
        broker.publish(Publication(b"t", b"", 1))
    assert len(here.messages()) == 3
    here.send(Unsubscribe(1, (b"$share/g/t",)))
    broker.publish(Publication(b"t", b"late", 1))
    again = Peer(broker, level=LEVEL_5).send(Connect("away", False, level=LEVEL_5, properties=said))
    assert [message.payload for message in again.messages()] == [b"late"]


def test_nothing_is_left_of_a_group_without_members(broker: Broker) -> None:
    peer = connected_5(broker, "c", (b"$share/g/t", 1), (b"$share/g/u", 1))
    peer.send(Unsubscribe(1, (b"$share/g/t",)))
    peer.lose()
    assert broker._routing.is_empty


# ---------------------------------------------------------------------- aliases and limits


def test_an_alias_stands_for_a_topic_in_both_directions(broker: Broker) -> None:
    taker = connected_5(broker, "t", (b"#", 1), said=Properties(topic_alias_maximum=1))
    giver = connected_5(broker, "g")
    alias = Properties(topic_alias=3)
    giver.send(
        Publish(b"first", b"1", properties=alias),
        Publish(b"", b"2", properties=alias),
        Publish(b"second", b"3", 1, False, False, 1, alias),
        Publish(b"", b"4", properties=alias),
    )
    got = [(message.topic, message.payload, message.properties.topic_alias) for message in taker.messages()]
    assert got == [(b"first", b"1", 1), (b"", b"2", 1), (b"second", b"3", None), (b"second", b"4", None)]


def test_aliases_to_one_client_are_bounded(broker: Broker) -> None:
    taker = connected_5(broker, "t", (b"#", 0), said=Properties(topic_alias_maximum=65_535))
    for number in range(1000):
        broker.publish(Publication(b"%d" % number, b""))
    assert len({message.properties.topic_alias for message in taker.messages()}) == ALIAS_LIMIT + 1


@pytest.mark.parametrize(
    ("topic", "alias", "reason"),
    [(b"", 1, 0x94), (b"t", ALIAS_MAXIMUM + 1, 0x94), (b"t" * (ALIASED_BYTES // 2 - 1), 0, 0x97)],
)
def test_an_alias_that_is_none_ends_the_connection(topic: bytes, alias: int, reason: int) -> None:
    peer = connected_5(make_broker())
    for number in (alias,) if alias else (1, 2, 3):
        peer.send(Publish(topic, b"", properties=Properties(topic_alias=number)))
    assert disconnected(peer) == reason


def test_a_client_gets_no_more_at_a_time_than_it_takes(broker: Broker) -> None:
    peer = connected_5(broker, "c", (b"#", 2), said=Properties(receive_maximum=2, session_expiry=100))
    for number in range(5):
        broker.publish(Publication(b"t", b"%d" % number, 2))
    first = peer.messages()
    assert [message.payload for message in first] == [b"0", b"1"]
    peer.send(PubRec(first[0].packet_id))
    assert peer.messages() == []
    peer.send(PubComp(first[0].packet_id), PubRec(first[1].packet_id, 0x97))
    assert [message.payload for message in peer.messages()] == [b"2", b"3"]
    peer.lose()
    again = Peer(broker, level=LEVEL_5)
    said = Properties(receive_maximum=1, session_expiry=100)
    again.send(Connect("c", False, level=LEVEL_5, properties=said))
    for payload in (b"2", b"3", b"4"):
        (message,) = again.messages()
        assert message.payload == payload
        again.send(PubRec(message.packet_id), PubComp(message.packet_id))


def test_a_client_that_sends_more_at_a_time_than_we_take_is_disconnected(broker: Broker) -> None:
    peer = connected_5(broker)
    peer.send(*(Publish(b"t", b"", 2, packet_id=number) for number in range(1, RECEIVE_MAXIMUM + 1)))
    peer.send(PubRel(1), Publish(b"t", b"", 2, packet_id=1))
    assert peer.is_open
    peer.receive()
    peer.send(Publish(b"t", b"", 1, packet_id=60_000))
    assert disconnected(peer) == 0x93


def test_a_message_larger_than_the_client_takes_is_left_out_and_settled(broker: Broker) -> None:
    settled: list[object] = []
    for qos in (0, 1, 2):
        peer = connected_5(broker, f"c{qos}", (b"#", qos), said=Properties(maximum_packet_size=30))
        for size in (5, 100, 6):
            broker.publish(Publication(b"t", bytes(size), qos, False, settled.append, size))
        assert [len(message.payload) for message in peer.messages()] == [5, 6]
        assert 100 in settled
        peer.lose()


@pytest.mark.parametrize(("largest", "payload"), [(128, 120), (129, 121), (130, 121), (131, 122)])
def test_the_largest_packet_is_counted_to_the_byte(broker: Broker, largest: int, payload: int) -> None:
    peer = connected_5(broker, "c", (b"#", 1), said=Properties(maximum_packet_size=largest))
    for size in range(100, 130):
        broker.publish(Publication(b"t", bytes(size), 1))
    assert max(len(message.payload) for message in peer.messages()) == payload  # from 128 bytes on, the length has two


def test_a_packet_over_the_limit_is_told(broker: Broker) -> None:
    peer = connected_5(broker)
    peer.connection.receive_data(b"\x30\xff\xff\xff\x7f", 0.0)
    assert disconnected(peer) == 0x95


def test_a_message_that_may_not_be_published_is_told() -> None:
    broker = make_broker((BrokerUser("u", "p", publish=["a"]),))
    peer = Peer(broker, level=LEVEL_5).send(Connect("c", user="u", password=b"p", level=LEVEL_5))
    peer.receive()
    peer.send(*(Publish(b"b", b"", qos, packet_id=qos) for qos in (0, 1, 2)), Publish(b"a", b"", 1, packet_id=3))
    assert peer.receive() == [PubAck(1, 0x87), PubRec(2, 0x87), PubAck(3, 0x10)]


def test_an_unknown_identifier_is_told(broker: Broker) -> None:
    peer = connected_5(broker).send(PubRel(5), PubRec(6))
    assert peer.receive() == [PubComp(5, 0x92), PubRel(6, 0x92)]


# ---------------------------------------------------------------------- wills


def with_will(broker: Broker, *, delay: int, expiry: int) -> Peer:
    said = Properties(will_delay=delay, content_type=b"x", message_expiry=60)
    return connected_5(
        broker, "c", said=Properties(session_expiry=expiry), will=Will(b"w", b"gone", 1, False, said), clean=False
    )


def test_a_will_waits_for_its_delay(broker: Broker) -> None:
    seen = connected_5(broker, "seen", (b"w", 1))
    with_will(broker, delay=5, expiry=100).lose()
    broker.handle_timer(4.0)
    assert seen.messages() == []
    broker.handle_timer(5.0)
    (message,) = seen.messages()
    assert message.properties == Properties(content_type=b"x", message_expiry=60)


def test_a_will_does_not_outlast_its_session(broker: Broker) -> None:
    seen = connected_5(broker, "seen", (b"w", 1))
    with_will(broker, delay=50, expiry=2).lose()
    broker.handle_timer(2.0)
    assert len(seen.messages()) == 1
    with_will(broker, delay=50, expiry=0).lose()
    assert len(seen.messages()) == 1
    with_will(broker, delay=50, expiry=100).lose()
    connected_5(broker, "c", clean=True)
    assert len(seen.messages()) == 1
    broker.handle_timer(200.0)
    assert seen.messages() == []


def test_coming_back_in_time_takes_the_will_back(broker: Broker) -> None:
    seen = connected_5(broker, "seen", (b"w", 1))
    with_will(broker, delay=5, expiry=100).lose()
    back = with_will(broker, delay=5, expiry=100)
    broker.handle_timer(50.0)
    assert seen.messages() == []
    back.send(Disconnect(4))
    assert seen.messages() == []
    broker.handle_timer(56.0)
    assert len(seen.messages()) == 1


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize("case", BAD_5, ids=lambda case: case.name)
def test_bad_bytes_end_the_connection_with_a_reason_and_disturb_nobody(broker: Broker, case: Bad5) -> None:
    victim = connected_5(broker, "victim", (b"#", 1))
    peer = connected_5(broker, "mallory")
    peer.connection.receive_data(case.wire, 0.0)
    assert disconnected(peer) == case.code
    peer.connection.receive_data(encode_publish(b"t", b"late", properties=b"\0"), 0.0)
    assert victim.is_open
    assert victim.messages() == []
    assert broker.counters.protocol_errors == 1


@pytest.mark.parametrize("case", BAD_CONNECTS, ids=lambda case: case.name)
def test_a_bad_first_packet_ends_the_connection(broker: Broker, case: Bad5) -> None:
    peer = Peer(broker)
    peer.connection.receive_data(case.wire, 0.0)
    assert peer.connection.closing is Closing.ABORT
    assert not broker.sessions


def test_topics_of_any_length_are_taken(broker: Broker) -> None:
    longest = b"t" * 65_535
    peer = connected_5(broker, "c", (longest, 1), (b"+", 1))
    peer.send(Publish(longest, b"x", 1, packet_id=1))
    assert [message.topic for message in peer.messages()] == [longest]
    peer.send(Subscribe(2, ((b"/" * 65_535, 0),)))
    assert peer.receive() == [SubAck(2, (0x8F,))]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.sampled_from(GOOD_5).map(lambda case: case.wire),
            st.tuples(st.sampled_from(GOOD_5), st.integers(0, 60), st.integers(0, 255)).map(
                lambda one: one[0].wire[: one[1]] + bytes((one[2],)) + one[0].wire[one[1] + 1 :]
            ),
        ),
        max_size=8,
    )
)
def test_no_bytes_raise(pieces: list[bytes]) -> None:
    store = RememberedSessions()
    broker = Broker(AccessList(), store=store)
    bystander = connected_5(broker, "bystander", (b"quiet", 1))
    said = Properties(session_expiry=5, topic_alias_maximum=3)
    first, second = connected_5(broker, "p", (b"#", 2), said=said), Peer(broker)
    for now, piece in enumerate(pieces):
        for peer in (first, second):
            peer.connection.receive_data(piece, float(now))
            peer.connection.data_to_send()
        broker.take_writable()
        broker.handle_timer(float(now))
    first.lose()
    second.lose()
    broker.handle_timer(1e6)
    assert bystander.is_open
    again = Broker(AccessList(), store=store)
    again.restore(store.load(), 1e6)


# ---------------------------------------------------------------------- $SYS


def test_what_the_broker_says_about_itself_is_for_those_who_asked(broker: Broker) -> None:
    everything = connected(broker, "all", (b"#", 0), (b"+/broker/uptime", 0))
    assert broker.next_timer() is None
    asked = connected(broker, "asked", (b"$SYS/#", 0), now=5.0)
    assert broker.next_timer() == 5.0
    broker.handle_timer(5.0)
    values = {message.topic: message.payload for message in asked.messages()}
    assert values[b"$SYS/broker/version"].startswith(b"coapgw version ")
    assert values[b"$SYS/broker/uptime"] == b"5 seconds"
    assert values[b"$SYS/broker/clients/connected"] == values[b"$SYS/broker/clients/maximum"] == b"2"
    assert values[b"$SYS/broker/messages/received"] == b"4"
    assert values[b"$SYS/broker/subscriptions/count"] == b"3"
    broker.handle_timer(14.0)
    assert asked.messages() == []
    broker.handle_timer(15.0)
    assert len(asked.messages()) == len(values)
    assert everything.messages() == []
    asked.lose()
    broker.handle_timer(25.0)
    assert broker.next_timer() is None


def test_asking_again_and_again_does_not_make_it_talk_all_the_time(broker: Broker) -> None:
    peer = connected(broker, "c", (b"$SYS/broker/uptime", 0))
    told = 0
    for tenth in range(100):
        peer.now = tenth / 10
        peer.send(Subscribe(1, ((b"$SYS/broker/uptime", 0),)))
        broker.handle_timer(tenth / 10)
        told += len(peer.messages())
    assert told == 10


def test_nobody_else_may_talk_there(broker: Broker) -> None:
    peer = connected_5(broker, "c", (b"$SYS/#", 0)).send(Publish(b"$SYS/broker/version", b"mine", 1, packet_id=1))
    assert peer.receive() == [PubAck(1, 0x87)]


def test_the_old_client_hears_nothing_of_all_that() -> None:
    broker = make_broker()
    assert isinstance(broker.counters, BrokerCounters)
    old = connected(broker, "old", (b"#", 2))
    connected_5(broker, "p").send(
        Publish(b"t", b"x", 2, True, False, 1, Properties(topic_alias=1, message_expiry=9)),
        Publish(b"", b"y", 0, properties=Properties(topic_alias=1)),
    )
    assert old.connection.data_to_send() == b"\x34\x06\0\x01t\0\x01x\x30\x04\0\x01ty"
