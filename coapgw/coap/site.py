"""The resource tree: which handler a request's options name.

The tree is made of ``txthings.resource.CoAPResource``, so that an application can mount resources of its own beside
coapgw's.  Most resources are rendered the txThings way, message in, message (or a Deferred of one) out.  A resource
that offers ``bind`` is asked once per option block instead, and its answer serves every message with those options:
that is how the uplink gets by without a message object per datagram.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import takewhile
from typing import Final, Protocol, runtime_checkable

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from txthings import coap, error, resource

from coapgw.coap.codec import (
    BAD_REQUEST,
    CHANGED,
    CONTENT,
    CONTENT_FORMAT,
    FETCH,
    GATEWAY_TIMEOUT,
    GET,
    INTERNAL_SERVER_ERROR,
    IPATCH,
    LINK_FORMAT,
    METHOD_NOT_ALLOWED,
    NOT_ACCEPTABLE,
    NOT_FOUND,
    PATCH,
    UNAUTHORIZED,
    URI_PATH,
    URI_QUERY,
    Options,
    encode_body,
    encode_uint,
    message_options,
    option_values,
    to_message,
)
from coapgw.coap.conditions import SAFE_METHODS, acceptable, accepts, refusal
from coapgw.coap.exchange import Exchange, Handler, answering
from coapgw.metrics import MessagingCounters

_LATER_METHODS: Final = {FETCH: "render_FETCH", PATCH: "render_PATCH", IPATCH: "render_iPATCH"}
ANSWER_SECONDS: Final = 120.0  # that a mounted resource may take; a client gives up after MAX_TRANSMIT_WAIT, 93 s
FAILURES_LOGGED: Final = 100  # of mounted resources, per run: a request can cause one, and a flood must not fill a disk
NOT_FOUND_BODY: Final = encode_body(payload=b"Not Found")  # what the hosted service says


@runtime_checkable
class Bound(Protocol):
    """A resource that says once what all requests with the same options mean."""

    def bind(self, code: int, options: Options) -> Handler:
        """Return the handler for this method and these options."""


class ResourceSite:
    """A tree of resources behind a message layer.

    Methods of RFC 8132 are ``render_FETCH``, ``render_PATCH`` and ``render_iPATCH``; ``conditions.py`` tells of
    attributes that a resource may have.  Resources that are not coapgw's own are for registered devices only: a
    stranger gets 4.01.  The device is the request's ``principal`` attribute.

    Args:
        root: the resource at ``/``; children are keyed by path segment, bytes or str.
    """

    log = Logger()

    def __init__(self, root: resource.CoAPResource, counters: MessagingCounters | None = None) -> None:
        """Serve the tree below *root*."""
        self.root = root
        self.counters = counters or MessagingCounters()
        self._owed: dict[Exchange, tuple[float, Deferred[object]]] = {}  # in the order they are due

    def resolve(self, code: int, options: Options) -> Handler:
        """Return the handler of requests with this method and these options."""
        path = _path(options)
        found = static_child(self.root, path)
        if isinstance(found, Bound):
            return found.bind(code, options)

        def render(exchange: Exchange, payload: bytes) -> None:
            self._render(exchange, options, path, payload)

        return render

    def may_be_large(self, options: Options) -> bool:
        """Return whether an answer to these options may not fit a datagram: one of coapgw's own resources knows."""
        found = static_child(self.root, _path(options))
        return getattr(found, "may_be_large", False) if isinstance(found, Bound) else found is not None

    def observable(self, options: Options) -> resource.CoAPResource | None:
        """Return the resource that these options name if it can be observed."""
        found = static_child(self.root, _path(options))
        return found if found is not None and found.observable else None

    # ------------------------------------------------------------------ the txThings way

    def _render(self, exchange: Exchange, options: Options, path: list[bytes], payload: bytes) -> None:
        """Find the resource as txThings does, and have it render the request."""
        request = to_message(exchange.header, options, payload)
        request.remote = exchange.endpoint.address
        request.principal = exchange.principal
        request.prepath, request.postpath = [], list(path)
        try:
            found = self._find(request)
            if exchange.principal is None:
                exchange.respond(UNAUTHORIZED)
                return
            if getattr(found, "needs_freshness", False) and not exchange.is_fresh:
                exchange.challenge()
                return
            refused = refusal(found, options)
            if refused is not None:
                exchange.respond(refused)
                return
            rendered = _render_method(found, request)
        except error.NoResource:
            exchange.respond(NOT_FOUND, NOT_FOUND_BODY)
        except (error.UnallowedMethod, error.UnsupportedMethod):
            exchange.respond(METHOD_NOT_ALLOWED)
        except Exception:  # noqa: BLE001 - an application's resource may raise anything; the device gets 5.00
            self._failed(Failure(), exchange)
        else:
            if inspect.iscoroutine(rendered):
                rendered = Deferred.fromCoroutine(rendered)
            if isinstance(rendered, Deferred):
                rendered.addCallback(self._respond, exchange, options)
                rendered.addErrback(self._failed, exchange)
                if not exchange.answered:
                    self._owed[exchange] = (exchange.now + ANSWER_SECONDS, rendered)
            else:
                self._respond(rendered, exchange, options)

    def handle_timer(self, now: float) -> None:
        """Answer 5.04 for resources that have not answered in ``ANSWER_SECONDS``, and cancel what they do.

        To be called now and then with the time of the message layers: what is owed an answer takes room that its
        endpoint has not for other requests.
        """
        overdue = list(takewhile(lambda item: item[1][0] <= now, self._owed.items()))
        for exchange, (_, rendering) in overdue:
            del self._owed[exchange]
            self.counters.failed_requests += 1
            exchange.respond(GATEWAY_TIMEOUT)
            with self.log.failuresHandled("a mounted resource could not be cancelled"):
                rendering.cancel()

    def _find(self, request: coap.Message) -> resource.CoAPResource:
        """Walk down request.postpath; children may be dynamic (``getChild``)."""
        found = self.root
        while request.postpath and not found.isLeaf:
            segment = request.postpath.pop(0)
            request.prepath.append(segment)
            known = static_child(found, [segment])
            found = known if known is not None else found.getChild(segment, request)
        return found

    def _respond(self, response: object, exchange: Exchange, options: Options) -> None:
        self._owed.pop(exchange, None)
        if not isinstance(response, coap.Message):
            self._failed(Failure(TypeError("a resource rendered no message")), exchange)
            return
        method = exchange.header[1]
        code = response.code or (CONTENT if method in SAFE_METHODS else CHANGED)
        body = encode_body(message_options(response), response.payload)
        exchange.respond(*acceptable(method, options, code, body))

    def _failed(self, failure: Failure, exchange: Exchange) -> None:
        """Answer 5.00; the log gets the reason of the first few, the counter all of them."""
        self._owed.pop(exchange, None)
        if exchange.answered:
            return  # it was too late
        if failure.check(error.NoResource):
            exchange.respond(NOT_FOUND, NOT_FOUND_BODY)
            return
        if failure.check(error.UnallowedMethod, error.UnsupportedMethod):
            exchange.respond(METHOD_NOT_ALLOWED)
            return
        self.counters.failed_requests += 1
        if self.counters.failed_requests <= FAILURES_LOGGED:
            self.log.failure("a mounted resource failed; the device gets 5.00", failure=failure)
        exchange.respond(INTERNAL_SERVER_ERROR)


class WellKnownCore(resource.CoAPResource):  # type: ignore[misc] # txThings has no types
    """``/.well-known/core`` (RFC 6690): the visible resources of a tree, for registered devices."""

    may_be_large = True

    def __init__(self, root: resource.CoAPResource) -> None:
        """Describe the tree below *root*, as it is when asked."""
        super().__init__()
        self._root = root

    def bind(self, code: int, options: Options) -> Handler:
        """Return the handler for this method."""
        if code != GET:
            return answering(METHOD_NOT_ALLOWED)
        refused = refusal(self, options) or (None if accepts(options, LINK_FORMAT) else NOT_ACCEPTABLE)
        if refused is not None:
            return for_devices(answering(refused))
        queries = [value for number, value in options if number == URI_QUERY]
        if len(queries) > 1:
            return answering(BAD_REQUEST, encode_body(payload=b"at most one filter (RFC 6690 section 4.1)"))
        wanted = LinkFilter.parse(queries[0].decode("utf-8", "replace")) if queries else None

        def describe(exchange: Exchange, payload: bytes) -> None:
            links = ",".join(link_descriptions(self._root, wanted=wanted)).encode()
            exchange.respond(CONTENT, encode_body([(CONTENT_FORMAT, encode_uint(LINK_FORMAT))], links))

        return for_devices(describe)


@attrs.frozen
class LinkFilter:
    """A query of ``/.well-known/core`` (RFC 6690 section 4.1): an attribute and a value, or the beginning of one.

    Args:
        name: of a link attribute, or ``href``.
        value: without the ``*`` that may end it.
        is_prefix: whether there was one.
    """

    name: str
    value: str
    is_prefix: bool

    @classmethod
    def parse(cls, query: str) -> LinkFilter:
        """Take a query apart; without ``=`` it asks for links that have the attribute at all."""
        name, equals, value = query.partition("=")
        if not equals:
            return cls(name, "", is_prefix=True)
        return cls(name, value.removesuffix("*"), value.endswith("*"))

    def fits(self, found: resource.CoAPResource, path: str) -> bool:
        """Return whether the link to a resource is wanted; attributes with several values have them between spaces."""
        if self.name == "href":
            values = [path or "/"]
        elif self.name == "obs":
            values = [""] if found.observable else []
        else:
            values = [word for param in found.params.get(self.name, ()) for word in str(param.value).split(" ")]
            values += [str(param.value) for param in found.params.get(self.name, ())]
        return any(value.startswith(self.value) if self.is_prefix else value == self.value for value in values)


def link_descriptions(found: resource.CoAPResource, path: str = "", wanted: LinkFilter | None = None) -> Iterator[str]:
    """Yield the link of each visible, *wanted* resource from *found* downwards (RFC 6690 section 2)."""
    if found.visible and (wanted is None or wanted.fits(found, path)):
        yield f"<{path or '/'}>" + found.encode_params() + (";obs" if found.observable else "")
    for segment, child in sorted(found.children.items(), key=lambda item: _text(item[0])):
        yield from link_descriptions(child, f"{path}/{_text(segment)}", wanted)


def for_devices(handler: Handler) -> Handler:
    """Return a handler that tells strangers 4.01."""

    def handle(exchange: Exchange, payload: bytes) -> None:
        if exchange.principal is None:
            exchange.respond(UNAUTHORIZED)
        else:
            handler(exchange, payload)

    return handle


def _render_method(found: resource.CoAPResource, request: coap.Message) -> object:
    """Have a resource render a request; raises what txThings raises where it does not offer the method."""
    name = _LATER_METHODS.get(request.code)
    if name is None:
        return found.render(request)
    method = getattr(found, name, None)
    if method is None:
        raise error.UnallowedMethod
    return method(request)


def static_child(found: resource.CoAPResource, path: list[bytes]) -> resource.CoAPResource | None:
    """Return the resource at *path* below *found* if every segment is a registered child, else None."""
    for segment in path:
        if found.isLeaf:
            return None
        children = found.children
        child = children.get(segment)
        if child is None:
            child = children.get(segment.decode("utf-8", "replace"))
        if child is None:
            return None
        found = child
    return found


def known_path(root: resource.CoAPResource, options: Options) -> str | None:
    """Return the path of the deepest registered resource on the way that *options* name; None if that is only *root*.

    ``/`` is *root* itself, asked for.
    """
    path = _path(options)
    if not path:
        return "/"
    known = next((depth for depth in range(len(path), 0, -1) if static_child(root, path[:depth]) is not None), 0)
    return "/" + "/".join(map(_text, path[:known])) if known else None


def _path(options: Options) -> list[bytes]:
    """Return the path that options name; a shipped client writes the root as one empty Uri-Path option."""
    path = option_values(options, URI_PATH)
    return [] if path == [b""] else path


def _text(segment: bytes | str) -> str:
    return segment.decode("utf-8", "replace") if isinstance(segment, bytes) else segment


class Branch(resource.CoAPResource):  # type: ignore[misc] # txThings has no types
    """A place in the tree that only has children: itself it is 4.04."""

    def bind(self, code: int, options: Options) -> Handler:
        """Return the handler for any method."""
        return answering(NOT_FOUND, NOT_FOUND_BODY)
