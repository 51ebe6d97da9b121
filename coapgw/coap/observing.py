"""The Observe option of requests (RFC 7641 section 2): a site around a site, which sees each request without it."""

from __future__ import annotations

from typing import Final, Protocol

from coapgw.coap.codec import BLOCK2, FETCH, GET, OBSERVE, Options, decode_uint, option_value
from coapgw.coap.exchange import Exchange, Handler
from coapgw.coap.observe import Observable

REGISTER: Final = 0
DEREGISTER: Final = 1
_BLOCK_NUMBER_SHIFT: Final = 4


class ObservedTree(Protocol):
    """Knows which resources can be observed."""

    def observable(self, options: Options) -> Observable | None:
        """Return the resource that these options name if it can be observed."""


class InnerSite(Protocol):
    """The site behind this one."""

    def resolve(self, code: int, options: Options) -> Handler:
        """Return the handler of requests with this method and these options."""


class ObserveSite:
    """A site whose observable resources can be observed by known peers.

    Args:
        inner: carries out the requests, also when a notification is due.
    """

    def __init__(self, inner: InnerSite, tree: ObservedTree) -> None:
        """Stand before *inner*."""
        self._inner = inner
        self._tree = tree

    def resolve(self, code: int, options: Options) -> Handler:
        """Return the handler of requests with this method and these options."""
        value = option_value(options, OBSERVE)
        if value is None:
            return self._inner.resolve(code, options)
        rest = tuple(option for option in options if option[0] != OBSERVE)
        handler = self._inner.resolve(code, rest)
        asked = decode_uint(value)
        is_later_block = decode_uint(option_value(options, BLOCK2) or b"") >> _BLOCK_NUMBER_SHIFT  # RFC 7959 2.6
        if code not in (GET, FETCH) or asked > DEREGISTER or is_later_block:
            return handler
        return self._registering(handler, rest) if asked == REGISTER else deregistering(handler)

    def _registering(self, handler: Handler, options: Options) -> Handler:
        def handle(exchange: Exchange, payload: bytes) -> None:
            found, notifications = self._tree.observable(options), exchange.notifications
            if found is not None and notifications is not None and exchange.principal is not None:
                if not exchange.is_proven:  # notifications would go on and on to whoever is there
                    exchange.challenge()
                    return
                observation = notifications.register(exchange, found, handler, payload)
                if observation is not None:
                    exchange.shapes.append(observation.announce)
            handler(exchange, payload)

        return handle


def deregistering(handler: Handler) -> Handler:
    """Return a handler that ends the observation with the request's token first."""

    def handle(exchange: Exchange, payload: bytes) -> None:
        if exchange.notifications is not None:
            exchange.notifications.deregister(exchange)
        handler(exchange, payload)

    return handle
