"""MQTT over WebSocket, on transports in memory."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from coapgw.mqtt.access import AccessList
from coapgw.mqtt.broker import Broker, BrokerLimits
from coapgw.mqtt.packets import ConnAck, Connect, PingReq, PingResp, encode
from coapgw.net.mqtt import BrokerPump
from coapgw.net.mqtt_websocket import MqttWebSocket, MqttWebSocketFactory

HELLO = encode(Connect("c"))
WELCOME = encode(ConnAck(False, 0))


class Transport(StringTransport):
    """As indifferent as a TCP transport to a producer that is not there any more."""

    def unregisterProducer(self) -> None:
        self.producer = None


class Page:
    """A client of one listener, and the clock of both."""

    def __init__(self, **limits: int) -> None:
        self.clock = Clock()
        self.broker = Broker(AccessList(), BrokerLimits(**limits))
        pump = BrokerPump(self.broker, self.clock, self.clock.seconds)
        self.factory = MqttWebSocketFactory(pump, True, self.clock, 10.0)
        self.socket, self.transport = self.accept()

    def accept(self) -> tuple[MqttWebSocket, StringTransport]:
        protocol = self.factory.buildProtocol(None)
        assert isinstance(protocol, MqttWebSocket)
        transport = Transport(peerAddress=IPv4Address("TCP", "127.0.0.1", 4711))
        protocol.makeConnection(transport)
        return protocol, transport

    def knock(self, protocol: str = "mqtt", more: str = "") -> bytes:
        self.socket.dataReceived(
            b"GET /any/path HTTP/1.1\r\nHost: localhost:8083\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
            + f"Sec-WebSocket-Protocol: {protocol}\r\n{more}\r\n".encode()
        )
        return self.said()

    def said(self) -> bytes:
        self.clock.advance(0)
        self.clock.advance(0)
        data: bytes = self.transport.value()
        self.transport.clear()
        return data

    def send(self, data: bytes, opcode: int = 2, end: bool = True) -> bytes:
        mask = os.urandom(4)
        assert len(data) < 126
        head = bytes((end << 7 | opcode, 0x80 | len(data)))
        self.socket.dataReceived(head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(data)))
        return self.said()


@pytest.fixture
def page() -> Page:
    return Page()


def test_a_handshake_then_mqtt_in_binary_messages(page: Page) -> None:
    answer = page.knock()
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert b"Sec-WebSocket-Protocol: mqtt\r\n" in answer
    assert page.send(HELLO) == bytes((0x82, len(WELCOME))) + WELCOME


def test_packets_are_cut_anywhere(page: Page) -> None:
    page.knock()
    assert page.send(HELLO[:5], end=False) == b""
    assert page.send(HELLO[5:7], opcode=0) == b""
    assert page.send(HELLO[7:] + encode(PingReq())).endswith(WELCOME + encode(PingResp()))


def test_a_frame_that_claims_to_be_huge_is_read_as_it_comes(page: Page) -> None:
    page.knock()
    page.socket.dataReceived(b"\x82\xff" + (1 << 40).to_bytes(8, "big") + bytes(4) + HELLO)
    assert page.said().endswith(WELCOME)
    page.socket.dataReceived(b"\x30\xff\xff\xff\x7f")
    page.said()
    assert page.transport.disconnected


def test_a_handshake_without_end_is_cut(page: Page) -> None:
    page.socket.dataReceived(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 1000)
    assert not page.transport.disconnected
    page.socket.dataReceived(b"X: y\r\n" * 10_000)
    assert page.transport.disconnected


@settings(max_examples=60, deadline=None)
@given(st.booleans(), st.lists(st.binary(max_size=40), max_size=5))
def test_no_bytes_raise(is_open: bool, pieces: list[bytes]) -> None:
    page = Page()
    if is_open:
        page.knock()
    for piece in pieces:
        page.socket.dataReceived(piece)
    page.said()
    page.socket.connectionLost()
    assert page.broker.counters.pump_errors == 0


def test_another_subprotocol_is_refused(page: Page) -> None:
    assert page.knock("chat").startswith(b"HTTP/1.1 400 ")
    assert page.broker.connection_count == 0


def test_text_ends_the_connection(page: Page) -> None:
    page.knock()
    page.send(HELLO, opcode=1)
    assert page.transport.disconnected


def test_a_page_is_no_local_client(page: Page) -> None:
    page.knock(more="Origin: https://example.net\r\n")
    assert encode(ConnAck(False, 5)) in page.send(HELLO)


def test_sockets_without_a_handshake_count_and_are_closed_in_time() -> None:
    page = Page(max_connections=2)
    second, transport = page.accept()
    assert page.factory.buildProtocol(None) is None
    page.clock.advance(10.0)
    assert transport.disconnected
    second.connectionLost()
    assert page.factory.buildProtocol(None) is not None


def test_the_end_of_the_socket_is_the_end_of_the_client(page: Page) -> None:
    page.knock()
    page.send(HELLO)
    assert page.broker.connected_clients == 1
    page.socket.connectionLost()
    assert (page.broker.connected_clients, page.broker.connection_count) == (0, 0)
    page.clock.advance(20.0)


def test_pings_of_a_client_that_reads_nothing_are_not_answered_without_end(page: Page) -> None:
    page.knock()
    assert page.send(b"one", opcode=9) == b"\x8a\x03one"
    assert page.transport.producer is not None
    page.transport.producer.pauseProducing()  # the transport's buffer is full
    for number in range(1000):
        assert page.send(b"%d" % number, opcode=9) == b""
    page.transport.producer.resumeProducing()
    assert page.said() == b"\x8a\x03999"  # for the latest, as RFC 6455 section 5.5.3 allows
    assert page.send(b"two", opcode=9) == b"\x8a\x03two"


def test_a_client_that_leaves_gets_a_close_frame(page: Page) -> None:
    page.knock()
    page.send(HELLO)
    assert page.send(b"\xe0\0") == b"\x88\x02\x03\xe8"
