"""How many messages one device or source network may send: a token bucket each (``limits.*``).

A bucket holds one second's messages (at least one) and the burst, and is filled at the rate.  Of each sender one number
is kept: when its bucket will be full again.  A sender whose bucket is full needs none.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from coapgw.errors import PeerError

LONGEST_WAIT: Final = 2**32 - 1  # seconds; what Max-Age can say (RFC 7252 section 5.10)
KNOWN_LIMIT: Final = 1_000_000  # senders with a bucket that is not full; beyond it the oldest begins anew
_FORGET_EACH_TIME: Final = 2  # one more than a message can add, so that forgetting keeps up
_ROUNDING: Final = 1e-6  # seconds


class OverRate(PeerError):
    """Somebody sends more than they may."""

    def __init__(self, wait_seconds: float) -> None:
        """Say in how many seconds its next message will be taken."""
        self.retry_seconds = max(1, math.ceil(min(wait_seconds, LONGEST_WAIT)))
        super().__init__(f"too many messages, the next one is taken in {self.retry_seconds} s")


class Rates:
    """The buckets of all senders of a kind.

    Args:
        rate: messages per second, over 0, fractions allowed.
        burst: messages at once beyond those of a second.
        clock: monotonic seconds; a step of the time of day must not shut anybody out.
        known_limit: how many senders are kept.
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float], known_limit: int = KNOWN_LIMIT) -> None:
        """Begin with every bucket full."""
        self._seconds_each = min(1 / rate, LONGEST_WAIT)
        self._depth = (max(1.0, rate) + burst - 1) * self._seconds_each
        self._clock = clock
        self._known_limit = known_limit
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        """Return how many senders are kept."""
        return len(self._full_at)

    def take(self, sender: str) -> None:
        """Count a message of this sender.  Raises OverRate, and does not count it, if its bucket is empty."""
        now = self._clock()
        known = self._full_at
        full_at = max(known.get(sender, now), now)
        wait = full_at - now - self._depth
        if wait > _ROUNDING:
            raise OverRate(wait)
        known[sender] = full_at + self._seconds_each
        known.move_to_end(sender)
        for _ in range(_FORGET_EACH_TIME):
            oldest = next(iter(known))
            if known[oldest] > now and len(known) <= self._known_limit:
                return
            del known[oldest]
            if not known:
                return


class DeviceRates(Rates):
    """The buckets of devices, by ICCID."""


class NetworkRates(Rates):
    """The buckets of source networks, as ``network_of`` names them."""
