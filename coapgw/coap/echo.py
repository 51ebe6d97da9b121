"""Is the sender where it says it is, and was the message sent just now: the Echo option of RFC 9175.

Who can forge a source address could have us send to somebody else.  So an address that has not shown that it gets what
we send may get three times what came from it, counted in IP packets as RFC 9175 section 2.6 does; for more it has to
come again with the value we sent there.  The value is a time and a keyed hash of time and address: nothing is kept.
"""

from __future__ import annotations

import hashlib
from hmac import compare_digest
from typing import Final

from coapgw.coap.codec import ECHO, encode_body
from coapgw.coap.endpoints import Address, RandomSource

AMPLIFICATION: Final = 3
PACKET_BYTES: Final = 28  # of the headers of IPv4 and UDP; those of IPv6 are larger, which only allows for more
FRESH_SECONDS: Final = 60.0  # how old a value may be
PROVEN_SECONDS: Final = 247.0  # how long an address is believed: EXCHANGE_LIFETIME, so that its repeats are answered
_TIME_BYTES: Final = 4
_HASH_BYTES: Final = 8
_SECRET_BITS: Final = 256


def room_for_answer(request_bytes: int) -> int:
    """Return how many bytes the answer to a request of so many may have if nobody knows who gets it."""
    return AMPLIFICATION * (request_bytes + PACKET_BYTES) - PACKET_BYTES


class Echoes:
    """The values of one message layer, good as long as it lives."""

    def __init__(self, random: RandomSource) -> None:
        """Make a secret."""
        self._secret = random.getrandbits(_SECRET_BITS).to_bytes(_SECRET_BITS // 8, "big")

    def body(self, address: Address, now: float) -> bytes:
        """Return what follows the token of an answer that asks to come again."""
        time = (int(now) & 0xFFFFFFFF).to_bytes(_TIME_BYTES, "big")
        return encode_body([(ECHO, time + self._hash(time, address))])

    def is_valid(self, value: bytes, address: Address, now: float) -> bool:
        """Return whether *value* was sent to this address a short time ago."""
        time = value[:_TIME_BYTES]
        age = int(now) - int.from_bytes(time, "big") & 0xFFFFFFFF
        return age <= FRESH_SECONDS and compare_digest(value[_TIME_BYTES:], self._hash(time, address))

    def _hash(self, time: bytes, address: Address) -> bytes:
        return hashlib.blake2s(time + repr(address).encode(), key=self._secret, digest_size=_HASH_BYTES).digest()
