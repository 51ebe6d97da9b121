"""The Twisted glue of broker and client, on transports in memory."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer

from coapgw.mqtt.access import AccessList
from coapgw.mqtt.broker import Broker, BrokerLimits
from coapgw.mqtt.packets import ConnAck, Connect, PingResp, Publish, SubAck, Subscribe, encode
from coapgw.mqtt.session import Publication
from coapgw.net.mqtt import STOP_SECONDS, BrokerPump, MqttServerFactory, MqttServerProtocol
from coapgw.net.mqtt_client import MqttClientProtocol


class Listener:
    """A pump on a clock of its own."""

    def __init__(self, **limits: int) -> None:
        self.clock = Clock()
        self.broker = Broker(AccessList(), BrokerLimits(**limits))
        self.pump = BrokerPump(self.broker, self.clock, self.clock.seconds)
        self.factory = MqttServerFactory(self.pump, loopback=True)

    def accept(self, *data: bytes) -> tuple[MqttServerProtocol, StringTransport]:
        protocol = self.factory.buildProtocol(None)
        assert isinstance(protocol, MqttServerProtocol)
        transport = StringTransport()
        protocol.makeConnection(transport)
        for piece in data:
            protocol.dataReceived(piece)
        self.clock.advance(0)
        return protocol, transport


@pytest.fixture
def listener() -> Listener:
    return Listener()


HELLO = encode(Connect("c"))
ALL = encode(Subscribe(1, ((b"#", 1),)))


def test_a_turn_is_one_write(listener: Listener) -> None:
    _, transport = listener.accept(HELLO + ALL)
    assert transport.value() == encode(ConnAck(False, 0)) + encode(SubAck(1, (1,)))
    written: list[bytes] = []
    transport.write = written.append  # type: ignore[method-assign]  # counts what StringTransport would join
    for _ in range(50):
        listener.broker.publish(Publication(b"t", b"x", 1))
    listener.clock.advance(0)
    assert len(written) == 1


def test_progress_after_a_silence_is_counted_from_now(listener: Listener) -> None:
    listener.accept(HELLO + ALL)
    listener.clock.advance(500)
    listener.broker.publish(Publication(b"t", b"x", 1))
    assert listener.broker.sessions["c"].last_progress == 500.0


def test_wrong_bytes_abort(listener: Listener) -> None:
    protocol, transport = listener.accept(HELLO, b"\0\0", b"more")
    assert transport.disconnected
    protocol.connectionLost()
    assert listener.broker.connection_count == 0


def test_a_refusal_is_written_before_the_close(listener: Listener) -> None:
    _, transport = listener.accept(encode(Connect("", False)))
    assert transport.value() == encode(ConnAck(False, 2))
    assert transport.disconnecting
    assert transport.producer is None


def test_too_many_connections_are_closed_at_once() -> None:
    listener = Listener(max_connections=1)
    listener.accept()
    _, transport = listener.accept()
    assert transport.disconnected


def test_the_timer_closes_silent_connections_and_is_one(listener: Listener) -> None:
    transports = [listener.accept()[1] for _ in range(20)]
    assert len(listener.clock.getDelayedCalls()) == 1
    listener.clock.advance(10)
    listener.clock.advance(0)
    assert all(transport.disconnected for transport in transports)


def test_a_slow_transport_pauses_its_client(listener: Listener) -> None:
    protocol, transport = listener.accept(HELLO + ALL)
    transport.clear()
    protocol.pauseProducing()
    listener.broker.publish(Publication(b"t", b"x", 1))
    listener.clock.advance(0)
    assert transport.value() == b""
    protocol.resumeProducing()
    listener.clock.advance(0)
    assert transport.value() == encode(Publish(b"t", b"x", 1, packet_id=1))


def test_an_error_of_ours_is_counted_and_costs_one_connection(listener: Listener) -> None:
    def broken(*_: Any) -> bool:
        raise RuntimeError("ours")

    events: list[LogEvent] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        events.append(event)

    globalLogPublisher.addObserver(observe)
    listener.broker.on_publish = broken
    _, transport = listener.accept(HELLO + encode(Publish(b"t", b"x")))
    globalLogPublisher.removeObserver(observe)
    assert transport.disconnected
    assert listener.broker.counters.pump_errors == 1
    assert [event["log_failure"].type for event in events if "log_failure" in event] == [RuntimeError]


def test_stop_closes_everything(listener: Listener) -> None:
    protocol, transport = listener.accept(HELLO)
    _, stuck = listener.accept(HELLO.replace(b"c", b"d"))
    done: list[None] = []
    listener.pump.stop().addCallback(done.append)
    assert transport.disconnecting
    protocol.connectionLost()
    assert not done
    listener.clock.advance(STOP_SECONDS)
    assert stuck.disconnected
    assert not listener.clock.getDelayedCalls()


def test_stop_without_connections_is_done(listener: Listener) -> None:
    done: list[None] = []
    listener.pump.stop().addCallback(done.append)
    assert done == [None]


class Events:
    """Notes what a client tells."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def connected(self, session_present: bool) -> None:
        self.told.append(session_present)

    def refused(self, code: int) -> None:
        self.told.append(code)

    def received(self, message: Publish) -> None:
        self.told.append(message)

    def acknowledged(self, packet_id: int, reason: int) -> None:
        self.told.append(packet_id)

    def subscribed(self, packet_id: int, codes: Any) -> None:
        self.told.append(codes)


def test_the_client_connects_pings_and_acknowledges() -> None:
    clock, events = Clock(), Events()
    protocol = MqttClientProtocol(clock, Connect("c", keepalive=10), events, clock.seconds)
    transport = StringTransport()
    protocol.makeConnection(transport)
    clock.advance(0)
    assert transport.value() == encode(Connect("c", keepalive=10))
    protocol.dataReceived(encode(ConnAck(False, 0)))
    transport.clear()
    message = Publish(b"t", b"x", 1, packet_id=3)
    clock.advance(9)
    protocol.dataReceived(encode(message))
    clock.advance(0)
    assert (events.told, transport.value()) == ([False, message], b"\x40\2\0\3")
    transport.clear()
    clock.advance(9)
    assert transport.value() == b""
    clock.pump([1, 11, 0])
    assert transport.value() == b"\xc0\0"
    protocol.dataReceived(encode(PingResp()))
    protocol.dataReceived(b"\0\0")
    clock.advance(0)
    assert transport.disconnecting
    protocol.connectionLost()
    assert not clock.getDelayedCalls()
