"""Who we talk to: endpoints (RFC 7252 section 1.2), how many are known, and when they are forgotten."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from coapgw.coap.codec import EMPTY

if TYPE_CHECKING:
    from coapgw.coap.exchange import Handler
    from coapgw.coap.exchanges import ExchangeMemory
    from coapgw.coap.outgoing import OutgoingQueue

Address: TypeAlias = Hashable
"""Anything hashable that names a peer to the pump: a socket address, or an association of a secure transport."""

EVICTION_CANDIDATES: Final = 8
_MESSAGE_ID_REFUSED: Final = 0x3839  # one shipped parser looks for the characters "89" in the raw datagram


class RandomSource(Protocol):
    """The part of ``random.Random`` that is used."""

    def getrandbits(self, k: int, /) -> int:
        """Return *k* random bits."""

    def uniform(self, a: float, b: float) -> float:
        """Return a float between *a* and *b*."""


class PeerDirectory(Protocol):
    """Says who is behind an address."""

    @property
    def generation(self) -> int:
        """A number that grows when what ``identify`` said may have changed."""

    def identify(self, address: Address) -> object | None:
        """Return the peer that may be served at this address, or None for a stranger."""


class Endpoint:
    """A peer and what we know of it.

    A stranger's endpoint has number 0: it lives as long as its request and keeps nothing.
    """

    __slots__ = (
        "address",
        "base",
        "code",
        "generation",
        "handler",
        "last_seen",
        "message_id",
        "outgoing",
        "pending",
        "prefix",
        "principal",
        "proven_until",
        "shard",
    )

    def __init__(self, address: Address, number: int, shard: dict[int, bytes], message_id: int) -> None:
        """Know the endpoint at *address*; *shard* keeps the answers to it, by ``base | Message ID``."""
        self.address = address
        self.base = number << 16
        self.shard = shard
        self.message_id = message_id
        self.generation = -1
        self.principal: object | None = None
        self.last_seen = -math.inf
        self.pending = 0
        self.proven_until = -math.inf  # until then it is known that what is sent to the address gets to the peer
        # What its last ordinary request looked like: method, option bytes with the payload marker, and what they meant.
        self.code = EMPTY
        self.prefix = b""
        self.handler: Handler | None = None
        self.outgoing: OutgoingQueue | None = None

    def is_busy(self) -> bool:
        """Return whether something is under way with it."""
        queue = self.outgoing
        return self.pending > 0 or (queue is not None and queue.is_busy())

    def next_message_id(self) -> int:
        """Return the next Message ID towards it: no byte of it is zero, and it is never 0x3839."""
        message_id = self.message_id
        while True:
            message_id = message_id + 1 & 0xFFFF
            if message_id & 0xFF and message_id >> 8 and message_id != _MESSAGE_ID_REFUSED:
                self.message_id = message_id
                return message_id


class EndpointTable:
    """The endpoints that are known, by address.

    Args:
        limit: how many at most.
        per_host: how many of one host: who sends from every port there is takes no other host's place.
        idle_seconds: how long an idle one stays: as long as an exchange with it may be remembered.
        memory: where the answers to them are kept.
        abandon: called with an endpoint that is let go although something may be under way with it.
    """

    def __init__(
        self,
        limit: int,
        idle_seconds: float,
        memory: ExchangeMemory,
        random: RandomSource,
        *,
        abandon: Callable[[Endpoint], None],
        per_host: int,
    ) -> None:
        """Begin with nobody known."""
        self._limit = limit
        self._per_host = per_host
        self._of_host: dict[Hashable, tuple[Endpoint, ...]] = {}
        self._idle_seconds = idle_seconds
        self._memory = memory
        self._random = random
        self._abandon = abandon
        self._next_number = 1
        self.by_address: OrderedDict[Address, Endpoint] = OrderedDict()
        self.evicted = 0

    def know(self, address: Address, now: float) -> Endpoint:
        """Make the endpoint at *address* known; the idlest of some old ones goes if there is no room."""
        host = host_of(address)
        siblings = self._of_host.get(host, ())
        if len(siblings) >= self._per_host:
            self._evict(siblings[:EVICTION_CANDIDATES])
        if len(self.by_address) >= self._limit:
            self._evict(list(islice(self.by_address.values(), EVICTION_CANDIDATES)))
        number = self._next_number
        self._next_number += 1
        endpoint = Endpoint(address, number, self._memory.shard(number), self._random.getrandbits(16))
        endpoint.last_seen = now
        self.by_address[address] = endpoint
        if host is not None:
            self._of_host[host] = (*self._of_host.get(host, ()), endpoint)
        return endpoint

    def forget(self, address: Address) -> Endpoint | None:
        """Let the endpoint at an address go; return it."""
        endpoint = self.by_address.pop(address, None)
        host = host_of(address)
        if endpoint is not None and host is not None:
            left = tuple(one for one in self._of_host[host] if one is not endpoint)
            if left:
                self._of_host[host] = left
            else:
                del self._of_host[host]
        return endpoint

    def stranger(self, address: Address) -> Endpoint:
        """Return an endpoint for one request of an unknown peer."""
        return Endpoint(address, 0, {}, self._random.getrandbits(16))

    def _evict(self, candidates: Sequence[Endpoint]) -> None:
        idlest = min(candidates, key=lambda endpoint: (endpoint.is_busy(), endpoint.last_seen))
        self.forget(idlest.address)
        self._abandon(idlest)
        self.evicted += 1

    def sweep(self, now: float, seconds: float) -> None:
        """Look at as many endpoints as *seconds* are of the idle time, and forget those that are idle for longer.

        Called regularly it looks at each once in that time.
        """
        for _ in range(math.ceil(len(self.by_address) * seconds / self._idle_seconds)):
            address, endpoint = next(iter(self.by_address.items()))
            if now - endpoint.last_seen > self._idle_seconds and not endpoint.is_busy():
                self.forget(address)
            else:
                self.by_address.move_to_end(address)


def host_of(address: Address) -> Hashable:
    """Return the host of a socket address, None of an association: how many a device has of these is known there."""
    return address[0] if isinstance(address, tuple) and address else None
