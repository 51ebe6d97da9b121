"""Twisted glue of the bridge: connects, over TCP or TLS, again and again, and says in the log how that goes.

One line when the state changes, and one every ``REMINDER_SECONDS`` while there is no connection; none for an attempt.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from coapgw.mqtt.bridge import BridgeLink
from coapgw.net.broker_address import BrokerAddress, CredentialsUnusable
from coapgw.net.mqtt_client import MqttClientProtocol

FIRST_DELAY_SECONDS: Final = 0.5  # doubled with each attempt, and multiplied by 0.5 to 1 at random
LONGEST_DELAY_SECONDS: Final = 60.0
STABLE_SECONDS: Final = 10.0  # a connection that lasted so long was a good one: begin with the first delay again
USEFUL_ATTEMPTS: Final = 2  # one that was short, but on which something was acknowledged: up to 2 seconds
REMINDER_SECONDS: Final = 300.0
LINES: Final = 6  # in the log within REMINDER_SECONDS: a connection may come and go all the time
CONNECTED: Final = "connected"  # a state, beside the reasons why there is no connection
BROKER_PACKET_LIMIT: Final = 65_536  # bytes of a packet from the broker; acknowledgements have a few
CHANGE_SECONDS: Final = 60.0  # from one line about another reason to the next
STOP_SECONDS: Final = 1.0  # for the last acknowledgements


@attrs.frozen
class BridgeStatus:
    """How the bridge fares.

    Args:
        connected: whether the broker accepted us.
        since: seconds since the epoch at which that began.
        failure: why there is no connection, if that is known.
        in_flight: messages that the broker has not acknowledged.
        oldest_received: milliseconds since the epoch, of the oldest message in memory; None if there is none.
    """

    connected: bool
    since: float
    failure: str | None
    in_flight: int
    oldest_received: int | None


class BridgeProtocol(MqttClientProtocol):
    """One connection to the broker; every batch that comes, and every one that has left, makes room for more."""

    log = Logger()

    def __init__(self, bridge: Bridge, reactor: Any, password: bytes | None) -> None:
        """Made by Bridge for each attempt."""
        link = bridge.link
        settings = link.connect_packet(password)
        super().__init__(reactor, settings, link, bridge.monotonic, max_packet=BROKER_PACKET_LIMIT)
        self._bridge = bridge

    def connectionMade(self) -> None:
        """Begin with CONNECT."""
        self._bridge.link.connection_opened(self.client)
        super().connectionMade()

    def dataReceived(self, data: bytes) -> None:
        """Hand bytes to the machine; nothing it does may reach the reactor as an exception."""
        try:
            super().dataReceived(data)
            if not self.client.closing:
                self._bridge.received()
        except Exception:  # noqa: BLE001 - the pump
            self._failed("received data")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Have another one made."""
        super().connectionLost(reason)
        self._bridge.lost(self, reason)

    def _flush(self) -> None:
        super()._flush()
        if self.client.is_connected and not (self.client.closing or self._lost):
            try:
                self._bridge.link.refill()
            except Exception:  # noqa: BLE001 - the pump
                self._failed("sending more")

    def _failed(self, doing: str) -> None:
        self._bridge.link.counters.pump_errors += 1
        self.log.failure("the MQTT bridge failed at {doing}", doing=doing)
        self.client.closing = True
        transport: Any = self.transport
        transport.abortConnection()


class _OneProtocol(Factory):
    """What an endpoint wants."""

    noisy = False

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return self._protocol


class Bridge:
    """Keeps one connection to the broker, for as long as it is not stopped.

    Args:
        reactor: the reactor.
        link: the machine.
        address: where the broker is, and how to get there.
        random: returns a number from 0 to 1.
        monotonic: the clock of timeouts, in seconds; must be the link's.
        clock: seconds since the epoch.
        oldest_waiting: when the oldest message that waits for the link in memory was received, milliseconds since the
            epoch.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        link: BridgeLink,
        address: BrokerAddress,
        *,
        random: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
        clock: Callable[[], float] = time.time,
        oldest_waiting: Callable[[], int | None] = lambda: None,
    ) -> None:
        """Wait for ``start``."""
        self.link = link
        self.monotonic = monotonic
        self._reactor = reactor
        self._address = address
        self._random = random
        self._clock = clock
        self._oldest_waiting = oldest_waiting
        self._protocol: BridgeProtocol | None = None
        self._attempt: Deferred[Any] | None = None
        self._delayed: IDelayedCall | None = None
        self._attempts = 0  # since the last good connection
        self._connected_at: float | None = None
        self._since = clock()
        self._failure: str | None = None
        self._told: str | None = None
        self._said: deque[float] = deque(maxlen=LINES)
        self._told_set_aside = 0
        self._tell_set_aside_at = 0.0
        self._stopped: Deferred[None] | None = None

    # ------------------------------------------------------------------ start and stop

    def start(self) -> None:
        """Connect, and go on doing so."""
        self._since = self._clock()
        self._delayed = self._reactor.callLater(0, self._connect)

    def drain(self) -> Deferred[None]:
        """Take nothing more; fires when the broker has acknowledged everything, or soon."""
        done: Deferred[None] = Deferred()
        deadline = self.monotonic() + STOP_SECONDS

        def look() -> None:
            if self._connected_at is None or not self.link.in_flight or self.monotonic() >= deadline:
                done.callback(None)
            else:
                self._reactor.callLater(0.02, look)

        look()
        return done

    def stop(self) -> Deferred[None]:
        """Disconnect and stay away; fires when the connection is closed."""
        if self._stopped is None:
            self._stopped = Deferred()
            if self._delayed is not None:
                self._delayed.cancel()
                self._delayed = None
            if self._attempt is not None:
                self._attempt.cancel()
            elif self._protocol is None:
                self._stopped.callback(None)
            else:
                if self._protocol.client.is_connected:
                    self._protocol.client.disconnect()
                else:
                    self._protocol.abort()
                self._delayed = self._reactor.callLater(STOP_SECONDS, self._abort)
        return self._stopped

    def _abort(self) -> None:
        self._delayed = None
        if self._protocol is not None:
            self._protocol.abort()

    # ------------------------------------------------------------------ connections

    def _connect(self) -> None:
        self._delayed = None
        try:
            endpoint = self._address.endpoint(self._reactor)
            protocol = BridgeProtocol(self, self._reactor, self._address.password())
        except CredentialsUnusable as unusable:
            self._not_connected(str(unusable))
            return
        self._attempt = endpoint.connect(_OneProtocol(protocol))
        self._attempt.addCallbacks(self._opened, self._refused, callbackArgs=(protocol,))

    def _opened(self, _: object, protocol: BridgeProtocol) -> None:
        self._attempt = None
        if not protocol.is_lost:
            self._protocol = protocol

    def _refused(self, failure: Failure) -> None:
        self._attempt = None
        self.link.counters.failed_attempts += 1
        self._not_connected(self._address.sentence(failure))

    def received(self) -> None:
        """Go on after bytes came."""
        protocol = self._protocol
        if self._connected_at is None and protocol is not None and protocol.client.is_connected:
            self._connected_at = self.monotonic()
            self._since = self._clock()
            self._failure = None
            self._tell()
        self.link.refill()

    def lost(self, protocol: BridgeProtocol, reason: Failure) -> None:
        """Connect anew after a while."""
        connected_at, self._connected_at = self._connected_at, None
        client = protocol.client
        self._protocol = None
        self.link.connection_lost()
        if connected_at is not None:
            self._since = self._clock()
            if self.monotonic() - connected_at >= STABLE_SECONDS:
                self._attempts = 0
            elif self.link.has_progress:
                self._attempts = min(self._attempts, USEFUL_ATTEMPTS)
        else:
            self.link.counters.failed_attempts += 1
        self._not_connected(client.failure or self._address.sentence(reason), self.link.falls_back)

    def _not_connected(self, failure: str, at_once: bool = False) -> None:
        if self._stopped is not None:
            if self._delayed is not None:
                self._delayed.cancel()
                self._delayed = None
            self._stopped.callback(None)
            return
        if at_once:
            self._delayed = self._reactor.callLater(0, self._connect)
            return
        self._failure = failure
        self._tell()
        longest = min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2 ** min(self._attempts, 10))
        self._attempts += 1
        self._delayed = self._reactor.callLater(longest * (0.5 + self._random() / 2), self._connect)

    # ------------------------------------------------------------------ how it goes

    def handle_timer(self) -> None:
        """Do what is to be looked at once a second."""
        self.link.handle_timer()
        self._tell()
        self._tell_set_aside()

    def status(self) -> BridgeStatus:
        """Return how the bridge fares."""
        oldest = [one for one in (self.link.oldest_received, self._oldest_waiting()) if one is not None]
        return BridgeStatus(
            self._connected_at is not None,
            self._since,
            self._failure,
            self.link.in_flight,
            min(oldest, default=None),
        )

    def _tell(self) -> None:
        """Say what has changed, or again that there is no connection, unless much was said lately."""
        now = self.monotonic()
        state = CONNECTED if self._connected_at is not None else self._failure
        if state is None or (state == self._told and state == CONNECTED):
            return
        pause = REMINDER_SECONDS if state == self._told else CHANGE_SECONDS
        if CONNECTED not in (state, self._told) and self._said and now - self._said[-1] < pause:
            return
        if len(self._said) == LINES and now - self._said[0] < REMINDER_SECONDS:
            return
        self._told = state
        self._said.append(now)
        if state == CONNECTED:
            version = self.link.version.value
            self.log.info(
                "the MQTT bridge is connected to {broker} (MQTT {version})", broker=self._address, version=version
            )
        else:
            self._tell_failure(state)

    def _tell_failure(self, reason: str) -> None:
        status = self.status()
        age = "nothing waits"
        if status.oldest_received is not None:
            age = f"the oldest message has waited for {self._clock() - status.oldest_received / 1000:.0f} s"
        self.log.warn(
            "the MQTT bridge has had no connection to {broker} for {seconds:.0f} s: {reason}; {age}",
            broker=self._address,
            seconds=self._clock() - self._since,
            reason=reason,
            age=age,
        )

    def _tell_set_aside(self) -> None:
        """Say that messages were set aside: at once, and then once in a while how many more."""
        more = self.link.counters.set_aside - self._told_set_aside
        now = self.monotonic()
        if not more or now < self._tell_set_aside_at:
            return
        self._told_set_aside += more
        self._tell_set_aside_at = now + REMINDER_SECONDS
        self.log.warn(
            "{more} messages were refused by {broker} and set aside, the latest for this reason: {reason}; see "
            "coapgw spool dead list",
            more=more,
            broker=self._address,
            reason=self.link.last_refusal,
        )


__all__ = ["Bridge", "BridgeProtocol", "BridgeStatus"]
