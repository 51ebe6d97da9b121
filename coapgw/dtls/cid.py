"""Associations with Connection IDs: RFC 9146.

With one, a protected record names its association by itself, and the address it comes from does not matter.  Its
content type is encrypted with the content, and what the tag covers is laid out differently; keys, sequence numbers and
replay window are those of any association.

=========  ==================================================================
record     type 25, version, epoch, sequence number, CID, length, fragment
fragment   explicit nonce, ciphertext of (content, real type, zeros), tag
covered    8 bytes of 0xff, 25, length of the CID, 25, version, epoch,
           sequence number, CID, length of (content, real type, zeros)
=========  ==================================================================
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container, Hashable
from typing import Final

from coapgw.dtls.association import EPOCH, AeadAssociation, AssociationState, CipherCache, Refusal
from coapgw.dtls.errors import PlaintextTooLarge
from coapgw.dtls.records import (
    APPLICATION_DATA,
    DTLS_1_2,
    LAST_SEQUENCE,
    PLAINTEXT_LIMIT,
    RECORD_LIMIT,
    TLS12_CID,
    sequence_of,
)
from coapgw.dtls.suites import EXPLICIT_BYTES, AeadSuite, KeyBlock

CID_AT: Final = 11  # in a record, behind the sequence number
AMPLIFICATION: Final = (
    3  # bytes to an address that is not known to be the peer's, for each byte from it: RFC 9146 section 6
)
_LENGTH_BYTES: Final = 2
_ATTEMPTS: Final = 8

_EPOCH_PLACE: Final = EPOCH << 48
# What the tag covers (RFC 9146 section 5.3) begins so, by length of the CID; the record up to its length follows.
_COVERED_FIRST: Final = tuple(b"\xff" * 8 + bytes((TLS12_CID, size)) for size in range(256))
_HEAD: Final = struct.Struct(">BHQ")  # type, version, epoch << 48 | sequence number; the CID follows
_LENGTH: Final = struct.Struct(">H")
_LENGTH_AND_EXPLICIT: Final = struct.Struct(">HQ")


class CidAssociation(AeadAssociation):
    """A peer with whom Connection IDs were negotiated.

    Args:
        cid: what records to us carry; empty for none (a client's choice).
        peer_cid: what records to the peer carry; empty for none.

    ``content_type`` is that of the record opened last.
    """

    __slots__ = ("cid", "content_type", "credit", "peer_cid")

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
        *,
        cid: bytes,
        peer_cid: bytes,
    ) -> None:
        """Begin as any association does."""
        super().__init__(address, iccid, serial, suite, keys, write_sequence, ciphers, client, newest)
        self.cid = cid
        self.peer_cid = peer_cid
        self.content_type = 0
        self.credit: int | None = None
        """Bytes that may be sent to an address that is new; None for one that is known to be the peer's."""

    def open(self, record: bytes) -> bytes | None:
        """Return the content of an authentic record not seen before; its type is in ``content_type`` then."""
        cid = self.cid
        if not cid:
            self.content_type = record[0] if record else 0
            return super().open(record)
        length_at = CID_AT + len(cid)
        fragment_at = length_at + _LENGTH_BYTES
        size = len(record)
        if not fragment_at + self.suite.overhead <= size <= RECORD_LIMIT + len(cid):
            return None
        kind, version, place = _HEAD.unpack_from(record)
        length = record[length_at] << 8 | record[length_at + 1]
        sequence = place - _EPOCH_PLACE
        if kind != TLS12_CID or version != DTLS_1_2 or length != size - fragment_at:
            return None
        if record[CID_AT:length_at] != cid or not 0 <= sequence <= LAST_SEQUENCE:
            return None
        sealed_at = fragment_at + EXPLICIT_BYTES
        covered = _COVERED_FIRST[len(cid)] + record[:length_at] + _LENGTH.pack(length - self.suite.overhead)
        inner = self._decrypt(sequence, record[fragment_at:sealed_at], record[sealed_at:], covered)
        if inner is None:
            return None
        if inner and not inner[-1]:
            inner = inner.rstrip(b"\0")  # padding: RFC 9146 section 4
        if not inner:
            return None  # no content type: unexpected_message, which here is silence
        self.content_type = inner[-1]
        if self._flight is not None and inner[-1] == APPLICATION_DATA:
            self._flight = None  # the client speaks, so it has our Finished
        return inner[:-1]

    def seal(self, content_type: int, plaintext: bytes) -> bytes:
        """Return a record with the next sequence number, with the peer's CID if it wants one.  Raises as any does."""
        cid = self.peer_cid
        if not cid:
            return super().seal(content_type, plaintext)
        size = len(plaintext)
        if size > PLAINTEXT_LIMIT:
            raise PlaintextTooLarge(size, PLAINTEXT_LIMIT)
        place = _EPOCH_PLACE + self._take_sequence(content_type)
        head = _HEAD.pack(TLS12_CID, DTLS_1_2, place)
        inner = plaintext + bytes((content_type,))
        head_and_cid = head + cid
        covered = _COVERED_FIRST[len(cid)] + head_and_cid + _LENGTH.pack(len(inner))
        _, _, encrypt, salt = self._ciphers or self._cache.provide(self)
        sealed = encrypt(salt + head[3:], inner, covered)
        return head_and_cid + _LENGTH_AND_EXPLICIT.pack(EXPLICIT_BYTES + len(sealed), place) + sealed

    def refusal(self, record: bytes) -> Refusal:
        """Say why ``open`` has just returned None for *record*."""
        if not self.cid:
            return super().refusal(record)
        length_at = CID_AT + len(self.cid)
        fragment_at = length_at + _LENGTH_BYTES
        if not fragment_at + self.suite.overhead <= len(record) <= RECORD_LIMIT + len(self.cid):
            return Refusal.MALFORMED
        kind, version, place = _HEAD.unpack_from(record)
        length = record[length_at] << 8 | record[length_at + 1]
        if kind != TLS12_CID or version != DTLS_1_2 or length != len(record) - fragment_at or place >> 48 != EPOCH:
            return Refusal.MALFORMED
        return Refusal.REPLAYED if self._was_seen(place - _EPOCH_PLACE) else Refusal.FORGED

    def move(self, address: Hashable, received: int) -> None:
        """Take a new address for the peer's, from which *received* bytes have come."""
        self.address = address
        self.credit = AMPLIFICATION * received

    def may_send(self, size: int) -> bool:
        """Return whether so many bytes may go to its address, and count them."""
        if self.credit is None:
            return True
        if size > self.credit:
            return False
        self.credit -= size
        return True

    def state(self) -> AssociationState:
        """Return what ``resume`` makes another one of.  This one must not seal any more."""
        return super().state()._replace(cid=self.cid, peer_cid=self.peer_cid)

    @classmethod
    def resume(
        cls, address: Hashable, iccid: str, serial: int, state: AssociationState, ciphers: CipherCache
    ) -> CidAssociation:
        """Go on from a *state*; its last flight is not in there, and its address is taken for known."""
        association = cls(
            *(address, iccid, serial, state.suite, state.keys, state.write_sequence),
            ciphers=ciphers,
            client=state.client,
            newest=state.newest,
            cid=state.cid,
            peer_cid=state.peer_cid,
        )
        association._take_over(state)
        return association


class ConnectionIds:
    """Makes Connection IDs: the first byte says which node or worker to go to, the others are random.

    A load balancer that knows nothing else finds the node at byte 11 of a record of type 25.  With a single byte there
    is no room for that: it is random.

    Args:
        size: bytes of each, 1 to 20.
        node: 0 to 255.
        random_bytes: so many bytes from a CSPRNG: who sees one must not guess another.
    """

    def __init__(self, size: int, node: int, random_bytes: Callable[[int], bytes]) -> None:
        """Make any number of them."""
        self.size = size
        self._head = bytes((node,)) if size > 1 else b""
        self._random_bytes = random_bytes
        self._promised: set[bytes] = set()

    def make(self, taken: Container[bytes]) -> bytes | None:
        """Return one that is neither *taken* nor promised, and is promised now, to a peer that is half-open.

        None if a few attempts found none, as when they are very short.
        """
        for _ in range(_ATTEMPTS):
            cid = self._head + self._random_bytes(self.size - len(self._head))
            if cid not in taken and cid not in self._promised:
                self._promised.add(cid)
                return cid
        return None

    def settle(self, cid: bytes) -> None:
        """Forget a promise: the peer has an association with it by now, or never will."""
        self._promised.discard(cid)


class CidTranslation:
    """Between a peer that uses Connection IDs and OpenSSL, which has none, during the handshake.

    The records that go to OpenSSL are seen by nobody else, and each of OpenSSL's becomes one for the peer, with the
    same sequence number: on the wire no number appears with two contents.

    Args:
        association: that of the handshake to be; it has opened and sealed nothing yet.
    """

    __slots__ = ("_mirror", "association")

    def __init__(self, association: CidAssociation) -> None:
        """Translate with the keys of *association*."""
        self.association = association
        state = association.state()
        # the peer's side without Connection IDs: seals what OpenSSL opens, opens what OpenSSL seals
        self._mirror = AeadAssociation(
            None, "", 0, state.suite, state.keys, 0, CipherCache(1), not state.client, newest=-1
        )

    def inward(self, record: bytes, content: bytes) -> bytes:
        """Return what OpenSSL is given in place of *record*, which had this handshake message or alert in it."""
        self._mirror.write_sequence = sequence_of(record)
        return self._mirror.seal(self.association.content_type, content)

    def outward(self, record: bytes) -> bytes:
        """Return what the peer is sent in place of OpenSSL's protected *record*."""
        if not self.association.peer_cid:
            self.association.write_sequence = sequence_of(record) + 1  # it is used up
            return record
        content = self._mirror.open(record)
        assert content is not None, "OpenSSL and we have different keys"
        self.association.write_sequence = sequence_of(record)
        return self.association.seal(record[0], content)
