"""A UDP relay between clients and a server that does to datagrams what networks do to them, the same way every time."""

from __future__ import annotations

import heapq
import itertools
import random
import select
import socket
import threading
import time
from types import TracebackType

import attrs

LARGEST_DATAGRAM = 65_535


@attrs.frozen
class Link:
    """What happens in one direction: shares of all datagrams (0 to 1), and seconds."""

    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0  # held back for `reordering_delay`, so that later ones overtake
    reordering_delay: float = 0.02
    delay: float = 0.0


CLEAR = Link()


@attrs.define(order=True)
class _Held:
    """A datagram on its way."""

    due: float
    number: int
    socket: socket.socket = attrs.field(order=False)
    data: bytes = attrs.field(order=False)
    to: tuple[str, int] | None = attrs.field(order=False)  # None: the socket is connected


class Relay:
    """A thread that listens on a port of its own and forwards; every client reaches the server from its own port.

    *to_server* and *to_client* keep every datagram that arrived at the relay, also the *lost* ones.
    """

    def __init__(
        self, server: tuple[str, int], *, up: Link = CLEAR, down: Link = CLEAR, seed: int = 0, source: str = ""
    ) -> None:
        self.to_server: list[bytes] = []
        self.to_client: list[bytes] = []
        self.lost = 0
        self._server = server
        self._source = source  # the address the server sees
        self._up, self._down = up, down
        # One stream of chances a direction: what is lost on one way does not depend on the timing of the other.
        self._chances = {True: random.Random(f"{seed} up"), False: random.Random(f"{seed} down")}
        self._front = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._front.bind(("127.0.0.1", 0))
        self._woken, self._wake = socket.socketpair()
        self._ways: dict[tuple[str, int], socket.socket] = {}
        self._clients: dict[socket.socket, tuple[str, int]] = {}
        self._held: list[_Held] = []
        self._number = itertools.count()
        self._ports: dict[tuple[str, int], list[int]] = {}  # that each client had, in order
        self._rebind = threading.Event()
        self._back = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        """Where clients send to."""
        host, port = self._front.getsockname()
        return host, port

    def become(self, link: Link) -> None:
        """Do to datagrams what *link* says from now on, in both directions."""
        self._up = self._down = link

    def rebind(self) -> None:
        """Give every client a new source port from its next datagram on, as a NAT does that forgot them."""
        self._back = False
        self._rebind.set()
        self._wake.send(b"!")

    def change_back(self) -> None:
        """Give every client the source port it had before the last ``rebind``."""
        self._back = True
        self._rebind.set()
        self._wake.send(b"!")

    def close(self) -> None:
        """End; what is on its way is lost."""
        self._stop.set()
        self._wake.send(b"!")
        self._thread.join(10)
        for one in (self._front, self._woken, self._wake, *self._clients):
            one.close()

    def __enter__(self) -> Relay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            now = time.monotonic()
            while self._held and self._held[0].due <= now:
                self._send(heapq.heappop(self._held))
            patience = max(0.0, self._held[0].due - now) if self._held else None
            ready = select.select([self._front, self._woken, *self._clients], [], [], patience)[0]
            if self._woken in ready:
                self._woken.recv(64)
            if self._rebind.is_set():
                self._rebind.clear()
                self._forget_ways()
                continue
            for one in ready:
                if one is self._front:
                    self._receive_from_client()
                elif one is not self._woken:
                    self._receive_from_server(one)

    def _forget_ways(self) -> None:
        for way in self._ways.values():
            del self._clients[way]
            way.close()
        self._ways.clear()

    def _receive_from_client(self) -> None:
        data, client = self._front.recvfrom(LARGEST_DATAGRAM)
        self.to_server.append(data)
        way = self._ways.get(client)
        if way is None:
            way = self._ways[client] = self._make_way(client)
            self._clients[way] = client
        self._forward(True, way, data, None)

    def _make_way(self, client: tuple[str, int]) -> socket.socket:
        way = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        ports = self._ports.setdefault(client, [])
        way.bind((self._source or "127.0.0.1", ports[-2] if self._back and len(ports) > 1 else 0))
        way.connect(self._server)
        ports.append(way.getsockname()[1])
        return way

    def ports_of_clients(self) -> list[list[int]]:
        """Return the source ports that each client was given, in order."""
        return list(self._ports.values())

    def _receive_from_server(self, way: socket.socket) -> None:
        try:
            data = way.recv(LARGEST_DATAGRAM)
        except ConnectionRefusedError:  # the server is gone: its next datagram will tell
            return
        self.to_client.append(data)
        self._forward(False, self._front, data, self._clients[way])

    def _forward(self, up: bool, via: socket.socket, data: bytes, to: tuple[str, int] | None) -> None:
        path, chances = (self._up if up else self._down), self._chances[up]
        lost, doubled, late = (chances.random() for _ in range(3))
        if lost < path.loss:
            self.lost += 1
            return
        due = time.monotonic() + path.delay + (path.reordering_delay if late < path.reordering else 0.0)
        for _ in range(2 if doubled < path.duplication else 1):
            heapq.heappush(self._held, _Held(due, next(self._number), via, data, to))

    def _send(self, held: _Held) -> None:
        try:
            if held.to is None:
                held.socket.send(held.data)
            else:
                held.socket.sendto(held.data, held.to)
        except OSError:  # nobody listens there any more, or the way was forgotten
            pass
