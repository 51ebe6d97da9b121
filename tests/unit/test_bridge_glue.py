"""net/mqtt_bridge.py on a reactor in memory: when it connects, what it writes, and what it says in the log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.logger import LogEvent, capturedLogs, formatEvent
from twisted.python.failure import Failure

from coapgw.model import Spooled
from coapgw.mqtt.bridge import BridgeLink, BridgeSettings, BridgeVersion
from coapgw.mqtt.packets import ConnAck, Packet, PubAck, Publish, encode
from coapgw.mqtt.parser import Parser
from coapgw.net.broker_address import BrokerAddress, CredentialsUnusable, user_of
from coapgw.net.mqtt_bridge import (
    CHANGE_SECONDS,
    FIRST_DELAY_SECONDS,
    LINES,
    LONGEST_DELAY_SECONDS,
    REMINDER_SECONDS,
    STABLE_SECONDS,
    STOP_SECONDS,
    Bridge,
    BridgeProtocol,
)
from tests.unit.test_bridge import Feed

ADDRESS = BrokerAddress.at("mqtt://u:secret@127.0.0.1:4711")


class Rig:
    """A bridge whose attempts the test answers."""

    def __init__(self, address: BrokerAddress = ADDRESS, version: BridgeVersion = BridgeVersion.V3_1_1) -> None:
        self.reactor = MemoryReactorClock()
        self.feed = Feed()
        clock = self.reactor.seconds
        self.link = BridgeLink(self.feed, BridgeSettings("gw", "u", version=version), clock)
        self.feed.link = self.link
        self.chance = 1.0
        self.bridge = Bridge(
            self.reactor, self.link, address, random=lambda: self.chance, monotonic=clock, clock=lambda: clock() + 1e9
        )
        self.transport: StringTransport
        self.protocol: BridgeProtocol

    def start(self) -> Rig:
        self.bridge.start()
        self.reactor.advance(0)
        return self

    @property
    def attempts(self) -> int:
        return len(self.reactor.tcpClients)

    def refuse(self) -> None:
        """Nobody listens."""
        factory: Any = self.reactor.tcpClients[-1][2]
        factory.clientConnectionFailed(None, Failure(Refused()))
        self.reactor.advance(0.3)  # HostnameEndpoint looks for another address first

    def open(self) -> Rig:
        """Take the connection."""
        factory: Any = self.reactor.tcpClients[-1][2]
        wrapper = factory.buildProtocol(None)
        self.transport = StringTransport()
        self._wire = wrapper
        wrapper.makeConnection(self.transport)
        self.protocol = wrapper._wrappedProtocol if hasattr(wrapper, "_wrappedProtocol") else wrapper
        self.reactor.advance(0)
        return self

    def say(self, *packets: Packet) -> None:
        self._wire.dataReceived(b"".join(encode(packet) for packet in packets))
        self.reactor.advance(0)

    def connect(self) -> Rig:
        self.open().say(ConnAck(False, 0))
        self.transport.clear()
        return self

    def lose(self) -> None:
        self._wire.connectionLost(Failure(ConnectionDone()))

    def sent(self) -> list[Packet]:
        return list(Parser(1 << 20).packets(self.transport.value()))

    def delay(self) -> float:
        """How long until the next attempt, from now; it is made."""
        attempts = self.attempts
        (due,) = (call.getTime() for call in self.reactor.getDelayedCalls())
        delay = due - self.reactor.seconds()
        self.reactor.advance(delay + 0.001)
        assert self.attempts == attempts + 1
        return round(delay, 3)


def _lines(events: Sequence[LogEvent]) -> list[str]:
    return [formatEvent(event) for event in events if "MQTT bridge" in formatEvent(event)]


def test_attempts_go_on_for_ever_at_growing_distances() -> None:
    rig = Rig().start()
    delays = []
    for _ in range(10):
        rig.refuse()
        delays.append(rig.delay())
    assert delays == [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert rig.link.counters.failed_attempts == 10


def test_chance_halves_a_distance_at_most() -> None:
    rig = Rig().start()
    rig.chance = 0.0
    rig.refuse()
    assert rig.delay() == FIRST_DELAY_SECONDS / 2


def test_a_connection_that_lasted_starts_the_distances_anew_and_one_that_did_not_does_not() -> None:
    rig = Rig().start()
    for _ in range(4):
        rig.refuse()
        rig.delay()
    rig.connect().lose()
    assert rig.delay() == 8
    rig.connect()
    rig.reactor.advance(STABLE_SECONDS)
    rig.lose()
    assert rig.delay() == 0.5


def test_a_batch_is_one_write_and_one_that_was_acknowledged_makes_room() -> None:
    rig = Rig().start().connect()
    written: list[bytes] = []
    rig.transport.write = written.append  # type: ignore[method-assign]  # counts what StringTransport would join
    rig.feed.add(1000)
    rig.feed.resume()
    rig.reactor.advance(0)
    assert len(written) == 1
    assert rig.link.in_flight == 400
    rig.say(*(PubAck(number) for number in range(1, 101)))
    assert len(written) == 2
    assert rig.link.in_flight == 400


def test_a_transport_that_is_full_stops_the_flow_and_an_empty_one_lets_it_go_on() -> None:
    rig = Rig().start().connect()
    rig.protocol.pauseProducing()
    rig.feed.add(100, payload=bytes(10_000))
    rig.feed.resume()
    rig.reactor.advance(0)
    assert rig.transport.value() == b""
    held = rig.link.in_flight
    assert 0 < held < 50
    rig.protocol.resumeProducing()
    rig.reactor.advance(0)
    rig.reactor.advance(0)
    assert rig.link.in_flight > held
    assert all(isinstance(packet, Publish) for packet in rig.sent())


def test_the_log_says_a_change_once_and_is_calm_in_between() -> None:
    with capturedLogs() as events:
        rig = Rig().start()
        rig.feed.waiting.append(Spooled(1, 1, "1", "id", b"t", b"p"))
        for _ in range(20):
            rig.refuse()
            rig.delay()
            rig.bridge.handle_timer()
        assert len(_lines(events)) == 1 + rig.reactor.seconds() // (REMINDER_SECONDS + LONGEST_DELAY_SECONDS)
        assert "nobody listens there" in _lines(events)[0]
        before = len(_lines(events))
        rig.connect()
        assert [line for line in _lines(events)[before:] if "is connected to mqtt://127.0.0.1:4711" in line]
        rig.reactor.advance(STABLE_SECONDS)
        rig.lose()
        assert "the broker closed the connection" in _lines(events)[-1]
        count = len(_lines(events))
        rig.delay()
        rig.refuse()
        assert len(_lines(events)) == count
        rig.reactor.advance(CHANGE_SECONDS)
        rig.bridge.handle_timer()
        assert len(_lines(events)) == count + 1
    assert "secret" not in str(events)


def test_a_connection_that_comes_and_goes_does_not_fill_the_log() -> None:
    with capturedLogs() as events:
        rig = Rig().start()
        for _ in range(50):
            rig.connect()
            rig.feed.add()
            rig.feed.resume()
            rig.say(*(PubAck(number) for number in range(1, 400)))
            rig.lose()
            rig.delay()
            rig.bridge.handle_timer()
    assert rig.reactor.seconds() < 110
    assert len(_lines(events)) == LINES


def test_what_was_set_aside_is_said_once_in_a_while() -> None:
    with capturedLogs() as events:
        rig = Rig().start().connect()
        for _ in range(3):
            rig.link.counters.set_aside += 5
            rig.bridge.handle_timer()
        rig.reactor.advance(REMINDER_SECONDS)
        rig.bridge.handle_timer()
    said = [formatEvent(event) for event in events if "were refused" in formatEvent(event)]
    assert [line.partition(" ")[0] for line in said] == ["5", "10"]


def test_a_broker_that_sends_and_never_reads_is_left() -> None:
    rig = Rig().start().connect()
    rig.protocol.pauseProducing()
    flood = encode(Publish(b"t", b"x", 1, packet_id=7)) * 20_000
    for _ in range(20):
        rig._wire.dataReceived(flood)
    assert rig.protocol.client.closing
    assert "no acknowledgement is taken" in str(rig.protocol.client.failure)


def test_a_broker_that_announces_a_huge_packet_is_left() -> None:
    rig = Rig().start().connect()
    rig._wire.dataReceived(b"\x30\xff\xff\xff\x7f")
    assert rig.protocol.client.closing


def test_the_status_tells_state_time_and_age() -> None:
    rig = Rig().start()
    assert not rig.bridge.status().connected
    rig.refuse()
    assert rig.bridge.status().failure == "nobody listens there"
    rig.delay()
    rig.connect()
    rig.feed.add()
    rig.feed.resume()
    status = rig.bridge.status()
    assert (status.connected, status.in_flight, status.oldest_received, status.failure) == (True, 1, 1000, None)
    assert status.since == rig.reactor.seconds() + 1e9


def test_version_5_is_followed_at_once_by_3_1_1() -> None:
    rig = Rig(version=BridgeVersion.AUTO).start()
    rig.open().lose()
    rig.reactor.advance(0)
    assert rig.attempts == 2
    rig.open().lose()
    rig.reactor.advance(0)
    assert rig.attempts == 2
    assert rig.delay() == FIRST_DELAY_SECONDS


def test_a_stop_disconnects_and_nothing_follows() -> None:
    rig = Rig().start().connect()
    stopped = rig.bridge.stop()
    rig.reactor.advance(0)
    assert rig.transport.disconnecting
    rig.lose()
    assert stopped.called
    assert rig.reactor.getDelayedCalls() == []


def test_a_stop_while_nothing_is_connected_is_a_stop() -> None:
    rig = Rig().start()
    assert rig.bridge.stop().called
    again = Rig().start()
    again.refuse()
    assert again.bridge.stop().called
    again.reactor.advance(1000)
    assert again.attempts == 1


def test_a_broker_that_does_not_close_is_left() -> None:
    rig = Rig().start().connect()
    rig.bridge.stop()
    rig.reactor.advance(STOP_SECONDS)
    assert rig.transport.disconnected


def test_draining_waits_for_acknowledgements() -> None:
    rig = Rig().start().connect()
    rig.feed.add(1)
    rig.feed.resume()
    drained: list[None] = []
    rig.bridge.drain().addCallback(drained.append)
    assert drained == []
    rig.say(PubAck(1))
    rig.reactor.advance(0.1)
    assert drained == [None]


def test_draining_does_not_wait_for_long() -> None:
    rig = Rig().start().connect()
    rig.feed.add(1)
    rig.feed.resume()
    drained = rig.bridge.drain()
    rig.reactor.pump([0.1] * 12)
    assert drained.called


def test_an_error_of_ours_costs_the_connection_and_is_counted() -> None:
    rig = Rig().start().connect()

    def broken(place: int) -> None:
        raise RuntimeError("ours")

    rig.feed.settled = broken  # type: ignore[method-assign]  # as any bug of ours behind the link
    rig.feed.add()
    rig.feed.resume()
    with capturedLogs() as events:
        rig.say(PubAck(1))
    assert rig.link.counters.pump_errors == 1
    assert rig.transport.disconnected
    assert any("failed at received data" in formatEvent(event) for event in events)


def test_a_password_is_read_for_every_attempt_and_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "password"
    address = BrokerAddress.at("mqtts://u@[::1]", password_file=file)
    assert str(address) == "mqtts://[::1]:8883"
    with pytest.raises(CredentialsUnusable, match="cannot be read"):
        address.password()
    file.write_bytes(b"s\xc3\xa9cret\r\nsecond line")
    assert address.password() == b"s\xc3\xa9cret"
    assert "secret" not in repr(ADDRESS) + str(ADDRESS)
    assert (ADDRESS.password(), user_of("mqtt://u%40x:p@h")) == (b"secret", "u@x")


def test_a_file_that_went_away_is_a_reason_and_not_an_end(tmp_path: Path) -> None:
    rig = Rig(BrokerAddress.at("mqtt://u@127.0.0.1", password_file=tmp_path / "password")).start()
    assert rig.attempts == 0
    assert "cannot be read" in str(rig.bridge.status().failure)
    (tmp_path / "password").write_text("x")
    rig.reactor.advance(FIRST_DELAY_SECONDS)
    assert rig.attempts == 1
