"""What a request passes before a resource is asked for: options that concern every resource alike.

* Proxy-Uri, Proxy-Scheme: 5.05, this is no proxy (RFC 7252 section 5.10.2).
* Hop-Limit 0, or over 255: 4.00 (RFC 8768 section 3); any other is for proxies.
* ETag: what the client has already is answered 2.03 (RFC 7252 section 5.10.6.2).
* No-Response: answers of the classes it names are not sent; a confirmable gets an empty acknowledgement (RFC 7967).

All of it is found out once for an option block, as ``MessageLayer`` remembers it: other requests pay nothing.
"""

from __future__ import annotations

from functools import partial
from typing import Final, Protocol

from coapgw.coap.blockwise import parse_block
from coapgw.coap.codec import (
    BAD_REQUEST,
    BLOCK2,
    CONTINUE,
    EMPTY,
    ETAG,
    GET,
    HOP_LIMIT,
    NO_RESPONSE,
    PROXY_SCHEME,
    PROXY_URI,
    PROXYING_NOT_SUPPORTED,
    REQUEST_ENTITY_INCOMPLETE,
    Options,
    decode_uint,
    encode_body,
    option_value,
    option_values,
)
from coapgw.coap.conditions import validated
from coapgw.coap.exchange import Exchange, Handler, answering

HOPS: Final = range(1, 256)
_NO_HOPS: Final = encode_body(payload=b"Hop-Limit is 1 to 255")
_TRANSFER: Final = (CONTINUE, REQUEST_ENTITY_INCOMPLETE)  # without these a client cannot go on with its blocks


class InnerSite(Protocol):
    """The site behind this one."""

    def resolve(self, code: int, options: Options) -> Handler:
        """Return the handler of requests with this method and these options."""


class FrontSite:
    """A site around a site that deals with what does not depend on the resource."""

    def __init__(self, inner: InnerSite) -> None:
        """Stand before *inner*."""
        self._inner = inner

    def resolve(self, code: int, options: Options) -> Handler:
        """Return the handler of requests with this method and these options."""
        silenced = option_value(options, NO_RESPONSE)
        handler = self._resolve(code, options)
        return silencing(handler, decode_uint(silenced)) if silenced else handler

    def _resolve(self, code: int, options: Options) -> Handler:
        hops = option_value(options, HOP_LIMIT)
        if hops is not None and decode_uint(hops) not in HOPS:
            return answering(BAD_REQUEST, _NO_HOPS)
        if any(number in (PROXY_URI, PROXY_SCHEME) for number, _ in options):
            return answering(PROXYING_NOT_SUPPORTED)
        handler = self._inner.resolve(code, options)
        etags = option_values(options, ETAG)
        block = parse_block(option_value(options, BLOCK2) or b"")
        return validating(handler, etags) if etags and code == GET and block and not block.number else handler


def validating(handler: Handler, etags: list[bytes]) -> Handler:
    """Return a handler that answers 2.03 to a client which has what it would get, as one of its *etags* says."""

    def handle(exchange: Exchange, payload: bytes) -> None:
        exchange.shapes.append(partial(validated, etags))
        handler(exchange, payload)

    return handle


def silencing(handler: Handler, silenced: int) -> Handler:
    """Return a handler whose answers are not sent if the bit of their class is set in *silenced*.

    Bit 1 (value 2) stands for 2.xx, bit 3 for 4.xx, bit 4 for 5.xx (RFC 7967 section 2.1).
    """

    def silence(code: int, body: bytes) -> tuple[int, bytes]:
        unwanted = silenced >> (code >> 5) - 1 & 1 and code not in _TRANSFER
        return (EMPTY, b"") if unwanted else (code, body)

    def handle(exchange: Exchange, payload: bytes) -> None:
        exchange.shapes.append(silence)
        handler(exchange, payload)

    return handle
