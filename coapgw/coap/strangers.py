"""Peers that nobody knows: what their requests were answered, and how many of their datagrams are listened to.

All that a stranger gets is a refusal.  One that sends tens of thousands of datagrams a second must not keep the gateway
from its devices by that: beyond an allowance what a host sends is dropped before anything else is done with it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Final

from coapgw.coap.endpoints import Address, host_of

DEPTH_SECONDS: Final = 1.0 + 1e-9  # of a bucket: so much may come at once; the rest is for rounding


class Strangers:
    """What is kept of them, in tables of their own: spoofed addresses never cost a device its entry.

    Args:
        exchanges: answers remembered for repeats, at most; the oldest go first.
        per_host: datagrams of one host that are listened to in a second (a token bucket).
        per_second: datagrams of all of them.
    """

    def __init__(self, exchanges: int, per_host: int, per_second: int) -> None:
        """Begin with nothing."""
        self._limit = exchanges
        self._seconds_each_host = 1 / per_host
        self._seconds_each = 1 / per_second
        self._most_hosts = 4 * per_second
        self._answers: OrderedDict[tuple[Address, int], tuple[float, bytes]] = OrderedDict()
        self._full_at: dict[object, float] = {}  # by host: when its bucket will be full again
        self._all_full_at = -math.inf

    def __len__(self) -> int:
        """Return how many answers are remembered."""
        return len(self._answers)

    def admit(self, address: Address, now: float) -> bool:
        """Count a datagram; return whether it is to be listened to."""
        latest = now + DEPTH_SECONDS
        all_full_at = max(self._all_full_at, now) + self._seconds_each
        host = host_of(address)
        full_at = max(self._full_at.get(host, now), now) + self._seconds_each_host
        if full_at > latest or all_full_at > latest:
            return False
        self._all_full_at = all_full_at
        self._full_at[host] = full_at
        if len(self._full_at) > self._most_hosts:  # more than can have been admitted since their buckets were full
            self._full_at = {one: at for one, at in self._full_at.items() if at > now}
        return True

    def answer(self, address: Address, message_id: int, now: float) -> bytes | None:
        """Return what a repeat of a request is answered, None if it is no repeat."""
        expires, answer = self._answers.get((address, message_id), (-math.inf, b""))
        return answer if expires > now else None

    def remember(self, address: Address, message_id: int, expires: float, answer: bytes) -> None:
        """Note what a request was answered, until the time *expires*."""
        self._answers[address, message_id] = (expires, answer)
        if len(self._answers) > self._limit:
            self._answers.popitem(last=False)

    def expire(self, now: float) -> None:
        """Forget what no repeat can come of any more."""
        answers = self._answers
        while answers and next(iter(answers.values()))[0] <= now:
            answers.popitem(last=False)
