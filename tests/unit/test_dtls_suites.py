"""Suites and keys: published vectors, and OpenSSL's opinion."""

from __future__ import annotations

import attrs
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from coapgw.dtls.suites import SUITES, AeadSuite, KeyBlock, derive_keys, prf, suite_numbered, suite_of
from tests.unit.openssl_pair import handshake

NAMES = [suite.name for suite in SUITES]

# The vectors that implementers of TLS 1.2 exchanged on the working group's list (September 2009).
VECTORS = {
    "sha256": (
        "9bbe436ba940f017b17652849a71db35",
        "a0ba9f936cda311827a6f796ffd5198c",
        "e3f229ba727be17b8d122620557cd453c2aab21d07c3d495329b52d4e61edb5a6b301791e90d35c9c9a46b4e14baf9af0fa022f7"
        "077def17abfd3797c0564bab4fbc91666e9def9b97fce34f796789baa48082d122ee42c5a72e5a5110fff70187347b66",
    ),
    "sha384": (
        "b80b733d6ceefcdc71566ea48e5567df",
        "cd665cf6a8447dd6ff8b27555edb7465",
        "7b0c18e9ced410ed1804f2cfa34a336a1c14dffb4900bb5fd7942107e81c83cde9ca0faa60be9fe34f82b1233c9146a0e534cb40"
        "0fed2700884f9dc236f80edd8bfa961144c9e8d792eca722a7b32fc3d416d473ebc2c5fd4abfdad05d9184259b5bf8cd4d90fa0d"
        "31e2dec479e4f1a26066f2eea9a69236a3e52655c9e9aee691c8f3a26854308d5eaa3be85e0990703d73e56f",
    ),
}


@pytest.mark.parametrize("prf_hash", VECTORS)
def test_prf_gives_the_published_bytes(prf_hash: str) -> None:
    secret, seed, wanted = map(bytes.fromhex, VECTORS[prf_hash])
    for size in (1, 31, 32, 33, 48, 49, len(wanted)):
        assert prf(prf_hash, secret, b"test label", seed, size) == wanted[:size]


def test_numbers_are_those_of_iana() -> None:
    assert {suite.name: suite.number for suite in SUITES} == {
        "PSK-AES128-GCM-SHA256": 0x00A8,
        "PSK-AES256-GCM-SHA384": 0x00A9,
        "PSK-AES128-CCM": 0xC0A4,
        "PSK-AES256-CCM": 0xC0A5,
        "PSK-AES128-CCM8": 0xC0A8,
        "PSK-AES256-CCM8": 0xC0A9,
    }
    for suite in SUITES:
        assert suite_numbered(suite.number) is suite_of(suite.name) is suite


@pytest.mark.parametrize("suite", SUITES, ids=NAMES)
def test_numbers_are_those_of_openssl(suite: AeadSuite) -> None:
    hello = handshake(suite.name).client_hello
    behind_random = hello[13 + 12 + 2 + 32 :]
    assert behind_random[:2] == b"\0\0"  # neither session id nor cookie
    assert behind_random[4:6] == suite.number.to_bytes(2, "big")


@pytest.mark.parametrize("name", ["PSK-AES128-CBC-SHA256", "ECDHE-PSK-AES128-CBC-SHA256", "PSK-AES128-CBC-SHA", ""])
def test_cbc_is_not_for_us(name: str) -> None:
    assert suite_of(name) is None
    assert suite_numbered(0x00AE) is None


@pytest.mark.parametrize("suite", SUITES, ids=NAMES)
def test_sizes_fit(suite: AeadSuite) -> None:
    aead = suite.aead(bytes(suite.key_bytes))
    assert len(aead.encrypt(bytes(12), b"four", b"")) == 4 + suite.tag_bytes
    assert suite.overhead == 8 + suite.tag_bytes
    assert suite.block_bytes == len(derive_keys(suite, bytes(48), bytes(32), bytes(32)))
    assert ("256-GCM" in suite.name) == (suite.prf_hash == "sha384")
    assert ("GCM" in suite.name) == isinstance(aead, AESGCM)


@pytest.mark.parametrize("suite", SUITES, ids=NAMES)
def test_keys_are_those_that_openssl_exports(suite: AeadSuite) -> None:
    """The exporter (RFC 5705) is the same function with another label: it shows that secret and randoms are right."""
    pair = handshake(suite.name)
    master_secret, client_random, server_random = pair.secrets()
    exported = pair.server.export_keying_material(b"EXPORTER-coapgw", 72)
    assert prf(suite.prf_hash, master_secret, b"EXPORTER-coapgw", client_random + server_random, 72) == exported


def test_keys_are_never_shown() -> None:
    keys = KeyBlock(b"secret" * 7)
    for shown in (repr(keys), str(keys), f"{keys!s}", format(keys), repr([keys])):
        assert "secret" not in shown
    assert bytes(keys) == b"secret" * 7


def test_suites_are_values() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        SUITES[0].key_bytes = 1  # type: ignore[misc]
