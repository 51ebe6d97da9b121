"""Associations as sealed bytes, for a planned restart.

A header (magic, version, which key, when) and chunks, each encrypted with AES-256-GCM under a key that is used for one
save only: so the number of a chunk is its nonce.  The header and whether it is the last are authentic with every chunk,
therefore chunks can neither be changed, nor moved, nor left out.  What is restored twice would repeat sequence numbers:
``storage/associations.py`` sees to it that nothing is.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, NamedTuple, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from coapgw.dtls.association import AeadAssociation, AssociationState, CipherCache
from coapgw.dtls.cid import CidAssociation
from coapgw.dtls.errors import SavedByAnother, SavedDamaged, SavedTooOld, SavedWithAnotherKey
from coapgw.dtls.records import LAST_SEQUENCE
from coapgw.dtls.suites import AeadSuite, KeyBlock, suite_numbered

KEY_BYTES: Final = 32
FUTURE_MS: Final = 60_000  # a clock may be set back that much between stop and start
SKIP_BITS: Final = 32  # sequence numbers left out at random: two restores of one save then use different ones

_MAGIC: Final = b"coapgw DTLS\0"
_VERSION: Final = 1
_HEADER: Final = struct.Struct(">12sH8sQ")  # magic, version, which key, milliseconds since the epoch
_CHUNK: Final = struct.Struct(">IB")  # bytes that follow, 1 if it is the last
_CHUNK_ASSOCIATIONS: Final = 1024  # some 200 kB
# Suite, client, write sequence, skipped, newest, window, failures, milliseconds idle, parts.
_FIXED: Final = struct.Struct(">H?QQQQQQB")
_PART: Final = struct.Struct(">BH")  # kind, bytes that follow
_TEXT, _NUMBER, _BYTES = range(3)


class Bits(Protocol):
    """The part of ``random.Random`` that is used."""

    def getrandbits(self, k: int, /) -> int:
        """Return *k* random bits."""


class Located(NamedTuple):
    """An association, and the name of the listening socket that it came in by.

    Its address is a tuple of str, int and bytes.
    """

    listener: str
    association: AeadAssociation


def save(associations: Iterable[Located], now: float, saved_at_ms: int, aead_key: bytes) -> bytes:
    """Return *associations* sealed with *aead_key*, which seals nothing else, ever.  They must seal no more.

    Args:
        now: by the clock of ``last_heard``, seconds.
        saved_at_ms: milliseconds since the epoch.
        aead_key: KEY_BYTES random bytes.
    """
    return b"".join(save_in_chunks(associations, now, saved_at_ms, aead_key))


def save_in_chunks(associations: Iterable[Located], now: float, saved_at_ms: int, aead_key: bytes) -> Iterator[bytes]:
    """Yield what ``save`` returns piece by piece, so that no more than a piece need be in memory."""
    cipher = AESGCM(aead_key)
    header = _HEADER.pack(_MAGIC, _VERSION, _key_name(aead_key), saved_at_ms)
    yield header
    waiting = iter(associations)
    number = 0
    last = 0
    while not last:
        entries = [_entry(located, now) for located in islice(waiting, _CHUNK_ASSOCIATIONS)]
        last = int(len(entries) < _CHUNK_ASSOCIATIONS)
        sealed = cipher.encrypt(_nonce(number), b"".join(entries), _additional(header, last))
        yield _CHUNK.pack(len(sealed), last) + sealed
        number += 1


def restore(
    saved: bytes,
    now_ms: int,
    max_age_ms: int,
    aead_key: bytes,
    *,
    now: float,
    ciphers: CipherCache,
    random: Bits,
) -> list[Located]:
    """Return the associations of ``save``, each with a random number of its sequence numbers left out.

    One that has too few left for that is not among them.

    Args:
        saved: what ``save`` returned.
        now_ms: milliseconds since the epoch.
        max_age_ms: how long ago they may have been saved.
        aead_key: what they were saved with.
        now: by the clock that ``last_heard`` is to have, seconds.
        ciphers: shared by all of them.
        random: unpredictable; a ``SystemRandom``.

    Raises:
        SavedRefused: SavedByAnother, SavedWithAnotherKey, SavedTooOld or SavedDamaged; then nothing is restored.
    """
    header, age_ms = _checked_header(saved, now_ms, max_age_ms, aead_key)
    restored: list[Located] = []
    heard_before = now - age_ms / 1000
    try:
        for entries in _chunks(memoryview(saved)[_HEADER.size :], header, AESGCM(aead_key)):
            restored.extend(_located(entries, heard_before, ciphers, random))
    except (InvalidTag, struct.error, ValueError, IndexError):
        raise SavedDamaged("the saved associations are damaged") from None
    return restored


def _checked_header(saved: bytes, now_ms: int, max_age_ms: int, aead_key: bytes) -> tuple[bytes, int]:
    """Return the header, which is not known to be authentic yet, and the age in milliseconds."""
    header = bytes(saved[: _HEADER.size])
    if len(header) < _HEADER.size:
        raise SavedDamaged("the saved associations are cut short")
    magic, version, key_name, saved_at_ms = _HEADER.unpack(header)
    if magic != _MAGIC:
        raise SavedByAnother("these are no saved associations")
    if version != _VERSION:
        raise SavedByAnother(f"the associations were saved by another coapgw (version {version})")
    if not hmac.compare_digest(key_name, _key_name(aead_key)):
        raise SavedWithAnotherKey("the associations were saved with another key")
    age_ms = now_ms - saved_at_ms
    if age_ms > max_age_ms:
        raise SavedTooOld(f"the associations were saved {age_ms // 1000} seconds ago")
    if age_ms < -FUTURE_MS:
        raise SavedTooOld(f"the associations were saved {-age_ms // 1000} seconds in the future")
    return header, max(age_ms, 0)


def _chunks(saved: memoryview, header: bytes, cipher: AESGCM) -> Iterator[bytes]:
    """Yield the chunks opened, up to and with the last.  Raises InvalidTag, struct.error, ValueError."""
    at = number = last = 0
    while not last:
        size, last = _CHUNK.unpack_from(saved, at)
        at += _CHUNK.size
        yield cipher.decrypt(_nonce(number), bytes(saved[at : at + size]), _additional(header, last))
        at += size
        number += 1
    if at != len(saved):
        raise ValueError("more follows")


def _entry(located: Located, now: float) -> bytes:
    """Return an association as bytes."""
    association = located.association
    suite, keys, client, write_sequence, skipped, newest, window, failures, cid, peer_cid = association.state()
    address = association.address
    if not isinstance(address, tuple):
        raise TypeError(f"an address that is to be saved is a tuple, not {type(address).__name__}")
    belongings = (located.listener, association.iccid, association.serial, cid, peer_cid)
    parts = [_part(part) for part in (*belongings, *address)]
    idle_ms = max(round((now - association.last_heard) * 1000), 0)
    fixed = _FIXED.pack(suite.number, client, write_sequence, skipped, newest, window, failures, idle_ms, len(parts))
    return b"".join((fixed, keys, *parts))


def _part(value: object) -> bytes:
    """Return a str, int or bytes as bytes."""
    if isinstance(value, str):
        kind, encoded = _TEXT, value.encode()
    elif isinstance(value, int):
        kind, encoded = _NUMBER, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)
    elif isinstance(value, bytes):
        kind, encoded = _BYTES, value
    else:
        raise TypeError(f"a part of an address that is to be saved is str, int or bytes, not {type(value).__name__}")
    return _PART.pack(kind, len(encoded)) + encoded


def _located(entries: bytes, heard_before: float, ciphers: CipherCache, random: Bits) -> Iterator[Located]:
    """Yield the associations of a chunk.  Raises struct.error, ValueError, SavedByAnother."""
    at, end = 0, len(entries)
    while at < end:
        number, client, write, skipped, newest, window, failures, idle_ms, count = _FIXED.unpack_from(entries, at)
        at += _FIXED.size
        suite = _suite(number)
        keys = KeyBlock(entries[at : at + suite.block_bytes])
        at += suite.block_bytes
        parts: list[str | int | bytes] = []
        for _ in range(count):
            kind, size = _PART.unpack_from(entries, at)
            at += _PART.size
            parts.append(_value(kind, entries[at : at + size]))
            at += size
        listener, iccid, serial, cid, peer_cid, *address = parts
        if not (isinstance(listener, str) and isinstance(iccid, str) and isinstance(serial, int)):
            raise ValueError("parts of another kind")
        if not (isinstance(cid, bytes) and isinstance(peer_cid, bytes)):
            raise ValueError("parts of another kind")
        skip = random.getrandbits(SKIP_BITS)
        if write + skip > LAST_SEQUENCE:
            continue
        counters = (write + skip, skipped + skip, newest, window, failures)
        state = AssociationState(suite, keys, client, *counters, cid, peer_cid)
        kind = CidAssociation if cid else AeadAssociation
        association = kind.resume(tuple(address), iccid, serial, state, ciphers)
        association.last_heard = heard_before - idle_ms / 1000
        yield Located(listener, association)
    if at != end:
        raise ValueError("the last one is cut short")


def _suite(number: int) -> AeadSuite:
    suite = suite_numbered(number)
    if suite is None:
        raise SavedByAnother(f"an association was saved with a cipher suite that is not known ({number:#06x})")
    return suite


def _value(kind: int, encoded: bytes) -> str | int | bytes:
    """Return what ``_part`` encoded.  Raises ValueError."""
    if kind == _TEXT:
        return encoded.decode()
    if kind == _NUMBER:
        return int.from_bytes(encoded, "big", signed=True)
    if kind == _BYTES:
        return encoded
    raise ValueError(f"no part is of kind {kind}")


def _nonce(chunk: int) -> bytes:
    return chunk.to_bytes(12, "big")


def _additional(header: bytes, last: int) -> bytes:
    return header + bytes((last,))


def _key_name(aead_key: bytes) -> bytes:
    """Return what tells a key from another one, and nothing else about it."""
    return hmac.digest(aead_key, _MAGIC, "sha256")[:8]
