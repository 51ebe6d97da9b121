"""The broker machine, with bytes moved in memory: CONNECT, routing, retained, wills, sessions, limits, access."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zope.interface.verify import verifyObject

from coapgw.errors import TopicRefused
from coapgw.interfaces import ISessionStore, StoredSession
from coapgw.mqtt.access import AccessList, AnonymousPolicy, BrokerUser
from coapgw.mqtt.broker import Broker, BrokerLimits
from coapgw.mqtt.connection import FLUSH_SECONDS, REPLIES_BYTES, Closing, Connection
from coapgw.mqtt.fields import FILTERS_LIMIT
from coapgw.mqtt.outbox import FULL_BYTES
from coapgw.mqtt.packets import (
    ConnAck,
    Connect,
    Disconnect,
    PingReq,
    PingResp,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    UnsubAck,
    Unsubscribe,
    UnsupportedConnect,
    Will,
    encode,
    encode_publish,
)
from coapgw.mqtt.publication import Publication
from coapgw.mqtt.remembered import ABSENT_SECONDS
from coapgw.mqtt.session import NEVER, RECEIVED_LIMIT
from tests.unit.mqtt_peers import Peer, Wire, connected, connected_5
from tests.unit.mqtt_wire_cases import BAD, GOOD, Bad, Good
from tests.unit.session_store import RememberedSessions

ALL = ((b"#", 1),)
FROM_CLIENT = {"Connect", "Publish", "PubAck", "PubRec", "PubRel", "PubComp", "Subscribe", "Unsubscribe", "PingReq"}


def make_broker(users: Sequence[BrokerUser] = (), anonymous: str = "loopback", **limits: float) -> Broker:
    return Broker(AccessList(users, AnonymousPolicy(anonymous)), BrokerLimits(**limits))  # type: ignore[arg-type]


@pytest.fixture
def broker() -> Broker:
    return make_broker()


def publish(broker: Broker, *places: int, topic: bytes = b"t", qos: int = 1) -> list[object]:
    """Publish messages as the gateway does; return where settled places are collected."""
    settled: list[object] = []
    for place in places:
        broker.publish(Publication(topic, b"%d" % place, qos, False, settled.append, place))
    return settled


# ---------------------------------------------------------------------- CONNECT


def test_a_client_connects_subscribes_and_receives(broker: Broker) -> None:
    wire = Wire(broker, Connect("c"))
    wire.client.subscribe([(b"a/#", 1), (b"b", 0)])
    wire.move()
    assert wire.told == ["connected False", "subscribed [1, 0]"]
    settled = publish(broker, 7, topic=b"a/x")
    assert settled == []
    wire.move()
    assert wire.messages == [Publish(b"a/x", b"7", 1, packet_id=1)]
    assert settled == [7]


def test_the_client_machine_publishes(broker: Broker) -> None:
    wire = Wire(broker, Connect("c"))
    other = connected(broker, "other", (b"t", 1))
    first = wire.client.publish(b"t", b"0")
    second = wire.client.publish(b"t", b"1", 1)
    wire.move()
    assert (first, wire.acked, wire.client.unacknowledged) == (0, [second], set())
    assert [message.payload for message in other.messages()] == [b"0", b"1"]


def test_the_client_machine_pings_and_gives_up(broker: Broker) -> None:
    wire = Wire(broker, Connect("c", keepalive=10))
    assert wire.client.next_timer() == 10.0
    wire.client.handle_timer(10.0)
    wire.move(10.0)
    assert wire.client.next_timer() == 20.0
    wire.client.handle_timer(20.0)
    wire.client.handle_timer(51.0)
    assert wire.client.closing


def test_the_client_machine_is_refused() -> None:
    assert Wire(make_broker(anonymous="no"), Connect("c")).told == ["refused 5"]


@pytest.mark.parametrize("case", [case for case in GOOD if not isinstance(case.packet, Connect)], ids=lambda c: c.name)
def test_the_first_packet_must_be_connect(broker: Broker, case: Good) -> None:
    peer = Peer(broker)
    peer.connection.receive_data(case.wire, 0.0)
    assert not peer.is_open


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
def test_a_connected_client_may_send_what_clients_send(broker: Broker, case: Good) -> None:
    peer = connected(broker)
    peer.connection.receive_data(case.wire, 0.0)
    kind = type(case.packet).__name__
    assert peer.is_open is (kind in FROM_CLIENT - {"Connect"})
    assert broker.counters.protocol_errors == (kind not in FROM_CLIENT - {"Connect"} | {"Disconnect"})


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.name)
@pytest.mark.parametrize("first", [b"", encode(Connect("mallory"))], ids=["at once", "connected"])
def test_bad_bytes_end_the_connection_and_disturb_nobody(broker: Broker, case: Bad, first: bytes) -> None:
    victim = connected(broker, "victim", *ALL)
    peer = Peer(broker)
    peer.connection.receive_data(first + case.wire, 0.0)
    assert peer.connection.closing is Closing.ABORT
    assert peer.connection.data_to_send() == b""
    peer.connection.receive_data(encode_publish(b"t", b"late"), 0.0)
    assert victim.is_open
    assert victim.messages() == []
    assert broker.counters.protocol_errors == 1


def test_other_versions_are_told_so_and_closed(broker: Broker) -> None:
    for packet, answer in [
        (UnsupportedConnect(b"MQIsdp", 3), encode(ConnAck(False, 1))),
        (UnsupportedConnect(b"MQTT", 6), encode(ConnAck(False, 1))),
    ]:
        peer = Peer(broker).send(packet)
        assert peer.connection.data_to_send() == answer
        assert peer.connection.closing is Closing.FLUSH
    assert broker.counters.refused_connections == 2


def test_an_empty_client_id_gets_one_only_with_a_clean_session(broker: Broker) -> None:
    assert Peer(broker).send(Connect("")).receive() == [ConnAck(False, 0)]
    assert Peer(broker).send(Connect("")).receive() == [ConnAck(False, 0)]
    assert len(broker.sessions) == 2
    refused = Peer(broker).send(Connect("", False))
    assert (refused.receive(), refused.is_open) == ([ConnAck(False, 2)], False)


def test_a_client_id_over_the_limit_is_refused(broker: Broker) -> None:
    assert Peer(broker).send(Connect("é" * 128)).receive() == [ConnAck(False, 0)]
    assert Peer(broker).send(Connect("x" * 257)).receive() == [ConnAck(False, 2)]


def test_connections_are_limited() -> None:
    broker = make_broker(max_connections=1)
    peer = Peer(broker)
    assert broker.open_connection("x", True, 0.0) is None
    peer.lose()
    peer.lose()
    assert broker.connection_count == 0
    assert broker.open_connection("x", True, 0.0) is not None


def test_silence_before_connect_ends(broker: Broker) -> None:
    peer = Peer(broker)
    assert broker.next_timer() == 10
    broker.handle_timer(9.9)
    assert peer.is_open
    broker.handle_timer(10.0)
    assert peer.connection.closing is Closing.ABORT
    assert broker.take_writable() == [peer.connection]
    assert broker.counters.timeouts == 1
    peer.lose()
    assert broker.next_timer() is None


def test_a_client_is_dropped_after_one_and_a_half_keepalives_of_silence(broker: Broker) -> None:
    peer = connected(broker, keepalive=10)
    peer.now = 8.0
    assert peer.send(PingReq()).receive() == [PingResp()]
    broker.handle_timer(15.0)
    assert peer.is_open
    assert broker.next_timer() == 23
    broker.handle_timer(23.0)
    assert not peer.is_open


def test_no_keepalive_no_timer(broker: Broker) -> None:
    connected(broker)
    assert broker.next_timer() is None


def test_the_timer_is_cheap_with_many_connections(broker: Broker) -> None:
    peers = [connected(broker, str(number), keepalive=1000) for number in range(300)]
    assert broker.next_timer() == 1500
    assert len(broker.deadlines._seconds) <= 2
    for peer in peers:
        peer.lose()
    assert broker.next_timer() is None


def test_a_refused_client_that_does_not_read_is_cut(broker: Broker) -> None:
    peer = Peer(broker).send(Connect("", False))
    assert peer.connection.closing is Closing.FLUSH
    broker.handle_timer(FLUSH_SECONDS)
    assert peer.connection.closing.value == Closing.ABORT.value


# ---------------------------------------------------------------------- messages


def test_qos_is_the_lower_of_both_sides(broker: Broker) -> None:
    peers = [connected(broker, str(qos), (b"t", qos)) for qos in range(3)]
    for qos in range(3):
        publish(broker, 1, qos=qos)
        assert [peer.messages()[0].qos for peer in peers] == [min(qos, granted) for granted in range(3)]


def test_overlapping_filters_deliver_once_at_the_highest_qos(broker: Broker) -> None:
    peer = connected(broker, "c", (b"a/#", 0), (b"a/+", 1), (b"a/b", 0))
    publish(broker, 1, topic=b"a/b")
    assert [message.qos for message in peer.messages()] == [1]


def test_unsubscribe_ends_delivery(broker: Broker) -> None:
    peer = connected(broker, "c", (b"a", 1), (b"b", 1))
    assert peer.send(Unsubscribe(9, (b"a", b"never"))).receive() == [UnsubAck(9)]
    assert publish(broker, 1, topic=b"a") == [1]
    assert publish(broker, 1, topic=b"b") == []


def test_every_qos_1_publish_is_acknowledged_in_order(broker: Broker) -> None:
    peer = connected(broker)
    peer.send(*(Publish(b"t", b"", 1, packet_id=packet_id) for packet_id in (3, 1, 2)))
    assert peer.receive() == [PubAck(3), PubAck(1), PubAck(2)]


def test_qos_2_from_a_client_is_published_once(broker: Broker) -> None:
    other = connected(broker, "other", (b"t", 2))
    peer = connected(broker)
    message = Publish(b"t", b"x", 2, packet_id=5)
    assert peer.send(message, message._replace(dup=True)).receive() == [PubRec(5), PubRec(5)]
    assert peer.send(PubRel(5), PubRel(5)).receive() == [PubComp(5), PubComp(5)]
    assert other.messages() == [Publish(b"t", b"x", 2, packet_id=1)]
    assert other.send(PubRec(1)).receive() == [PubRel(1)]
    assert other.send(PubComp(1)).is_open


def test_unreleased_qos_2_messages_are_limited(broker: Broker) -> None:
    peer = connected(broker)
    for packet_id in range(1, RECEIVED_LIMIT + 2):
        assert peer.is_open
        peer.send(Publish(b"t", b"", 2, packet_id=packet_id))
    assert not peer.is_open


def test_clients_do_not_publish_below_dollar(broker: Broker) -> None:
    watcher = connected(broker, "w", (b"$SYS/#", 1))
    peer = connected(broker)
    assert peer.send(Publish(b"$SYS/x", b"", 1, packet_id=1)).receive() == [PubAck(1)]
    assert watcher.messages() == []
    assert broker.counters.refused_publishes == 1


def test_a_message_may_be_taken_before_it_is_routed(broker: Broker) -> None:
    seen: list[tuple[str, bytes, bytes]] = []

    def take(connection: Connection, topic: bytes, payload: bytes) -> bool:
        assert connection.session is not None
        seen.append((connection.session.client_id, topic, payload))
        return topic.startswith(b"downlink/")

    broker.on_publish = take
    peer = connected(broker, "c", *ALL)
    peer.send(Publish(b"downlink/1", b"x"), Publish(b"other", b"y"))
    assert seen == [("c", b"downlink/1", b"x"), ("c", b"other", b"y")]
    assert [message.topic for message in peer.messages()] == [b"other"]


def test_a_topic_too_long_for_mqtt_is_refused(broker: Broker) -> None:
    with pytest.raises(TopicRefused):
        broker.publish(Publication(b"x" * 65_536, b""))


def test_a_batch_wakes_the_glue_once(broker: Broker) -> None:
    peers = [connected(broker, str(number), *ALL) for number in range(3)]
    broker.take_writable()
    woken: list[int] = []
    broker.on_output = lambda: woken.append(1)
    publish(broker, *range(100))
    assert woken == [1]
    assert {id(one) for one in broker.take_writable()} == {id(peer.connection) for peer in peers}
    assert len(peers[0].messages()) == 100


# ---------------------------------------------------------------------- settled


def test_nobody_there_settles_at_once(broker: Broker) -> None:
    connected(broker, "zero", (b"t", 0))
    assert publish(broker, 1) == [1]
    assert publish(broker, 1, qos=0) == [1]


def test_the_last_subscriber_settles(broker: Broker) -> None:
    one, two = connected(broker, "1", *ALL), connected(broker, "2", *ALL)
    settled = publish(broker, 1)
    one.ack(*one.messages())
    assert settled == []
    two.ack(*two.messages())
    assert settled == [1]


def test_the_end_of_a_clean_session_settles(broker: Broker) -> None:
    for ending in ("lose", "disconnect", "bad bytes"):
        peer = connected(broker, "1", *ALL)
        settled = publish(broker, 1)
        if ending == "lose":
            peer.lose()
        elif ending == "disconnect":
            peer.send(Disconnect())
        else:
            peer.connection.receive_data(b"\xff\xff", 0.0)
        assert settled == [1]
        assert not broker.sessions


def test_a_persistent_session_owes_until_its_client_acknowledges(broker: Broker) -> None:
    peer = connected(broker, "p", *ALL, clean=False)
    settled = publish(broker, 1)
    peer.lose()
    settled_later = publish(broker, 2)
    peer = Peer(broker).send(Connect("p", False))
    assert peer.receive() == [
        ConnAck(True, 0),
        Publish(b"t", b"1", 1, False, True, 1),
        Publish(b"t", b"2", 1, False, False, 2),
    ]
    assert (settled, settled_later) == ([], [])
    peer.send(PubAck(1), PubAck(2))
    assert (settled, settled_later) == ([1], [2])


def test_a_persistent_session_that_is_replaced_by_a_clean_one_settles(broker: Broker) -> None:
    peer = connected(broker, "p", *ALL, clean=False)
    peer.lose()
    settled = publish(broker, 1)
    assert Peer(broker).send(Connect("p", True)).receive() == [ConnAck(False, 0)]
    assert settled == [1]
    assert publish(broker, 2) == [2]


def test_a_full_queue_drops_the_oldest_and_goes_on_to_every_subscriber() -> None:
    broker = make_broker(max_queue=2)
    connected(broker, "away", *ALL, clean=False).lose()
    here = connected(broker, "here", *ALL)
    order: list[object] = []
    for place in range(3):
        broker.publish(Publication(b"t", b"%d" % place, 1, False, order.append, place))
    here.ack(*here.messages())
    assert order == [0]
    assert broker.sessions["away"].dropped == 1


def test_publishing_from_inside_settled_reaches_everyone_in_order() -> None:
    broker = make_broker(max_queue=1)
    connected(broker, "away", *ALL, clean=False).lose()
    here = connected(broker, "here", (b"t", 0))

    def settled(place: object) -> None:
        if place == 1:
            publish(broker, 3)

    broker.publish(Publication(b"t", b"1", 1, False, settled, 1))
    broker.publish(Publication(b"t", b"2", 1, False, settled, 2))
    assert [message.payload for message in here.messages()] == [b"1", b"2", b"3"]


def test_after_stop_nothing_is_settled_or_published(broker: Broker) -> None:
    peer = connected(broker, "c", *ALL)
    settled = publish(broker, 1)
    broker.stop()
    later = publish(broker, 2)
    peer.lose()
    assert (settled, later) == ([], [])
    assert broker.open_connection("x", True, 0.0) is None


Step = tuple[str, int]
steps = st.lists(
    st.tuples(
        st.sampled_from(["publish", "publish0", "ack", "lose", "come", "come clean", "leave"]), st.integers(0, 2)
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(steps)
def test_a_message_is_settled_exactly_when_nobody_owes_it_any_more(story: list[Step]) -> None:
    broker = make_broker(max_queue=4)
    peers: dict[int, Peer] = {}
    unacked: dict[int, list[Publish]] = {0: [], 1: [], 2: []}
    settled: list[object] = []
    published = 0
    for step, who in story:
        peer = peers.get(who)
        if step.startswith("publish"):
            published += 1
            qos = 0 if step == "publish0" else 1
            broker.publish(Publication(b"t", b"", qos, False, settled.append, published))
        elif step == "ack" and peer is not None:
            unacked[who] += [message for message in peer.messages() if message.qos]
            if unacked[who]:
                peer.ack(unacked[who].pop(0))
        elif step.startswith("come"):
            peers[who] = Peer(broker).send(Connect(str(who), step == "come clean"), Subscribe(1, ALL))
            unacked[who] = []
        elif peer is not None and step in ("lose", "leave"):
            if step == "leave":
                peer.send(Disconnect())
            peers.pop(who).lose()
            unacked[who] = []
        owed = {
            entry[0].place
            for session in broker.sessions.values()
            for entry in (*session.inflight.values(), *session.queue)
        }
        assert len(settled) == len(set(settled))
        assert set(settled) | owed == set(range(1, published + 1))
        assert not set(settled) & owed


# ---------------------------------------------------------------------- retained messages and wills


def test_a_new_subscriber_gets_the_retained_message(broker: Broker) -> None:
    publisher = connected(broker, "p")
    early = connected(broker, "early", *ALL)
    publisher.send(Publish(b"a/1", b"x", 1, True, packet_id=1), Publish(b"a/2", b"y", 0, True))
    assert [message.retain for message in early.messages()] == [False, False]
    late = Peer(broker).send(Connect("late"), Subscribe(1, ((b"a/+", 1), (b"a/2", 0))))
    assert late.receive()[1:] == [
        SubAck(1, (1, 0)),
        Publish(b"a/1", b"x", 1, True, packet_id=1),
        Publish(b"a/2", b"y", 0, True),
    ]


def test_an_empty_retained_message_removes_it(broker: Broker) -> None:
    publisher = connected(broker, "p")
    publisher.send(Publish(b"a", b"x", 0, True), Publish(b"a", b"", 0, True), Publish(b"b", b"x", 0, False))
    assert connected(broker, "s", *ALL).messages() == []


def test_retained_messages_are_bounded() -> None:
    broker = make_broker(max_retained=2, max_retained_bytes=20)
    publisher = connected(broker, "p")
    publisher.send(*(Publish(topic, b"12345", 0, True) for topic in (b"a", b"b", b"c")))
    publisher.send(Publish(b"a", b"1" * 15, 0, True))
    assert broker.counters.not_retained == 2
    subscriber = Peer(broker).send(Connect("s"), Subscribe(1, ALL))
    assert [message.topic for message in subscriber.messages()] == [b"b"]


def test_however_often_a_client_subscribes_in_one_read_retained_messages_are_looked_at_once(broker: Broker) -> None:
    connected(broker, "publisher").send(*(Publish(b"a/%d" % number, b"x", 0, True) for number in range(100)))
    client = connected(broker)
    client.send(
        Subscribe(1, tuple((b"+/no", 0) for _ in range(3000))),
        *(Subscribe(2, ((b"+/%d" % number, 1), (b"a/%d" % number, 1))) for number in range(50)),
    )
    assert broker._routing.retained.scans == 1
    assert sorted(message.topic for message in client.messages()) == sorted(b"a/%d" % number for number in range(50))


def test_retained_messages_do_not_push_out_what_is_owed() -> None:
    broker = make_broker(max_queue=3)
    publisher = connected(broker, "p")
    publisher.send(*(Publish(b"r/%d" % number, b"x", 1, True, packet_id=1) for number in range(10)))
    peer = connected(broker, "c", (b"t", 1), (b"large", 0))
    broker.publish(Publication(b"large", bytes(FULL_BYTES)))
    settled = publish(broker, 1, 2)
    peer.send(Subscribe(2, ((b"r/#", 1),)))
    assert settled == []
    assert [message.topic for message in peer.messages()] == [b"large", b"t", b"t", b"r/0"]


def test_retained_qos_0_messages_wait_for_room_rather_than_be_dropped(broker: Broker) -> None:
    publisher = connected(broker, "p")
    publisher.send(*(Publish(b"r/%d" % number, b"x" * 1000, 0, True) for number in range(600)))
    peer = Peer(broker).send(Connect("s"), Subscribe(1, ALL))
    assert len(peer.connection.data_to_send()) < FULL_BYTES + 2000
    assert len(peer.messages()) > 300


def test_a_will_is_published_when_a_client_vanishes_and_not_when_it_leaves(broker: Broker) -> None:
    watcher = connected(broker, "w", *ALL)
    will = Will(b"gone", b"bye", 1, True)
    Peer(broker).send(Connect("1", will=will)).lose()
    assert [message.payload for message in watcher.messages()] == [b"bye"]
    Peer(broker).send(Connect("1", will=will)).connection.receive_data(b"\0\0", 0.0)
    assert [message.payload for message in watcher.messages()] == [b"bye"]
    slow = Peer(broker).send(Connect("1", will=will, keepalive=1))
    broker.handle_timer(2.0)
    slow.lose()
    assert [message.payload for message in watcher.messages()] == [b"bye"]
    Peer(broker).send(Connect("1", will=will), Disconnect()).lose()
    assert watcher.messages() == []
    late = Peer(broker).send(Connect("l"), Subscribe(1, ((b"gone", 0),)))
    assert [message.retain for message in late.messages()] == [True]


# ---------------------------------------------------------------------- sessions


def test_a_second_connection_takes_the_session_over(broker: Broker) -> None:
    watcher = connected(broker, "w", (b"will", 1))
    first = Peer(broker).send(Connect("c", False, will=Will(b"will", b"")), Subscribe(1, ((b"t", 1),)))
    first.receive()
    settled = publish(broker, 1)
    second = Peer(broker).send(Connect("c", False))
    assert first.connection.closing is Closing.ABORT
    assert second.receive() == [ConnAck(True, 0), Publish(b"t", b"1", 1, False, True, 1)]
    first.send(PubAck(1))
    first.lose()
    assert settled == []
    assert second.is_open
    assert len(watcher.messages()) == 1
    second.send(PubAck(1))
    assert settled == [1]


def test_a_clean_session_that_is_taken_over_ends(broker: Broker) -> None:
    first = connected(broker, "c", *ALL)
    settled = publish(broker, 1)
    second = Peer(broker).send(Connect("c", False))
    assert second.receive() == [ConnAck(False, 0)]
    assert settled == [1]
    first.lose()
    assert second.is_open
    assert broker.connected_clients == 1


def test_absent_sessions_are_bounded_and_the_longest_absent_ends() -> None:
    broker = make_broker(max_offline_sessions=2)
    for name in ("a", "b", "c"):
        connected(broker, name, *ALL, clean=False).lose()
    assert list(broker.sessions) == ["b", "c"]
    assert broker.counters.ended_sessions == 1
    back = connected(broker, "b", clean=False)
    connected(broker, "d", *ALL, clean=False).lose()
    assert set(broker.sessions) == {"b", "c", "d"}
    back.lose()
    assert set(broker.sessions) == {"d", "b"}


def test_subscriptions_of_a_client_are_bounded() -> None:
    broker = make_broker(max_subscriptions=2)
    peer = connected(broker, "c", (b"a", 0), (b"b", 0))
    deep = b"/".join([b"x"] * 201)
    assert peer.send(Subscribe(2, ((b"c", 1), (b"a", 1), (deep, 1)))).receive() == [SubAck(2, (0x80, 1, 0x80))]
    peer.send(Unsubscribe(3, (b"a",)), Subscribe(4, ((deep, 0), (deep[2:], 0))))
    assert peer.receive()[1:] == [SubAck(4, (0x80, 0))]


def test_levels_of_all_filters_of_a_client_are_bounded() -> None:
    """A thousand filters of 200 levels would cost 90 MB, and each message that matches half of each 0.1 s."""
    broker = make_broker(max_filter_levels=10)
    peer = connected(broker, "c", (b"a/b/c/d", 0), (b"e/f/g/h", 0))
    answers = peer.send(Subscribe(2, ((b"a/b/c", 1), (b"a/b", 1), (b"a/b", 0), (b"a/b/c/d", 1), (b"x", 1)))).receive()
    assert answers == [SubAck(2, (0x80, 1, 0, 1, 0x80))]
    peer.send(Unsubscribe(3, (b"a/b", b"a/b", b"never/there")), Subscribe(4, ((b"x", 1), (b"y/z", 0))))
    assert peer.receive()[1:] == [SubAck(4, (1, 0x80))]


def test_many_filters_in_one_packet_end_the_connection_before_they_cost_anything(broker: Broker) -> None:
    known = tuple((b"a", number & 1) for number in range(FILTERS_LIMIT))
    assert connected(broker, "c").send(Subscribe(1, known)).is_open
    for packet in (Subscribe(1, (*known, (b"a", 0))), Unsubscribe(1, (b"a",) * (FILTERS_LIMIT + 1))):
        assert not connected(broker, "d").send(packet).is_open
        assert not connected_5(broker, "e").send(packet).is_open


def test_sessions_are_stored_and_restored() -> None:
    store = RememberedSessions()
    assert verifyObject(ISessionStore, store)
    access = AccessList([BrokerUser("u", "p", subscribe=["a/#"])])
    broker = Broker(access, store=store)
    connected(broker, "p", (b"a/1", 1), (b"a/2", 0), clean=False, user="u", password=b"p").lose()
    clean = connected(broker, "c", (b"x", 1))
    connected(broker, "quiet", clean=False)
    left = connected(broker, "left", (b"x", 1))
    left.send(Disconnect())
    unsubscribed = connected(broker, "u", (b"x", 1), clean=False)
    assert store.sessions["u"].subscriptions == (("x", 1, 0),)
    unsubscribed.send(Unsubscribe(2, (b"x",)))
    broker.take_writable()
    assert store.sessions == {
        "p": StoredSession("p", "u", NEVER, (("a/1", 1, 0), ("a/2", 0, 0))),
        "c": StoredSession("c", None, 0, (("x", 1, 0),)),
        "quiet": StoredSession("quiet", None, NEVER, ()),
        "u": StoredSession("u", None, NEVER, ()),
    }
    broker.stop()
    clean.lose()
    assert "c" in store.sessions

    fewer = AccessList([BrokerUser("u", "p", subscribe=["a/1"])])
    again = Broker(fewer, store=store)
    assert again.restore(store.load(), 100.0) == {"p", "c"}
    assert not again.has_subscribers({"p", "c"})
    assert again.has_subscribers({"p"})
    assert publish(again, 1, topic=b"a/2") == [1]
    settled = publish(again, 2, topic=b"a/1")
    peer = Peer(again).send(Connect("p", False, user="u", password=b"p"))
    assert peer.receive() == [ConnAck(True, 0), Publish(b"a/1", b"2", 1, packet_id=1)]
    peer.send(PubAck(1))
    assert settled == [2]
    connected(again, "c", (b"x", 1))
    assert again.has_subscribers({"p", "c"})


def test_a_client_without_an_id_is_recognised_by_what_it_asks_for() -> None:
    store = RememberedSessions()
    for name in ("auto-1", "auto-2"):
        store.add(StoredSession(name, None, 0, (("x", 1, 0), ("y", 0, 0))))
    broker = Broker(AccessList(), store=store)
    expected = broker.restore(store.load(), 0.0)
    Peer(broker).send(Connect(""), Subscribe(1, ((b"x", 1),)))
    Peer(broker).send(Connect("own"), Subscribe(1, ((b"x", 1), (b"y", 1))))
    assert set(store.sessions) == expected
    Peer(broker).send(Connect(""), Subscribe(1, ((b"x", 1),)), Subscribe(2, ((b"y", 1),)))
    assert not broker.has_subscribers(expected)
    Peer(broker).send(Connect(""), Subscribe(1, ((b"x", 1), (b"y", 1))))
    assert broker.has_subscribers(expected)
    broker.take_writable()
    assert expected.isdisjoint(store.sessions)


def test_clean_sessions_that_do_not_come_back_are_forgotten_after_a_while() -> None:
    store = RememberedSessions()
    store.add(StoredSession("c", None, 0, (("x", 1, 0),)))
    store.add(StoredSession("nobody", "removed", NEVER, (("x", 1, 0),)))
    store.add(StoredSession("no more", "removed", 0, (("x", 1, 0),)))
    broker = Broker(AccessList(), store=store)
    assert broker.restore(store.load(), 5.0) == {"c"}
    broker.take_writable()
    assert list(store.sessions) == ["c"]
    assert not broker.has_subscribers({"c"})
    assert broker.next_timer() == 5.0 + ABSENT_SECONDS
    broker.handle_timer(5.0 + ABSENT_SECONDS)
    broker.take_writable()
    assert store.sessions == {}
    assert broker.next_timer() is None


# ---------------------------------------------------------------------- slow and hostile clients


def test_a_slow_client_loses_qos_0_and_is_owed_qos_1(broker: Broker) -> None:
    peer = connected(broker, "c", *ALL)
    peer.connection.pause()
    publish(broker, 0, qos=0)
    broker.publish(Publication(b"large", bytes(FULL_BYTES)))
    publish(broker, 1, 2)
    publish(broker, 3, qos=0)
    assert peer.connection.data_to_send() == b""
    peer.connection.resume()
    assert [message.payload for message in peer.messages()] == [b"0", bytes(FULL_BYTES), b"1", b"2"]
    assert broker.counters.dropped == 1


def test_a_flood_within_one_turn_is_bounded(broker: Broker) -> None:
    peer = connected(broker, "c", *ALL)
    for _ in range(1000):
        broker.publish(Publication(b"t", bytes(10_000), 0))
    assert len(peer.connection.data_to_send()) < FULL_BYTES + 20_000
    assert broker.counters.dropped > 900


def test_a_client_that_asks_and_never_reads_is_closed(broker: Broker) -> None:
    peer = connected(broker)
    peer.connection.pause()
    for _ in range(REPLIES_BYTES // 2 // 1000):
        peer.send(*[PingReq()] * 1000)
    assert peer.is_open
    peer.send(*[PingReq()] * 1000)
    assert not peer.is_open


def test_the_limit_for_a_first_packet_is_lower(broker: Broker) -> None:
    assert not Peer(broker).send(Connect("c", will=Will(b"w", bytes(40_000)))).is_open
    peer = connected(broker, "c", *ALL)
    peer.send(Publish(b"t", bytes(200_000)))
    assert len(peer.messages()[0].payload) == 200_000
    peer.send(Publish(b"t", bytes(262_144)))
    assert not peer.is_open


# ---------------------------------------------------------------------- access

USERS = (
    BrokerUser("alice", "wonder"),
    BrokerUser("bob", "builder", publish=["bob/#", "+/shared"], subscribe=["bob/+", "news/#"]),
    BrokerUser("mute", "m", publish=[], subscribe=[]),
)


@pytest.mark.parametrize(
    ("policy", "loopback", "code"),
    [("loopback", True, 0), ("loopback", False, 5), ("no", True, 5), ("yes", False, 0)],
)
def test_clients_without_a_name(policy: str, loopback: bool, code: int) -> None:
    peer = Peer(make_broker(USERS, policy), loopback=loopback).send(Connect("c"))
    assert peer.receive() == [ConnAck(False, code)]


@pytest.mark.parametrize(
    ("user", "password", "code"),
    [("alice", b"wonder", 0), ("alice", b"Wonder", 4), ("alice", None, 4), ("carol", b"wonder", 4), ("", b"", 4)],
)
def test_clients_with_a_name(user: str, password: bytes | None, code: int) -> None:
    peer = Peer(make_broker(USERS), loopback=False).send(Connect("c", user=user, password=password))
    assert peer.receive() == [ConnAck(False, code)]
    assert peer.is_open is (code == 0)


def test_a_wrong_password_disturbs_nobody() -> None:
    broker = make_broker(USERS)
    owner = connected(broker, "id", *ALL, user="alice", password=b"wonder")
    for connect in (
        Connect("id", user="alice", password=b"guess"),
        Connect("id", False, user="alice", password=b"guess"),
        Connect("id"),
        Connect("id", user="bob", password=b"builder"),
    ):
        thief = Peer(broker).send(connect, Subscribe(1, ALL))
        [answer] = thief.receive()
        assert isinstance(answer, ConnAck)
        assert answer.code in (2, 4)
        thief.lose()
    assert owner.is_open
    settled = publish(broker, 1)
    owner.ack(*owner.messages())
    assert settled == [1]


def test_a_user_publishes_and_subscribes_where_it_may() -> None:
    broker = make_broker(USERS)
    alice = connected(broker, "a", *ALL, user="alice", password=b"wonder")
    bob = connected(broker, "b", user="bob", password=b"builder")
    asked = (b"bob/+", b"bob/1", b"bob/#", b"#", b"news/+/x", b"+/1", b"news")
    assert bob.send(Subscribe(1, tuple((one, 1) for one in asked))).receive() == [
        SubAck(1, (1, 1, 0x80, 0x80, 1, 0x80, 1))
    ]
    bob.send(*(Publish(topic, b"", 1, packet_id=1) for topic in (b"bob/x", b"x/shared", b"alice/x", b"bob")))
    assert [type(one) for one in bob.receive()] == [Publish, PubAck, PubAck, PubAck, PubAck]
    assert [message.topic for message in alice.messages()] == [b"bob/x", b"x/shared", b"bob"]
    assert broker.counters.refused_publishes == 1


def test_no_filters_at_all_allow_nothing() -> None:
    broker = make_broker(USERS)
    peer = connected(broker, "m", user="mute", password=b"m")
    peer.send(Publish(b"t", b""), Subscribe(1, ALL))
    assert peer.receive() == [SubAck(1, (0x80,))]
    assert broker.counters.refused_publishes == 1


def test_a_will_needs_permission_too() -> None:
    broker = make_broker(USERS)
    watcher = connected(broker, "w", *ALL)
    for topic in (b"bob/gone", b"gone"):
        will = Will(topic, b"")
        Peer(broker).send(Connect("c", user="bob", password=b"builder", will=will)).lose()
    assert [message.topic for message in watcher.messages()] == [b"bob/gone"]


# ---------------------------------------------------------------------- anything

WIRES = [case.wire for case in GOOD] + [case.wire for case in BAD]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(WIRES) | st.binary(max_size=30), max_size=10))
def test_no_bytes_raise(pieces: list[bytes]) -> None:
    broker = make_broker()
    bystander = connected(broker, "bystander", (b"quiet", 1))
    first, second = Peer(broker).send(Connect("p", False), Subscribe(1, ALL)), Peer(broker)
    for piece in pieces:
        for peer in (first, second):
            peer.connection.receive_data(piece, 0.0)
            peer.connection.data_to_send()
    first.lose()
    second.lose()
    assert bystander.is_open
