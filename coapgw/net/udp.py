"""The pump between a UDP socket and what answers its datagrams.

Twisted's ``udp.Port`` reads until it has so many *bytes*, so that a flood of tiny datagrams starves everything
else; it cuts datagrams at 8192 bytes, forgets which of our addresses was asked, and raises where sending blocks.
``CoapPort`` keeps its life cycle and replaces what moves datagrams: so many *datagrams* a turn, whole ones, answered
from the address that was asked (RFC 7252 section 8 asks for it, and networks with a firewall insist).
"""

from __future__ import annotations

import ipaddress
import math
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final, Protocol

from twisted.internet import udp
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import DatagramProtocol
from twisted.logger import Logger

from coapgw.coap.endpoints import Address
from coapgw.metrics import SocketCounters

BATCH: Final = 128  # datagrams a turn of the reactor: about two milliseconds, then timers and MQTT have theirs
DATAGRAM_LIMIT: Final = 65_535  # a larger buffer costs nothing (measured), a smaller one would cut datagrams
ANCILLARY_BYTES: Final = 64  # holds one in6_pktinfo with its header
SOURCES_REMEMBERED: Final = 1024  # of our addresses; 127.0.0.0/8 alone has 16 million, and senders choose
CROWDED_ABOVE, CROWDED_BELOW = 0.5, 0.25  # of the receive buffer
FAILURES_LOGGED: Final = 20  # of the pump, per socket and run

_IP_PKTINFO: Final = getattr(socket, "IP_PKTINFO", 8)  # linux/in.h; Python has the name since 3.13
_IN_PKTINFO: Final = struct.Struct("=I4s4s")  # interface index, local address, header destination
_IN6_PKTINFO: Final = struct.Struct("=16sI")  # address, interface index: RFC 3542 section 6.2
_SO_RCVBUFFORCE: Final = 33  # asm-generic/socket.h: beyond net.core.rmem_max, for root

_SO_MEMINFO: Final = 55  # asm-generic/socket.h, Linux 4.12
_MEMINFO: Final = struct.Struct("=9I")  # linux/sock_diag.h: SK_MEMINFO_DROPS is the last
_RMEM_ALLOC, _RCVBUF = 0, 1

_WILDCARDS: Final = ("", "0.0.0.0", "::")

_Ancillary = tuple[tuple[int, int, bytes], ...]


class Layer(Protocol):
    """What a socket's pump drives: a message layer, or a DTLS front with one behind it; *now* in seconds."""

    def receive_datagram(self, data: bytes, address: Address, now: float, /) -> None:
        """Take a datagram."""

    def crowd(self, *, crowded: bool) -> None:
        """Know whether more arrives than can be served."""

    def datagrams_to_send(self, now: float, /) -> list[tuple[bytes, Address]]:
        """Return what is to be sent."""

    def next_timer(self) -> float | None:
        """Return when ``handle_timer`` is to be called."""

    def handle_timer(self, now: float, /) -> None:
        """Do what is due."""


class CoapPort(udp.Port):
    """A UDP socket whose datagrams go to a layer.

    On a wildcard address an endpoint's address is the peer's with the packet information appended (which of our
    addresses it talks to, on which interface); otherwise it is what ``recvfrom`` says.

    Args:
        port: 0 lets the system choose.
        host: an IPv4 or IPv6 address.
        make_layer: given the function that wakes the pump, returns the layer.
        receive_buffer: bytes asked of the system for datagrams that wait.
        monotonic: the layer's clock, in seconds; the reactor's own may jump.
    """

    log = Logger()

    def __init__(
        self,
        port: int,
        host: str,
        make_layer: Callable[[Callable[[], None]], Layer],
        reactor: Any,  # IReactorFDSet and IReactorTime, which Twisted has no common type for
        *,
        receive_buffer: int = 4 << 20,
        monotonic: Callable[[], float] = time.monotonic,
        counters: SocketCounters | None = None,
    ) -> None:
        """Prepare; ``startListening`` binds."""
        super().__init__(port, DatagramProtocol(), host, DATAGRAM_LIMIT, reactor)
        self.counters = counters or SocketCounters()
        self.layer = make_layer(self._wake)
        self._reactor_time: IReactorTime = reactor
        self._monotonic = monotonic
        self._receive_buffer = receive_buffer
        self._wildcard = host in _WILDCARDS
        self._reading = False
        self._flush_call: IDelayedCall | None = None
        self._timer: IDelayedCall | None = None
        self._timer_due = math.inf
        self._sources: dict[bytes, _Ancillary] = {}
        self._made: socket.socket | None = None
        self.granted_buffer = 0
        self._is_crowded = False

    # ------------------------------------------------------------------ the socket

    def startListening(self) -> None:
        """Bind and begin to read; raises CannotListenError."""
        try:
            super().startListening()
        except CannotListenError:
            if self._made is not None:
                self._made.close()  # Twisted leaves it to the garbage collector
            raise

    @property
    def number(self) -> int:
        """The port number that was bound."""
        return int(self.socket.getsockname()[1])

    @property
    def sources_remembered(self) -> int:
        """How many of our addresses are known with what sends from them."""
        return len(self._sources)

    def createInternetSocket(self) -> socket.socket:
        """Make the socket: room for bursts, and packet information where the address does not say it."""
        made: socket.socket = super().createInternetSocket()
        self._made = made
        self._grow_receive_buffer(made)
        if made.family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # so that 0.0.0.0 can be had beside ::
            if self._wildcard:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        elif self._wildcard:
            made.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        return made

    def _grow_receive_buffer(self, made: socket.socket) -> None:
        """Ask for the receive buffer; say so once if the system grants less."""
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        self.granted_buffer = (
            made.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
        )  # Linux doubles what it is asked
        if self.granted_buffer < self._receive_buffer:
            try:
                made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, self._receive_buffer)
                self.granted_buffer = made.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
            except OSError:
                self.log.warn(
                    "the system grants a receive buffer of {granted} bytes, coap.receive_buffer asks for {asked}: "
                    "bursts will lose datagrams; raise net.core.rmem_max",
                    granted=self.granted_buffer,
                    asked=self._receive_buffer,
                )

    # ------------------------------------------------------------------ in

    def doRead(self) -> None:
        """Read up to a batch of datagrams, then send what came of them."""
        receive_datagram, now = self.layer.receive_datagram, self._monotonic()
        receive = self._receive_with_information if self._wildcard else self._receive_plain
        self._reading = True
        size = count = 0
        try:
            for data, address in receive():
                size += len(data)
                count += 1
                try:
                    receive_datagram(data, address, now)
                except Exception:  # noqa: BLE001 - the pump: whatever one datagram does, the others are served
                    self.counters.pump_errors += 1
                    if self.counters.pump_errors <= FAILURES_LOGGED:
                        self.log.failure("a datagram caused an error of ours; it was dropped")
        except OSError as error:
            self.counters.receive_failed += 1  # e.g. a late ICMP error of an answer; the socket goes on
            self.socket_failed(error)
        finally:
            self._reading = False
            self.counters.received_bytes += size
        if count == BATCH or self._is_crowded:
            self._look_at_backlog()
        self.flush()

    def _look_at_backlog(self) -> None:
        """Tell the layer when the receive buffer is nearly full, and when it no longer is."""
        crowded = False
        with suppress(OSError, struct.error):
            state = _MEMINFO.unpack(self.socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))
            crowded = state[_RMEM_ALLOC] > state[_RCVBUF] * (CROWDED_BELOW if self._is_crowded else CROWDED_ABOVE)
        if crowded != self._is_crowded:
            self._is_crowded = crowded
            self.layer.crowd(crowded=crowded)

    def _receive_plain(self) -> Iterator[tuple[bytes, Address]]:
        """Yield what waits in the socket, at most a batch."""
        receive = self.socket.recvfrom
        with suppress(BlockingIOError):
            for _ in range(BATCH):
                yield receive(DATAGRAM_LIMIT)

    def _receive_with_information(self) -> Iterator[tuple[bytes, Address]]:
        """Yield what waits in the socket, at most a batch, each address with the packet information appended."""
        receive = self.socket.recvmsg
        with suppress(BlockingIOError):
            for _ in range(BATCH):
                data, ancillary, _flags, address = receive(DATAGRAM_LIMIT, ANCILLARY_BYTES)
                yield data, (*address, ancillary[0][2] if ancillary else b"")

    # ------------------------------------------------------------------ out

    def _wake(self) -> None:
        """Send soon, unless this turn's reading will."""
        if not self._reading and self._flush_call is None:
            self._flush_call = self._reactor_time.callLater(0, self._flush_later)

    def _flush_later(self) -> None:
        self._flush_call = None
        if self.socket is not None:
            self.flush()

    def flush(self) -> None:
        """Send what the layer has to send; what the system will not take is lost, as datagrams may be."""
        now = self._monotonic()
        send: Callable[[bytes, Any], object] = self._send_with_information if self._wildcard else self.socket.sendto
        size = 0
        for data, address in self.layer.datagrams_to_send(now):
            try:
                send(data, address)
                size += len(data)
            except BlockingIOError:
                self.counters.send_blocked += 1
            except OSError as error:
                self.counters.send_failed += 1
                self.socket_failed(error)
        self.counters.sent_bytes += size
        self._set_timer(now)

    def look_at_kernel(self) -> SocketCounters:
        """Return the counters, with what the kernel has dropped for want of room in the receive buffer."""
        if self.socket is not None:
            with suppress(OSError, struct.error):
                state = self.socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
                self.counters.kernel_drops = _MEMINFO.unpack(state)[-1]
        return self.counters

    def socket_failed(self, error: OSError) -> None:
        """Do nothing more than count: a server goes on.  For those who talk to one peer only."""

    def _send_with_information(self, data: bytes, address: Any) -> None:
        """Send from the address that was asked, and leave the interface to the routing table."""
        information = address[-1]
        source = self._sources.get(information)
        if source is None:
            if len(self._sources) >= SOURCES_REMEMBERED:
                self._sources.clear()
            source = self._sources[information] = _source(information)
        self.socket.sendmsg((data,), source, 0, address[:-1])

    # ------------------------------------------------------------------ time

    def _set_timer(self, now: float) -> None:
        """Keep one timer, no later than the layer wants it; an early one does no harm and costs nothing now."""
        due = self.layer.next_timer()
        if due is None or (self._timer is not None and self._timer_due <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = due
        self._timer = self._reactor_time.callLater(max(0.0, due - now), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._timer_due = math.inf
        now = self._monotonic()
        try:
            self.layer.handle_timer(now)
        except Exception:  # noqa: BLE001 - the pump: a timer that failed must not be the last
            self.counters.pump_errors += 1
            if self.counters.pump_errors <= FAILURES_LOGGED:
                self.log.failure("a timer of the message layer failed")
        self.flush()

    def connectionLost(self, reason: object = None) -> None:
        """Stop the timer with the socket."""
        for call in (self._timer, self._flush_call):
            if call is not None and call.active():
                call.cancel()
        self._timer = self._flush_call = None
        super().connectionLost(reason)


def _source(information: bytes) -> _Ancillary:
    """Return the ancillary data that sends from the address which received with *information*."""
    if len(information) == _IN_PKTINFO.size:
        _, local, _ = _IN_PKTINFO.unpack(information)
        return ((socket.IPPROTO_IP, _IP_PKTINFO, _IN_PKTINFO.pack(0, local, b"\0\0\0\0")),)
    if len(information) == _IN6_PKTINFO.size:
        local, interface = _IN6_PKTINFO.unpack(information)
        link_local = local[0] == 0xFE and local[1] & 0xC0 == 0x80  # only with its interface is it an address
        packed = _IN6_PKTINFO.pack(local, interface if link_local else 0)
        return ((socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, packed),)
    return ()


def local_hosts(host: str) -> Callable[[Address], str]:
    """Return what tells, of an address that a ``CoapPort`` on *host* gave its layer, which of ours that peer talks to.

    In figures, without a zone, an IPv4-mapped address as IPv4; empty if the system did not say.
    """
    if host in _WILDCARDS:
        return _local_host
    own = _figures(ipaddress.ip_address(host.partition("%")[0]))
    return lambda address: own


def _local_host(address: Address) -> str:
    """Return the address that is in the packet information at the end of *address*."""
    information = address[-1] if isinstance(address, tuple) else None
    if not isinstance(information, bytes):
        return ""
    if len(information) == _IN_PKTINFO.size:
        return socket.inet_ntop(socket.AF_INET, _IN_PKTINFO.unpack(information)[1])
    if len(information) == _IN6_PKTINFO.size:
        return _figures(ipaddress.IPv6Address(information[:16]))
    return ""


def _figures(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    return str(getattr(address, "ipv4_mapped", None) or address)
