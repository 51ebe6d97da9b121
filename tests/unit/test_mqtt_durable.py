"""What the broker promises is on disk first, and is there after a restart."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coapgw.interfaces import Written
from coapgw.model import Spooled
from coapgw.mqtt.access import AccessList
from coapgw.mqtt.broker import Broker, BrokerLimits
from coapgw.mqtt.connection import Closing
from coapgw.mqtt.journal import FULL_BYTES
from coapgw.mqtt.packets import (
    LEVEL_5,
    ConnAck,
    Connect,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
)
from coapgw.mqtt.properties import Properties
from coapgw.mqtt.publication import Publication
from tests.unit.mqtt_peers import Peer, connected, connected_5
from tests.unit.session_store import RememberedSessions

EPOCH = 1_000_000.0


def make_broker(store: RememberedSessions, now: float = 0.0) -> Broker:
    """Return a broker of a new life, with what *store* has."""
    broker = Broker(AccessList(), BrokerLimits(), store=store, epoch=EPOCH)
    broker.restore(store.load(), now)
    return broker


def killed(store: RememberedSessions) -> RememberedSessions:
    """Return what is on disk when the process is killed now."""
    left = RememberedSessions(is_slow=store.is_slow)
    left.sessions, left.messages, left.claims = dict(store.sessions), dict(store.messages), dict(store.claims)
    left.received, left.retained = set(store.received), dict(store.retained)
    return left


def uplink(number: int) -> Publication:
    """Return a device's message; its place is its number."""
    message = Spooled(number, 1, "89", f"1-{number}", b"up", b"%d" % number)
    return Publication(message.topic, message.payload, 1, origin=message, place=number)


def back(broker: Broker, client_id: str = "c", now: float = 0.0) -> Peer:
    return Peer(broker, now=now).send(Connect(client_id, False))


def commit(broker: Broker, store: RememberedSessions) -> None:
    """Let everything reach the disk."""
    broker.take_writable()
    while store.waiting:
        store.commit()


def test_a_publisher_is_answered_when_what_it_sent_is_on_disk() -> None:
    store = RememberedSessions(is_slow=True)
    broker = make_broker(store)
    Peer(broker).send(Connect("c", False), Subscribe(1, ((b"t", 1),))).lose()
    commit(broker, store)
    publisher = connected(broker, "p")
    publisher.send(Publish(b"t", b"1", 1, packet_id=1), Publish(b"nobody", b"", 1, packet_id=2))
    assert publisher.receive() == []
    assert killed(store).messages == {}
    commit(broker, store)
    assert publisher.receive() == [PubAck(1), PubAck(2)]
    publisher.send(Publish(b"nobody", b"", 1, packet_id=3))
    assert publisher.receive() == [PubAck(3)]

    again = make_broker(killed(store))
    peer = back(again)
    assert peer.receive() == [ConnAck(True, 0), Publish(b"t", b"1", 1, packet_id=1)]


def test_a_subscription_of_a_session_that_stays_is_confirmed_when_it_is_on_disk() -> None:
    store = RememberedSessions(is_slow=True)
    broker = make_broker(store)
    peer = Peer(broker).send(Connect("c", False), Subscribe(1, ((b"t", 1),)))
    assert peer.receive() == [ConnAck(False, 0)]
    store.commit()
    assert peer.receive() == [SubAck(1, (1,))]
    peer.send(Subscribe(2, ((b"t", 1),)))  # which is there already, whatever the disk does
    assert peer.receive() == [SubAck(2, (1,))]
    peer.send(Subscribe(3, ((b"t", 0),)), Subscribe(4, ((b"t", 0),)))
    assert peer.receive() == []
    commit(broker, store)
    assert peer.receive() == [SubAck(3, (0,)), SubAck(4, (0,))]


def test_a_retained_message_is_on_disk_before_its_publisher_is_answered() -> None:
    store = RememberedSessions(is_slow=True)
    broker = make_broker(store)
    publisher = connected(broker, "p")
    said = Properties(message_expiry=60, content_type=b"x")
    five = connected_5(broker, "p5")
    five.send(Publish(b"r/5", b"5", 1, True, False, 1, said), Publish(b"r/short", b"", 1, True, False, 2))
    publisher.send(Publish(b"r/1", b"1", 1, True, packet_id=1), Publish(b"r/2", b"2", 0, True))
    assert (publisher.receive(), five.receive()) == ([], [])
    commit(broker, store)
    assert publisher.receive() == [PubAck(1)]
    assert len(five.receive()) == 2
    publisher.send(Publish(b"r/2", b"", 1, True, packet_id=2))
    commit(broker, store)

    again = make_broker(killed(store), now=20.0)
    new = connected_5(again, "new", now=20.0).send(Subscribe(1, ((b"#", 1),)))
    assert sorted(message._replace(packet_id=0) for message in new.messages()) == [
        Publish(b"r/1", b"1", 1, True),
        Publish(b"r/5", b"5", 1, True, False, 0, Properties(message_expiry=40, content_type=b"x")),
    ]
    assert make_broker(killed(store), now=100.0)._routing.retained._messages.keys() == {b"r/1"}


def test_acknowledged_messages_leave_the_disk() -> None:
    store = RememberedSessions()
    broker = make_broker(store)
    here = connected(broker, "here", (b"t", 1), clean=False)
    connected(broker, "away", (b"t", 1), clean=False).lose()
    connected(broker, "p").send(Publish(b"t", b"x", 1, packet_id=1))
    here.ack(*here.messages())
    commit(broker, store)
    assert [claim.client_id for claim in store.claims.values()] == ["away"]
    assert len(store.messages) == 1
    peer = back(broker, "away")
    peer.ack(*peer.messages())
    commit(broker, store)
    assert (store.claims, store.messages) == ({}, {})


def test_what_is_acknowledged_before_its_turn_is_never_written() -> None:
    store = RememberedSessions(is_slow=True)
    broker = make_broker(store)
    Peer(broker).send(Connect("c", False), Subscribe(1, ((b"t", 1),)))
    broker.take_writable()  # this is being written now
    peer = back(broker)
    publisher = connected(broker, "p")
    publisher.send(Publish(b"t", b"x", 1, packet_id=1))
    peer.ack(*peer.messages())
    store.commit()
    assert [bool(changes.messages or changes.claims or changes.paid) for changes, _ in store.waiting] == [False]
    commit(broker, store)
    assert publisher.receive() == [PubAck(1)]


def test_a_session_that_ends_takes_what_it_was_owed_with_it() -> None:
    store = RememberedSessions()
    broker = make_broker(store)
    connected(broker, "c", (b"t", 2), clean=False).lose()
    connected(broker, "p").send(Publish(b"t", b"x", 2, packet_id=1), Publish(b"t", b"y", 1, packet_id=2))
    commit(broker, store)
    assert len(store.claims) == 2
    connected(broker, "c")
    commit(broker, store)
    assert (store.claims, store.messages, store.sessions) == ({}, {}, {})


# ---------------------------------------------------------------------- devices' messages


def test_a_devices_message_for_an_absent_client_leaves_the_spool_when_it_is_in_the_brokers_file() -> None:
    store = RememberedSessions(is_slow=True)
    broker = make_broker(store)
    here = connected(broker, "here", (b"up", 1))
    Peer(broker).send(Connect("away", False), Subscribe(1, ((b"up", 1),))).lose()
    commit(broker, store)
    settled: list[object] = []
    publication = uplink(1)
    publication.settled = settled.append
    broker.publish(publication)
    here.ack(*here.messages())
    assert settled == []
    commit(broker, store)
    assert settled == [1]
    again = make_broker(killed(store))
    (message,) = back(again, "away").messages()
    assert message.payload == b"1"


def test_what_a_client_was_sent_when_it_left_leaves_the_spool_too() -> None:
    store = RememberedSessions()
    broker = make_broker(store)
    peer = connected(broker, "c", (b"up", 1), clean=False)
    settled: list[object] = []
    for number in range(1, 1200):
        publication = uplink(number)
        publication.settled = settled.append
        broker.publish(publication)
    commit(broker, store)
    assert (settled, store.claims) == ([], {})
    peer.lose()
    commit(broker, store)
    assert sorted(map(str, settled)) == sorted(map(str, range(1, 1200)))
    again = make_broker(killed(store))
    peer, got = back(again), []
    while messages := peer.messages():
        got += [int(message.payload) for message in messages]
        peer.ack(*messages)
    assert got == list(range(1, 1200))
    commit(again, again.journal.store)  # type: ignore[arg-type]  # it is the one in memory
    assert again.journal.store.claims == {}  # type: ignore[union-attr]


def test_a_message_that_is_in_the_spool_and_in_the_file_comes_once() -> None:
    store = RememberedSessions()
    broker = make_broker(store)
    connected(broker, "here", (b"up", 1))  # and never acknowledges
    connected(broker, "away", (b"up", 1), clean=False).lose()
    broker.publish(uplink(1))
    commit(broker, store)
    again = make_broker(killed(store))
    here = connected(again, "here", (b"up", 1))
    peer = back(again, "away")
    again.publish(uplink(1))
    again.publish(uplink(2))
    assert [message.payload for message in here.messages()] == [b"1", b"2"]
    assert [message.payload for message in peer.messages()] == [b"1", b"2"]


def test_with_a_disk_that_does_not_keep_up_devices_messages_stay_in_the_spool_and_clients_are_refused() -> None:
    store = RememberedSessions(is_slow=True)
    broker = make_broker(store)
    Peer(broker).send(Connect("c", False), Subscribe(1, ((b"#", 1),))).lose()
    broker.take_writable()
    five, old = connected_5(broker, "five"), connected(broker, "old")
    for packet_id in range(1, FULL_BYTES // 200_000 + 2):
        five.send(Publish(b"t", bytes(200_000), 1, packet_id=packet_id))
    five.send(Publish(b"t", b"", 1, packet_id=999))
    assert five.receive() == []
    old.send(Publish(b"t", b"", 1, packet_id=1))
    assert not old.is_open
    settled: list[object] = []
    publication = uplink(1)
    publication.settled = settled.append
    broker.publish(publication)
    for _ in range(3):
        commit(broker, store)
    assert five.receive()[-1] == PubAck(999, 0x97)
    assert settled == []


@pytest.mark.parametrize("payload", [b"", b"x"])
def test_a_disk_that_stands_still_is_no_reason_to_remember_every_topic_that_is_retained(payload: bytes) -> None:
    store = RememberedSessions(is_slow=True)
    broker = make_broker(store)
    here, flood = connected(broker, "here", (b"u", 0)), connected(broker, "flood")
    flood.send(Publish(b"t", b"first", 0, True))
    broker.take_writable()
    topic = b"t" * 10_000
    for number in range(2 * FULL_BYTES // 10_000):
        flood.send(
            Publish(b"%s%d" % (topic, number), b"x", 0, True), Publish(b"%s%d" % (topic, number), payload, 0, True)
        )
    flood.send(Publish(b"u", b"goes on", 0))
    waiting = broker.journal._group.changes.retained
    assert sum(map(len, waiting)) <= FULL_BYTES
    assert broker.counters.refused_publishes
    assert flood.is_open
    assert [message.payload for message in here.messages()] == [b"goes on"]


def test_a_session_that_ends_before_it_is_written_is_not_written() -> None:
    store = RememberedSessions(is_slow=True)
    broker = make_broker(store)
    Peer(broker).send(Connect("first", False))
    broker.take_writable()  # is being written now
    Peer(broker).send(Connect("c", False), Subscribe(1, ((b"#", 1),))).lose()
    broker.take_writable()  # gathers
    Peer(broker).send(Connect("c", True)).lose()
    for _ in range(3):
        commit(broker, store)
    assert set(store.sessions) == {"first"}


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_properties_of_a_message_reach_subscribers_whatever_its_qos(qos: int) -> None:
    broker = make_broker(RememberedSessions())
    there = connected_5(broker, "there", (b"#", qos))
    said = Properties(content_type=b"text", user_properties=((b"a", b"b"),))
    connected_5(broker, "here").send(Publish(b"t", b"x", qos, packet_id=qos and 7, properties=said))
    assert [message.properties for message in there.messages()] == [said]


def test_what_still_comes_from_a_client_that_is_gone_is_ignored() -> None:
    broker = make_broker(RememberedSessions())
    here, gone = connected(broker, "here", (b"#", 0)), connected(broker, "gone")
    gone.lose()
    gone.send(Connect("here", True), Publish(b"t", b"x"))
    assert here.is_open
    assert here.messages() == []
    assert len(broker.sessions) == 1


# ---------------------------------------------------------------------- QoS 2


def test_qos_2_from_a_client_is_published_once_over_a_restart_at_any_moment() -> None:
    store = RememberedSessions(is_slow=True)
    broker = make_broker(store)
    Peer(broker).send(Connect("s", False), Subscribe(1, ((b"t", 1),))).lose()
    publisher = Peer(broker).send(Connect("p", False))
    commit(broker, store)
    message = Publish(b"t", b"x", 2, packet_id=5)
    assert publisher.send(message).receive() == [ConnAck(False, 0)]
    before = make_broker(killed(store))
    assert back(before, "s").messages() == []

    commit(broker, store)
    assert publisher.receive() == [PubRec(5)]
    after = killed(store)
    again = make_broker(after)
    repeating = back(again, "p").send(message._replace(dup=True))
    commit(again, after)
    assert repeating.receive() == [ConnAck(True, 0), PubRec(5)]
    assert [one.payload for one in back(again, "s").messages()] == [b"x"]
    repeating.send(PubRel(5))
    assert repeating.receive() == []
    commit(again, after)
    assert repeating.receive() == [PubComp(5)]
    assert make_broker(killed(after)).sessions["p"].received == set()


def test_qos_2_to_a_client_goes_on_where_it_was_after_a_restart() -> None:
    store = RememberedSessions(is_slow=True)
    broker = make_broker(store)
    peer = Peer(broker).send(Connect("c", False), Subscribe(1, ((b"t", 2),)))
    commit(broker, store)
    peer.receive()
    connected(broker, "p").send(*(Publish(b"t", b"%d" % one, 2, packet_id=one) for one in (1, 2, 3)))
    assert peer.receive() == []  # the identifiers are not on disk yet
    commit(broker, store)
    assert [message.packet_id for message in peer.messages()] == [1, 2, 3]
    peer.send(PubRec(1), PubRec(2))
    assert peer.receive() == []
    commit(broker, store)
    assert peer.receive() == [PubRel(1), PubRel(2)]
    peer.send(PubComp(1))
    commit(broker, store)

    left = killed(store)
    again = back(make_broker(left))
    assert again.receive() == [ConnAck(True, 0), PubRel(2), Publish(b"t", b"3", 2, False, True, 3)]
    again.send(PubComp(2), PubRec(3))
    commit(again.broker, left)
    again.send(PubComp(3))
    commit(again.broker, left)
    assert (left.claims, left.messages) == ({}, {})


# ---------------------------------------------------------------------- MQTT 5 over a restart


def test_options_identifiers_properties_and_expiry_survive() -> None:
    store = RememberedSessions()
    broker = make_broker(store)
    said = Properties(session_expiry=100)
    peer = connected_5(broker, "c", said=said)
    peer.send(Subscribe(1, ((b"t/#", 1 | 0x08 | 0x04), (b"$share/g/s", 1)), Properties(subscription_identifiers=(9,))))
    peer.lose()
    beside = Properties(message_expiry=50, user_properties=((b"a", b"b"),))
    publisher = connected_5(broker, "p")
    publisher.send(Publish(b"t/1", b"x", 1, True, False, 1, beside), Publish(b"s", b"y", 1, packet_id=2))
    commit(broker, store)

    again = make_broker(killed(store), now=20.0)
    assert again.next_timer() == 100
    peer = Peer(again, now=20.0, level=LEVEL_5).send(Connect("c", False, level=LEVEL_5, properties=said))
    answer, first, second = peer.receive()
    assert isinstance(answer, ConnAck)
    assert answer.session_present
    expected = Properties(message_expiry=30, user_properties=((b"a", b"b"),), subscription_identifiers=(9,))
    assert first == Publish(b"t/1", b"x", 1, True, False, 1, expected)
    assert isinstance(second, Publish)
    assert (second.payload, second.properties.subscription_identifiers) == (b"y", (9,))
    again.publish(Publication(b"s", b"z", 1))
    assert [message.payload for message in peer.messages()] == [b"z"]


@pytest.mark.parametrize(("left", "ended"), [(True, True), (False, False)])
def test_a_session_ends_in_time_though_the_gateway_was_stopped(left: bool, ended: bool) -> None:
    store = RememberedSessions()
    broker = make_broker(store)
    peer = connected_5(broker, "c", (b"t", 1), said=Properties(session_expiry=100))
    if left:
        peer.lose()
    commit(broker, store)
    again = make_broker(killed(store), now=100.0)
    assert ("c" not in again.sessions) is ended
    again.handle_timer(200.0)
    assert "c" not in again.sessions
    commit(again, again.journal.store)  # type: ignore[arg-type]  # it is the one in memory
    assert again.journal.store.sessions == {}  # type: ignore[union-attr]


# ---------------------------------------------------------------------- any story


Step = tuple[str, int]
steps = st.tuples(
    st.sampled_from(["publish", "uplink", "lose", "back", "ack", "commit", "kill", "write"]), st.integers(1, 2)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, max_size=40))
def test_nothing_that_was_acknowledged_is_lost(story: list[Step]) -> None:
    """Whatever happens in whatever order, an absent client gets what its publisher was told is safe, and in order."""
    store = RememberedSessions(is_slow=True)
    broker = make_broker(store)
    Peer(broker).send(Connect("c", False), Subscribe(1, ((b"t", 1),))).lose()
    commit(broker, store)
    publisher = connected(broker, "p")
    peer: Peer | None = None
    safe: list[bytes] = []
    got: list[bytes] = []
    number = 0
    unanswered: dict[int, bytes] = {}
    unacknowledged: list[Publish] = []

    def take() -> None:
        answers = [packet for packet in publisher.receive() if isinstance(packet, PubAck | PubComp)]
        safe.extend(unanswered.pop(packet.packet_id) for packet in answers)
        for message in peer.messages() if peer is not None else ():
            unacknowledged.append(message)
            got.append(message.payload)

    for step, qos in story:
        if step == "publish":
            number += 1
            unanswered[number] = b"%d" % number
            publisher.send(Publish(b"t", b"%d" % number, qos, packet_id=number))
            if qos == 2:
                publisher.send(PubRel(number))
        elif step == "lose" and peer is not None:
            peer.lose()
            peer, unacknowledged = None, []
        elif step == "back" and peer is None:
            peer, unacknowledged = back(broker), []
        elif step == "ack" and peer is not None:
            peer.ack(*unacknowledged)
            unacknowledged = []
        elif step == "commit":
            store.commit()
        elif step == "write":
            broker.take_writable()
        elif step == "kill":
            store = killed(store)
            broker = make_broker(store)
            publisher, peer, unanswered, unacknowledged = connected(broker, "p"), None, {}, []
        take()
    if peer is not None:
        peer.lose()
    last = back(broker)
    peer, unacknowledged = last, []
    while True:
        take()
        if not unacknowledged:
            break
        last.ack(*unacknowledged)
        unacknowledged = []
    assert set(safe) <= set(got)
    firsts = list(dict.fromkeys(got))
    assert firsts == sorted(firsts, key=int)


# ---------------------------------------------------------------------- a store that fails


def one_being_written() -> tuple[RememberedSessions, Broker, list[object]]:
    """Return a broker whose store is writing a device's message for the absent client "c", and what was settled."""
    store = RememberedSessions(is_slow=True)
    broker = make_broker(store)
    Peer(broker).send(Connect("c", False), Subscribe(1, ((b"up", 1),))).lose()
    commit(broker, store)
    settled: list[object] = []
    publication = uplink(1)
    publication.settled = settled.append
    broker.publish(publication)
    broker.take_writable()
    return store, broker, settled


def test_what_the_store_does_not_take_stays_in_the_spool_until_it_has_arrived() -> None:
    store = RememberedSessions(is_slow=True)
    broker = make_broker(store)
    Peer(broker).send(Connect("c", False), Subscribe(1, ((b"up", 2),))).lose()
    commit(broker, store)
    settled: list[object] = []
    for number in (1, 2, 3):
        publication = uplink(number)
        publication.settled = settled.append
        broker.publish(publication)
        if number == 2:
            broker.take_writable()  # the first two are being written
    store.outcome = Written.REFUSED
    commit(broker, store)
    assert settled == [3]
    peer = back(broker)
    first, *_ = peer.messages()
    peer.ack(first)
    commit(broker, store)
    assert settled == [3, 1]
    connected(broker, "c")  # its session ends
    commit(broker, store)
    assert settled == [3, 1, 2]


def test_what_arrived_while_the_store_refused_it_leaves_the_spool() -> None:
    store, broker, settled = one_being_written()
    peer = back(broker)
    peer.ack(*peer.messages())
    store.outcome = Written.REFUSED
    commit(broker, store)
    assert settled == [1]


@pytest.mark.parametrize("connect", [connected, connected_5])
def test_who_waits_for_an_answer_that_may_not_be_given_is_disconnected(connect: Callable[[Broker, str], Peer]) -> None:
    store = RememberedSessions(is_slow=True)
    broker = make_broker(store)
    Peer(broker).send(Connect("c", False), Subscribe(1, ((b"t", 1),))).lose()
    commit(broker, store)
    publisher, other = connect(broker, "p"), connect(broker, "other")
    publisher.send(Publish(b"t", b"1", 1, packet_id=1))
    store.outcome = Written.REFUSED
    commit(broker, store)
    assert [one for one in publisher.receive() if isinstance(one, PubAck)] == []
    assert publisher.connection.closing is not Closing.NO
    assert other.connection.closing is Closing.NO


def test_a_store_that_lost_everything_is_given_it_again() -> None:
    store = RememberedSessions()
    broker = make_broker(store)
    peer = connected(broker, "c", (b"t", 2), (b"u", 1), (b"v/+", 1), clean=False)
    publisher = connected_5(broker, "p", clean=False, said=Properties(session_expiry=100))
    said = Properties(content_type=b"x", message_expiry=60)
    publisher.send(Publish(b"t", b"1", 2, False, False, 1), Publish(b"u", b"2", 1, False, False, 2, said))
    publisher.send(Publish(b"t", b"3", 2, True, False, 3), Publish(b"r", b"4", 0, True))
    commit(broker, store)
    first = next(one for one in peer.messages() if one.qos == 2)
    peer.send(PubRec(first.packet_id)).lose()
    publisher.send(Publish(b"v/1", b"5", 1, False, False, 5))
    settled: list[object] = []
    publication = Publication(b"v/2", b"up", 1, settled=settled.append, place=1)
    commit(broker, store)
    before = killed(store)
    assert before.received
    assert [claim for claim in before.claims.values() if claim.number is None]
    store.outcome = Written.LOST
    broker.publish(publication)
    publisher.receive()
    publisher.send(Publish(b"v/3", b"6", 1, False, False, 6))
    assert settled == [1]
    assert publisher.receive() == [PubAck(6)]
    commit(broker, store)
    assert store.sessions == before.sessions
    assert store.retained == before.retained
    assert store.received == before.received
    later = {serial for serial in store.claims if serial not in before.claims}
    assert {serial: one for serial, one in store.claims.items() if serial not in later} == before.claims
    assert {number: one for number, one in store.messages.items() if number in before.messages} == before.messages
    assert [store.messages[store.claims[serial].number or 0].payload for serial in sorted(later)] == [b"up", b"6"]


def test_nothing_is_left_to_write_after_a_loss_but_the_spool_is_told() -> None:
    store, broker, settled = one_being_written()
    connected(broker, "c")  # its session ends
    store.outcome = Written.LOST
    commit(broker, store)
    assert settled == [1]


def test_a_device_message_reaches_a_client_once_though_the_store_lost_it_between_two_restarts() -> None:
    store = RememberedSessions()
    broker = make_broker(store)
    Peer(broker).send(Connect("c", False), Subscribe(1, ((b"up", 1),))).lose()
    broker.publish(uplink(1))
    commit(broker, store)
    store = killed(store)
    broker = make_broker(store)
    publisher = connected_5(broker, "p", clean=False, said=Properties(session_expiry=100))
    store.outcome = Written.LOST
    publisher.send(Publish(b"up", b"2", 1, packet_id=1))
    commit(broker, store)
    broker = make_broker(killed(store))
    broker.publish(uplink(1))  # it was still in the spool
    assert [one.payload for one in back(broker).messages()] == [uplink(1).payload, b"2"]


def test_a_repeated_qos_2_message_is_answered_no_sooner_than_the_first() -> None:
    store = RememberedSessions(is_slow=True)
    broker = make_broker(store)
    publisher = Peer(broker).send(Connect("p", False))
    commit(broker, store)
    message = Publish(b"t", b"x", 2, packet_id=5)
    publisher.send(message)
    broker.take_writable()  # it is being written
    publisher.lose()
    again = Peer(broker).send(Connect("p", False), message._replace(dup=True))
    assert [one for one in again.receive() if isinstance(one, PubRec)] == []
    commit(broker, store)
    assert again.receive() == [PubRec(5)]
    again.send(PubRel(5))
    broker.take_writable()
    again.send(PubRel(5))
    assert again.receive() == []
    commit(broker, store)
    assert again.receive() == [PubComp(5), PubComp(5)]


def test_a_subscription_that_the_store_lost_stands_when_it_is_there_again() -> None:
    store = RememberedSessions(is_slow=True)
    broker = make_broker(store)
    peer = Peer(broker).send(Connect("c", False), Subscribe(1, ((b"t", 1),)))
    commit(broker, store)
    assert peer.receive()[1:] == [SubAck(1, (1,))]
    publisher = connected(broker, "p")
    publisher.send(Publish(b"t", b"1", 1, True, packet_id=1))
    broker.take_writable()
    store.outcome = Written.LOST
    store.commit()
    peer.send(Subscribe(2, ((b"t", 1),)))
    assert SubAck(2, (1,)) not in peer.receive()
    commit(broker, store)
    assert SubAck(2, (1,)) in peer.receive()


def test_sessions_that_come_and_go_while_the_disk_stands_still_leave_nothing_behind() -> None:
    store = RememberedSessions(is_slow=True)
    broker = make_broker(store)
    connected(broker, "first", (b"t", 1)).lose()
    broker.take_writable()
    for number in range(50):
        connected(broker, f"c{number}", (b"t", 1)).lose()
        Peer(broker).send(Connect(f"d{number}", False), Subscribe(1, ((b"t", 1),))).lose()
        connected_5(broker, f"d{number}").lose()
        broker.take_writable()
    store.commit()
    broker.take_writable()
    ((changes, _),) = store.waiting  # the group that was gathered meanwhile
    assert list(changes.ended) == ["first"]
    commit(broker, store)
    assert store.sessions == {}
