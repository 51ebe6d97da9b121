"""mqtt/embedded.py: when the link is ready, and what it lets go."""

from __future__ import annotations

from zope.interface import implementer
from zope.interface.verify import verifyObject

from coapgw.interfaces import IBrokerLink, IDelivery, StoredSession, StoredState
from coapgw.model import Spooled
from coapgw.mqtt.access import AccessList
from coapgw.mqtt.broker import Broker, BrokerLimits
from coapgw.mqtt.embedded import HOLD_SECONDS, STALLED_SECONDS, EmbeddedLink
from coapgw.mqtt.packets import Connect, Subscribe
from tests.unit.mqtt_peers import Peer


@implementer(IDelivery)
class Delivery:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.done: list[int] = []
        self.resumed = 0
        verifyObject(IDelivery, self)

    def accepted(self, place: int) -> None:
        self.taken.append(place)

    def settled(self, place: int) -> None:
        self.done.append(place)

    def refused(self, message: Spooled, reason: str) -> None:
        raise AssertionError("the embedded broker refuses nothing")

    def resume(self) -> None:
        self.resumed += 1


class Rig:
    """A link to a broker with a short queue."""

    def __init__(self) -> None:
        self.now = 100.0
        self.fill = 0.0
        self.broker = Broker(AccessList(), BrokerLimits(max_queue=100))
        self.delivery = Delivery()
        self.link = EmbeddedLink(self.broker, self.delivery, lambda: self.now, lambda: self.fill)
        verifyObject(IBrokerLink, self.link)
        self._place = 0

    def deliver(self, count: int = 1) -> None:
        for _ in range(count):
            self._place += 1
            self.link.deliver(Spooled(self._place, 1, "8988280666000000017", "id", b"topic", b"x"))

    def subscriber(self, client_id: str = "client", clean: bool = True) -> Peer:
        return Peer(self.broker, now=self.now).send(Connect(client_id, clean), Subscribe(1, ((b"#", 1),)))


def test_a_message_nobody_wants_is_accepted_and_settled() -> None:
    rig = Rig()
    rig.deliver()
    assert (rig.delivery.taken, rig.delivery.done) == ([1], [1])


def test_a_message_is_settled_when_its_subscriber_has_acknowledged_it() -> None:
    rig = Rig()
    peer = rig.subscriber()
    rig.deliver(2)
    assert (rig.delivery.taken, rig.delivery.done) == ([1, 2], [])
    peer.ack(*peer.messages())
    assert rig.delivery.done == [1, 2]


def test_after_a_start_it_waits_for_the_clients_that_were_there() -> None:
    rig = Rig()
    rig.link.hold(rig.broker.restore(StoredState([StoredSession("client", None, 0, (("#", 1, 0),))]), rig.now), rig.now)
    assert not rig.link.ready()
    rig.subscriber("somebody else")
    assert not rig.link.ready()
    rig.subscriber()
    assert rig.link.ready()
    rig.link.handle_timer()
    assert rig.delivery.resumed == 1


def test_but_not_for_ever() -> None:
    rig = Rig()
    rig.link.hold({"client"}, rig.now)
    rig.now += HOLD_SECONDS - 0.1
    assert not rig.link.ready()
    rig.now += 0.2
    assert rig.link.ready()


def test_if_nobody_knows_who_was_there_it_waits_the_time_out() -> None:
    rig = Rig()
    rig.link.hold(set(), rig.now, are_all=False)
    rig.subscriber()
    rig.now += HOLD_SECONDS - 0.1
    assert not rig.link.ready()
    rig.now += 0.2
    assert rig.link.ready()


def _crowd(rig: Rig) -> Peer:
    peer = rig.subscriber()
    peer.receive()
    peer.connection.pause()
    while rig.link.ready():
        rig.deliver()
    return peer


def test_it_waits_for_a_subscriber_that_is_getting_on_and_goes_on_when_it_has_caught_up() -> None:
    rig = Rig()
    peer = _crowd(rig)
    peer.connection.resume()
    while messages := peer.messages():
        peer.ack(*messages)
    assert rig.link.ready()
    assert rig.delivery.resumed == 1
    assert rig.delivery.done == rig.delivery.taken


def test_it_waits_neither_for_one_that_is_stuck_nor_when_the_spool_fills() -> None:
    rig = Rig()
    _crowd(rig)
    rig.fill = 0.5
    assert rig.link.ready()
    rig.fill = 0.4
    assert not rig.link.ready()
    rig.now += STALLED_SECONDS + 1
    assert rig.link.ready()


def test_it_waits_for_a_subscriber_that_is_away_for_a_moment_so_that_nothing_is_dropped() -> None:
    rig = Rig()
    rig.subscriber(clean=False).lose()
    while rig.link.ready():
        rig.deliver()
    assert rig.broker.counters.dropped == 0
    rig.now += STALLED_SECONDS - 1
    rig.link.handle_timer()
    assert not rig.link.ready()
    back = Peer(rig.broker, now=rig.now).send(Connect("client", False))
    while messages := back.messages():
        back.ack(*messages)
    assert rig.link.ready()
    assert rig.delivery.done == rig.delivery.taken


def test_it_does_not_wait_for_one_that_stays_away() -> None:
    rig = Rig()
    rig.subscriber(clean=False).lose()
    while rig.link.ready():
        rig.deliver()
    rig.now += STALLED_SECONDS + 1
    rig.link.handle_timer()
    assert rig.delivery.resumed
    rig.deliver(200)
    assert rig.link.ready()
    assert rig.broker.counters.dropped == rig._place - 100


def test_a_full_spool_lets_the_oldest_owed_messages_go_once_and_the_subscriber_still_gets_them() -> None:
    rig = Rig()
    rig.subscriber(clean=False).lose()
    rig.deliver(10)
    rig.fill = 0.74
    rig.link.handle_timer()
    assert rig.delivery.done == []
    rig.fill = 0.76
    rig.link.handle_timer()
    assert rig.delivery.done == [1, 2, 3, 4, 5, 6]
    back = Peer(rig.broker, now=rig.now).send(Connect("client", False))
    messages = back.messages()
    assert len(messages) == 10
    back.ack(*messages)
    assert rig.delivery.done == list(range(1, 11))
