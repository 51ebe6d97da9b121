"""net/client.py on real sockets: answers, silence, closed ports, and what is told to whoever waits."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred
from twisted.internet.epollreactor import EPollReactor
from twisted.python.failure import Failure

from coapgw.coap.codec import CHANGED, CONTENT, GET, POST, encode_body
from coapgw.coap.exchange import Exchange
from coapgw.coap.messaging import MessageLayer
from coapgw.coap.parameters import TransmissionParameters
from coapgw.coap.url import Target, parse_url
from coapgw.dtls.client import HandshakeFailed
from coapgw.net.client import Answer, CoapClient, NoAnswer, NotReached, PreSharedKey, RequestRefused, Sighting
from coapgw.net.udp import CoapPort
from tests.unit.coap_wire import Peers, RecordingSite

SECONDS = 10.0
PSK = PreSharedKey(b"8988280666000000017", b"q8Yt2LmZ0aXw4RbK")


class Loop:
    """A reactor that is iterated by hand until something holds."""

    def __init__(self) -> None:
        self.reactor: ReactorBase = EPollReactor()
        self.site = RecordingSite(lambda exchange, payload: exchange.respond(CONTENT, encode_body((), payload)))

    def listen(self, host: str = "127.0.0.1") -> CoapPort:
        def make(wake: Callable[[], None]) -> MessageLayer:
            return MessageLayer(self.site, Peers("127.0.0.1", "127.1.0.7", "::1"), random.Random(1), wake=wake)

        port = CoapPort(0, host, make, self.reactor)
        port.startListening()
        return port

    def result(self, waited: Deferred[Any]) -> Any:
        """Run until a Deferred has fired; return or raise what it has."""
        fired: list[Any] = []
        waited.addBoth(fired.append)
        deadline = self.reactor.seconds() + SECONDS
        while not fired:
            assert self.reactor.seconds() < deadline, "nothing happened in time"
            self.reactor.iterate(0.02)
        if isinstance(fired[0], Failure):
            fired[0].raiseException()
        return fired[0]

    def client(self, target: Target, **settings: Any) -> CoapClient:
        made = CoapClient(self.reactor, target, **settings)
        self.result(made.connect())
        return made


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


@pytest.fixture
def silent() -> Iterator[int]:
    """A port where nobody ever answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def closed_port(family: int = socket.AF_INET, host: str = "127.0.0.1") -> int:
    with socket.socket(family, socket.SOCK_DGRAM) as bound:
        bound.bind((host, 0))
        return int(bound.getsockname()[1])


@pytest.mark.parametrize(("host", "literal"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_requests_are_answered_one_after_the_other(loop: Loop, host: str, literal: str) -> None:
    seen: list[Sighting] = []
    target = parse_url(f"coap://{literal}:{loop.listen(host).number}/?t=x")
    client = loop.client(target, watch=seen.append)
    for confirmable in (True, False):
        answer: Answer = loop.result(client.request(POST, target.options, b"hello", confirmable=confirmable))
        assert answer.response == (CONTENT, (), b"hello")
        assert answer.retransmissions == 0
        assert 0 < answer.seconds < 5
    loop.result(client.close())
    assert [(sighting.is_outgoing, sighting.is_sealed) for sighting in seen] == [(True, False), (False, False)] * 2
    assert seen[0].data.endswith(b"\xffhello")
    assert client.address == f"{literal}:{target.port}"


def test_several_requests_may_wait_at_once(loop: Loop) -> None:
    client = loop.client(parse_url(f"coap://127.0.0.1:{loop.listen().number}"))
    waiting = [client.request(POST, (), b"%d" % number) for number in range(20)]
    assert [loop.result(one).response.payload for one in waiting] == [b"%d" % number for number in range(20)]
    loop.result(client.close())


def test_a_client_sends_from_the_address_it_is_bound_to(loop: Loop) -> None:
    sources: list[object] = []

    def handle(exchange: Exchange, payload: bytes) -> None:
        sources.append(exchange.principal)
        exchange.respond(CHANGED)

    loop.site._handle = handle
    client = loop.client(parse_url(f"coap://127.0.0.1:{loop.listen().number}"), bind="127.1.0.7")
    loop.result(client.request(POST, (), b"x"))
    loop.result(client.close())
    assert sources == ["127.1.0.7"]


def test_an_answer_that_comes_separately_is_waited_for(loop: Loop) -> None:
    held: list[Exchange] = []
    loop.site._handle = lambda exchange, payload: held.append(exchange)
    client = loop.client(parse_url(f"coap://127.0.0.1:{loop.listen().number}"))
    waited = client.request(POST, (), b"x")
    loop.reactor.callLater(1.2, lambda: held[0].respond(CHANGED))  # after the empty acknowledgement
    assert loop.result(waited).response.code == CHANGED
    loop.result(client.close())


@pytest.mark.parametrize(
    ("family", "host", "literal"), [(socket.AF_INET, "127.0.0.1", "127.0.0.1"), (socket.AF_INET6, "::1", "[::1]")]
)
def test_a_closed_port_is_told_at_once(loop: Loop, family: int, host: str, literal: str) -> None:
    client = loop.client(parse_url(f"coap://{literal}:{closed_port(family, host)}"))
    began = loop.reactor.seconds()
    with pytest.raises(NotReached, match=r"nobody listens at .* port unreachable"):
        loop.result(client.request(GET))
    assert loop.reactor.seconds() - began < 1
    with pytest.raises(NotReached):
        loop.result(client.request(GET))
    loop.result(client.close())


def test_a_closed_port_ends_a_handshake_at_once(loop: Loop) -> None:
    client = CoapClient(loop.reactor, parse_url(f"coaps://127.0.0.1:{closed_port()}"), psk=PSK)
    with pytest.raises(NotReached, match="nobody listens"):
        loop.result(client.connect())
    loop.result(client.close())


def test_silence_is_no_answer(loop: Loop, silent: int) -> None:
    parameters = TransmissionParameters(ack_timeout=0.1, max_retransmit=2)
    client = loop.client(parse_url(f"coap://127.0.0.1:{silent}"), parameters=parameters)
    with pytest.raises(NoAnswer, match=r"no answer within .* s; the request was sent 3 times"):
        loop.result(client.request(GET))
    with pytest.raises(NoAnswer, match=r"no answer within 0.1 s; the request was sent once"):
        loop.result(client.request(GET, confirmable=False, timeout=0.1))
    loop.result(client.close())


def test_silence_is_no_handshake(loop: Loop, silent: int) -> None:
    client = CoapClient(loop.reactor, parse_url(f"coaps://127.0.0.1:{silent}"), psk=PSK, handshake_seconds=0.2)
    with pytest.raises(HandshakeFailed, match="no answer to our ClientHello"):
        loop.result(client.connect())
    loop.result(client.close())


def test_a_message_that_is_reset_is_said_to_be(loop: Loop) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        client = loop.client(parse_url(f"coap://127.0.0.1:{server.getsockname()[1]}"))
        waited = client.request(GET)
        loop.reactor.iterate(0.02)
        request, source = server.recvfrom(100)
        server.sendto(b"\x70\x00" + request[2:4], source)
        with pytest.raises(NoAnswer, match="RST"):
            loop.result(waited)
        loop.result(client.close())


def test_closing_ends_what_waits(loop: Loop, silent: int) -> None:
    client = loop.client(parse_url(f"coap://127.0.0.1:{silent}"))
    waited = client.request(GET)
    loop.result(client.close())
    with pytest.raises(NoAnswer, match="closed"):
        loop.result(waited)
    loop.result(client.close())


def test_a_client_that_is_not_connected_sends_nothing(loop: Loop) -> None:
    client = CoapClient(loop.reactor, parse_url("coap://127.0.0.1"))
    with pytest.raises(RequestRefused, match="not connected"):
        loop.result(client.request(GET))
    loop.result(client.close())
    with pytest.raises(NoAnswer, match="closed"):
        loop.result(client.connect())


def test_what_cannot_be_sent_is_refused_before_it_is_tried(loop: Loop) -> None:
    client = loop.client(parse_url(f"coap://127.0.0.1:{loop.listen().number}"))
    with pytest.raises(RequestRefused, match="a payload of 70000 bytes"):
        loop.result(client.request(POST, (), bytes(70_000)))
    assert loop.result(client.request(POST, (), bytes(60_000))).response.payload == bytes(60_000)
    loop.result(client.close())
    with pytest.raises(ValueError, match="only with coaps"):
        CoapClient(loop.reactor, parse_url("coap://127.0.0.1"), psk=PSK)
    with pytest.raises(RequestRefused, match="OpenSSL does not have these suites"):
        CoapClient(loop.reactor, parse_url("coaps://127.0.0.1"), psk=PreSharedKey(b"me", b"key", ("NONE",)))


def test_an_address_that_is_not_ours_cannot_be_sent_from(loop: Loop) -> None:
    for bind, sentence in (("192.0.2.1", "cannot send from 192.0.2.1"), ("::1", "no address of the same family")):
        client = CoapClient(loop.reactor, parse_url("coap://127.0.0.1"), bind=bind)
        with pytest.raises(NotReached, match=sentence):
            loop.result(client.connect())
        loop.result(client.close())


def test_an_address_that_nobody_may_be_sent_to_is_told(loop: Loop) -> None:
    client = CoapClient(loop.reactor, parse_url("coap://255.255.255.255"))
    with pytest.raises(NotReached, match=r"255.255.255.255:5683 cannot be reached: Permission denied"):
        loop.result(client.connect())
    loop.result(client.close())
    loop.reactor.iterate(0.02)
