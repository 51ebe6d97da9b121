"""The way out of a gateway that has its own broker in the same process."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred, succeed

from coapgw.config import EmbeddedSection
from coapgw.http.metrics_page import CounterGroup, Gauge
from coapgw.metrics import BrokerCounters
from coapgw.mqtt.broker import Broker
from coapgw.mqtt.embedded import EmbeddedLink
from coapgw.mqtt.publisher import Publisher
from coapgw.net.mqtt import BrokerPump
from coapgw.outlets.broker_front import BrokerFront
from coapgw.storage.sessions import SqliteSessionStore


class InProcess:
    """The embedded broker."""

    def __init__(self, config: EmbeddedSection) -> None:
        """Read the users' passwords and rules."""
        self._front = BrokerFront(config)
        self._closing: list[Callable[[], object]] = []

    def mistakes(self) -> list[str]:
        """Return what the configuration has wrong, a sentence each."""
        return self._front.mistakes

    def open(self, data: Path, reactor: Any, publisher: Publisher, fill: Callable[[], float]) -> None:
        """Build broker and link, and find the sessions of before.  Raises StorageError."""
        front = self._front
        self._reactor = reactor
        front.follow_users(data, self._access_changed)
        counters = BrokerCounters()
        sessions = SqliteSessionStore(data / "broker.db", reactor.callFromThread, counters)
        self._closing.append(sessions.close)
        epoch = time.time() - time.monotonic()
        self.broker = Broker(front.access, front.limits(), counters, sessions, epoch=epoch)
        known_clients = self.broker.restore(sessions.load(), time.monotonic())
        self._pump = BrokerPump(self.broker, reactor)
        self._closing.append(self._pump.stop)
        self.link = EmbeddedLink(self.broker, publisher, time.monotonic, fill)
        self.link.hold(known_clients, time.monotonic(), are_all=not counters.replaced)

    def _access_changed(self, users: set[str]) -> None:
        self.broker.access_changed(users)

    def listen(self) -> None:
        """Listen on every address of the configuration."""
        self._closing.append(self._front.stop_listening)
        self._front.listen(self._pump, self._reactor)

    def start(self) -> None:
        """Nothing: clients come by themselves."""

    def handle_timer(self) -> None:
        """Look at subscribers that do not get on, and at users that come and go."""
        self.link.handle_timer()
        self._front.look_at_users()

    def drain(self) -> Deferred[None]:
        """Fire at once: what subscribers have not acknowledged stays in the spool."""
        return succeed(None)

    @inlineCallbacks
    def stop(self) -> Generator[Deferred[Any], Any, None]:
        """Close the listeners, then the connections, then the file of sessions."""
        closing, self._closing = self._closing, []
        for close in reversed(closing):
            yield maybeDeferred(close)

    def port_numbers(self) -> Sequence[int]:
        """Return the TCP ports of the listeners."""
        return self._front.port_numbers()

    def counters(self) -> Sequence[CounterGroup]:
        """Return what the broker counts."""
        return (CounterGroup("mqtt", lambda: [self.broker.counters]),)

    def gauges(self) -> Sequence[Gauge]:
        """Return how many clients and sessions there are."""
        return (
            Gauge("mqtt_clients", lambda: self.broker.connected_clients),
            Gauge("mqtt_sessions", lambda: len(self.broker.sessions)),
        )
