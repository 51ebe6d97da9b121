"""Building CoAP datagrams by hand, independently of coapgw's encoder."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable

from coapgw.coap.codec import Options
from coapgw.coap.exchange import Exchange, Handler
from coapgw.coap.messaging import MessageLayer
from coapgw.coap.parameters import MessagingLimits

CON, NON, ACK, RST = range(4)
POST = 2


def option(delta: int, value: bytes) -> bytes:
    """One option with its delta; both below 269 + 65536."""

    def nibble(number: int) -> tuple[int, bytes]:
        if number < 13:
            return number, b""
        if number < 269:
            return 13, bytes([number - 13])
        return 14, (number - 269).to_bytes(2, "big")

    delta_nibble, delta_more = nibble(delta)
    length_nibble, length_more = nibble(len(value))
    return bytes([delta_nibble << 4 | length_nibble]) + delta_more + length_more + value


def datagram(
    kind: int = CON,
    code: int = POST,
    message_id: int = 1,
    token: bytes = b"",
    options: bytes = b"",
    payload: bytes = b"",
) -> bytes:
    """A version 1 message."""
    head = bytes([0x40 | kind << 4 | len(token), code]) + message_id.to_bytes(2, "big")
    return head + token + options + (b"\xff" + payload if payload else b"")


class Peers:
    """Everybody whose host is in the list is known, by the host."""

    def __init__(self, *hosts: str) -> None:
        self.generation = 0
        self.hosts = set(hosts)

    def identify(self, address: Hashable) -> object | None:
        host = address[0] if isinstance(address, tuple) else None
        return host if host in self.hosts else None


class RecordingSite:
    """One handler for everything; remembers what it was asked and what came."""

    def __init__(self, handle: Callable[[Exchange, bytes], None] | None = None) -> None:
        self.resolved: list[tuple[int, Options]] = []
        self.requests: list[tuple[Exchange, bytes]] = []
        self._handle = handle

    def resolve(self, code: int, options: Options) -> Handler:
        self.resolved.append((code, options))

        def handler(exchange: Exchange, payload: bytes) -> None:
            self.requests.append((exchange, payload))
            if self._handle is not None:
                self._handle(exchange, payload)

        return handler


DEVICE = ("10.0.0.1", 5000)
OTHER = ("10.0.0.2", 5000)
STRANGER = ("192.0.2.66", 6666)


class Rig:
    """A message layer with a clock and a site that records."""

    def __init__(
        self, handle: Callable[[Exchange, bytes], None] | None = None, limits: MessagingLimits | None = None
    ) -> None:
        self.now = 1000.0
        self.site = RecordingSite(handle)
        self.peers = Peers(DEVICE[0], OTHER[0])
        self.woken = 0
        self.layer = MessageLayer(self.site, self.peers, random.Random(7), limits=limits, wake=self._wake)

    def _wake(self) -> None:
        self.woken += 1

    def receive(self, data: bytes, address: Hashable = DEVICE) -> list[bytes]:
        """Give the layer a datagram; return what it sends to the same address at once."""
        self.layer.receive_datagram(data, address, self.now)
        return [sent for sent, to in self.sent() if to == address]

    def sent(self) -> list[tuple[bytes, Hashable]]:
        return self.layer.datagrams_to_send(self.now)

    def advance(self, seconds: float) -> list[tuple[float, bytes]]:
        """Let time pass, timers included; return (seconds since the call, datagram) of everything sent."""
        start, end = self.now, self.now + seconds
        out: list[tuple[float, bytes]] = [(0.0, data) for data, _ in self.sent()]
        while True:
            due = self.layer.next_timer()
            if due is None or due > end:
                break
            self.now = max(self.now, due)
            self.layer.handle_timer(self.now)
            out += [(self.now - start, data) for data, _ in self.sent()]
        self.now = end
        return out
