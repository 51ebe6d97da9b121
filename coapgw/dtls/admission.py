"""How many handshakes may begin: so many a second, so many at a time, and no network may take all of them."""

from __future__ import annotations

import ipaddress
import math
from collections import Counter
from collections.abc import Hashable
from typing import Final

import attrs

from coapgw.metrics import DtlsCounters

CROWDED: Final = 2  # from one half of the limit on, a network's part is looked at
PART_OF_NETWORK: Final = 4  # then a quarter of the limit is enough for one
_IPV4_PREFIX: Final = 24
_IPV6_PREFIX: Final = 64  # what one site has at the least


@attrs.frozen
class HandshakeLimits:
    """Half-open peers at a time, and handshakes begun per second, of all sockets together; 0 is no limit."""

    half_open: int = 1000
    per_second: int = 1000


class Admission:
    """Counts half-open peers, of all sockets, and says who may become one.

    The rate is a token bucket that holds one second's worth.
    """

    def __init__(self, limits: HandshakeLimits, counters: DtlsCounters) -> None:
        """Begin with nobody."""
        self._limits = limits
        self._counters = counters
        self._tokens = float(limits.per_second)
        self._filled_at = -math.inf
        self._networks: Counter[str] = Counter()
        self.half_open = 0

    def is_full(self) -> bool:
        """Return whether somebody must go before another peer may come."""
        return bool(self._limits.half_open) and self.half_open >= self._limits.half_open

    def admit(self, network: str, now: float) -> bool:
        """Take a peer in, if it may come; ``leave`` is to be called once for it then."""
        limit = self._limits.half_open
        crowded = limit and self.half_open >= limit / CROWDED
        if self.is_full() or (crowded and self._networks[network] >= limit / PART_OF_NETWORK):
            self._counters.refused_full += 1
            return False
        if not self._take_token(now):
            self._counters.refused_rate += 1
            return False
        self.half_open += 1
        self._networks[network] += 1
        return True

    def leave(self, network: str) -> None:
        """Let a peer go: its handshake has ended, one way or the other."""
        self.half_open -= 1
        self._networks[network] -= 1
        if not self._networks[network]:
            del self._networks[network]

    def _take_token(self, now: float) -> bool:
        rate = self._limits.per_second
        if not rate:
            return True
        self._tokens = min(float(rate), self._tokens + max(0.0, now - self._filled_at) * rate)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def network_of(address: Hashable) -> str:
    """Return the source network of an address, a tuple that begins with the host: its /24, or /64."""
    host = str(address[0]) if isinstance(address, tuple) and address else ""
    try:
        parsed = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    prefix = _IPV4_PREFIX if parsed.version == 4 else _IPV6_PREFIX
    return str(ipaddress.ip_network((parsed, prefix), strict=False))
