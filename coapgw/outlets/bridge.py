"""The way out of a gateway that publishes on a broker elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import SystemRandom
from typing import Any

from twisted.internet.defer import Deferred, succeed

from coapgw.config import BridgeSection
from coapgw.http.metrics_page import CounterGroup, Gauge
from coapgw.mqtt.bridge import BridgeLink, BridgeSettings
from coapgw.mqtt.publisher import Publisher
from coapgw.net.broker_address import BrokerAddress, user_of
from coapgw.net.mqtt_bridge import Bridge
from coapgw.storage.client_id import kept_client_id


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
