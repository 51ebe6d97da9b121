"""A DTLS client whose every datagram passes through the test: pyOpenSSL on memory BIOs over a plain UDP socket."""

from __future__ import annotations

import secrets
import select
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from OpenSSL import SSL

from tests.interop.coaps_server import CoapsServer
from tests.interop.dtls_wire import records
from tests.unit.coap_wire import datagram, option

# pyOpenSSL has no public call for a pre-shared key.
_ffi: Any = getattr(SSL, "_ffi")  # noqa: B009
_lib: Any = getattr(SSL, "_lib")  # noqa: B009

GET, POST = 1, 2
LINKS = (b".well-known", b"core")  # answered at once, without a disk
LARGEST_DATAGRAM = 65_535
MTU = 1200
Flight = Sequence[bytes]


class NotAnswered(AssertionError):
    """The server let a request or a handshake pass without an answer."""


def _context(identity: bytes, key: bytes, suite: str) -> tuple[SSL.Context, object]:
    """Return a context, and the callback that has to live as long."""

    def give(_ssl: object, _hint: object, identity_out: Any, identity_size: int, key_out: Any, key_size: int) -> int:
        assert len(identity) < identity_size
        assert len(key) <= key_size
        _ffi.memmove(identity_out, identity + b"\0", len(identity) + 1)
        _ffi.memmove(key_out, key, len(key))
        return len(key)

    signature = "unsigned int(SSL*, const char*, char*, unsigned int, unsigned char*, unsigned int)"
    callback = _ffi.callback(signature, give)
    context = SSL.Context(SSL.DTLS_CLIENT_METHOD)
    context.set_cipher_list(f"{suite}:@SECLEVEL=0".encode())
    context.set_options(SSL.OP_NO_QUERY_MTU)
    _lib.SSL_CTX_set_psk_client_callback(getattr(context, "_context"), callback)  # noqa: B009
    return context, callback


def connected_socket(address: str, server: tuple[str, int]) -> socket.socket:
    """Return a UDP socket that waits for nothing."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((address, 0))
    made.connect(server)
    made.setblocking(False)
    return made


class DtlsPeer:
    """One client on one socket; *address* is what it binds to, anywhere in 127.0.0.0/8."""

    def __init__(
        self,
        server: CoapsServer,
        *,
        suite: str = "PSK-AES128-CCM8",
        key: str | None = None,
        address: str = "127.0.0.1",
        sharing: DtlsPeer | None = None,
    ) -> None:
        """Take a socket of its own, or that of another peer, as a device does that started anew."""
        self._context = _context(server.identity.encode(), (key or server.key).encode(), suite)
        self._connection = SSL.Connection(self._context[0], None)
        self._connection.set_connect_state()
        self._connection.set_ciphertext_mtu(MTU)
        self.socket: socket.socket = sharing.socket if sharing else connected_socket(address, server.address)
        self._message_id = secrets.randbelow(0x10000)
        self.sent: list[bytes] = []
        self.received: list[bytes] = []

    def close(self) -> None:
        """Leave without a word."""
        self.socket.close()

    def __enter__(self) -> DtlsPeer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def next_flight(self) -> Flight:
        """Return what this side has to say now, a record a datagram, without sending it."""
        with suppress(SSL.WantReadError):
            self._connection.do_handshake()
        return self._outgoing()

    def _outgoing(self) -> Flight:
        try:
            data = self._connection.bio_read(LARGEST_DATAGRAM)
        except SSL.WantReadError:
            return []
        return [record.encode() for record in records(data)]

    def send(self, flight: Flight) -> None:
        """Send datagrams as they are."""
        for one in flight:
            self.sent.append(one)
            self.socket.send(one)

    def take(self, seconds: float) -> bool:
        """Wait for a datagram and give it to OpenSSL; tell whether one came."""
        if not select.select([self.socket], [], [], seconds)[0]:
            return False
        try:
            data = self.socket.recv(LARGEST_DATAGRAM)
        except ConnectionRefusedError:
            return False
        self.received.append(data)
        self._connection.bio_write(data)
        return True

    def drain(self) -> list[bytes]:
        """Return what has arrived and nobody took, without giving it to OpenSSL."""
        found = []
        while True:
            try:
                found.append(self.socket.recv(LARGEST_DATAGRAM))
            except (BlockingIOError, ConnectionRefusedError):
                return found

    def flights(self, count: int, seconds: float = 5.0) -> Flight:
        """Say all flights before the *count*-th, and return that: 1 ClientHello, 2 with cookie, 3 with Finished."""
        flight = self.next_flight()
        for _ in range(count - 1):
            self.send(flight)
            flight = []
            deadline = time.monotonic() + seconds
            while not flight:
                if not self.take(max(0.0, deadline - time.monotonic())):
                    raise NotAnswered("no flight of the server came")
                flight = self.next_flight()
        return flight

    def handshake(self, seconds: float = 5.0) -> DtlsPeer:
        """Shake hands, repeating flights as OpenSSL's timer says; raises SSL.Error if the server refuses."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self._connection.do_handshake()
            except SSL.WantReadError:
                self.send(self._outgoing())
            else:
                self.send(self._outgoing())
                return self
            left = deadline - time.monotonic()
            if left <= 0:
                raise NotAnswered("no handshake in time")
            if not self.take(min(left, self._connection.DTLSv1_get_timeout() or left)):
                self._connection.DTLSv1_handle_timeout()

    def seal(self, message: bytes) -> bytes:
        """Return the datagram that carries *message*, without sending it."""
        self._connection.send(message)
        [sealed] = self._outgoing()
        return sealed

    def ask(self, message: bytes, seconds: float = 5.0, tries: int = 1) -> bytes:
        """Send a CON request and return the answer with its Message ID; repeats it, as RFC 7252 has it, if told to."""
        for left in range(tries, 0, -1):
            try:
                return self.exchange(self.seal(message), message, seconds / tries)
            except NotAnswered:
                if left == 1:
                    raise
        raise NotAnswered("never asked")

    def exchange(self, sealed: bytes, message: bytes, seconds: float = 5.0) -> bytes:
        """Send the record of a request and return its answer."""
        self.send([sealed])
        deadline = time.monotonic() + seconds
        while self.take(max(0.0, deadline - time.monotonic())):
            for answer in self.opened():
                if answer[2:4] == message[2:4]:
                    return answer
        raise NotAnswered("no answer to a request")

    def opened(self) -> list[bytes]:
        """Return the messages in what was taken."""
        found = []
        while True:
            try:
                found.append(self._connection.recv(LARGEST_DATAGRAM))
            except SSL.WantReadError:
                return found

    def request(self, code: int, path: Sequence[bytes] = (), payload: bytes = b"") -> bytes:
        """Return a CON request with a Message ID of its own."""
        self._message_id = self._message_id + 1 & 0xFFFF
        options = b"".join(option(0 if position else 11, segment) for position, segment in enumerate(path))
        return datagram(code=code, message_id=self._message_id, token=b"pr", options=options, payload=payload)

    def post(self, payload: bytes, seconds: float = 5.0, tries: int = 1) -> int:
        """POST to "/"; return the code of the answer."""
        return self.ask(self.request(POST, payload=payload), seconds, tries)[1]

    def serves(self) -> None:
        """Fail unless the server answers.

        On loopback datagrams keep their order: the server has then also seen what others sent before.
        """
        assert self.ask(self.request(GET, LINKS))[1] == 0x45
