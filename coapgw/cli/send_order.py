"""What a ``coapgw send`` command line means."""

from __future__ import annotations

import argparse
import getpass
import os
from pathlib import Path
from typing import BinaryIO, Final

import attrs

from coapgw.cli.send import KEY_VARIABLE
from coapgw.coap.codec import ACCEPT, CONTENT_FORMAT, DELETE, GET, POST, PUT, Options, encode_uint
from coapgw.coap.describe import parse_option
from coapgw.coap.url import Target, parse_url, resolve_url
from coapgw.dtls.openssl import SUITES
from coapgw.net.bootstrap import BOOTSTRAP_PATH

METHODS: Final = {"get": GET, "post": POST, "put": PUT, "delete": DELETE}
IDENTITY_LIMIT: Final = 127  # bytes; what OpenSSL and others take
KEY_LIMIT: Final = 256  # bytes; the longest key a device can be given


class UsageMistake(Exception):
    """A command line that argparse takes and that still makes no sense."""


@attrs.frozen
class Order:
    """What is to be sent, where, and how: the command line, understood.

    Args:
        url: as it was written; relative to what the bootstrap says, if there is one.
        target: None until the bootstrap has said it.
        bootstrap: where to ask for identity, key and target first.
        secret: None without one.
        suites: OpenSSL's names; empty: all of them.
        observe: seconds, None: an ordinary request.
        timeout: seconds, for a handshake and for each answer.
        show: 0 nothing but answers, 1 a line for each datagram, 2 its bytes as well.
    """

    url: str
    target: Target | None
    bootstrap: Target | None
    method: int
    options: Options
    payload: bytes
    confirmable: bool
    identity: bytes | None
    secret: bytes | None = attrs.field(repr=False)
    suites: tuple[str, ...]
    bind: str
    timeout: float
    retransmit: bool
    repeat: int | None
    show: int
    observe: float | None = None


def understand(asked: argparse.Namespace, stdin: BinaryIO, key_variable: str | None) -> Order:
    """Return the order; raises UsageMistake, UrlRefused, OptionTextRefused."""
    if asked.file == "-" and "-" in (asked.key, asked.hex_key):
        raise UsageMistake("stdin cannot be both the key and the payload")
    bootstrap = _bootstrap(asked.bootstrap) if asked.bootstrap is not None else None
    target = None if bootstrap is not None else parse_url(asked.url)
    if bootstrap is not None:
        resolve_url(asked.url, bootstrap)  # so that a mistake shows before anything is sent
    identity, secret = _credentials(asked, target, stdin, key_variable)
    payload = _payload(asked, stdin)
    method = METHODS[asked.method] if asked.method else POST if payload is not None else GET
    if asked.observe is not None and (method != GET or payload is not None or asked.repeat is not None):
        raise UsageMistake("--observe is for a GET without a payload, once")
    options = [(CONTENT_FORMAT, encode_uint(asked.content_format))] if asked.content_format is not None else []
    options += [(ACCEPT, encode_uint(asked.accept))] if asked.accept is not None else []
    options += [parse_option(text) for text in asked.raw_options]
    return Order(
        url=asked.url,
        target=target,
        bootstrap=bootstrap,
        method=method,
        options=tuple(options),
        payload=payload or b"",
        confirmable=not asked.non,
        identity=identity,
        secret=secret,
        suites=_suites(asked.cipher or []),
        bind=asked.bind,
        timeout=asked.timeout,
        retransmit=asked.retransmit,
        repeat=asked.repeat,
        show=asked.show,
        observe=asked.observe,
    )


def _bootstrap(url: str) -> Target:
    target = parse_url(url)
    if target.is_secure:
        raise UsageMistake("a device without a key bootstraps over coap://, not over coaps://")
    has_path = url.partition("://")[2].partition("?")[0].rstrip("/").count("/") > 0
    return target if has_path else resolve_url(BOOTSTRAP_PATH, target)


def _credentials(
    asked: argparse.Namespace, target: Target | None, stdin: BinaryIO, key_variable: str | None
) -> tuple[bytes | None, bytes | None]:
    """Return identity and key, both or neither."""
    named = [
        name
        for name, value in (("--identity", asked.identity), ("--key", asked.key), ("--hex-key", asked.hex_key))
        if value is not None
    ]
    if target is None:
        if named:
            raise UsageMistake(f"{named[0]} comes from the bootstrap")
        return None, None
    if not target.is_secure:
        if named or asked.cipher:
            raise UsageMistake(f"{(named or ['--cipher'])[0]} is for coaps://, and the URL is a coap:// one")
        return None, None
    if asked.identity is None:
        raise UsageMistake("coaps:// needs --identity, the device's ICCID")
    identity = os.fsencode(asked.identity)
    if not 0 < len(identity) <= IDENTITY_LIMIT:
        raise UsageMistake(f"an identity has 1 to {IDENTITY_LIMIT} bytes")
    return identity, _secret(asked, stdin, key_variable)


def _secret(asked: argparse.Namespace, stdin: BinaryIO, key_variable: str | None) -> bytes:
    """Return the key; no sentence of a mistake holds it."""
    if asked.hex_key is not None:
        digits = _line(stdin) if asked.hex_key == "-" else os.fsencode(asked.hex_key)
        try:
            secret = bytes.fromhex(digits.decode())
        except ValueError:
            raise UsageMistake("--hex-key takes pairs of hexadecimal digits") from None
    elif asked.key is not None:
        secret = _line(stdin) if asked.key == "-" else os.fsencode(asked.key)
    elif key_variable is not None:
        secret = os.fsencode(key_variable)
    else:
        raise UsageMistake(f"coaps:// needs a key: --key, --hex-key, or the environment variable {KEY_VARIABLE}")
    if not 0 < len(secret) <= KEY_LIMIT:
        raise UsageMistake(f"a key has 1 to {KEY_LIMIT} bytes")
    return secret


def _line(stdin: BinaryIO) -> bytes:
    """Read a key, unseen if a person types it."""
    if stdin.isatty():
        try:
            return os.fsencode(getpass.getpass("key: "))
        except EOFError:
            raise UsageMistake("no key was given") from None
    return stdin.readline().rstrip(b"\r\n")


def _payload(asked: argparse.Namespace, stdin: BinaryIO) -> bytes | None:
    if asked.payload is not None and (asked.payload_hex is not None or asked.file is not None):
        raise UsageMistake("one payload: PAYLOAD, --payload-hex or --file")
    if asked.payload_hex is not None:
        try:
            return bytes.fromhex(asked.payload_hex)
        except ValueError:
            raise UsageMistake("--payload-hex takes pairs of hexadecimal digits") from None
    if asked.file is not None:
        try:
            return stdin.read() if asked.file == "-" else Path(asked.file).read_bytes()
        except OSError as error:
            raise UsageMistake(f"{asked.file}: {error.strerror}") from None
    return os.fsencode(asked.payload) if asked.payload is not None else None


def _suites(names: list[str]) -> tuple[str, ...]:
    for name in names:
        if name not in SUITES:
            raise UsageMistake(f"--cipher {name}: there are {', '.join(SUITES)}")
    return tuple(names)
