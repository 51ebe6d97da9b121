"""coapgw's own CoAP resources, and the one table that turns an error into a CoAP code."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

from twisted.logger import Logger
from txthings import resource

from coapgw.coap.codec import (
    BAD_REQUEST,
    CHANGED,
    CONTENT,
    CONTENT_FORMAT,
    FORBIDDEN,
    GATEWAY_TIMEOUT,
    GET,
    INTERNAL_SERVER_ERROR,
    MAX_AGE,
    METHOD_NOT_ALLOWED,
    NOT_ACCEPTABLE,
    NOT_FOUND,
    POST,
    PRECONDITION_FAILED,
    REQUEST_ENTITY_TOO_LARGE,
    SERVICE_UNAVAILABLE,
    SIZE1,
    TEXT_PLAIN,
    TOO_MANY_REQUESTS,
    UNAUTHORIZED,
    URI_QUERY,
    Options,
    encode_body,
    encode_uint,
)
from coapgw.coap.conditions import accepts, is_unconditional
from coapgw.coap.exchange import Exchange, Handler, answering
from coapgw.coap.site import NOT_FOUND_BODY, Branch, WellKnownCore, for_devices
from coapgw.errors import DeviceUnknown, PayloadTooLarge, StorageError, TopicRefused
from coapgw.gateway.bootstrap import Bootstrap, SourceRefused, TermsNotAccepted, TooManyAsking
from coapgw.gateway.rate import OverRate
from coapgw.gateway.topics import parse_topic
from coapgw.gateway.uplink import Decode, NotPublished, TooManyWaiting, Uplink
from coapgw.model import Device

RETRY_SECONDS: Final = 30  # Max-Age of a 5.03: what a full spool or a failing disk may need at the least
_RETRY: Final = encode_body([(MAX_AGE, encode_uint(RETRY_SECONDS))])
# 92 bytes each: the shortest request, of 14 bytes, may get 93 where its address is not proven.
_TERMS: Final = b'{"statusText":"Unauthorized","errors":[{"code":401,"message":"the terms are not accepted"}]}'
_NO_KEY: Final = b'{"statusText":"Internal Server Error","errors":[{"code":500,"message":"no key was stored"}]}'
_log = Logger()


def answer_to(error: Exception) -> tuple[int, bytes]:
    """Return the CoAP code and body that tell a device of *error*."""
    match error:
        case TopicRefused():
            return BAD_REQUEST, encode_body(payload=error.reason.encode())
        case DeviceUnknown():
            return UNAUTHORIZED, b""
        case PayloadTooLarge():
            return REQUEST_ENTITY_TOO_LARGE, encode_body([(SIZE1, encode_uint(error.limit_bytes))])
        case OverRate():
            return TOO_MANY_REQUESTS, encode_body([(MAX_AGE, encode_uint(error.retry_seconds))])
        case StorageError() | TooManyWaiting():
            return SERVICE_UNAVAILABLE, _RETRY
        case NotPublished():
            return GATEWAY_TIMEOUT, b""
        case _:
            _log.error("unexpected {kind} for a device's message", kind=type(error).__name__)
            return INTERNAL_SERVER_ERROR, b""


def bootstrap_answer_to(error: Exception) -> tuple[int, bytes]:
    """Return the CoAP code and body that tell a device why it gets no key.

    To the shortest request there is, GET /bootstrap in 14 bytes, a stranger's answer is 46 bytes larger than that.
    """
    match error:
        case SourceRefused():
            return FORBIDDEN, b""
        case DeviceUnknown():
            return UNAUTHORIZED, encode_body(payload=b'{"statusText":"Unauthorized","errors":[{"code":401}]}')
        case TermsNotAccepted():
            return UNAUTHORIZED, encode_body(payload=_TERMS)
        case TooManyAsking():
            return SERVICE_UNAVAILABLE, _RETRY
        case OverRate():
            return answer_to(error)
        case _:
            return INTERNAL_SERVER_ERROR, encode_body(payload=_NO_KEY)


def conclude(exchange: Exchange, error: Exception | None) -> None:
    """Tell the device what became of its message."""
    if error is None:
        exchange.respond(CHANGED)
    else:
        exchange.respond(*answer_to(error))


class UplinkResource(resource.CoAPResource):  # type: ignore[misc] # txThings has no types
    """``/`` and ``/data``: POST takes a message."""

    def __init__(self, uplink: Uplink, decoders: Mapping[int, Decode], other_methods: Handler) -> None:
        """Give messages to *uplink*; *other_methods* answers everything that is not a POST.

        Args:
            decoders: by Content-Format, for payloads that no template is there for.
        """
        super().__init__()
        self.visible = True
        self.addParam(resource.LinkParam("title", "uplink"))
        self._uplink = uplink
        self._decoders = decoders
        self._other_methods = other_methods

    def bind(self, code: int, options: Options) -> Handler:
        """Return the handler for this method and these options."""
        if code != POST:
            return self._other_methods
        if not is_unconditional(options):  # nothing is kept here that could match, and the resource is here
            return for_devices(answering(PRECONDITION_FAILED))
        try:
            topic = parse_topic(value for number, value in options if number == URI_QUERY)
        except TopicRefused as refusal:
            return self._refuse(refusal)
        accept, counters = self._uplink.accept, self._uplink.counters
        written = next((value for number, value in options if number == CONTENT_FORMAT), None)
        decode = None if written is None else self._decoders.get(int.from_bytes(written, "big"))

        def handle(exchange: Exchange, payload: bytes) -> None:
            device = exchange.principal
            if isinstance(device, Device):
                accept(device, topic, payload, partial(conclude, exchange), decode)
            else:
                counters.unauthorised += 1
                exchange.respond(UNAUTHORIZED)

        return handle

    def _refuse(self, refusal: TopicRefused) -> Handler:
        code, body = answer_to(refusal)
        counters = self._uplink.counters

        def handle(exchange: Exchange, payload: bytes) -> None:
            if exchange.principal is None:
                counters.unauthorised += 1
                exchange.respond(UNAUTHORIZED)
            else:
                counters.topic_refused += 1
                exchange.respond(code, body)

        return handle


class BootstrapResource(resource.CoAPResource):  # type: ignore[misc] # txThings has no types
    """``/bootstrap``: GET tells a device its key and where to go with it.

    No Content-Format: one client searches the raw datagram as a C string, and 0 would be a zero byte before the text.
    """

    def __init__(self, bootstrap: Bootstrap) -> None:
        """Have *bootstrap* answer."""
        super().__init__()
        self.visible = True
        self.addParam(resource.LinkParam("title", "bootstrap"))
        self._bootstrap = bootstrap

    def bind(self, code: int, options: Options) -> Handler:
        """Return the handler for this method."""
        if code != GET:
            return answering(METHOD_NOT_ALLOWED)
        if not is_unconditional(options):
            return for_devices(answering(PRECONDITION_FAILED))
        return self._get if accepts(options, TEXT_PLAIN) else for_devices(answering(NOT_ACCEPTABLE))

    def _get(self, exchange: Exchange, payload: bytes) -> None:
        device, address = exchange.principal, exchange.endpoint.address
        source = address[0] if isinstance(address, tuple) else None  # of a DTLS association there is no doubt

        def told(outcome: bytes | Exception) -> None:
            if isinstance(outcome, bytes):
                exchange.trust_source()  # by ``bootstrap.networks``; firmware that bootstraps knows no Echo
                exchange.respond(CONTENT, encode_body(payload=outcome))
            else:
                exchange.respond(*bootstrap_answer_to(outcome))

        self._bootstrap.ask(device if isinstance(device, Device) else None, source, exchange.local_host, told)


def make_root(
    uplink: Uplink, bootstrap: Bootstrap, decoders: Mapping[int, Decode] = MappingProxyType({})
) -> resource.CoAPResource:
    """Return the tree of coapgw's resources; an application may mount its own below it with ``putChild``.

    Args:
        decoders: see UplinkResource.
    """
    not_here = answering(METHOD_NOT_ALLOWED)
    root = UplinkResource(uplink, decoders, _root_methods)
    root.putChild(b"data", UplinkResource(uplink, decoders, not_here))
    root.putChild(b"bootstrap", BootstrapResource(bootstrap))
    well_known = Branch()
    well_known.putChild(b"core", WellKnownCore(root))
    root.putChild(b".well-known", well_known)
    return root


def _root_methods(exchange: Exchange, payload: bytes) -> None:
    """GET is 4.04, as the hosted service has it; other methods are 4.05."""
    if exchange.header[1] == GET:
        exchange.respond(NOT_FOUND, NOT_FOUND_BODY)
    else:
        exchange.respond(METHOD_NOT_ALLOWED)
