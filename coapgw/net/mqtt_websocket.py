"""MQTT over WebSocket (MQTT section 6): autobahn speaks the frames, the bytes in them go to the usual protocol.

Importing this takes a third of a second and 40 MB, so the gateway does it only with a WebSocket listener.
"""

from __future__ import annotations

from typing import Any, Final

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.types import ConnectionDeny, ConnectionRequest
from twisted.internet.interfaces import IAddress, IDelayedCall, IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from coapgw.net.mqtt import BrokerPump, MqttServerProtocol

SUBPROTOCOL: Final = "mqtt"  # MQTT section 6, requirement 6.0.0-3
CLOSE_SECONDS: Final = 1.0  # for the peer to answer a close frame
HANDSHAKE_BYTES: Final = 65_536  # until the handshake is done; autobahn itself would gather without end


class _Transport:
    """What MqttServerProtocol writes to: the data of WebSocket messages, one for each turn's bytes."""

    def __init__(self, socket: MqttWebSocket) -> None:
        """Write to *socket*."""
        self._socket = socket
        self._transport: Any = socket.transport

    def getPeer(self) -> IAddress:
        """Return where the client is."""
        peer: IAddress = self._transport.getPeer()
        return peer

    def write(self, data: bytes) -> None:
        """Send a binary message."""
        self._socket.sendMessage(data, isBinary=True)

    def loseConnection(self) -> None:
        """Say good-bye, and close when the peer has answered, or soon."""
        self._socket.sendClose(WebSocketServerProtocol.CLOSE_STATUS_CODE_NORMAL)
        self._socket.abort_after(CLOSE_SECONDS)

    def abortConnection(self) -> None:
        """Close at once."""
        self._transport.abortConnection()

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:
        """Have *producer* told when the socket takes no more."""
        self._socket.producer = producer
        self._transport.registerProducer(self._socket, streaming)

    def unregisterProducer(self) -> None:
        """Forget the producer."""
        self._socket.producer = None
        self._transport.unregisterProducer()

    def pauseProducing(self) -> None:
        """Read nothing for now."""
        self._transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Read again."""
        self._transport.resumeProducing()


class MqttWebSocket(WebSocketServerProtocol):
    """One client's WebSocket; its messages are a stream of bytes, however they are cut."""

    factory: MqttWebSocketFactory
    _mqtt: MqttServerProtocol | None = None
    _from_a_page = False
    _received = 0  # bytes of the handshake
    _deadline: IDelayedCall | None = None
    producer: IPushProducer | None = None  # of what is sent, pongs apart
    _is_paused = False
    _pinged: bytes | None = None  # what the latest ping said that came meanwhile

    def connectionMade(self) -> None:
        """Wait for the handshake, but not for long.  autobahn's own timers would use the global reactor."""
        super().connectionMade()
        self.abort_after(self.factory.seconds)

    def abort_after(self, seconds: float) -> None:
        """Close in so many seconds, whatever the peer does."""
        self._stop_waiting()
        self._deadline = self.factory.clock.callLater(seconds, self._closeConnection, abort=True)

    def _stop_waiting(self) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()

    def dataReceived(self, data: bytes) -> None:
        """Hand bytes to autobahn; nothing it does may reach the reactor as an exception."""
        if self._mqtt is None:
            self._received += len(data)
            if self._received > HANDSHAKE_BYTES:
                self._closeConnection(abort=True)
                return
        try:
            super().dataReceived(data)
        except Exception:  # noqa: BLE001 - the pump
            self.factory.pump.failed("received WebSocket data")
            self._closeConnection(abort=True)

    def onConnect(self, request: ConnectionRequest) -> str:
        """Accept who speaks MQTT.  A page in a browser is no local client, wherever the browser runs."""
        if SUBPROTOCOL not in request.protocols:
            raise ConnectionDeny(ConnectionDeny.BAD_REQUEST, "the subprotocol mqtt is needed")
        self._from_a_page = "origin" in request.headers
        return SUBPROTOCOL

    def onOpen(self) -> None:
        """Open the MQTT end."""
        self._stop_waiting()
        mqtt = MqttServerProtocol(self.factory.pump, self.factory.loopback and not self._from_a_page)
        self._mqtt = mqtt
        mqtt.makeConnection(_Transport(self))

    def onPing(self, payload: bytes) -> None:
        """Answer a ping; of those that come while the peer reads nothing the latest (RFC 6455 section 5.5.3)."""
        if self._is_paused:
            self._pinged = payload
        else:
            super().onPing(payload)

    def pauseProducing(self) -> None:
        """The socket takes no more."""
        self._is_paused = True
        if self.producer is not None:
            self.producer.pauseProducing()

    def resumeProducing(self) -> None:
        """The socket takes bytes again."""
        self._is_paused = False
        pinged, self._pinged = self._pinged, None
        if pinged is not None:
            super().onPing(pinged)
        if self.producer is not None:
            self.producer.resumeProducing()

    def stopProducing(self) -> None:
        """The connection is lost; connectionLost does the rest."""

    def onMessageBegin(self, isBinary: bool) -> None:
        """Refuse text (section 6, requirement 6.0.0-1)."""
        if not isBinary:
            self._closeConnection(abort=True)

    def onMessageFrameBegin(self, length: int) -> None:
        """Take frames of any length: nothing of them is kept."""

    def onMessageFrameData(self, payload: bytes) -> None:
        """Hand bytes on as they come."""
        if self._mqtt is not None:
            self._mqtt.dataReceived(bytes(payload))

    def onMessageFrameEnd(self) -> None:
        """Nothing was kept."""

    def onMessageEnd(self) -> None:
        """Nothing was kept."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """End both; autobahn's own method would log what strangers do wrong with TLS."""
        self.factory.open_sockets -= 1
        self._stop_waiting()
        mqtt, self._mqtt = self._mqtt, None
        if mqtt is not None:
            mqtt.connectionLost(reason)
        self._connectionLost(reason)  # type: ignore[arg-type]  # it is what autobahn's own method hands on


class MqttWebSocketFactory(WebSocketServerFactory):
    """Makes the protocols of one listener; *loopback* says that it is bound to a loopback address.

    Args:
        reactor: the reactor.
        seconds: until the handshake must be done.
    """

    noisy = False
    protocol = MqttWebSocket  # type: ignore[assignment]  # a class is a callable that makes one

    def __init__(self, pump: BrokerPump, loopback: bool, reactor: Any, seconds: float) -> None:
        """Several listeners share one pump."""
        super().__init__(protocols=[SUBPROTOCOL], server="coapgw", reactor=reactor)
        self.pump = pump
        self.loopback = loopback
        self.clock = reactor
        self.seconds = seconds
        self.open_sockets = 0
        self.setProtocolOptions(
            versions=[13],
            webStatus=False,
            openHandshakeTimeout=0,
            closeHandshakeTimeout=0,
            failByDrop=True,
            tcpNoDelay=True,
        )

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        """Return a protocol, or None if there are too many: what has not finished its handshake counts too."""
        if self.open_sockets >= self.pump.broker.limits.max_connections:
            self.pump.broker.counters.refused_connections += 1
            return None
        self.open_sockets += 1
        protocol = MqttWebSocket()
        protocol.factory = self
        return protocol
