"""The way out of a gateway whose embedded broker is aMQTT: the same listeners and users as with the gateway's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred, succeed
from twisted.logger import Logger

from coapgw.config import EmbeddedSection
from coapgw.http.metrics_page import CounterGroup, Gauge
from coapgw.mqtt.embedded import HOLD_SECONDS
from coapgw.mqtt.publisher import Publisher
from coapgw.net.mqtt import BrokerPump
from coapgw.outlets.amqtt_requirements import missing_package, wrong_reactor
from coapgw.outlets.broker_front import BrokerFront
from coapgw.storage.awaited_clients import AwaitedClients

if TYPE_CHECKING:
    from coapgw.mqtt.amqtt_engine import AmqttEngine, AmqttLink


class InAmqtt:
    """The embedded broker is aMQTT."""

    log = Logger()

    def __init__(self, config: EmbeddedSection, reactor: object) -> None:
        """Look whether it can be, and read the users' passwords and rules."""
        self._config = config
        self._front = BrokerFront(config)
        unfit = (missing_package(), wrong_reactor(reactor))
        self._mistakes = [*self._front.mistakes, *(sentence for sentence in unfit if sentence)]
        if not any(unfit):
            self._mistakes += self._wrong_plugins()
        self._closing: list[Callable[[], object]] = []

    def _wrong_plugins(self) -> list[str]:
        """Return what is wrong with the plugins, a sentence each."""
        from coapgw.mqtt.amqtt_rules import authenticates, plugin_mistake

        plugins = self._config.plugins
        if wrong := [mistake for one in plugins if (mistake := plugin_mistake(one.name, one.options))]:
            return [f"mqtt.embedded.plugins: {mistake}" for mistake in wrong]
        if self._config.users and (deciding := [one.name for one in plugins if authenticates(one.name)]):
            return [f"mqtt.embedded.users: {deciding[0]} decides who clients are; there cannot be users beside it"]
        return []

    def mistakes(self) -> list[str]:
        """Return what the configuration has wrong, and what is missing, a sentence each."""
        return self._mistakes

    def open(self, data: Path, reactor: Any, publisher: Publisher, fill: Callable[[], float]) -> None:
        """Build engine and link, and find who had subscribed before.  Raises StorageError."""
        from coapgw.mqtt.amqtt_engine import AmqttEngine, AmqttLink

        self._reactor = reactor
        front = self._front
        self.engine: AmqttEngine = AmqttEngine(
            *(front.access, front.limits(), time.monotonic),
            plugins={plugin.name: plugin.options for plugin in self._config.plugins},
        )
        self._closing.append(self.engine.finished)
        front.follow_users(data, self.engine.access_changed)
        self._pump = BrokerPump(self.engine, reactor)
        self._closing.append(self._pump.stop)
        self.link: AmqttLink = AmqttLink(self.engine, publisher, time.monotonic, fill)
        self._awaited = AwaitedClients(data)
        self._former = self._awaited.read()
        self.link.hold(self._former, time.monotonic())
        self._held_until = time.monotonic() + HOLD_SECONDS
        if self._config.max_keepalive != EmbeddedSection().max_keepalive:
            self.log.warn("mqtt.embedded.max_keepalive has no effect: aMQTT does not speak MQTT 5")

    def listen(self) -> None:
        """Listen on every address of the configuration."""
        self._closing.append(self._front.stop_listening)
        self._front.listen(self._pump, self._reactor)

    def start(self) -> None:
        """Start aMQTT as soon as the reactor runs, which is asyncio's loop then."""
        self._reactor.callLater(0, self._begin)

    def _begin(self) -> None:
        try:
            self.engine.begin()
        except Exception as failed:  # noqa: BLE001 - a plugin may raise anything, and say anything
            self.log.critical("aMQTT does not start, so the gateway ends: {kind}", kind=type(failed).__name__)
            self._reactor.stop()

    def handle_timer(self) -> None:
        """Look at clients and subscribers that do not get on, and at users that come and go."""
        now = time.monotonic()
        self.engine.handle_timer(now)
        self.link.handle_timer()
        self._front.look_at_users()
        if now > self._held_until:
            self._former = set()
        self._awaited.write(self.engine.subscribers() | self._former)

    def drain(self) -> Deferred[None]:
        """Fire at once: what subscribers have not acknowledged stays in the spool."""
        return succeed(None)

    @inlineCallbacks
    def stop(self) -> Generator[Deferred[Any], Any, None]:
        """Close the listeners, then the connections, then aMQTT."""
        closing, self._closing = self._closing, []
        for close in reversed(closing):
            yield maybeDeferred(close)

    def port_numbers(self) -> Sequence[int]:
        """Return the TCP ports of the listeners."""
        return self._front.port_numbers()

    def counters(self) -> Sequence[CounterGroup]:
        """Return what the engine counts."""
        return (CounterGroup("mqtt", lambda: [self.engine.counters]),)

    def gauges(self) -> Sequence[Gauge]:
        """Return how many clients and sessions there are, and what they are owed."""
        return (
            Gauge("mqtt_clients", lambda: self.engine.connected_clients),
            Gauge("mqtt_sessions", lambda: self.engine.session_count),
            Gauge("mqtt_owed", lambda: self.engine.fanout.owed()),  # noqa: PLW0108 - the engine comes later
        )
