"""Before a peer costs anything: its ClientHello, and the cookie that shows where it lives (RFC 6347 section 4.2.1).

The exchange is done here rather than by OpenSSL, because here it costs no Connection, and because what a ClientHello
says decides what comes next: whether it is a repeat, and which suites are to be had.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Callable, Hashable
from typing import Final

import attrs

from coapgw.dtls.records import HANDSHAKE, HEADER_BYTES

CLIENT_HELLO: Final = 1
HELLO_VERIFY_REQUEST: Final = 3
COOKIE_BYTES: Final = 16
COOKIE_SECONDS: Final = 60.0  # how long a secret makes cookies; they are taken for as long again
SECRET_BYTES: Final = 32

_HANDSHAKE: Final = struct.Struct(">B3sH3s3s")  # type, length, message sequence, fragment offset, fragment length
_BODY_AT: Final = HEADER_BYTES + _HANDSHAKE.size
_RANDOM_BYTES: Final = 32
_SESSION_LIMIT: Final = 32
_DTLS_1_0: Final = b"\xfe\xff"  # what a HelloVerifyRequest says whatever is negotiated later
_NOTHING: Final = b"\0\0\0"
_SEQUENCES: Final = (0, 1)  # a first ClientHello, and the one with the cookie; OpenSSL takes no other


class HelloMalformed(Exception):
    """What came is no ClientHello that could be served; it is dropped."""


@attrs.frozen
class ClientHello:
    """What a ClientHello says before anybody negotiates.

    Args:
        record: the whole record.
        random: 32 bytes that tell one attempt of a client from the next.
        cookie: empty in the first.
        suites: two bytes each, in the client's order.
        parameters: everything that a cookie is bound to besides the address.
    """

    record: bytes
    random: bytes
    cookie: bytes
    suites: bytes
    parameters: bytes

    def offers_any(self, suites: frozenset[bytes]) -> bool:
        """Return whether one of *suites* is in the list."""
        return any(self.suites[at : at + 2] in suites for at in range(0, len(self.suites), 2))


def is_client_hello(record: bytes) -> bool:
    """Return whether a record of epoch 0 begins a ClientHello."""
    return record[0] == HANDSHAKE and len(record) > HEADER_BYTES and record[HEADER_BYTES] == CLIENT_HELLO


def parse_client_hello(record: bytes) -> ClientHello:
    """Return what a record with a ClientHello says; raises HelloMalformed.

    One in fragments is refused, as it is by OpenSSL: a server that has to keep pieces of it is no longer stateless.
    """
    if len(record) < _BODY_AT + 2 + _RANDOM_BYTES:
        raise HelloMalformed("short")
    kind, length, sequence, offset, fragment = _HANDSHAKE.unpack_from(record, HEADER_BYTES)
    if kind != CLIENT_HELLO or offset != _NOTHING or fragment != length or sequence not in _SEQUENCES:
        raise HelloMalformed("no whole ClientHello")
    if int.from_bytes(length, "big") != len(record) - _BODY_AT:
        raise HelloMalformed("length")
    random_at = _BODY_AT + 2
    session_at = random_at + _RANDOM_BYTES
    cookie_at = _vector_end(record, session_at, 1)
    suites_at = _vector_end(record, cookie_at, 1)
    compressions_at = _vector_end(record, suites_at, 2)
    end = _vector_end(record, compressions_at, 1)
    suites = record[suites_at + 2 : compressions_at]
    if record[session_at] > _SESSION_LIMIT or not suites or len(suites) % 2:
        raise HelloMalformed("session or suites")
    parameters = record[_BODY_AT:cookie_at] + record[suites_at:end]
    return ClientHello(record, record[random_at:session_at], record[cookie_at + 1 : suites_at], suites, parameters)


def _vector_end(record: bytes, at: int, length_bytes: int) -> int:
    """Return where the vector that begins *at* ends; raises HelloMalformed."""
    start = at + length_bytes
    end = start + int.from_bytes(record[at:start], "big")
    if start > len(record) or end > len(record):
        raise HelloMalformed("vector")
    return end


class Cookies:
    """Makes and checks cookies, without remembering whom they were for.

    Args:
        random_bytes: so many bytes from a CSPRNG.
    """

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        """Begin with a secret nobody knows."""
        self._random_bytes = random_bytes
        self._secret = random_bytes(SECRET_BYTES)
        self._secret_before = self._secret
        self._renew_at: float | None = None

    def cookie(self, hello: ClientHello, address: Hashable, now: float) -> bytes:
        """Return the cookie for a client at *address*."""
        self._renew(now)
        return _cookie(self._secret, hello, address)

    def is_valid(self, hello: ClientHello, address: Hashable, now: float) -> bool:
        """Return whether the hello brings a cookie that was made for it, not longer ago than twice COOKIE_SECONDS."""
        if len(hello.cookie) != COOKIE_BYTES:
            return False
        self._renew(now)
        return any(
            hmac.compare_digest(hello.cookie, _cookie(secret, hello, address))
            for secret in (self._secret, self._secret_before)
        )

    def _renew(self, now: float) -> None:
        if self._renew_at is None:
            self._renew_at = now + COOKIE_SECONDS
        elif now >= self._renew_at:
            fresh = self._random_bytes(SECRET_BYTES)
            self._secret_before = self._secret if now < self._renew_at + COOKIE_SECONDS else fresh
            self._secret = fresh
            self._renew_at = now + COOKIE_SECONDS


def _cookie(secret: bytes, hello: ClientHello, address: Hashable) -> bytes:
    return hmac.digest(secret, repr(address).encode() + hello.parameters, "sha256")[:COOKIE_BYTES]


def hello_verify_request(hello: ClientHello, cookie: bytes) -> bytes:
    """Return the record that asks for the ClientHello once more, with *cookie*.

    Its record sequence number is that of the hello (RFC 6347 section 4.2.1); it is smaller than any ClientHello.
    """
    body = _DTLS_1_0 + bytes((len(cookie),)) + cookie
    length = len(body).to_bytes(3, "big")
    message = _HANDSHAKE.pack(HELLO_VERIFY_REQUEST, length, 0, _NOTHING, length) + body
    return bytes((HANDSHAKE,)) + _DTLS_1_0 + hello.record[3:11] + len(message).to_bytes(2, "big") + message
