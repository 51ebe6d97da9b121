"""What the broker says about itself below ``$SYS``, under the names that mosquitto made customary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import attrs

from coapgw import __version__
from coapgw.mqtt.publication import Publication

if TYPE_CHECKING:
    from coapgw.mqtt.broker import Broker

FIRST_LEVEL: Final = b"$SYS"
INTERVAL_SECONDS: Final = 10.0
AT_ONCE_SECONDS: Final = 1.0  # after the last time, at least: a new subscriber need not wait for the interval


@attrs.define(eq=False)
class StatusTopics:
    """Publishes the values while somebody is subscribed below ``$SYS``; they are looked up only then."""

    _began: float | None = None
    _last: float | None = None
    _due: float | None = None
    _most_clients: int = 0

    def subscribed(self, now: float) -> None:
        """Somebody new wants to know."""
        at_once = now if self._last is None else max(now, self._last + AT_ONCE_SECONDS)
        self._due = at_once if self._due is None else min(self._due, at_once)

    def connected(self, clients: int, now: float) -> None:
        """Take note of how many clients there are."""
        if self._began is None:
            self._began = now
        self._most_clients = max(self._most_clients, clients)

    def next_timer(self) -> float | None:
        """Return when the next values are due."""
        return self._due

    def handle_timer(self, broker: Broker, now: float) -> None:
        """Publish the values if that is due."""
        if self._due is None or now < self._due:
            return
        if not broker.is_wanted(FIRST_LEVEL):
            self._due = None
            return
        self._last, self._due = now, now + INTERVAL_SECONDS
        for name, value in self._values(broker, now):
            broker.publish(Publication(b"$SYS/broker/" + name, str(value).encode()))

    def _values(self, broker: Broker, now: float) -> Iterator[tuple[bytes, object]]:
        counters = broker.counters
        here, all_sessions = broker.connected_clients, len(broker.sessions)
        yield b"version", f"coapgw version {__version__}"
        yield b"uptime", f"{int(now - (now if self._began is None else self._began))} seconds"
        yield b"clients/connected", here
        yield b"clients/disconnected", all_sessions - here
        yield b"clients/total", all_sessions
        yield b"clients/maximum", self._most_clients
        yield b"messages/received", counters.packets_in
        yield b"messages/sent", counters.packets_out
        yield b"bytes/received", counters.bytes_in
        yield b"bytes/sent", counters.bytes_out
        yield b"publish/messages/received", counters.published_in
        yield b"publish/messages/sent", counters.delivered
        yield b"publish/messages/dropped", counters.dropped
        yield b"retained messages/count", broker.retained_count
        yield b"subscriptions/count", sum(len(one.subscriptions) for one in broker.sessions.values())
        yield b"shared_subscriptions/count", broker.group_count
