"""Is the sender where it says it is, and was the message sent just now: the Echo option of RFC 9175.

Who can forge a source address could have us send to somebody else.  So an address that has not shown that it gets what
we send may get three times what came from it, counted in IP packets as RFC 9175 section 2.6 does; for more it has to
come again with the value we sent there.  The value is a time and a keyed hash of time and address: nothing is kept.
"""

from __future__ import annotations

import hashlib
from hmac import compare_digest
from typing import Final

from coapgw.coap.codec import ECHO, UNAUTHORIZED, encode_body, parse_options
from coapgw.coap.conditions import SAFE_METHODS
from coapgw.coap.endpoints import Address, RandomSource
from coapgw.coap.exchange import Exchange
from coapgw.coap.exchanges import UNLIMITED
from coapgw.coap.outgoing import SUCCESS
from coapgw.metrics import MessagingCounters

AMPLIFICATION: Final = 3
PACKET_BYTES: Final = 28  # of the headers of IPv4 and UDP; those of IPv6 are larger, which only allows for more
ACKNOWLEDGEMENT_BYTES: Final = PACKET_BYTES + 4  # of the empty one that went before an answer of its own
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


class AddressProof:
    """What peers may get at addresses that are proven, and at others.

    Args:
        extra_bytes_to_strangers: how much larger than its request an answer to an unknown peer may be.
    """

    def __init__(self, random: RandomSource, extra_bytes_to_strangers: int, counters: MessagingCounters) -> None:
        """Begin with nobody proven."""
        self._echoes = Echoes(random)
        self._extra = extra_bytes_to_strangers
        self._counters = counters
        self._fresh: Exchange | None = None  # the last request with a valid Echo

    def receive(self, echo: bytes, exchange: Exchange, now: float) -> None:
        """Believe an address that sends what was sent there; a stranger's makes no difference."""
        endpoint = exchange.endpoint
        if self._echoes.is_valid(echo, endpoint.address, now):
            self._fresh = exchange
            if endpoint.principal is not None:
                endpoint.proven_until = max(endpoint.proven_until, now + PROVEN_SECONDS)

    def is_fresh(self, exchange: Exchange) -> bool:
        """Return whether the request just received had a valid Echo."""
        return self._fresh is exchange

    def room(self, exchange: Exchange, now: float) -> int:
        """Return how many bytes the answer may have, header and token included."""
        endpoint = exchange.endpoint
        if now < endpoint.proven_until:
            return UNLIMITED
        room = room_for_answer(exchange.size)
        if exchange.separate:
            room -= ACKNOWLEDGEMENT_BYTES
        return min(room, exchange.size + self._extra) if endpoint.principal is None else room

    def times(self, exchange: Exchange, size: int, now: float) -> int:
        """Return how often a separate answer of *size* bytes may be sent if nobody acknowledges it, once at least."""
        if now < exchange.endpoint.proven_until:
            return UNLIMITED
        room = AMPLIFICATION * (exchange.size + PACKET_BYTES) - ACKNOWLEDGEMENT_BYTES
        return max(1, room // (size + PACKET_BYTES))

    def within_room(self, exchange: Exchange, code: int, body: bytes, now: float) -> tuple[int, bytes]:
        """Return the answer, or what an address that is not proven gets in its place if it is too large.

        What can be asked for again without harm is to be, with Echo; of anything else the payload is left out.
        """
        room = self.room(exchange, now) - len(exchange.header)
        if len(body) <= room:
            return code, body
        if exchange.principal is not None and exchange.header[1] in SAFE_METHODS and code >> 5 == SUCCESS:
            return self.challenge(exchange, now)
        self._counters.shortened += 1
        options = encode_body(parse_options(body, 0)[0])
        return code, options if len(options) <= room else b""

    def challenge(self, exchange: Exchange, now: float) -> tuple[int, bytes]:
        """Return the answer that asks to come again with its Echo option; strangers are only refused."""
        if exchange.principal is None:
            return UNAUTHORIZED, b""
        self._counters.challenges += 1
        return UNAUTHORIZED, self._echoes.body(exchange.endpoint.address, now)
