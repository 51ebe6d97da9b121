"""An established peer of an AEAD suite: keys, sequence numbers, and a replay window (RFC 6347 section 4.1).

OpenSSL made the handshake and is gone; docs/decisions/0005-detached-associations.md says why that is sound.  An idle
association is its keys and a few numbers: the ciphers are made when a record comes or goes, and stay while they are
among the last that were made.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Hashable, Iterable
from typing import Final, NamedTuple, TypeAlias

from cryptography.exceptions import InvalidTag

from coapgw.dtls.errors import PlaintextTooLarge, SequenceExhausted
from coapgw.dtls.records import (
    APPLICATION_DATA,
    CHANGE_CIPHER_SPEC,
    DTLS_1_2,
    HANDSHAKE,
    HEADER,
    HEADER_BYTES,
    LAST_SEQUENCE,
    PLAINTEXT_LIMIT,
    RECORD_LIMIT,
    epoch_of,
    plain_record,
    sequence_of,
)
from coapgw.dtls.suites import EXPLICIT_BYTES, SALT_BYTES, AeadSuite, KeyBlock

EPOCH: Final = 1  # of the one handshake; there is no renegotiation, so there is no other
WINDOW_BITS: Final = 64  # RFC 6347 section 4.1.2.6: "preferred and SHOULD be employed as the default"
FLIGHT_REPEATS: Final = 8  # of our last flight: a client's own timer, doubled from 1 s to 60 s, gives up sooner
CACHED_ASSOCIATIONS: Final = 4096  # 7 MB with CCM suites, 20 MB with GCM

_EPOCH_PLACE: Final = EPOCH << 48
_WINDOW_FULL: Final = (1 << WINDOW_BITS) - 1
_SEALED_AT: Final = HEADER_BYTES + EXPLICIT_BYTES
# What the tag covers beside the plaintext: epoch and sequence number, type, version, length of the plaintext.
_pack_additional: Final = struct.Struct(">QBHH").pack
_pack_header_and_explicit: Final = struct.Struct(">BHQHQ").pack
_unpack_header: Final = HEADER.unpack_from

Cipher: TypeAlias = Callable[[bytes, bytes, bytes], bytes]
"""Takes nonce, data and additional data: a bound method of an Aead, as binding one costs time with every record."""

Ciphers: TypeAlias = tuple[Cipher, bytes, Cipher, bytes]
"""What decrypts and its salt, what encrypts and its salt."""


class Refusal(enum.Enum):
    """Why a record was not opened."""

    MALFORMED = "malformed"  # its header is not that of a record for an association
    REPLAYED = "replayed"  # seen before, or so old that one cannot tell
    FORGED = "forged"  # not authentic


class AssociationState(NamedTuple):
    """All that an association is, without what it belongs to."""

    suite: AeadSuite
    keys: KeyBlock
    client: bool
    write_sequence: int
    skipped: int
    newest: int
    window: int
    failures: int
    cid: bytes = b""
    peer_cid: bytes = b""


class CipherCache:
    """Lets the *limit* associations that last needed new ciphers keep them; the oldest loses its own first.

    In the order they were made, not used: so a hit costs nothing, and a miss 1.3 µs (CCM8).  Associations that nobody
    else knows any more stay until their turn comes.
    """

    __slots__ = ("_at", "_ring")

    def __init__(self, limit: int = CACHED_ASSOCIATIONS) -> None:
        """Keep the ciphers of *limit* associations, one at least."""
        self._ring: list[AeadAssociation | None] = [None] * max(limit, 1)
        self._at = 0

    def provide(self, association: AeadAssociation) -> Ciphers:
        """Make the ciphers of an association that has none now, and take those of another one if need be."""
        at = self._at
        oldest = self._ring[at]
        if oldest is not None:
            oldest.drop_ciphers()
        self._ring[at] = association
        self._at = (at + 1) % len(self._ring)
        return association.make_ciphers()


class AeadAssociation:
    """A peer with whom a handshake is complete.  Equal to itself only.

    Args:
        address: where it is; a new one may be assigned.
        iccid: the device that it proved to be.
        serial: of the key with which it did.
        suite: the cipher suite.
        keys: ``derive_keys`` of the handshake.
        write_sequence: the first number of epoch 1 that was not used yet.
        ciphers: shared by all associations.
        client: whether we are the client; else we are the server.
        newest: the highest number of epoch 1 that was read already; 0 is the peer's Finished, which OpenSSL has read.

    ``last_heard`` is the caller's: the time of the last record that it took for a sign of life.
    """

    cid = b""  # what records to us are found by; empty: their address

    __slots__ = (
        "_cache",
        "_ciphers",
        "_flight",
        "_keys",
        "_last_sequence",
        "_newest",
        "_window",
        "address",
        "client",
        "failures",
        "iccid",
        "last_heard",
        "serial",
        "skipped",
        "suite",
        "write_sequence",
    )

    def __init__(  # noqa: PLR0917 - a handshake leaves that much
        self,
        address: Hashable,
        iccid: str,
        serial: int,
        suite: AeadSuite,
        keys: KeyBlock,
        write_sequence: int,
        ciphers: CipherCache,
        client: bool = False,
        newest: int = 0,
    ) -> None:
        """Begin with *newest* and whatever is older than it seen, or never to be seen."""
        self.address = address
        self.iccid = iccid
        self.serial = serial
        self.last_heard = 0.0
        self.suite = suite
        self.client = client
        self.write_sequence = write_sequence
        self.skipped = 0  # sequence numbers before the next that were never used
        self.failures = 0  # records that were not authentic
        self._last_sequence = min(write_sequence + suite.sealed_limit - 1, LAST_SEQUENCE)  # of application data
        self._keys = keys
        self._cache = ciphers
        self._ciphers: Ciphers | None = None
        self._newest = newest
        self._window = _WINDOW_FULL  # bit 0 is the newest, bit 1 the one before
        self._flight: _LastFlight | None = None

    # What the wire looks like is in the next two methods only.  With Connection IDs (RFC 9146) header and additional
    # data differ, and the content type is inside: a subclass with its own two, on the same ``_decrypt``.

    def open(self, record: bytes) -> bytes | None:
        """Return the plaintext of an authentic record not seen before, of whatever content type (``record[0]``).

        None for anything else, which then has changed nothing but ``failures``; ``refusal`` says why.  Never raises.
        """
        size = len(record)
        overhead = self.suite.overhead
        if not HEADER_BYTES + overhead <= size <= RECORD_LIMIT:
            return None
        content_type, version, place, length = _unpack_header(record)
        sequence = place - _EPOCH_PLACE
        if version != DTLS_1_2 or length != size - HEADER_BYTES or not 0 <= sequence <= LAST_SEQUENCE:
            return None
        additional = _pack_additional(place, content_type, version, length - overhead)
        plaintext = self._decrypt(sequence, record[HEADER_BYTES:_SEALED_AT], record[_SEALED_AT:], additional)
        if self._flight is not None and content_type == APPLICATION_DATA and plaintext is not None:
            self._flight = None  # the client speaks, so it has our Finished
        return plaintext

    def seal(self, content_type: int, plaintext: bytes) -> bytes:
        """Return a record with the next sequence number, which no other record of this key ever has.

        Raises:
            PlaintextTooLarge: over 2^14 bytes.
            SequenceExhausted: the keys have protected as much data as they should, or there is no next one.
        """
        size = len(plaintext)
        if size > PLAINTEXT_LIMIT:
            raise PlaintextTooLarge(size, PLAINTEXT_LIMIT)
        place = _EPOCH_PLACE + self._take_sequence(content_type)
        additional = _pack_additional(place, content_type, DTLS_1_2, size)
        _, _, encrypt, salt = self._ciphers or self._cache.provide(self)
        sealed = encrypt(salt + additional[:EXPLICIT_BYTES], plaintext, additional)
        length = EXPLICIT_BYTES + len(sealed)
        return _pack_header_and_explicit(content_type, DTLS_1_2, place, length, place) + sealed

    def refusal(self, record: bytes) -> Refusal:
        """Say why ``open`` has just returned None for *record*."""
        if not HEADER_BYTES + self.suite.overhead <= len(record) <= RECORD_LIMIT:
            return Refusal.MALFORMED
        _, version, place, length = _unpack_header(record)
        if version != DTLS_1_2 or length != len(record) - HEADER_BYTES or place >> 48 != EPOCH:
            return Refusal.MALFORMED
        return Refusal.REPLAYED if self._was_seen(place - _EPOCH_PLACE) else Refusal.FORGED

    def is_newest(self, record: bytes) -> bool:
        """Return whether *record*, which ``open`` has just opened, is newer than all that were opened before.

        A peer's new address counts only then (RFC 9146 section 6).
        """
        return sequence_of(record) == self._newest

    def is_worn(self) -> bool:
        """Return whether its keys protected, or were tried on, as many records as they should: time for new ones."""
        sealed = self.write_sequence - self.skipped
        return sealed >= self.suite.sealed_limit or self.failures >= self.suite.forgery_limit

    def keep_flight(self, epoch0_next_sequence: int, finished: bytes) -> None:
        """Be ready to repeat our ChangeCipherSpec and Finished, until the client's first application data.

        Args:
            epoch0_next_sequence: the first number of epoch 0 that was not used yet.
            finished: the Finished message, with its handshake header, as plaintext.
        """
        self._flight = _LastFlight(epoch0_next_sequence, finished)

    def keep_sent_flight(self, records: Iterable[bytes]) -> None:
        """Be ready to repeat the flight that OpenSSL has sent as *records*; what is no last flight is not kept."""
        epoch0_next_sequence = 0
        for record in records:
            if epoch_of(record) == 0:
                epoch0_next_sequence = sequence_of(record) + 1
            elif record[0] == HANDSHAKE:
                mirror = AeadAssociation(
                    None, "", 0, self.suite, self._keys, 0, CipherCache(1), not self.client, newest=-1
                )
                finished = mirror.open(record)
                if finished is not None:
                    self.keep_flight(epoch0_next_sequence, finished)

    def repeat_flight(self) -> list[bytes] | None:
        """Return the last flight as new records, for a client that repeats its Finished: RFC 6347 section 4.2.4.

        None when there is none (any more), or it was repeated FLIGHT_REPEATS times.  Raises SequenceExhausted.
        """
        flight = self._flight
        if flight is None:
            return None
        change = plain_record(CHANGE_CIPHER_SPEC, flight.sequence, b"\1")
        finished = self.seal(HANDSHAKE, flight.finished)
        flight.sequence += 1
        flight.repeats_left -= 1
        if not flight.repeats_left:
            self._flight = None
        return [change, finished]

    def state(self) -> AssociationState:
        """Return what ``resume`` makes another one of.  This one must not seal any more."""
        return AssociationState(
            self.suite,
            self._keys,
            self.client,
            self.write_sequence,
            self.skipped,
            self._newest,
            self._window,
            self.failures,
        )

    @classmethod
    def resume(
        cls, address: Hashable, iccid: str, serial: int, state: AssociationState, ciphers: CipherCache
    ) -> AeadAssociation:
        """Go on from a *state*; its last flight is not in there."""
        association = cls(
            *(address, iccid, serial, state.suite, state.keys, state.write_sequence),
            ciphers=ciphers,
            client=state.client,
            newest=state.newest,
        )
        association._take_over(state)
        return association

    def _take_over(self, state: AssociationState) -> None:
        """Count on from *state*."""
        self.skipped = state.skipped
        self._last_sequence = min(state.skipped + self.suite.sealed_limit - 1, LAST_SEQUENCE)
        self.failures = state.failures
        self._window = state.window

    def make_ciphers(self) -> Ciphers:
        """Make the ciphers and keep them until ``drop_ciphers``.  For the CipherCache."""
        keys, size, aead = self._keys, self.suite.key_bytes, self.suite.aead
        from_client, from_server = aead(keys[:size]), aead(keys[size : 2 * size])
        salts = 2 * size + SALT_BYTES
        client_salt, server_salt = keys[salts - SALT_BYTES : salts], keys[salts : salts + SALT_BYTES]
        if self.client:
            ciphers = from_server.decrypt, server_salt, from_client.encrypt, client_salt
        else:
            ciphers = from_client.decrypt, client_salt, from_server.encrypt, server_salt
        self._ciphers = ciphers
        return ciphers

    def share(self, ciphers: CipherCache) -> None:
        """Take ciphers from another cache from now on."""
        self._ciphers = None
        self._cache = ciphers

    def drop_ciphers(self) -> None:
        """Keep the keys only.  For the CipherCache."""
        self._ciphers = None

    def _decrypt(self, sequence: int, explicit: bytes, sealed: bytes, additional: bytes) -> bytes | None:
        """Return the plaintext and count *sequence* as seen; None if it was before, or it is not authentic."""
        newest = self._newest
        if sequence <= newest and (newest - sequence >= WINDOW_BITS or self._window >> newest - sequence & 1):
            return None
        decrypt, salt, _, _ = self._ciphers or self._cache.provide(self)
        try:
            plaintext = decrypt(salt + explicit, sealed, additional)
        except InvalidTag:
            self.failures += 1
            return None
        if sequence > newest:
            ahead = sequence - newest
            if ahead != 1 or self._window != _WINDOW_FULL:  # nothing was lost lately: the window stays as it is
                self._window = (self._window << ahead & _WINDOW_FULL | 1) if ahead < WINDOW_BITS else 1
            self._newest = sequence
        else:
            self._window |= 1 << newest - sequence
        return plaintext

    def _take_sequence(self, content_type: int) -> int:
        """Return the next sequence number, which is used up by that, whatever happens.  Raises SequenceExhausted."""
        sequence = self.write_sequence
        if sequence > self._last_sequence and (content_type == APPLICATION_DATA or sequence > LAST_SEQUENCE):
            raise SequenceExhausted("the keys protect no more data: the association needs a new handshake")
        self.write_sequence = sequence + 1
        return sequence

    def _was_seen(self, sequence: int) -> bool:
        """Return whether a record with this number was opened, or is older than the window."""
        behind = self._newest - sequence
        return behind >= 0 and (behind >= WINDOW_BITS or bool(self._window >> behind & 1))


class _LastFlight:
    """What it takes to repeat the server's last flight."""

    __slots__ = ("finished", "repeats_left", "sequence")

    def __init__(self, sequence: int, finished: bytes) -> None:
        self.sequence = sequence
        self.finished = finished
        self.repeats_left = FLIGHT_REPEATS
