"""A session by itself: order, window, queue, redelivery, and who still owes what."""

from __future__ import annotations

from coapgw.metrics import BrokerCounters
from coapgw.mqtt import session as module
from coapgw.mqtt.outbox import FULL_BYTES, WINDOW, Outbox
from coapgw.mqtt.packets import Packet, Publish, PubRel
from coapgw.mqtt.parser import Parser
from coapgw.mqtt.publication import Publication
from coapgw.mqtt.session import NEVER, Session, Shared


class Client:
    """A session, its outbox, and what was settled."""

    def __init__(self, max_queue: int = 10_000, max_queue_bytes: int = 1 << 30) -> None:
        self.counters = BrokerCounters()
        self.shared = Shared(max_queue, max_queue_bytes, self.counters)
        self.session = Session("c", None, NEVER, self.shared)
        self.settled: list[object] = []
        self.here()

    def here(self) -> None:
        self.outbox = Outbox(lambda: None)
        self.session.attach(self.outbox)

    def publish(self, *places: int, qos: int = 1, payload: bytes = b"x") -> None:
        for place in places:
            publication = Publication(b"t", payload, 2, False, self.settled.append, place)
            publication.owed += 1
            for oldest in self.session.deliver(publication, qos) or ():
                oldest.release()
            publication.release()

    def stuff(self) -> None:
        """Let the peer be so slow that nothing more fits."""
        self.outbox.pause()
        self.outbox.append(bytes(FULL_BYTES))

    def sent(self) -> list[Packet]:
        packets: list[Packet] = []
        while data := self.outbox.take():
            packets += Parser(1 << 28).packets(data)
            self.session.pump()
        return packets

    def sent_ids(self) -> list[int]:
        return [packet.packet_id for packet in self.sent() if isinstance(packet, Publish)]


def test_an_acknowledged_message_is_settled_once() -> None:
    client = Client()
    client.publish(1, 2)
    assert client.sent_ids() == [1, 2]
    client.session.acknowledge(2, 5.0)
    client.session.acknowledge(2, 5.0)
    client.session.acknowledge(77, 5.0)
    assert client.settled == [2]
    assert client.session.last_progress == 5.0


def test_more_than_the_window_waits_in_order() -> None:
    client = Client()
    client.publish(*range(WINDOW + 3))
    assert client.sent_ids() == list(range(1, WINDOW + 1))
    assert len(client.session.queue) == 3
    client.session.acknowledge(5, 0.0)
    client.publish(-1)
    assert client.sent_ids() == [WINDOW + 1]
    client.session.acknowledge(6, 0.0)
    client.session.acknowledge(7, 0.0)
    client.session.acknowledge(8, 0.0)
    assert client.sent_ids() == [WINDOW + 2, WINDOW + 3, WINDOW + 4]
    assert client.session.inflight[WINDOW + 4][0].place == -1


def test_large_messages_fill_the_window_by_their_bytes() -> None:
    client = Client()
    client.publish(*range(40), payload=bytes(1 << 20))
    assert len(client.sent_ids()) * (1 << 20) == module.WINDOW_BYTES
    client.session.acknowledge(1, 0.0)
    assert len(client.sent_ids()) == 1


def test_one_turn_gathers_a_bounded_number_of_bytes() -> None:
    client = Client()
    client.publish(*range(900), payload=bytes(1000))
    assert client.outbox.size < FULL_BYTES + 2000
    assert len(client.sent_ids()) == 900


def test_identifiers_wrap_around_those_in_use() -> None:
    client = Client()
    client.publish(0)
    for _ in range(65_534 // 500):
        client.publish(*range(1, 501))
        for packet_id in client.sent_ids():
            if packet_id != 1:
                client.session.acknowledge(packet_id, 0.0)
    client.publish(*range(1, 501))
    ids = client.sent_ids()
    assert 1 not in ids
    assert 2 in ids
    assert 65_535 in ids
    assert len(set(ids)) == 500


def test_coming_back_repeats_what_is_in_flight_first_and_in_order() -> None:
    client = Client()
    client.publish(1, 2, 3)
    client.session.acknowledge(2, 0.0)
    client.session.detach()
    client.publish(4)
    client.here()
    client.publish(5)
    sent = [(packet.packet_id, packet.dup) for packet in client.sent() if isinstance(packet, Publish)]
    assert sent == [(1, True), (3, True), (4, False), (5, False)]
    for packet_id in (1, 3, 4, 5):
        client.session.acknowledge(packet_id, 0.0)
    assert client.settled == [2, 1, 3, 4, 5]


def test_a_repeat_waits_for_room_and_new_messages_wait_behind_it() -> None:
    client = Client()
    client.publish(*range(600), payload=bytes(1000))
    client.sent()
    client.session.detach()
    client.here()
    assert client.outbox.full
    client.publish(600)
    client.session.acknowledge(600, 0.0)  # not repeated yet on this connection, and not needed any more
    ids = client.sent_ids()
    assert ids == [*range(1, 600), 601]


def test_a_full_queue_drops_the_oldest_that_waits_and_releases_it() -> None:
    client = Client(max_queue=3)
    client.session.detach()
    client.publish(1, 2, 3, 4, 5)
    assert client.settled == [1, 2]
    assert (client.session.dropped, client.counters.dropped) == (2, 2)
    client.here()
    assert [packet.packet_id for packet in client.sent() if isinstance(packet, Publish)] == [1, 2, 3]


def test_a_queue_is_bounded_in_bytes_and_takes_one_large_message() -> None:
    client = Client(max_queue_bytes=1000)
    client.session.detach()
    client.publish(1, 2, 3, payload=bytes(400))
    assert client.settled == [1]
    client.publish(4, payload=bytes(5000))
    client.publish(5, payload=bytes(10))
    assert client.settled == [1, 2, 3, 4]
    assert len(client.session.queue) == 1


def test_the_end_of_a_session_releases_everything() -> None:
    client = Client()
    client.publish(*range(WINDOW + 5))
    client.session.let_go(client.session.end())
    assert client.settled == list(range(WINDOW + 5))
    client.session.end()
    assert len(client.settled) == WINDOW + 5


def test_a_paused_outbox_gathers_and_a_full_one_queues() -> None:
    client = Client()
    client.outbox.pause()
    client.publish(1)
    client.session.deliver_unacknowledged(b"\x30\3\0\1a")
    assert (len(client.session.queue), client.counters.dropped) == (0, 0)
    assert client.outbox.take() == b""
    client.stuff()
    client.publish(2)
    client.session.deliver_unacknowledged(b"0")
    assert (len(client.session.queue), client.counters.dropped) == (1, 1)
    client.outbox.resume()
    assert len(client.outbox.take()) > FULL_BYTES
    client.session.pump()
    assert client.sent_ids() == [2]


def test_qos_2_is_settled_by_pubrec_and_repeats_only_its_second_half() -> None:
    client = Client()
    client.publish(1, 2, qos=2)
    client.sent()
    client.session.acknowledge(1, 0.0)  # a PUBACK is no answer to QoS 2
    assert client.settled == []
    client.session.received_by_client(1, 0.0)
    assert client.settled == [1]
    client.session.detach()
    client.here()
    assert [type(packet) for packet in client.sent()] == [PubRel, Publish]
    client.session.completed_by_client(1)
    client.session.detach()
    client.here()
    assert [type(packet) for packet in client.sent()] == [Publish]


def test_a_client_that_never_completes_holds_its_place_in_the_window() -> None:
    client = Client()
    client.publish(*range(WINDOW + 1), qos=2)
    for packet_id in client.sent_ids():
        client.session.received_by_client(packet_id, 0.0)
    assert client.sent_ids() == []
    assert len(client.settled) == WINDOW
    client.session.completed_by_client(7)
    assert client.sent_ids() == [WINDOW + 1]
    client.session.completed_by_client(7)


def test_a_pubrec_for_nothing_is_answered() -> None:
    client = Client()
    client.session.received_by_client(9, 0.0)
    assert client.sent() == [PubRel(9)]


def test_crowded_is_who_is_half_full_and_here_until_a_quarter() -> None:
    client = Client(max_queue=100)
    relieved: list[bool] = []
    client.shared.on_relief = lambda: relieved.append(True)
    client.stuff()
    client.publish(*range(50))
    assert client.shared.crowded == set()
    client.publish(50)
    assert client.shared.crowded == {client.session}
    client.session.detach()
    assert (client.shared.crowded, relieved) == ({client.session}, [])  # it is expected back
    client.here()
    client.sent()
    assert (client.shared.crowded, relieved) == (set(), [True])  # everything fitted at once


def test_who_is_away_is_crowded_while_it_is_expected_back() -> None:
    client = Client(max_queue=100)
    client.session.detach()
    client.publish(*range(50))
    assert client.shared.crowded == set()
    client.publish(50)
    assert client.shared.crowded == {client.session}
    client.session.give_up()
    client.publish(51)
    assert client.shared.crowded == set()
    client.here()
    client.session.detach()
    assert client.session.is_expected
    client.session.end()
    assert (client.session.is_expected, client.shared.crowded) == (False, set())


def test_relief_comes_at_a_quarter() -> None:
    client = Client(max_queue=2000)
    relieved: list[int] = []
    client.shared.on_relief = lambda: relieved.append(len(client.session.queue))
    client.publish(*range(WINDOW + 1200))
    assert client.shared.crowded
    waiting = client.sent_ids()
    while waiting:
        for packet_id in waiting:
            client.session.acknowledge(packet_id, 0.0)
        waiting = client.sent_ids()
    assert relieved == [499]
    assert not client.shared.crowded


def test_progress_counts_from_the_first_message_after_silence() -> None:
    client = Client()
    client.shared.now = 1000.0
    client.publish(1)
    assert client.session.last_progress == 1000.0
    client.shared.now = 1010.0
    client.publish(2)
    assert client.session.last_progress == 1000.0


def test_publishing_from_inside_settled_keeps_the_order() -> None:
    client = Client(max_queue=5)
    places: list[object] = []

    def settled(place: object) -> None:
        places.append(place)
        if place == 1:
            client.publish(*range(100, 103))

    client.publish(*range(2, 2 + WINDOW))
    first = Publication(b"t", b"", 1, False, settled, 1)
    client.session.deliver(first, 1)
    client.publish(98, 99)
    client.session.acknowledge(1, 0.0)  # lets the first one through; nothing is settled but 2
    client.session.acknowledge(WINDOW + 1, 0.0)
    assert places == [1]
    rest = [entry[0].place for entry in [*client.session.inflight.values(), *client.session.queue]]
    assert rest[-5:] == [98, 99, 100, 101, 102]
