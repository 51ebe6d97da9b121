"""One request that was taken, and the answer it is owed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias

from coapgw.coap.codec import EMPTY
from coapgw.coap.endpoints import Address, Endpoint
from coapgw.coap.exchanges import UNLIMITED

if TYPE_CHECKING:
    from coapgw.coap.observe import Notifications

Handler: TypeAlias = "Callable[[Exchange, bytes], None]"
"""Given a request's exchange and payload; answers by ``exchange.respond``, now, later, or never."""

Shape: TypeAlias = "Callable[[int, bytes], tuple[int, bytes]]"
"""Given an answer's code and body, returns what is sent instead; EMPTY in place of a code: nothing is."""


class Answering(Protocol):
    """The message layer, as an exchange sees it."""

    @property
    def now(self) -> float:
        """The time of the datagram or timer being served, in seconds."""

    def local_host(self, address: Address, /) -> str:
        """Return which of our own addresses a peer talks to, in figures."""

    def respond(self, exchange: Exchange, code: int, body: bytes) -> None:
        """Send the answer."""

    def withhold(self, exchange: Exchange) -> None:
        """Send no answer: nobody wants it."""


class Exchange:
    """A request that was taken and is owed an answer."""

    __slots__ = ("_layer", "_shapes", "ack_due", "answered", "endpoint", "header", "separate", "size_limit")

    def __init__(self, layer: Answering, endpoint: Endpoint, header: bytes) -> None:
        """Keep the *header*, token included: the answer takes its Message ID and token from it."""
        self._layer = layer
        self.endpoint = endpoint
        self.header = header
        self.answered = False
        self.separate = False
        self.ack_due = math.inf
        self.size_limit = UNLIMITED
        self._shapes: list[Shape] | None = None

    @property
    def shapes(self) -> list[Shape]:
        """What an answer passes on its way out, the last one first."""
        if self._shapes is None:
            self._shapes = []
        return self._shapes

    @property
    def notifications(self) -> Notifications | None:
        """The observations of its layer; None if nobody can be told."""
        return getattr(self._layer, "notifications", None)

    @property
    def now(self) -> float:
        """The time by the layer's clock, in seconds."""
        return self._layer.now

    @property
    def principal(self) -> object | None:
        """Who asks, None for a stranger."""
        return self.endpoint.principal

    @property
    def local_host(self) -> str:
        """The address of ours that was asked, in figures; empty if that is not known."""
        return self._layer.local_host(self.endpoint.address)

    def respond(self, code: int, body: bytes = b"") -> None:
        """Answer; only the first call counts.

        Args:
            code: response code, class and detail in one byte.
            body: what follows the token, from ``codec.encode_body``.
        """
        if not self.answered:
            self.answered = True
            if self._shapes is not None:
                for shape in reversed(self._shapes):
                    code, body = shape(code, body)
                if code == EMPTY:
                    self._layer.withhold(self)
                    return
            self._layer.respond(self, code, body)


def answering(code: int, body: bytes = b"") -> Handler:
    """Return a handler that gives everybody the same answer."""

    def handle(exchange: Exchange, payload: bytes) -> None:
        exchange.respond(code, body)

    return handle
