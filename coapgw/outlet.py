"""The way out of a gateway: the broker in its own process, or a bridge to another."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from random import SystemRandom
from typing import Any, Protocol

from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred, succeed

from coapgw.broker_front import BrokerFront
from coapgw.config import BridgeSection, EmbeddedSection
from coapgw.http.metrics_page import CounterGroup, Gauge
from coapgw.interfaces import IBrokerLink
from coapgw.mqtt.bridge import BridgeLink, BridgeSettings
from coapgw.mqtt.broker import Broker
from coapgw.mqtt.embedded import EmbeddedLink
from coapgw.mqtt.publisher import Publisher
from coapgw.net.broker_address import BrokerAddress, user_of
from coapgw.net.mqtt import BrokerPump
from coapgw.net.mqtt_bridge import Bridge
from coapgw.storage.client_id import kept_client_id
from coapgw.storage.sessions import SqliteSessionStore


class Outlet(Protocol):
    """Where a gateway's messages go; opened, listening, started, drained and stopped in this order."""

    @property
    def link(self) -> IBrokerLink:
        """What the publisher gives messages to; once it is open."""

    def mistakes(self) -> list[str]:
        """Return what the configuration has wrong, a sentence each."""

    def open(self, data: Path, reactor: Any, publisher: Publisher, fill: Callable[[], float]) -> None:
        """Build what it consists of.

        Args:
            data: the data directory.
            publisher: told how messages fare.
            fill: how full the spool is, 0 to 1.

        Raises:
            StorageError: what it keeps on disk cannot be read.
        """

    def listen(self) -> None:
        """Bind its sockets, if it has any.  Raises CannotListenError."""

    def start(self) -> None:
        """Begin; the publisher has its link by now."""

    def handle_timer(self) -> None:
        """Do what is to be looked at once a second."""

    def drain(self) -> Deferred[None]:
        """Fire when what was delivered has been acknowledged, or soon; the publisher gives nothing more."""

    def stop(self) -> Deferred[None]:
        """Close everything; fires when that is done."""

    def port_numbers(self) -> Sequence[int]:
        """Return the TCP ports it listens on, in the order of the configuration."""

    def counters(self) -> Sequence[CounterGroup]:
        """Return what it counts."""

    def gauges(self) -> Sequence[Gauge]:
        """Return what can be read off it."""


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
        sessions = SqliteSessionStore(data / "broker.db", reactor.callFromThread)
        self._closing.append(sessions.close)
        epoch = time.time() - time.monotonic()
        self.broker = Broker(front.access, front.limits(), store=sessions, epoch=epoch)
        known_clients = self.broker.restore(sessions.load(), time.monotonic())
        self._pump = BrokerPump(self.broker, reactor)
        self._closing.append(self._pump.stop)
        self.link = EmbeddedLink(self.broker, publisher, time.monotonic, fill)
        self.link.hold(known_clients, time.monotonic())

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


class ToBroker:
    """A bridge to a broker elsewhere."""

    def __init__(self, config: BridgeSection) -> None:
        """Find the files of the configuration: twistd changes its directory before we read them."""
        self._config = config
        files = {
            name: Path(value).absolute() if (value := getattr(config, name)) else None
            for name in ("password_file", "ca_file", "cert_file", "key_file")
        }
        self._address = BrokerAddress.at(config.url, verify=config.verify, **files)
        self._bridge: Bridge | None = None

    def mistakes(self) -> list[str]:
        """Return what the configuration and its files have wrong, a sentence each."""
        return self._address.mistakes()

    def open(self, data: Path, reactor: Any, publisher: Publisher, fill: Callable[[], float]) -> None:
        """Build the bridge.  Raises StorageError if its client identifier cannot be kept."""
        config = self._config
        settings = BridgeSettings(
            config.client_id or kept_client_id(data, os.urandom),
            user_of(config.url),
            clean_session=config.clean_session,
            keepalive=config.keepalive,
            window=config.window,
            expiry_seconds=config.expiry_seconds,
            version=config.version,
        )
        self.link = BridgeLink(publisher, settings, time.monotonic)
        self._bridge = Bridge(
            reactor,
            self.link,
            self._address,
            random=SystemRandom().random,
            oldest_waiting=lambda: publisher.oldest_received,
        )

    @property
    def bridge(self) -> Bridge:
        """What connects to the broker; once it is open."""
        assert self._bridge is not None
        return self._bridge

    def listen(self) -> None:
        """Bind nothing: the bridge is a client."""

    def start(self) -> None:
        """Connect, and go on doing so."""
        self.bridge.start()

    def handle_timer(self) -> None:
        """Look at deadlines, and tell how it goes."""
        self.bridge.handle_timer()

    def drain(self) -> Deferred[None]:
        """Fire when the broker has acknowledged what it got, or soon."""
        return self.bridge.drain()

    def stop(self) -> Deferred[None]:
        """Disconnect; fires when the connection is closed."""
        return succeed(None) if self._bridge is None else self._bridge.stop()

    def port_numbers(self) -> Sequence[int]:
        """Return none."""
        return ()

    def counters(self) -> Sequence[CounterGroup]:
        """Return what the bridge counts."""
        return (CounterGroup("bridge", lambda: [self.link.counters]),)

    def gauges(self) -> Sequence[Gauge]:
        """Return whether it is connected, and what it waits for."""
        return (
            Gauge("bridge_connected", lambda: self.bridge.status().connected),
            Gauge("bridge_since_seconds", lambda: self.bridge.status().since),
            Gauge("bridge_in_flight", lambda: self.link.in_flight),
        )
