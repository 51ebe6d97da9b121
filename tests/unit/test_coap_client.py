"""coap/messaging.py, client role: two machines talk over a wire in memory, lossy or not."""

from __future__ import annotations

import random

import pytest

from coapgw.coap.codec import CHANGED, CONTENT, GET, POST, encode_body
from coapgw.coap.exchange import Exchange
from coapgw.coap.messaging import MessageLayer
from coapgw.coap.outgoing import NoResponse, Response
from coapgw.coap.parameters import MessagingLimits
from tests.unit.coap_wire import Peers, RecordingSite

SERVER = ("server", 5683)
CLIENT = ("client", 40000)


class Wire:
    """A client and a server machine, and what travels between them; *lost* says whether a datagram gets lost."""

    def __init__(
        self, handle: object = None, loss: float = 0.0, seed: int = 1, limits: MessagingLimits | None = None
    ) -> None:
        self.now = 0.0
        self.random = random.Random(seed)
        self.loss = loss
        self.site = RecordingSite(handle)  # type: ignore[arg-type]
        self.server = MessageLayer(self.site, Peers("client"), random.Random(2))
        self.client = MessageLayer(RecordingSite(), Peers(), random.Random(3), limits=limits)
        self.outcomes: list[Response | NoResponse] = []

    def request(self, payload: bytes = b"", *, confirmable: bool = True, timeout: float | None = None) -> None:
        self.client.request(
            SERVER,
            POST if payload else GET,
            self.outcomes.append,
            self.now,
            payload=payload,
            confirmable=confirmable,
            timeout=timeout,
        )

    def carry(self) -> None:
        """Move datagrams until none is under way."""
        while True:
            out = self.client.datagrams_to_send(self.now)
            back = self.server.datagrams_to_send(self.now)
            if not out and not back:
                return
            for data, _ in out:
                if self.random.random() >= self.loss:
                    self.server.receive_datagram(data, CLIENT, self.now)
            for data, _ in back:
                if self.random.random() >= self.loss:
                    self.client.receive_datagram(data, SERVER, self.now)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            self.carry()
            dues = [due for due in (self.client.next_timer(), self.server.next_timer()) if due is not None]
            if not dues or min(dues) > end:
                break
            self.now = max(self.now, min(dues))
            for layer in (self.client, self.server):
                layer.handle_timer(self.now)
        self.now = end


def echo(exchange: Exchange, payload: bytes) -> None:
    exchange.respond(CONTENT, encode_body([(12, b"\x2a")], payload))


@pytest.mark.parametrize("confirmable", [True, False])
def test_a_request_gets_its_response(confirmable: bool) -> None:
    wire = Wire(echo)
    wire.request(b"hello", confirmable=confirmable)
    wire.run(1)
    assert wire.outcomes == [Response(CONTENT, ((12, b"\x2a"),), b"hello")]


def test_a_separate_response_is_acknowledged_and_counts_once() -> None:
    wire = Wire()
    wire.request(b"hello")
    wire.run(5)
    wire.site.requests[0][0].respond(CHANGED)
    wire.run(60)
    assert wire.outcomes == [Response(CHANGED, (), b"")]
    assert wire.server.counters.retransmissions == 0
    assert wire.client.counters.retransmissions == 0


def test_silence_is_a_timeout_after_max_transmit_wait() -> None:
    wire = Wire(echo, loss=1.0)
    wire.request(b"hello")
    wire.run(61)
    assert wire.outcomes == []
    wire.run(40)
    assert wire.outcomes == [NoResponse("timeout")]


def test_a_request_may_have_less_time() -> None:
    wire = Wire(echo, loss=1.0)
    wire.request(b"hello", confirmable=False, timeout=3)
    wire.run(2.9)
    assert wire.outcomes == []
    wire.run(0.2)
    assert wire.outcomes == [NoResponse("timeout")]


def test_a_reset_ends_a_request() -> None:
    wire = Wire()
    wire.request(b"hello")
    ((data, _),) = wire.client.datagrams_to_send(0)
    wire.client.receive_datagram(b"\x70\x00" + data[2:4], SERVER, 0)
    assert wire.outcomes == [NoResponse("reset")]


def test_a_response_from_elsewhere_or_with_another_token_is_nobodys() -> None:
    wire = Wire()
    wire.request(b"hello")
    ((data, _),) = wire.client.datagrams_to_send(0)
    answer = b"\x68\x45" + data[2:12]
    wire.client.receive_datagram(answer, ("elsewhere", 1), 0)
    wire.client.receive_datagram(b"\x68\x45" + data[2:4] + b"otherTok", SERVER, 0)
    wire.client.receive_datagram(b"\x68\x45\x00\x00" + data[4:12], SERVER, 0)  # an ACK of another Message ID
    assert wire.outcomes == []
    wire.client.receive_datagram(answer, SERVER, 0)
    assert len(wire.outcomes) == 1


def test_requests_to_one_endpoint_go_one_after_the_other_and_are_bounded() -> None:
    wire = Wire(echo, limits=MessagingLimits(queued_per_endpoint=10))
    for number in range(20):
        wire.request(b"%d" % number)
    assert wire.outcomes == [NoResponse("refused")] * 9
    assert len(wire.client.datagrams_to_send(0)) == 1


@pytest.mark.parametrize("loss", [0.1, 0.3])
@pytest.mark.parametrize("seed", range(5))
def test_loss_repeats_datagrams_but_never_messages(loss: float, seed: int) -> None:
    wire = Wire(echo, loss=loss, seed=seed)
    for number in range(200):
        wire.request(b"message %d" % number)
        wire.run(100)
    processed = [payload for _, payload in wire.site.requests]
    assert len(processed) == len(set(processed))
    answered = [outcome.payload for outcome in wire.outcomes if isinstance(outcome, Response)]
    assert set(answered) <= set(processed)
    assert len(wire.outcomes) == 200
    assert len(answered) > 180


def test_an_endpoint_that_is_let_go_ends_its_requests() -> None:
    wire = Wire(loss=1.0, limits=MessagingLimits(endpoints=4))
    for number in range(12):
        wire.client.request(("server", number), GET, wire.outcomes.append, 0)
    assert wire.client.endpoints == 4
    assert wire.outcomes == [NoResponse("timeout")] * 8
