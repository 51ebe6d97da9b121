"""Twisted glue of the MQTT client role: a connection that writes once a turn, and a subscriber that comes back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.application.internet import ClientService
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import IAddress, IDelayedCall, IPushProducer, ITCPTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from coapgw.mqtt.client import LARGEST_PACKET, ClientEvents, MqttClient
from coapgw.mqtt.packets import Connect, Publish

KEEPALIVE_SECONDS: Final = 60


@implementer(IPushProducer)
class MqttClientProtocol(Protocol):
    """Moves the bytes of one MqttClient.

    Args:
        reactor: IReactorTime.
        settings: what CONNECT says.
        events: whom the client tells; ``client`` is usable from ``connected`` on.
        max_packet: bytes of the largest packet that is taken from the broker.
    """

    def __init__(
        self,
        reactor: Any,
        settings: Connect,
        events: ClientEvents,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        max_packet: int = LARGEST_PACKET,
    ) -> None:
        """Wait for the transport."""
        self.client = MqttClient(settings, events, self._wake, max_packet)
        self._reactor = reactor
        self._monotonic = monotonic
        self._timer: IDelayedCall | None = None
        self._flushing = False
        self._closing = False
        self._lost = False

    def connectionMade(self) -> None:
        """Send CONNECT."""
        transport: Any = self.transport
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
        transport.registerProducer(self, True)
        self.client.start(self._monotonic())
        self._arm()

    def dataReceived(self, data: bytes) -> None:
        """Hand bytes to the machine."""
        if not self.client.closing:
            self.client.receive_data(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Stop the timer."""
        self._lost = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    @property
    def is_lost(self) -> bool:
        """Whether the connection has ended."""
        return self._lost

    def abort(self) -> None:
        """Close at once."""
        transport: Any = self.transport
        transport.abortConnection()

    def pauseProducing(self) -> None:
        """The transport's buffer is full."""
        self.client.pause()

    def resumeProducing(self) -> None:
        """The transport's buffer is empty."""
        self.client.resume()

    def stopProducing(self) -> None:
        """The connection is lost; connectionLost does the rest."""

    def _wake(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._reactor.callLater(0, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._lost or self._closing:
            return
        transport: Any = self.transport
        data = self.client.data_to_send(self._monotonic())
        if data:
            transport.write(data)
        if self.client.closing:
            self._closing = True
            transport.unregisterProducer()
            transport.loseConnection()

    def _arm(self) -> None:
        due = self.client.next_timer()
        if due is not None and not self._lost:
            self._timer = self._reactor.callLater(max(0.0, due - self._monotonic()), self._fire)

    def _fire(self) -> None:
        self.client.handle_timer(self._monotonic())
        self._arm()


class MqttSubscriber:
    """A subscriber that reconnects for ever.

    Args:
        reactor: the reactor.
        host, port: where the broker listens.
        filters: topic filters, with the QoS wanted (0 or 1).
        on_message: called with topic and payload.
        settings: what CONNECT says.
        on_subscribed: called whenever the subscription stands, the first time and after each reconnect.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        host: str,
        port: int,
        filters: Sequence[tuple[bytes, int]],
        on_message: Callable[[bytes, bytes], None],
        *,
        settings: Connect | None = None,
        on_subscribed: Callable[[], None] | None = None,
    ) -> None:
        """Wait for ``start``."""
        self._reactor = reactor
        self._filters = tuple(filters)
        self._on_message = on_message
        self._on_subscribed = on_subscribed
        self._settings = settings or Connect("", keepalive=KEEPALIVE_SECONDS)
        self._protocol: MqttClientProtocol | None = None
        self._service = ClientService(HostnameEndpoint(reactor, host, port), _ProtocolFactory(self), clock=reactor)

    def start(self) -> None:
        """Connect, and again whenever the connection is lost."""
        self._service.startService()

    def stop(self) -> Any:
        """Disconnect and stay away; return a Deferred, or None."""
        if self._protocol is not None and self._protocol.client.is_connected:
            self._protocol.client.disconnect()
        return self._service.stopService()

    def new_protocol(self) -> MqttClientProtocol:
        """Return the protocol of the next connection."""
        self._protocol = MqttClientProtocol(self._reactor, self._settings, self)
        return self._protocol

    def connected(self, session_present: bool) -> None:
        """Subscribe, also if the broker says it knows us: it may have been restored from an old copy."""
        assert self._protocol is not None
        self._protocol.client.subscribe(self._filters)

    def refused(self, code: int) -> None:
        """Say so; the next attempt may find a better configured broker."""
        self.log.warn("the MQTT broker refused the connection with code {code}", code=code)

    def received(self, message: Publish) -> None:
        """Pass a message on."""
        self._on_message(message.topic, message.payload)

    def acknowledged(self, packet_id: int, reason: int) -> None:
        """Nothing is published here."""

    def subscribed(self, packet_id: int, codes: Sequence[int]) -> None:
        """Say which filters were refused."""
        for (topic_filter, _), code in zip(self._filters, codes, strict=False):
            if code > 2:
                self.log.warn("the MQTT broker refused the subscription to {filter}", filter=topic_filter)
        if self._on_subscribed is not None:
            self._on_subscribed()


class _ProtocolFactory(Factory):
    """What ClientService wants."""

    noisy = False

    def __init__(self, subscriber: MqttSubscriber) -> None:
        self._subscriber = subscriber

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return self._subscriber.new_protocol()
