"""OpenSSL's part of DTLS: handshakes, and the records of suites that stay with it.

The only file that touches pyOpenSSL and cffi.  pyOpenSSL has no public call for pre-shared keys: its binding has, and
that is used here.  An ``Engine`` is one Connection over memory: records in, records out, no socket, no exception but
``EngineFailed``.

What is switched off, and why: session tickets, session cache and renegotiation, because an association that leaves
OpenSSL (``association.py``) could not honour them; encrypt-then-MAC (RFC 7366), because with it OpenSSL ends an
association at the first record whose MAC is wrong, and anybody can send one; compression, as everywhere; DTLS 1.0,
because nobody needs it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from OpenSSL import SSL
from OpenSSL.SSL import _ffi as ffi  # type: ignore[attr-defined]  # the binding, of which pyOpenSSL offers no more
from OpenSSL.SSL import _lib as lib  # type: ignore[attr-defined]

from coapgw.dtls.records import split
from coapgw.model import Credential

AEAD_SUITES: Final = (
    "PSK-AES128-CCM8",
    "PSK-AES128-GCM-SHA256",
    "PSK-AES128-CCM",
    "PSK-AES256-GCM-SHA384",
    "PSK-AES256-CCM8",
    "PSK-AES256-CCM",
)
"""Suites whose associations leave OpenSSL after the handshake."""

CBC_SUITES: Final = (
    "ECDHE-PSK-AES128-CBC-SHA256",
    "PSK-AES128-CBC-SHA256",
    "PSK-AES128-CBC-SHA",
    "PSK-AES256-CBC-SHA",
)
"""Suites whose associations stay on their Connection, at 60 to 75 kB each."""

SUITES: Final = AEAD_SUITES + CBC_SUITES

_LOWEST_LEVEL: Final = "@SECLEVEL=0"  # from level 1 on, OpenSSL has no suites with a tag of 8 bytes
_DTLS_1_2: Final = 0xFEFD
_OP_NO_ENCRYPT_THEN_MAC: Final = 1 << 19  # openssl/ssl.h; pyOpenSSL has no name for it
_READ_BYTES: Final = 32_768  # more than a flight has
_UNKNOWN_KEY_BYTES: Final = 16
_CONNECTION_ID: Final = 54  # the extension's number: RFC 9146 section 3
_DECODE_ERROR: Final = 50  # the alert: RFC 5246 section 7.2

CredentialOf = Callable[[bytes], Credential | None]
"""Says what a PSK identity has to prove, None for one that is not served."""


class EngineFailed(Exception):
    """A handshake that cannot go on, or an association that ended; the *reason* is OpenSSL's, in a few words."""

    def __init__(self, reason: str) -> None:
        """Take the words."""
        super().__init__(reason)
        self.reason = reason


class Engine:
    """One peer's Connection, in either role.

    Args:
        connection: over memory, its role set.
        asking: where callbacks find out which engine they are for.
        cid: the Connection ID (RFC 9146) to be offered or answered with, empty for records without one; None: the
            extension is not sent.

    ``peer_cid`` is the peer's, None if it did not speak of any.  With both there are Connection IDs.
    """

    __slots__ = ("_asking", "_connection", "_extension", "cid", "credential", "is_complete", "peer_cid")

    def __init__(self, connection: SSL.Connection, asking: _Asking, cid: bytes | None = None) -> None:
        """Begin a handshake."""
        self._connection = connection
        self._asking = asking
        self._extension = None if cid is None else ffi.from_buffer(bytes((len(cid),)) + cid)
        self.cid = cid
        self.peer_cid: bytes | None = None
        self.is_complete = False
        self.credential: Credential | None = None

    def begin_as_server(self, hello: bytes) -> None:
        """Take the record with a ClientHello whose cookie has been verified.

        Raises EngineFailed.
        """
        self._connection.bio_write(hello)
        try:
            self._connection.DTLSv1_listen()
        except SSL.WantReadError:
            raise EngineFailed("no ClientHello") from None
        except SSL.Error as error:
            raise EngineFailed(_reason(error)) from None
        self._go_on()

    def begin_as_client(self) -> None:
        """Make the first flight.  Raises EngineFailed."""
        self._go_on()

    def receive(self, record: bytes) -> None:
        """Take one record while the handshake is not complete.  Raises EngineFailed, with an alert to be sent."""
        self._connection.bio_write(record)
        self._go_on()

    def _go_on(self) -> None:
        self._asking.engine = self
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            return
        except SSL.Error as error:
            raise EngineFailed(_reason(error)) from None
        finally:
            self._asking.engine = None
        self.is_complete = True

    def take_records(self) -> list[bytes]:
        """Return the records that are to be sent, in order."""
        flight = b""
        with suppress(SSL.WantReadError):
            while True:
                flight += self._connection.bio_read(_READ_BYTES)
        return split(flight)

    def timeout(self) -> float | None:
        """Return in how many seconds of real time ``handle_timeout`` is due, None if nothing is waited for."""
        seconds = self._connection.DTLSv1_get_timeout()
        return None if seconds is None else float(seconds)

    def handle_timeout(self) -> None:
        """Repeat the last flight if it is due.  Raises EngineFailed when it has been repeated too often."""
        try:
            self._connection.DTLSv1_handle_timeout()
        except SSL.Error as error:
            raise EngineFailed(_reason(error)) from None

    # ------------------------------------------------------------------ what a complete handshake is about

    @property
    def suite(self) -> str:
        """OpenSSL's name of the suite that was agreed."""
        return self._connection.get_cipher_name() or ""

    @property
    def has_secrets(self) -> bool:
        """Whether the key exchange is done, so that ``suite`` and ``secrets`` can be asked for."""
        try:
            return self._connection.master_key() is not None
        except SSL.Error:
            return False

    def secrets(self) -> tuple[bytes, bytes, bytes]:
        """Return master secret, client random and server random."""
        connection = self._connection
        master, client, server = connection.master_key(), connection.client_random(), connection.server_random()
        assert master is not None
        assert client is not None
        assert server is not None
        return master, client, server

    # ------------------------------------------------------------------ records of a suite that stays with OpenSSL

    def open(self, record: bytes) -> bytes | None:
        """Return the application data of a record, None if it has none or was refused.

        Raises EngineFailed when the peer closed or broke the association.
        """
        self._connection.bio_write(record)
        try:
            return self._connection.recv(_READ_BYTES)
        except (SSL.WantReadError, SSL.WantWriteError):
            return None
        except SSL.ZeroReturnError:
            raise EngineFailed("close notify") from None
        except SSL.Error as error:
            raise EngineFailed(_reason(error)) from None

    def seal(self, plaintext: bytes) -> bytes:
        """Return the record that carries application data.  Raises EngineFailed."""
        try:
            self._connection.send(plaintext)
        except SSL.Error as error:
            raise EngineFailed(_reason(error)) from None
        return b"".join(self.take_records())

    def close(self) -> bytes:
        """Return the record of a close_notify alert; empty if OpenSSL has none to send any more."""
        with suppress(SSL.Error):
            self._connection.shutdown()
        return b"".join(self.take_records())


class _Asking:
    """Which engine is at work: OpenSSL calls back from inside, in the same thread."""

    engine: Engine | None = None
    problem: BaseException | None = None
    callbacks: tuple[Any, ...] = ()  # here, because they have to live as long as any engine

    def note(self, kind: object, problem: BaseException, trace: object) -> None:
        """Remember what a callback raised; it must not go through OpenSSL, and nobody reads stderr."""
        self.problem = problem

    def add_connection_id(self, context: SSL.Context, register: Callable[..., int]) -> None:
        """Have *context* negotiate Connection IDs; *register* is OpenSSL's function for the role."""
        add = ffi.callback(
            "int(SSL*, unsigned int, const unsigned char**, size_t*, int*, void*)", self.add_extension, -1, self.note
        )
        parse = ffi.callback(
            "int(SSL*, unsigned int, const unsigned char*, size_t, int*, void*)", self.parse_extension, 0, self.note
        )
        self.callbacks += (add, parse)
        register(context._context, _CONNECTION_ID, add, ffi.NULL, ffi.NULL, parse, ffi.NULL)

    def add_extension(  # noqa: PLR0917 - OpenSSL's order, also below
        self, ssl: Any, kind: int, out: Any, size: Any, alert: Any, argument: Any
    ) -> int:
        """Put the connection_id extension into our hello; a server is asked only if the client's had one."""
        engine = self.engine
        if engine is None or engine._extension is None:
            return 0
        out[0], size[0] = engine._extension, len(engine._extension)
        return 1

    def parse_extension(  # noqa: PLR0917
        self, ssl: Any, kind: int, data: Any, size: int, alert: Any, argument: Any
    ) -> int:
        """Take the peer's connection_id extension: a vector of up to 255 bytes (RFC 9146 section 3)."""
        extension = bytes(ffi.buffer(data, size))
        if self.engine is None or not extension or extension[0] != size - 1:
            alert[0] = _DECODE_ERROR
            return 0
        self.engine.peer_cid = extension[1:]
        return 1


class ServerContext:
    """What all handshakes of a server share.

    Args:
        credential_of: asked in the middle of a handshake; it must answer at once.
        mtu: largest UDP payload of a flight's datagram, in bytes.
    """

    def __init__(self, credential_of: CredentialOf, mtu: int, suites: tuple[str, ...] = SUITES) -> None:
        """Prepare; a client's order of suites counts, and an AEAD suite of it before any other."""
        self._credential_of = credential_of
        self._mtu = mtu
        self._asking = _Asking()
        self._give = ffi.callback(
            "unsigned int(SSL*, const char*, unsigned char*, unsigned int)", self._give_key, 0, self._asking.note
        )
        self._asking.callbacks += (self._give,)
        self._any = self._context(suites)
        aead = tuple(suite for suite in suites if suite in AEAD_SUITES)
        self._aead = self._context(aead) if aead else self._any
        if aead:
            self._asking.add_connection_id(self._aead, lib.SSL_CTX_add_server_custom_ext)

    def take_problem(self) -> BaseException | None:
        """Return what *credential_of* raised last, if it did since this was last asked: a fault of ours."""
        problem, self._asking.problem = self._asking.problem, None
        return problem

    def engine(self, aead: bool, cid: bytes | None = None) -> Engine:
        """Return an engine in server role.

        Args:
            aead: the client offers an AEAD suite, so no other is wanted.
            cid: what a client that asks for Connection IDs is given; None: it gets none.
        """
        connection = SSL.Connection(self._aead if aead else self._any, None)
        connection.set_accept_state()
        connection.set_ciphertext_mtu(self._mtu)
        return Engine(connection, self._asking, cid)

    def _context(self, suites: tuple[str, ...]) -> SSL.Context:
        context = _context(SSL.DTLS_SERVER_METHOD, suites)
        context.set_cookie_verify_callback(_cookie_was_verified)
        lib.SSL_CTX_set_psk_server_callback(context._context, self._give)
        return context

    def _give_key(self, ssl: Any, identity: Any, room: Any, limit: int) -> int:
        """Write the key into *room*; one that cannot be right for an identity that is not served.

        So an unknown identity, an inactive device and a wrong key are one to the peer: its Finished cannot be read.
        """
        nobodys = os.urandom(_UNKNOWN_KEY_BYTES)  # always, so that it takes the same time
        credential = self._credential_of(ffi.string(identity)) if identity != ffi.NULL else None
        secret = credential.secret if credential is not None else b""
        if not 0 < len(secret) <= limit:
            credential, secret = None, nobodys
        if self._asking.engine is not None:
            self._asking.engine.credential = credential
        ffi.memmove(room, secret, len(secret))
        return len(secret)


class ClientContext:
    """What the handshakes of a client share: one identity and key.

    Args:
        identity: at most 127 bytes without a zero.
        suites: OpenSSL's names, the preferred one first.
        mtu: largest UDP payload of a flight's datagram, in bytes.
    """

    def __init__(self, identity: bytes, secret: bytes, suites: tuple[str, ...] = SUITES, mtu: int = 1280) -> None:
        """Prepare; raises EngineFailed for a suite OpenSSL does not have."""
        self._identity = identity
        self._secret = secret
        self._mtu = mtu
        self._asking = _Asking()
        self._give = ffi.callback(
            "unsigned int(SSL*, const char*, char*, unsigned int, unsigned char*, unsigned int)",
            *(self._give_key, 0, self._asking.note),
        )
        self._asking.callbacks += (self._give,)
        try:
            self._context = _context(SSL.DTLS_CLIENT_METHOD, suites)
        except SSL.Error as error:
            raise EngineFailed(_reason(error)) from None
        lib.SSL_CTX_set_psk_client_callback(self._context._context, self._give)
        self._asking.add_connection_id(self._context, lib.SSL_CTX_add_client_custom_ext)

    def engine(self, cid: bytes | None = None) -> Engine:
        """Return an engine in client role; *cid*: what it wants in records to it, None: no Connection IDs at all."""
        connection = SSL.Connection(self._context, None)
        connection.set_connect_state()
        connection.set_ciphertext_mtu(self._mtu)
        return Engine(connection, self._asking, cid)

    def _give_key(  # noqa: PLR0917 - OpenSSL's order
        self, ssl: Any, hint: Any, identity: Any, identity_limit: int, room: Any, limit: int
    ) -> int:
        """Write identity and key where OpenSSL wants them."""
        if len(self._identity) >= identity_limit or len(self._secret) > limit:
            return 0
        ffi.memmove(identity, self._identity + b"\0", len(self._identity) + 1)
        ffi.memmove(room, self._secret, len(self._secret))
        return len(self._secret)


def _context(method: int, suites: tuple[str, ...]) -> SSL.Context:
    context = SSL.Context(method)
    context.set_min_proto_version(_DTLS_1_2)
    context.set_cipher_list(":".join((*suites, _LOWEST_LEVEL)).encode())
    context.set_options(SSL.OP_NO_QUERY_MTU | SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    context.set_options(_OP_NO_ENCRYPT_THEN_MAC)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    return context


def _cookie_was_verified(connection: SSL.Connection, cookie: bytes) -> bool:
    """Say yes: ``hello.py`` looked at the cookie before there was a Connection."""
    return True


def _reason(error: SSL.Error) -> str:
    """Return what OpenSSL said last, without its numbers."""
    queue = error.args[0] if error.args else ()
    if isinstance(queue, (list, tuple)) and queue:
        return str(queue[-1][-1])
    return type(error).__name__
