"""The gateway's messages on their way to aMQTT's subscribers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs
from twisted.internet.task import Clock

from coapgw.metrics import AmqttCounters
from coapgw.mqtt.amqtt_fanout import CROWDED, WINDOW, Fanout, Recipient
from coapgw.mqtt.publication import Publication


@attrs.define
class CourierStub:
    """aMQTT as far as a message is concerned; acknowledges when it is told to."""

    sessions: dict[str, tuple[object, int]] = attrs.Factory(dict)
    online: set[str] = attrs.Factory(set)
    sent: list[tuple[str, bytes, int]] = attrs.Factory(list)
    open: list[tuple[str, Callable[[bool], None]]] = attrs.Factory(list)

    def add(self, client_id: str, qos: int = 1) -> None:
        self.sessions[client_id] = (object(), qos)
        self.online.add(client_id)

    def recipients(self, topic: bytes) -> Iterable[Recipient]:
        return [Recipient(client_id, session, qos) for client_id, (session, qos) in self.sessions.items()]

    def is_online(self, client_id: str) -> bool:
        return client_id in self.online

    def is_current(self, client_id: str, session: object) -> bool:
        return self.sessions.get(client_id, (None,))[0] is session

    def send(self, client_id: str, publication: Publication, qos: int, done: Callable[[bool], None]) -> None:
        self.sent.append((client_id, publication.payload, qos))
        self.open.append((client_id, done))

    def acknowledge(self, count: int = 1_000_000) -> None:
        """Acknowledge the oldest messages, and what is sent because of that."""
        while self.open and count:
            self.open.pop(0)[1](True)
            count -= 1

    def cut(self, client_id: str) -> None:
        """End a client's connection."""
        self.online.discard(client_id)
        failing = [done for other, done in self.open if other == client_id]
        self.open = [(other, done) for other, done in self.open if other != client_id]
        for done in failing:
            done(False)

    def payloads(self, client_id: str) -> list[bytes]:
        return [payload for other, payload, _ in self.sent if other == client_id]


class World:
    """A fan-out with a clock, and what was settled."""

    def __init__(self, max_queue: int = 10_000) -> None:
        self.courier = CourierStub()
        self.clock = Clock()
        self.counters = AmqttCounters()
        self.fanout = Fanout(self.courier, max_queue, self.counters, self.clock.seconds)
        self.settled: list[object] = []
        self._place = 0

    def publish(self, count: int = 1) -> None:
        for _ in range(count):
            self._place += 1
            self.fanout.publish(Publication(b"t", b"%d" % self._place, 1, False, self.settled.append, self._place))


def numbers(first: int, last: int) -> list[bytes]:
    return [b"%d" % number for number in range(first, last + 1)]


def test_without_subscribers_a_message_is_settled_at_once() -> None:
    world = World()
    world.publish()
    assert world.settled == [1]


def test_a_message_is_settled_when_all_have_acknowledged_it_and_qos_0_counts_for_nothing() -> None:
    world = World()
    world.courier.add("one")
    world.courier.add("two", 2)
    world.courier.add("zero", 0)
    world.publish()
    assert world.courier.sent == [("one", b"1", 1), ("two", b"1", 1), ("zero", b"1", 0)]
    world.courier.acknowledge(1)
    assert world.settled == []
    world.courier.acknowledge(1)
    assert world.settled == [1]
    assert world.counters.delivered == 2


def test_only_a_window_is_in_flight_and_the_order_holds() -> None:
    world = World()
    world.courier.add("one")
    world.publish(500)
    assert len(world.courier.sent) == WINDOW
    world.courier.acknowledge()
    assert world.courier.payloads("one") == numbers(1, 500)
    assert world.settled == list(range(1, 501))


def test_what_a_lost_connection_took_along_comes_again_in_order() -> None:
    world = World()
    world.courier.add("one")
    world.publish(60)
    world.courier.acknowledge(5)
    world.courier.cut("one")
    world.publish(5)
    assert world.settled == [1, 2, 3, 4, 5]
    world.courier.sent.clear()
    world.courier.online.add("one")
    world.fanout.client_returned("one")
    world.courier.acknowledge()
    assert world.courier.payloads("one") == numbers(6, 65)
    assert world.settled == list(range(1, 66))


def test_the_once_a_second_look_goes_on_with_who_is_back() -> None:
    world = World()
    world.courier.add("one")
    world.courier.cut("one")
    world.publish()
    assert world.courier.sent == []
    world.courier.online.add("one")
    world.fanout.handle_timer()
    world.courier.acknowledge()
    assert world.settled == [1]


def test_a_session_that_ends_owes_nothing() -> None:
    world = World()
    world.courier.add("one")
    world.publish(100)
    world.courier.cut("one")
    assert world.settled == []
    del world.courier.sessions["one"]
    world.fanout.handle_timer()
    assert sorted(map(str, world.settled)) == sorted(map(str, range(1, 101)))
    assert world.fanout.owed() == 0


def test_a_new_session_of_the_same_client_gets_nothing_of_the_former() -> None:
    world = World()
    world.courier.add("one")
    world.courier.cut("one")
    world.publish(3)
    world.courier.add("one")
    world.publish()
    assert world.settled == [1, 2, 3]
    assert world.courier.payloads("one") == [b"4"]


def test_a_late_answer_for_a_session_that_has_ended_is_nobodys() -> None:
    world = World()
    world.courier.add("one")
    world.publish()
    del world.courier.sessions["one"]
    world.fanout.handle_timer()
    world.courier.acknowledge()
    assert world.settled == [1]
    assert world.counters.delivered == 0


def test_the_oldest_is_dropped_beyond_the_limit() -> None:
    world = World(max_queue=10)
    world.courier.add("one")
    world.courier.cut("one")
    world.publish(15)
    assert world.settled == [1, 2, 3, 4, 5]
    assert world.counters.dropped == 5


def test_a_subscriber_that_is_far_behind_is_waited_for() -> None:
    world = World()
    relieved: list[None] = []
    world.fanout.on_relief = lambda: relieved.append(None)
    world.courier.add("one")
    world.publish(CROWDED + WINDOW)
    assert not world.fanout.crowded
    world.clock.advance(7)
    world.publish()
    (behind,) = world.fanout.crowded
    assert behind.last_progress == 0.0
    world.courier.acknowledge(1)
    assert behind.last_progress == 7.0
    world.courier.acknowledge(CROWDED)
    assert relieved == [None]
    assert not world.fanout.crowded


def test_one_that_goes_away_is_waited_for_until_somebody_gives_it_up() -> None:
    world = World()
    relieved: list[None] = []
    world.fanout.on_relief = lambda: relieved.append(None)
    world.courier.add("one")
    world.publish(CROWDED + WINDOW + 1)
    world.clock.advance(7)
    world.courier.cut("one")
    world.fanout.handle_timer()
    (behind,) = world.fanout.crowded
    assert behind.is_expected
    assert behind.last_progress == 7.0
    behind.give_up()
    world.fanout.handle_timer()
    assert relieved == [None]
    assert not world.fanout.crowded


def test_after_the_stop_nothing_is_settled() -> None:
    world = World()
    world.courier.add("one")
    world.publish()
    world.fanout.stop()
    world.courier.cut("one")
    world.publish()
    assert world.settled == []
