"""What is remembered of exchanges so that a repeat is answered with the same bytes and processed once.

RFC 7252 section 4.5: a Message ID of an endpoint stays taken for EXCHANGE_LIFETIME (confirmable) or NON_LIFETIME
(non-confirmable).  At tens of thousands of messages a second that is millions of entries.  So an entry is one int key
and the answer's bytes, expiry goes by buckets of a fraction of a second, and nothing here is an object that the garbage
collector would have to visit.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from typing import Final

import attrs

PENDING: Final = b""
"""In place of an answer: the request was taken and has no answer yet, or never gets one (NON): a repeat is dropped."""

SHARDS: Final = 64  # a dict that doubles stops everything while it does; 64 small ones stop for a sixty-fourth of that
BUCKET_SECONDS: Final = 0.25  # how much longer than its lifetime an entry may stay
UNLIMITED: Final = 1 << 62


@attrs.define
class Wheel:
    """Keys in the order they expire, a bucket for each quarter of a second.

    Args:
        lifetime: seconds a key stays.
        bucket: the keys remembered since *bucket_ends* was set; the message path appends to it directly.
    """

    lifetime: float
    bucket: array[int] = attrs.field(factory=lambda: array("Q"))
    bucket_ends: float = -math.inf
    buckets: deque[tuple[float, array[int]]] = attrs.field(factory=deque)

    def turn(self, now: float) -> bool:
        """Close the bucket if its time is over; return whether it was."""
        if now < self.bucket_ends:
            return False
        if self.bucket:
            self.buckets.append((self.bucket_ends + self.lifetime, self.bucket))
            self.bucket = array("Q")
        self.bucket_ends = now + BUCKET_SECONDS
        return True

    def next_expiry(self) -> float | None:
        """Return when the oldest key may go, or None if there is none."""
        if self.buckets:
            return self.buckets[0][0]
        return self.bucket_ends + self.lifetime if self.bucket else None


class ExchangeMemory:
    """Answers by key, a key being an endpoint's number and a Message ID: ``number << 16 | message_id``.

    Args:
        limit: keys remembered at most; beyond it the oldest are forgotten before their time.
        confirmable_lifetime: seconds, EXCHANGE_LIFETIME.
        non_confirmable_lifetime: seconds, NON_LIFETIME.
    """

    def __init__(self, limit: int, confirmable_lifetime: float, non_confirmable_lifetime: float) -> None:
        """Begin with nothing remembered."""
        self._limit = limit
        self._shards: list[dict[int, bytes]] = [{} for _ in range(SHARDS)]
        self.confirmable = Wheel(confirmable_lifetime)
        self.non_confirmable = Wheel(non_confirmable_lifetime)
        self.evicted = 0

    def shard(self, number: int) -> dict[int, bytes]:
        """Return the dict that keeps the answers to the endpoint with this *number*."""
        return self._shards[number % SHARDS]

    def __len__(self) -> int:
        """Return how many exchanges are remembered."""
        return sum(map(len, self._shards))

    def expire(self, now: float, quota: int) -> None:
        """Forget what is due, at most *quota* keys of each kind, so that no call takes long."""
        for wheel in (self.confirmable, self.non_confirmable):
            if wheel.turn(now):
                self._make_room(quota)
            self._expire(wheel, now, quota)

    def _expire(self, wheel: Wheel, now: float, quota: int) -> int:
        forgotten = 0
        while wheel.buckets and wheel.buckets[0][0] <= now and forgotten < quota:
            keys = wheel.buckets[0][1]
            part = keys[max(0, len(keys) - (quota - forgotten)) :]
            del keys[len(keys) - len(part) :]
            forgotten += len(part)
            for key in part:
                self._shards[(key >> 16) % SHARDS].pop(key, None)
            if not keys:
                wheel.buckets.popleft()
        return forgotten

    def _make_room(self, quota: int) -> None:
        """Forget the oldest before their time while there are more than the limit."""
        excess = len(self) - self._limit
        while excess > 0:
            wheel = self._oldest()
            if wheel is None:
                return
            forgotten = self._expire(wheel, math.inf, min(excess, max(quota, excess // 2)))
            self.evicted += forgotten
            excess -= forgotten

    def _oldest(self) -> Wheel | None:
        """Return the wheel whose oldest closed bucket was filled first."""
        wheels = [wheel for wheel in (self.confirmable, self.non_confirmable) if wheel.buckets]
        return min(wheels, key=lambda wheel: wheel.buckets[0][0] - wheel.lifetime, default=None)

    def next_expiry(self) -> float | None:
        """Return when *expire* has something to do, or None."""
        dues = [due for due in (self.confirmable.next_expiry(), self.non_confirmable.next_expiry()) if due is not None]
        return min(dues, default=None)
