"""Twisted glue of the embedded broker: moves bytes, and writes once per connection and turn of the reactor.

It asks nothing of the transport that TLS or WebSocket could not give.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Final
from typing import Protocol as Shape

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IDelayedCall, IPushProducer, ISSLTransport, ITCPTransport
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from coapgw.mqtt.broker import BrokerLimits
from coapgw.mqtt.connection import Closing

STOP_SECONDS: Final = 1.0  # for the last bytes to leave


class PumpCounters(Shape):
    """What the glue counts."""

    pump_errors: int
    refused_connections: int


class PumpedConnection(Shape):
    """A broker's end of a connection: ``mqtt.connection.Connection``, or aMQTT's."""

    closing: Closing

    @property
    def is_congested(self) -> bool:
        """Return whether nothing should be read for now."""

    @property
    def is_5(self) -> bool:
        """Return whether the client is to be told why it is closed."""

    def receive_data(self, data: bytes, now: float) -> None:
        """Take bytes."""

    def data_to_send(self) -> bytes:
        """Return what to write."""

    def pause(self) -> None:
        """The transport is full."""

    def resume(self) -> None:
        """The transport takes bytes again."""

    def connection_lost(self, now: float) -> None:
        """The transport is gone."""


class PumpedBroker(Shape):
    """A broker without sockets: ``mqtt.broker.Broker``, or aMQTT."""

    on_output: Callable[[], None] | None

    @property
    def limits(self) -> BrokerLimits:
        """Return what clients may cost."""

    @property
    def counters(self) -> PumpCounters:
        """Return what it counts."""

    @property
    def is_stopped(self) -> bool:
        """Return whether it was stopped."""

    def open_connection(self, peer: str, loopback: bool, now: float) -> PumpedConnection | None:
        """Return the end of a new connection, or None."""

    def take_writable(self) -> Iterable[PumpedConnection]:
        """Return the connections to flush."""

    def tell_time(self, now: float) -> None:
        """Set its clock."""

    def next_timer(self) -> float | None:
        """Return when ``handle_timer`` is due."""

    def handle_timer(self, now: float) -> None:
        """Do what is due."""

    def stop(self) -> None:
        """Take no more connections."""


class BrokerPump:
    """Drives a broker: one timer, and one flush for all connections that got something to send in a turn.

    Args:
        broker: the machine.
        reactor: IReactorTime.
        monotonic: the broker's clock, in seconds; the reactor's own may jump.
    """

    log = Logger()

    def __init__(self, broker: PumpedBroker, reactor: Any, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Take over ``broker.on_output``."""
        self.broker = broker
        self.monotonic = monotonic
        self._reactor = reactor
        self._protocols: dict[PumpedConnection, MqttServerProtocol] = {}
        self._timer: IDelayedCall | None = None
        self._timer_due = 0.0
        self._empty: Deferred[None] | None = None
        broker.on_output = self._wake

    def opened(self, protocol: MqttServerProtocol, connection: PumpedConnection) -> None:
        """Flush *protocol* from now on."""
        self._protocols[connection] = protocol
        self._arm()

    def lost(self, connection: PumpedConnection) -> None:
        """The transport of *connection* is gone."""
        self._protocols.pop(connection, None)
        try:
            connection.connection_lost(self.monotonic())
        except Exception:  # noqa: BLE001 - the pump
            self.failed("the end of a connection")
        if self._empty is not None and not self._protocols:
            empty, self._empty = self._empty, None
            empty.callback(None)

    def failed(self, doing: str) -> None:
        """Count and log an error of ours; called from an except clause."""
        self.broker.counters.pump_errors += 1
        self.log.failure("MQTT broker failed at {doing}", doing=doing)

    def stop(self) -> Deferred[None]:
        """Close every connection, settling nothing more; the listeners are the caller's to stop before."""
        self.broker.stop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._protocols:
            return succeed(None)
        self._flush()
        for protocol in list(self._protocols.values()):
            protocol.close()
        empty = self._empty = Deferred()
        abort = self._reactor.callLater(STOP_SECONDS, self._abort_all)

        def gone(_: None) -> None:
            if abort.active():
                abort.cancel()

        return empty.addCallback(gone)

    def _abort_all(self) -> None:
        for protocol in list(self._protocols.values()):
            protocol.abort()

    def _wake(self) -> None:
        self.broker.tell_time(self.monotonic())
        self._reactor.callLater(0, self._flush)

    def _flush(self) -> None:
        for connection in self.broker.take_writable():
            protocol = self._protocols.get(connection)
            if protocol is not None:
                protocol.flush()
        self._arm()

    def _arm(self) -> None:
        """See that the timer fires no later than the broker wants; earlier does no harm."""
        due = self.broker.next_timer()
        if due is None or self.broker.is_stopped or (self._timer is not None and self._timer_due <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = due
        self._timer = self._reactor.callLater(max(0.0, due - self.monotonic()), self._fire)

    def _fire(self) -> None:
        self._timer = None
        try:
            self.broker.handle_timer(self.monotonic())
        except Exception:  # noqa: BLE001 - the pump
            self.failed("its timer")
        self._arm()


@implementer(IPushProducer)
class MqttServerProtocol(Protocol):
    """One client's transport."""

    _connection: PumpedConnection | None = None
    _closing = False
    _closed = False
    _waits_for_disk = False
    _is_tls = False

    def __init__(self, pump: BrokerPump, loopback: bool) -> None:
        """Made by MqttServerFactory."""
        self._pump = pump
        self._loopback = loopback

    def connectionMade(self) -> None:
        """Open the machine's end, or close if there are too many."""
        transport: Any = self.transport
        pump = self._pump
        connection = pump.broker.open_connection(str(transport.getPeer()), self._loopback, pump.monotonic())
        if connection is None:
            self.abort()
            return
        self._connection = connection
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
        self._is_tls = ISSLTransport.providedBy(transport)
        transport.registerProducer(self, True)
        pump.opened(self, connection)

    def dataReceived(self, data: bytes) -> None:
        """Hand bytes to the machine; nothing it does may reach the reactor as an exception."""
        connection = self._connection
        if connection is None or self._closed:
            return
        try:
            connection.receive_data(data, self._pump.monotonic())
        except Exception:  # noqa: BLE001 - the pump
            self._pump.failed("received data")
            self.abort()
            return
        if connection.is_congested and not self._waits_for_disk:
            self._waits_for_disk = True
            transport: Any = self.transport
            transport.pauseProducing()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell the machine."""
        self._closed = True
        if self._connection is not None:
            self._pump.lost(self._connection)

    def flush(self) -> None:
        """Write what the machine has, then close if it says so."""
        connection = self._connection
        if connection is None or self._closed:
            return
        try:
            data = connection.data_to_send()
        except Exception:  # noqa: BLE001 - the pump
            self._pump.failed("data to send")
            self.abort()
            return
        transport: Any = self.transport
        if data:
            transport.write(data)
        if connection.closing is Closing.ABORT:
            self.abort()
        elif connection.closing is Closing.FLUSH:
            self.finish(connection)
        elif self._waits_for_disk and not connection.is_congested:
            self._waits_for_disk = False
            transport.resumeProducing()

    def finish(self, connection: PumpedConnection) -> None:
        """Close when everything is written, so that a client of MQTT 5 that is still sending reads why.

        A socket that is closed while bytes arrive resets the connection, and takes away what the client has not read.
        """
        if not connection.is_5 or self._closing or self._is_tls or not ITCPTransport.providedBy(self.transport):
            self.close()
            return
        transport: Any = self.transport
        self._closing = True
        transport.unregisterProducer()
        transport.loseWriteConnection()
        if self._waits_for_disk:
            transport.resumeProducing()

    def close(self) -> None:
        """Close when everything is written.  The machine's deadline cuts a peer that does not read."""
        if self._closing:
            return
        self._closing = True
        transport: Any = self.transport
        transport.unregisterProducer()
        transport.loseConnection()

    def abort(self) -> None:
        """Close at once."""
        self._closed = True
        transport: Any = self.transport
        transport.abortConnection()

    def pauseProducing(self) -> None:
        """The transport's buffer is full."""
        if self._connection is not None:
            self._connection.pause()

    def resumeProducing(self) -> None:
        """The transport's buffer is empty."""
        if self._connection is not None and not self._closed:
            try:
                self._connection.resume()
            except Exception:  # noqa: BLE001 - the pump
                self._pump.failed("going on with a slow client")
                self.abort()

    def stopProducing(self) -> None:
        """The connection is lost; connectionLost does the rest."""


class MqttServerFactory(ServerFactory):
    """Makes the protocols of one listener; *loopback* says that it is bound to a loopback address."""

    noisy = False

    def __init__(self, pump: BrokerPump, loopback: bool) -> None:
        """Several listeners share one pump."""
        self._pump = pump
        self._loopback = loopback

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        """Return a protocol."""
        return MqttServerProtocol(self._pump, self._loopback)


__all__ = ["BrokerPump", "MqttServerFactory", "MqttServerProtocol"]
