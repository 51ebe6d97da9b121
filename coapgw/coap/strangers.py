"""Peers that nobody knows: what their requests were answered, and how many of their datagrams are listened to.

All that a stranger gets is a refusal.  One that sends tens of thousands of datagrams a second must not keep the gateway
from its devices by that: beyond an allowance what a host sends is dropped before anything else is done with it.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from coapgw.coap.endpoints import Address, host_of

ALLOWANCE_SECONDS = 1.0


class Strangers:
    """What is kept of them, in tables of their own: spoofed addresses never cost a device its entry.

    Args:
        exchanges: answers remembered for repeats, at most; the oldest go first.
        per_host: datagrams of one host that are listened to in a second.
        per_second: datagrams of all of them.
    """

    def __init__(self, exchanges: int, per_host: int, per_second: int) -> None:
        """Begin with nothing."""
        self._limit = exchanges
        self._per_host = per_host
        self._per_second = per_second
        self._answers: OrderedDict[tuple[Address, int], tuple[float, bytes]] = OrderedDict()
        self._heard: dict[object, int] = {}  # by host, since the second began; not more hosts than datagrams
        self._heard_of_all = 0
        self._second_ends = -math.inf

    def __len__(self) -> int:
        """Return how many answers are remembered."""
        return len(self._answers)

    def admit(self, address: Address, now: float) -> bool:
        """Count a datagram; return whether it is to be listened to."""
        if now >= self._second_ends:
            self._heard.clear()
            self._heard_of_all = 0
            self._second_ends = now + ALLOWANCE_SECONDS
        host = host_of(address)
        heard = self._heard.get(host, 0)
        if heard >= self._per_host or self._heard_of_all >= self._per_second:
            return False
        self._heard[host] = heard + 1
        self._heard_of_all += 1
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
