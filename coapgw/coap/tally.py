"""How many requests were answered with each code, by the resource that they asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from txthings import resource

from coapgw.coap.codec import Options
from coapgw.coap.describe import dotted
from coapgw.coap.exchange import Exchange, Handler
from coapgw.coap.site import known_path

CODES: Final = 256
NO_RESOURCE: Final = "none"


class InnerSite(Protocol):
    """The site behind this one."""

    def resolve(self, code: int, options: Options) -> Handler:
        """Return the handler of requests with this method and these options."""


class Answered(NamedTuple):
    """So many requests for a resource, by its path, were answered with a code such as ``2.04``."""

    resource: str
    code: str
    times: int


class TalliedSite:
    """A site whose answers are counted, whoever gives them; repeats of an answer are not.

    Paths are those of the tree, so that there are no more of them than resources: what is below a resource with
    children of its own making counts as that resource, what nobody is responsible for as ``NO_RESOURCE``.
    """

    def __init__(self, inner: InnerSite, root: resource.CoAPResource) -> None:
        """Stand before *inner*, which serves the tree below *root*."""
        self._inner = inner
        self._root = root
        self._tallies: dict[str, list[int]] = {}

    def resolve(self, code: int, options: Options) -> Handler:
        """Return the handler of requests with this method and these options."""
        handler = self._inner.resolve(code, options)
        path = known_path(self._root, options) or NO_RESOURCE
        tally = self._tallies.get(path)
        if tally is None:
            tally = self._tallies[path] = [0] * CODES

        def handle(exchange: Exchange, payload: bytes) -> None:
            exchange.tally = tally
            handler(exchange, payload)

        return handle

    def answered(self) -> Iterator[Answered]:
        """Yield what was counted and is not zero."""
        for path, tally in self._tallies.items():
            for code, times in enumerate(tally):
                if times:
                    yield Answered(path, dotted(code), times)
