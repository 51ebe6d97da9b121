"""One request that was taken, and the answer it is owed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from coapgw.coap.codec import EMPTY
from coapgw.coap.endpoints import Address, Endpoint

if TYPE_CHECKING:
    from coapgw.coap.observe import Notifications

TRUSTED_BYTES: Final = 1 << 40  # what a request that is trusted is taken for: three times that is room for any answer

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

    def room(self, exchange: Exchange) -> int:
        """Return how many bytes the answer may have, header and token included."""

    def challenge(self, exchange: Exchange) -> None:
        """Have the peer come again, with the Echo option of the answer."""

    def is_fresh(self, exchange: Exchange) -> bool:
        """Return whether the request is known to have been sent just now."""


class Exchange:
    """A request that was taken and is owed an answer."""

    __slots__ = ("_layer", "_shapes", "ack_due", "answered", "endpoint", "header", "separate", "size", "tally")

    def __init__(self, layer: Answering, endpoint: Endpoint, header: bytes, size: int) -> None:
        """Keep the *header*, token included: the answer takes its Message ID and token from it.

        *size* is that of the request in bytes.
        """
        self._layer = layer
        self.endpoint = endpoint
        self.header = header
        self.answered = False
        self.separate = False
        self.ack_due = math.inf
        self.size = size
        self.tally: list[int] | None = None  # where its answer is counted, by its code
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

    @property
    def room(self) -> int:
        """How many bytes the answer may have, header and token included; a safe method may be tried again for more."""
        return self._layer.room(self)

    @property
    def is_proven(self) -> bool:
        """Whether what is sent to its address is known to get to the peer."""
        return self.endpoint.proven_until > self.now

    @property
    def is_fresh(self) -> bool:
        """Whether the request is known to have been sent just now; to be asked before it is carried out."""
        return self._layer.is_fresh(self)

    def challenge(self) -> None:
        """Answer that the peer is to come again, with the Echo option of this answer (RFC 9175 section 2.3)."""
        self._layer.challenge(self)

    def trust_source(self) -> None:
        """Let the answer be as large as it is: the operator says that who asks from there is there."""
        self.size = TRUSTED_BYTES

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
