"""A CoAP client over UDP or DTLS: one server, one socket, requests that answer with Deferreds.

::

    client = CoapClient(reactor, parse_url("coaps://192.0.2.10/?t=x"), psk=PreSharedKey(b"8988…", secret))
    yield client.connect()
    answer = yield client.request(POST, client.target.options, b"hello")
    yield client.close()

The message layer is the gateway's, in client role; with a key, ``DtlsClient`` stands around it.  The socket is
connected, so that datagrams of others never arrive and a closed port is known at once (by ICMP) instead of after a
minute and a half.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Generator
from random import SystemRandom
from typing import Any, Final

import attrs
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, fail, inlineCallbacks, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IHostResolution, IResolutionReceiver
from zope.interface import implementer

from coapgw.coap.codec import ECHO, OBSERVE, UNAUTHORIZED, Options, option_value
from coapgw.coap.endpoints import Address
from coapgw.coap.messaging import MessageLayer
from coapgw.coap.outgoing import SUCCESS, NoResponse, Response
from coapgw.coap.parameters import TransmissionParameters
from coapgw.coap.site import Branch, ResourceSite
from coapgw.coap.url import Target
from coapgw.dtls.client import HANDSHAKE_SECONDS, PLAINTEXT_LIMIT, DtlsClient
from coapgw.dtls.openssl import SUITES, ClientContext, EngineFailed
from coapgw.errors import CoapgwError, PeerError
from coapgw.net.udp import CoapPort, Layer

UDP_LIMIT: Final = 65_507  # bytes of payload that an IPv4 datagram holds
OVERHEAD_LIMIT: Final = 1_280  # bytes left for header, token and options beside the payload
RECEIVE_BUFFER: Final = 65_536  # bytes; one server answers one question at a time

SocketAddress = tuple[Any, ...]
"""What ``socket.connect`` takes: (host, port), for IPv6 with flow and scope."""


class NotReached(PeerError):
    """A server that no datagram gets to: no such name, no route, nobody listens."""


class NoAnswer(PeerError):
    """A request without a response."""


class RequestRefused(CoapgwError):
    """A request that cannot be sent as it is."""


@attrs.frozen
class PreSharedKey:
    """What a client proves itself with.

    Args:
        suites: OpenSSL's names, the preferred one first.
        mtu: largest UDP payload of a handshake's datagram, bytes.
    """

    identity: bytes
    secret: bytes = attrs.field(repr=False)
    suites: tuple[str, ...] = SUITES
    mtu: int = 1280


@attrs.frozen
class Answer:
    """A response, how many seconds it took, and how often the request had to be repeated."""

    response: Response
    seconds: float
    retransmissions: int


@attrs.frozen
class Sighting:
    """A datagram on its way, for those who watch.

    Args:
        seconds: since the client was made.
        is_sealed: whether *data* are DTLS records; otherwise it is a CoAP message.
    """

    seconds: float
    is_outgoing: bool
    is_sealed: bool
    data: bytes


Watch = Callable[[Sighting], None]


@attrs.define(eq=False)
class Observing:
    """A resource being observed; *ended* fires when nothing more will be told, or fails as a request does."""

    client: CoapClient
    options: Options
    ended: Deferred[None]
    token: bytes = b""

    def stop(self) -> None:
        """Tell the server that nothing more is wanted."""
        self.client.stop_observing(self)


class CoapClient:
    """Requests to one server, connected once; a closed port or the end of the association ends the client.

    Args:
        reactor: the reactor; names are resolved by it.
        target: where to; its options are not sent of themselves.
        psk: for a ``coaps`` target.
        bind: the local address to send from; any without it.
        parameters: of retransmission.
        handshake_seconds: when a DTLS handshake is given up.
        watch: shown every datagram.
        monotonic: a clock in seconds.
    """

    def __init__(
        self,
        reactor: Any,
        target: Target,
        *,
        psk: PreSharedKey | None = None,
        bind: str = "",
        parameters: TransmissionParameters | None = None,
        handshake_seconds: float = HANDSHAKE_SECONDS,
        watch: Watch | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wait for ``connect``.  Raises RequestRefused for suites that OpenSSL does not have."""
        if target.is_secure != (psk is not None):
            raise ValueError("a pre-shared key goes with coaps, and only with coaps")
        self.target = target
        self._reactor = reactor
        self._bind = bind
        self._parameters = parameters or TransmissionParameters()
        self._handshake_seconds = handshake_seconds
        self._watch = watch
        self._monotonic = monotonic
        self._began = monotonic()
        self._mtu = psk.mtu if psk is not None else 0
        self._context = _context(psk) if psk is not None else None
        self._layer: MessageLayer
        self._dtls: DtlsClient | None = None
        self._port: _ClientPort | None = None
        self._peer: SocketAddress = ()
        self._waiting: set[Deferred[Any]] = set()
        self._end: Exception | None = None
        self.handshake_seconds = 0.0

    @property
    def suite(self) -> str:
        """OpenSSL's name of the suite that the handshake agreed on; empty without one."""
        return self._dtls.suite if self._dtls is not None else ""

    @property
    def retransmissions(self) -> int:
        """How many datagrams were repeated so far."""
        return self._layer.counters.retransmissions if self._port is not None else 0

    @property
    def address(self) -> str:
        """The server's address and port; empty before ``connect``."""
        if not self._peer:
            return ""
        host = f"[{self._peer[0]}]" if ":" in self._peer[0] else self._peer[0]
        return f"{host}:{self._peer[1]}"

    @inlineCallbacks
    def connect(self) -> Generator[Deferred[Any], Any, None]:
        """Resolve the name, open the socket, and shake hands if there is a key.

        Fails with NotReached, HandshakeFailed.
        """
        addresses = yield self._resolve()
        if self._end is not None:
            raise self._end  # closed while the name was looked up
        self._open(addresses)
        if self._dtls is None:
            return
        established: Deferred[None] = Deferred()
        self._waiting.add(established)
        self._established = established
        began = self._monotonic()
        self._dtls.begin(began)
        yield established
        self.handshake_seconds = self._monotonic() - began

    def request(
        self,
        code: int,
        options: Options = (),
        payload: bytes = b"",
        *,
        confirmable: bool = True,
        timeout: float | None = None,
    ) -> Deferred[Answer]:
        """Send a request once connected.

        Fails with NoAnswer, NotReached, AssociationEnded, RequestRefused.

        Args:
            code: the method.
            timeout: seconds until NoAnswer; EXCHANGE_LIFETIME if None.
        """
        if self._end is not None:
            return fail(self._end)
        if self._port is None:
            return fail(RequestRefused("the client is not connected"))
        limit = (PLAINTEXT_LIMIT if self._dtls is not None else UDP_LIMIT) - OVERHEAD_LIMIT
        if len(payload) > limit:
            refusal = f"a payload of {len(payload)} bytes; without block-wise transfer {limit} fit into a datagram"
            return fail(RequestRefused(refusal))
        concluded: Deferred[Answer] = Deferred()
        self._waiting.add(concluded)
        began = self._monotonic()
        repeated = self._layer.counters.retransmissions

        sent = options

        def send(now_sent: Options) -> None:
            nonlocal sent
            sent = now_sent
            self._layer.request(
                self._peer,
                *(code, conclude, self._monotonic()),
                options=sent,
                payload=payload,
                confirmable=confirmable,
                timeout=timeout,
            )

        def conclude(outcome: Response | NoResponse) -> None:
            if concluded not in self._waiting:
                return
            echo = _echo_asked(outcome, sent)
            if echo is not None:
                send((*options, (ECHO, echo)))
                return
            self._waiting.discard(concluded)
            seconds = self._monotonic() - began
            retransmissions = self._layer.counters.retransmissions - repeated
            if isinstance(outcome, Response):
                concluded.callback(Answer(outcome, seconds, retransmissions))
            else:
                concluded.errback(NoAnswer(_sentence(outcome, seconds, retransmissions)))

        send(options)
        return concluded

    def observe(
        self,
        options: Options,
        told: Callable[[Answer], None],
        *,
        confirmable: bool = True,
        timeout: float | None = None,
    ) -> Observing:
        """Be told of a resource's changes (RFC 7641), once connected: *told* is called with each answer.

        Args:
            timeout: seconds until the first answer; EXCHANGE_LIFETIME if None.
        """
        ended: Deferred[None] = Deferred()
        observing = Observing(self, options, ended)
        if self._end is not None or self._port is None:
            ended.errback(self._end or RequestRefused("the client is not connected"))
            return observing
        self._waiting.add(ended)
        began = self._monotonic()

        sent = options

        def send(now_sent: Options) -> None:
            nonlocal sent
            sent = now_sent
            observing.token = self._layer.observe(
                *(self._peer, hear, self._monotonic()), options=sent, confirmable=confirmable, timeout=timeout
            )

        def hear(outcome: Response | NoResponse) -> None:
            if ended not in self._waiting:
                return
            echo = _echo_asked(outcome, sent)
            if echo is not None:
                send((*options, (ECHO, echo)))
                return
            seconds = self._monotonic() - began
            if isinstance(outcome, NoResponse):
                self._waiting.discard(ended)
                ended.errback(NoAnswer(_sentence(outcome, seconds, self._layer.counters.retransmissions)))
                return
            told(Answer(outcome, seconds, 0))
            if option_value(outcome.options, OBSERVE) is None or outcome.code >> 5 != SUCCESS:
                self._waiting.discard(ended)
                ended.callback(None)

        send(options)
        return observing

    def stop_observing(self, observing: Observing) -> None:
        """Tell the server that nothing more is wanted; *ended* fires with its answer, or without one."""
        ended = observing.ended
        if ended not in self._waiting:
            return

        def conclude(outcome: Response | NoResponse) -> None:
            if ended in self._waiting:
                self._waiting.discard(ended)
                ended.callback(None)

        self._layer.stop_observing(
            *(self._peer, observing.token, conclude, self._monotonic()), options=observing.options
        )

    def close(self) -> Deferred[object]:
        """Say goodbye and close the socket; requests without an answer fail with NoAnswer."""
        self._fail(NoAnswer("the client was closed"))
        port, self._port = self._port, None
        if port is None or not port.connected:
            return maybeDeferred(lambda: None)
        if self._dtls is not None:
            self._dtls.close()
            port.flush()
        return maybeDeferred(port.stopListening)

    # ------------------------------------------------------------------ inside

    @inlineCallbacks
    def _resolve(self) -> Generator[Deferred[Any], Any, list[SocketAddress]]:
        """Return the addresses of the host, IPv4 first: that is where a gateway listens unless told otherwise.

        Fails with NotReached.
        """
        host, port = self.target.host, self.target.port
        try:
            numeric = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)
            return [found[4] for found in numeric]
        except (socket.gaierror, UnicodeError):
            pass
        receiver = _Addresses()
        self._reactor.nameResolver.resolveHostName(receiver, host, port, transportSemantics="UDP")
        addresses = yield receiver.complete
        if not addresses:
            raise NotReached(f"the name {host} does not resolve")
        return sorted((_socket_address(address, port) for address in addresses), key=lambda found: ":" in found[0])

    def _open(self, addresses: list[SocketAddress]) -> None:
        """Connect a socket to the first address that its family allows.  Raises NotReached."""
        wanted = [a for a in addresses if not self._bind or (":" in self._bind) == (":" in a[0])]
        if not wanted:
            raise NotReached(f"{self.target.host} has no address of the same family as {self._bind}")
        self._peer = wanted[0]
        self._port = _ClientPort(self._peer, self._bind, self._make_machine, self._reactor, self._unreachable)
        try:
            self._port.startListening()
        except CannotListenError as error:
            raise NotReached(f"cannot send from {self._bind or 'here'}: {_words(error.socketError)}") from None
        except OSError as error:
            port, self._port = self._port, None
            port.stopListening()
            raise NotReached(f"{self.address} cannot be reached: {_words(error)}") from None

    def _make_machine(self, wake: Callable[[], None]) -> Layer:
        self._layer = MessageLayer(
            ResourceSite(Branch()), _Nobody(), SystemRandom(), parameters=self._parameters, wake=wake
        )
        messages = self._watched(self._layer, is_sealed=False)
        if self._context is None:
            return messages
        self._dtls = DtlsClient(
            self._context.engine(),
            *(messages, self._peer),
            mtu=self._mtu,
            handshake_seconds=self._handshake_seconds,
            wake=wake,
            established=self._on_established,
            ended=self._fail,
        )
        return self._watched(self._dtls, is_sealed=True)

    def _watched(self, machine: Layer, is_sealed: bool) -> Layer:
        if self._watch is None:
            return machine
        watch, began = self._watch, self._began

        def see(data: bytes, is_outgoing: bool, now: float) -> None:
            watch(Sighting(now - began, is_outgoing, is_sealed, data))

        return _Watched(machine, see)

    def _on_established(self) -> None:
        self._waiting.discard(self._established)
        self._established.callback(None)

    def _unreachable(self, error: OSError) -> None:
        if error.errno == errno.ECONNREFUSED:
            self._fail(NotReached(f"nobody listens at {self.address} (ICMP port unreachable)"))
        else:
            self._fail(NotReached(f"{self.address} cannot be reached: {_words(error)}"))

    def _fail(self, reason: Exception) -> None:
        """Tell everybody who waits; only the first reason counts."""
        if self._end is None:
            self._end = reason
        waiting, self._waiting = self._waiting, set()
        for deferred in waiting:
            deferred.errback(self._end)


class _ClientPort(CoapPort):
    """A socket connected to one peer; *failed* is told what the system says about it."""

    def __init__(
        self,
        peer: SocketAddress,
        bind: str,
        make_machine: Callable[[Callable[[], None]], Layer],
        reactor: Any,
        failed: Callable[[OSError], None],
    ) -> None:
        any_address = "::" if ":" in peer[0] else "0.0.0.0"
        super().__init__(0, bind or any_address, make_machine, reactor, receive_buffer=RECEIVE_BUFFER)
        self._wildcard = False  # one peer: its address says all there is
        self._peer = peer
        self._failed = failed

    def startListening(self) -> None:
        super().startListening()
        self.socket.connect(self._peer)

    def socket_failed(self, error: OSError) -> None:
        self._failed(error)

    def connectionLost(self, reason: object = None) -> None:
        """Find out why: reactors drop a socket that has nothing but an error."""
        number = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if self.connected else 0
        super().connectionLost(reason)
        if number:
            self._failed(OSError(number, os.strerror(number)))


class _Watched:
    """A machine whose datagrams are shown on their way."""

    def __init__(self, machine: Layer, see: Callable[[bytes, bool, float], None]) -> None:
        self._machine = machine
        self._see = see
        self.next_timer = machine.next_timer
        self.handle_timer = machine.handle_timer
        self.crowd = machine.crowd

    def receive_datagram(self, data: bytes, address: Address, now: float, /) -> None:
        self._see(data, False, now)
        self._machine.receive_datagram(data, address, now)

    def datagrams_to_send(self, now: float, /) -> list[tuple[bytes, Address]]:
        out = list(self._machine.datagrams_to_send(now))
        for data, _ in out:
            self._see(data, True, now)
        return out


class _Nobody:
    """A client serves nobody."""

    generation = 0

    def identify(self, address: Address) -> object | None:
        return None


@implementer(IResolutionReceiver)
class _Addresses:
    """Collects what a name resolves to."""

    def __init__(self) -> None:
        self.complete: Deferred[list[IAddress]] = Deferred()
        self._found: list[IAddress] = []

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        """Begin."""

    def addressResolved(self, address: IAddress) -> None:
        self._found.append(address)

    def resolutionComplete(self) -> None:
        self.complete.callback(self._found)


def _context(psk: PreSharedKey) -> ClientContext:
    try:
        return ClientContext(psk.identity, psk.secret, psk.suites, psk.mtu)
    except EngineFailed as failed:
        raise RequestRefused(f"OpenSSL does not have these suites: {failed.reason}") from None


def _socket_address(address: object, port: int) -> SocketAddress:
    if isinstance(address, IPv6Address):
        return (address.host, port, address.flowInfo, address.scopeID)
    assert isinstance(address, IPv4Address)
    return (address.host, port)


def _echo_asked(outcome: Response | NoResponse, sent: Options) -> bytes | None:
    """Return the value that a server wants back before it answers (RFC 9175 section 2.3), None if it wants none."""
    if isinstance(outcome, NoResponse) or outcome.code != UNAUTHORIZED or option_value(sent, ECHO) is not None:
        return None
    return option_value(outcome.options, ECHO)


def _sentence(outcome: NoResponse, seconds: float, retransmissions: int) -> str:
    if outcome.reason == "timeout":
        times = "once" if not retransmissions else f"{retransmissions + 1} times"
        return f"no answer within {seconds:.1f} s; the request was sent {times}"
    if outcome.reason == "reset":
        return "the server rejected the message with RST"
    return "too many requests wait for an answer"


def _words(error: object) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
