"""A TCP link that can be cut, stalled and slowed down."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from contextlib import suppress

BUFFER_LIMIT = 1 << 20  # bytes that wait in a link that stalls; beyond it does not read


class _Way:
    """One direction of one connection."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.waiting = bytearray()
        self.since = 0.0
        self.ended = False


class Link:
    """Forwards connections to 127.0.0.1:*target*, in a thread of its own, as the test wants it to.

    Args:
        target: a port; may change while the link is there.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.delay = 0.0
        self.is_stalled = False
        self.cuts = 0
        self._ways: list[_Way] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="link")
        self._thread.start()

    def cut(self) -> None:
        """End every connection at once, with whatever is on the way lost."""
        with self._lock:
            self.cuts += bool(self._ways)
            for way in self._ways:
                self._end(way)
            self._ways.clear()

    def close(self) -> None:
        """End everything."""
        self._stopping = True
        self._thread.join()
        self.cut()
        self._listener.close()

    def _run(self) -> None:
        while not self._stopping:
            with self._lock:
                ways = [way for way in self._ways if not way.ended]
                self._ways = ways
            with selectors.DefaultSelector() as selector:
                selector.register(self._listener, selectors.EVENT_READ, None)
                for way in ways:
                    if not self.is_stalled and len(way.waiting) < BUFFER_LIMIT:
                        with suppress(ValueError, KeyError, OSError):
                            selector.register(way.source, selectors.EVENT_READ, way)
                for key, _ in selector.select(0.002):
                    if key.data is None:
                        self._accept()
                    else:
                        self._take(key.data)
            if not self.is_stalled:
                for way in ways:
                    self._give(way)

    def _accept(self) -> None:
        with suppress(OSError):
            client, _ = self._listener.accept()
            try:
                server = socket.create_connection(("127.0.0.1", self.target), 1)
            except OSError:
                client.close()
                return
            for end in (client, server):
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._ways += [_Way(client, server), _Way(server, client)]

    def _take(self, way: _Way) -> None:
        try:
            data = way.source.recv(65_536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end(way)
            return
        if not way.waiting:
            way.since = time.monotonic()
        way.waiting += data

    def _give(self, way: _Way) -> None:
        if not way.waiting or time.monotonic() - way.since < self.delay:
            return
        try:
            del way.waiting[: way.sink.send(way.waiting)]
        except BlockingIOError:
            return
        except OSError:
            self._end(way)

    @staticmethod
    def _end(way: _Way) -> None:
        way.ended = True
        for end in (way.source, way.sink):
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
            with suppress(OSError):
                end.close()
