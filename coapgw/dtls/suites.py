"""The AEAD cipher suites, and the keys of an association: RFC 5246 sections 5 and 6.3.

CBC suites are not here: their associations stay with OpenSSL.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Final, Protocol

import attrs
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM

SALT_BYTES: Final = 4  # the part of the nonce that is never sent: RFC 5288 section 3, RFC 6655 section 3
EXPLICIT_BYTES: Final = 8  # the part that precedes the ciphertext in every record
RANDOM_BYTES: Final = 32
MASTER_SECRET_BYTES: Final = 48

# How many records a key may protect, and how many forgeries be tried on it: RFC 9147 section 4.5.3 and appendix B.
_GCM_SEALED: Final = 23_726_566  # 2^24.5 full records
_GCM_FORGERIES: Final = 2**36
_CCM_SEALED: Final = 2**23
_CCM_FORGERIES: Final = 11_863_283  # 2^23.5; of CCM8 too, docs/decisions/0005-detached-associations.md says why


class Aead(Protocol):
    """An AEAD with its key."""

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None, /) -> bytes:
        """Return the ciphertext with the tag behind it."""

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None, /) -> bytes:
        """Return the plaintext.  Raises InvalidTag."""


class KeyBlock(bytes):
    """The keys of an association: client key, server key, client salt, server salt.  Never shown."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Leave the keys out."""
        return f"KeyBlock({len(self)} bytes)"

    __str__ = __repr__


@attrs.frozen
class AeadSuite:
    """An AEAD cipher suite with pre-shared keys.

    Args:
        name: what OpenSSL calls it.
        number: IANA's.
        key_bytes: of one direction.
        tag_bytes: of a record.
        prf_hash: hashlib's name of the hash in the pseudo-random function.
        aead: makes the AEAD of a key.
        sealed_limit: records that one key may protect.
        forgery_limit: records that may fail to be authentic before the key has to go.
    """

    name: str
    number: int
    key_bytes: int
    tag_bytes: int
    prf_hash: str
    aead: Callable[[bytes], Aead] = attrs.field(repr=False)
    sealed_limit: int
    forgery_limit: int
    block_bytes: int = attrs.field(init=False)  # of a KeyBlock
    overhead: int = attrs.field(init=False)  # bytes of a fragment beside the plaintext

    @block_bytes.default
    def _block_bytes(self) -> int:
        return 2 * (self.key_bytes + SALT_BYTES)

    @overhead.default
    def _overhead(self) -> int:
        return EXPLICIT_BYTES + self.tag_bytes


def _ccm(tag_bytes: int) -> Callable[[bytes], Aead]:
    return lambda key: AESCCM(key, tag_bytes)


def _ccm_suite(name: str, number: int, key_bytes: int, tag_bytes: int) -> AeadSuite:
    return AeadSuite(name, number, key_bytes, tag_bytes, "sha256", _ccm(tag_bytes), _CCM_SEALED, _CCM_FORGERIES)


def _gcm_suite(name: str, number: int, key_bytes: int, prf_hash: str) -> AeadSuite:
    return AeadSuite(name, number, key_bytes, 16, prf_hash, AESGCM, _GCM_SEALED, _GCM_FORGERIES)


SUITES: Final = (
    _gcm_suite("PSK-AES128-GCM-SHA256", 0x00A8, 16, "sha256"),  # RFC 5487 section 2
    _gcm_suite("PSK-AES256-GCM-SHA384", 0x00A9, 32, "sha384"),
    _ccm_suite("PSK-AES128-CCM", 0xC0A4, 16, 16),  # RFC 6655 section 5; the PRF: section 3
    _ccm_suite("PSK-AES256-CCM", 0xC0A5, 32, 16),
    _ccm_suite("PSK-AES128-CCM8", 0xC0A8, 16, 8),
    _ccm_suite("PSK-AES256-CCM8", 0xC0A9, 32, 8),
)
_BY_NAME: Final = {suite.name: suite for suite in SUITES}
_BY_NUMBER: Final = {suite.number: suite for suite in SUITES}


def suite_of(openssl_name: str) -> AeadSuite | None:
    """Return the AEAD suite that OpenSSL calls so; None for any other."""
    return _BY_NAME.get(openssl_name)


def suite_numbered(number: int) -> AeadSuite | None:
    """Return the AEAD suite with IANA's *number*; None for any other."""
    return _BY_NUMBER.get(number)


def prf(prf_hash: str, secret: bytes, label: bytes, seed: bytes, size: int) -> bytes:
    """Return *size* bytes of TLS 1.2's pseudo-random function: RFC 5246 section 5."""
    seed = label + seed
    chain = hmac.digest(secret, seed, prf_hash)
    block = hmac.digest(secret, chain + seed, prf_hash)
    while len(block) < size:
        chain = hmac.digest(secret, chain, prf_hash)
        block += hmac.digest(secret, chain + seed, prf_hash)
    return block[:size]


def derive_keys(suite: AeadSuite, master_secret: bytes, client_random: bytes, server_random: bytes) -> KeyBlock:
    """Return the keys of an association: RFC 5246 section 6.3.  An AEAD suite has no MAC keys."""
    seed = server_random + client_random
    return KeyBlock(prf(suite.prf_hash, master_secret, b"key expansion", seed, suite.block_bytes))
