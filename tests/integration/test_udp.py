"""net/udp.py on real sockets: whole datagrams, the address that was asked, fairness, IPv6."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator

import pytest
from twisted.internet.base import ReactorBase
from twisted.internet.epollreactor import EPollReactor

from coapgw.coap.codec import CHANGED, CONTENT, encode_body
from coapgw.coap.exchange import Exchange
from coapgw.coap.messaging import MessageLayer
from coapgw.net.udp import BATCH, SOURCES_REMEMBERED, CoapPort
from tests.unit.coap_wire import Peers, RecordingSite, datagram

SECONDS = 5.0


class Loop:
    """A reactor that is iterated by hand until something holds."""

    def __init__(self) -> None:
        self.reactor: ReactorBase = EPollReactor()
        self.site = RecordingSite(lambda exchange, payload: exchange.respond(CONTENT, encode_body((), payload)))
        self.layers: list[MessageLayer] = []

    def listen(self, host: str) -> CoapPort:
        def make(wake: Callable[[], None]) -> MessageLayer:
            layer = MessageLayer(self.site, Peers("127.0.0.1", "127.0.0.2", "::1"), random.Random(1), wake=wake)
            self.layers.append(layer)
            return layer

        port = CoapPort(0, host, make, self.reactor)
        port.startListening()
        return port

    def until(self, holds: Callable[[], bool]) -> None:
        deadline = self.reactor.seconds() + SECONDS
        while not holds():
            assert self.reactor.seconds() < deadline, "nothing happened in time"
            self.reactor.iterate(0.02)

    def receive(self, client: socket.socket) -> tuple[bytes, object]:
        """Run until *client* has a datagram; return it and where it came from."""
        got: list[tuple[bytes, object]] = []
        client.setblocking(False)

        def arrived() -> bool:
            try:
                got.append(client.recvfrom(65535))
            except BlockingIOError:
                return False
            return True

        self.until(arrived)
        return got[0]


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    for reader in made.reactor.removeAll():
        if isinstance(reader, CoapPort):
            reader.connectionLost()
    for call in made.reactor.getDelayedCalls():
        call.cancel()
    made.reactor.fireSystemEvent("shutdown")
    for reader in [*made.reactor._internalReaders]:
        reader.connectionLost(None)


def _client(family: int = socket.AF_INET, host: str = "127.0.0.1") -> socket.socket:
    client = socket.socket(family, socket.SOCK_DGRAM)
    client.bind((host, 0))
    return client


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_request_is_answered(loop: Loop, host: str) -> None:
    number = loop.listen(host).number
    with _client() as client:
        client.sendto(datagram(payload=b"hi"), ("127.0.0.1", number))
        assert loop.receive(client) == (b"\x60\x45\x00\x01\xffhi", ("127.0.0.1", number))


def test_the_answer_leaves_from_the_address_that_was_asked(loop: Loop) -> None:
    number = loop.listen("0.0.0.0").number
    with _client() as client:
        for asked in ("127.0.0.3", "127.0.0.1", "127.1.2.3"):
            client.sendto(datagram(payload=b"hi"), (asked, number))
            assert loop.receive(client)[1] == (asked, number)
    assert len(loop.site.requests) == 3  # one Message ID, but three of our addresses: three endpoints


def test_what_is_remembered_of_our_own_addresses_is_bounded(loop: Loop) -> None:
    port = loop.listen("0.0.0.0")
    with _client() as client:
        for number in range(SOURCES_REMEMBERED + 100):
            asked = f"127.1.{number >> 8}.{number & 0xFF}"
            client.sendto(b"\x40\x00\x00\x01", (asked, port.number))
            assert loop.receive(client) == (b"\x70\x00\x00\x01", (asked, port.number))
    assert port.sources_remembered <= SOURCES_REMEMBERED


@pytest.mark.parametrize("host", ["::1", "::"])
def test_ipv6_is_served_beside_ipv4_on_the_same_port(loop: Loop, host: str) -> None:
    number = loop.listen(host).number
    with _client(socket.AF_INET6, "::1") as client, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as beside:
        beside.bind(("0.0.0.0", number))
        client.sendto(datagram(payload=b"hi"), ("::1", number))
        answer, source = loop.receive(client)
        assert answer == b"\x60\x45\x00\x01\xffhi"
        assert isinstance(source, tuple)
        assert source[:2] == ("::1", number)


def test_the_largest_datagram_arrives_whole(loop: Loop) -> None:
    number = loop.listen("0.0.0.0").number
    payload = b"x" * 60_000
    with _client() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        client.sendto(datagram(payload=payload), ("127.0.0.1", number))
        assert loop.receive(client)[0] == b"\x60\x45\x00\x01\xff" + payload


def test_a_burst_of_a_thousand_fits_the_receive_buffer_and_is_read_in_turns(loop: Loop) -> None:
    port = loop.listen("127.0.0.1")
    turns: list[int] = []
    with _client() as client:
        for number in range(1000):
            client.sendto(datagram(message_id=number, payload=b"x"), ("127.0.0.1", port.number))

        def one_turn() -> bool:
            before = len(loop.site.requests)
            loop.reactor.iterate(0)
            turns.append(len(loop.site.requests) - before)
            return len(loop.site.requests) == 1000

        loop.until(one_turn)
    assert max(turns) <= BATCH  # between two turns everybody else has theirs


class Watching(MessageLayer):
    """Remembers what it is told of the receive buffer."""

    def __init__(self, site: RecordingSite, wake: Callable[[], None]) -> None:
        super().__init__(site, Peers("127.0.0.1"), random.Random(1), wake=wake)
        self.told: list[bool] = []

    def crowd(self, *, crowded: bool) -> None:
        self.told.append(crowded)


def test_a_receive_buffer_that_fills_is_noticed_and_that_it_is_over(loop: Loop) -> None:
    layers: list[Watching] = []

    def make(wake: Callable[[], None]) -> Watching:
        layers.append(Watching(loop.site, wake))
        return layers[0]

    port = CoapPort(0, "127.0.0.1", make, loop.reactor, receive_buffer=256 << 10)
    port.startListening()
    with _client() as client:
        for number in range(2000):  # more than there is room for
            client.sendto(datagram(message_id=number), ("127.0.0.1", port.number))
        loop.reactor.iterate(0)
        assert layers[0].told == [True]
        loop.until(lambda: layers[0].told == [True, False])
        for number in range(BATCH):
            client.sendto(datagram(message_id=2000 + number), ("127.0.0.1", port.number))
        loop.until(lambda: loop.site.requests[-1][0].header[2:4] == (1999 + BATCH).to_bytes(2, "big"))
    assert layers[0].told == [True, False]


def test_an_answer_that_comes_later_is_sent_without_another_datagram(loop: Loop) -> None:
    number = loop.listen("0.0.0.0").number
    held: list[Exchange] = []
    loop.site._handle = lambda exchange, payload: held.append(exchange)
    with _client() as client:
        client.sendto(datagram(payload=b"hi"), ("127.0.0.1", number))
        loop.until(lambda: bool(held))
        held[0].respond(CHANGED)
        assert loop.receive(client)[0] == b"\x60\x44\x00\x01"


def test_the_empty_acknowledgement_goes_out_by_the_timer(loop: Loop) -> None:
    number = loop.listen("127.0.0.1").number
    loop.site._handle = None
    with _client() as client:
        client.sendto(datagram(payload=b"hi"), ("127.0.0.1", number))
        assert loop.receive(client)[0] == b"\x60\x00\x00\x01"


def test_an_error_of_ours_costs_one_datagram_and_is_counted(loop: Loop) -> None:
    port = loop.listen("127.0.0.1")

    def handle(exchange: Exchange, payload: bytes) -> None:
        if payload == b"bad":
            raise RuntimeError("a mistake of ours")
        exchange.respond(CHANGED)

    loop.site._handle = handle
    with _client() as client:
        client.sendto(datagram(message_id=1, payload=b"bad"), ("127.0.0.1", port.number))
        client.sendto(datagram(message_id=2, payload=b"good"), ("127.0.0.1", port.number))
        assert loop.receive(client)[0] == b"\x60\x44\x00\x02"
    assert port.counters.pump_errors == 1


def test_bytes_and_what_the_kernel_dropped_are_counted(loop: Loop) -> None:
    port = loop.listen("127.0.0.1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        request = datagram(payload=b"x" * 50)
        client.sendto(request, ("127.0.0.1", port.number))
        answer, _ = loop.receive(client)
        assert (port.counters.received_bytes, port.counters.sent_bytes) == (len(request), len(answer))
        assert port.look_at_kernel().kernel_drops == 0
        for _ in range(20_000):  # nobody reads meanwhile
            client.sendto(request, ("127.0.0.1", port.number))
    assert port.look_at_kernel().kernel_drops > 0
