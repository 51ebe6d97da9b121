"""Records with Connection IDs, byte for byte as pion has them: tests/data/rfc9146.json, made by tests/data/rfc9146."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest

from coapgw.dtls.association import AeadAssociation, CipherCache, Refusal
from coapgw.dtls.cid import CidAssociation
from coapgw.dtls.records import APPLICATION_DATA, PLAINTEXT_LIMIT, TLS12_CID
from coapgw.dtls.suites import SUITES, KeyBlock, derive_keys, suite_of

VECTORS = Path(__file__).parents[1] / "data" / "rfc9146.json"


@attrs.frozen
class Sealed:
    """A record, what is in it, and the association it belongs to."""

    suite: str
    keys: KeyBlock = attrs.field(repr=False)
    by_client: bool
    cid: bytes
    sequence: int
    content_type: int
    content: bytes
    zeros: int
    record: bytes

    def association(self, *, sender: bool) -> AeadAssociation:
        """Return the end that sealed the record, or the one that opens it; with another CID in the other direction."""
        suite = suite_of(self.suite)
        assert suite is not None
        is_client = self.by_client == sender
        about = (None, "", 0, suite, self.keys, self.sequence, CipherCache(1), is_client, -1)
        if not self.cid and sender:
            return CidAssociation(*about, cid=b"another", peer_cid=b"")
        if sender:
            return CidAssociation(*about, cid=b"", peer_cid=self.cid)
        return CidAssociation(*about, cid=self.cid, peer_cid=b"" if self.cid else b"another")


def _read() -> list[Sealed]:
    read = []
    for association in json.loads(VECTORS.read_text()):
        suite = suite_of(association["suite"])
        assert suite is not None
        secrets = (bytes.fromhex(association[name]) for name in ("master_secret", "client_random", "server_random"))
        keys = derive_keys(suite, *secrets)
        for one in association["records"]:
            cid, content, record = (bytes.fromhex(one[name]) for name in ("cid", "content", "record"))
            about = suite.name, keys, one["by_client"], cid, one["sequence"], one["content_type"]
            read.append(Sealed(*about, content, one["zeros"], record))
    return read


ALL = _read()


def test_every_suite_every_length_and_every_inner_type_is_there() -> None:
    assert {one.suite for one in ALL} == {suite.name for suite in SUITES}
    for suite in SUITES:
        mine = [one for one in ALL if one.suite == suite.name]
        assert {(one.by_client, len(one.cid)) for one in mine} >= {
            (who, n) for who in (True, False) for n in (0, 1, 6, 20)
        }
        assert {one.content_type for one in mine if one.cid} == {21, 22, 23}
        assert {one.zeros for one in mine} == {0, 1, 31, 200}


@pytest.mark.parametrize("suite", [suite.name for suite in SUITES])
def test_what_another_implementation_sealed_is_opened(suite: str) -> None:
    for one in ALL:
        if one.suite == suite:
            association = one.association(sender=False)
            assert association.open(one.record) == one.content, one
            assert isinstance(association, CidAssociation)
            assert association.content_type == one.content_type
            assert association.is_newest(one.record)
            assert association.open(one.record) is None  # once
            assert association.refusal(one.record) is Refusal.REPLAYED


@pytest.mark.parametrize("suite", [suite.name for suite in SUITES])
def test_what_is_sealed_here_is_what_another_implementation_seals(suite: str) -> None:
    for one in ALL:
        if one.suite == suite:
            inner = one.content_type, one.content
            if one.zeros:  # we never pad: padding is what comes behind a content that ends with its type
                inner = 0, one.content + bytes((one.content_type,)) + bytes(one.zeros - 1)
            assert one.association(sender=True).seal(*inner) == one.record, one


@pytest.mark.parametrize("suite", [suite.name for suite in SUITES])
def test_every_bit_of_a_header_is_covered(suite: str) -> None:
    """Version, epoch, number, CID, length: whatever is changed, it is not opened, and it is not seen as opened."""
    for one in ALL:
        if one.suite == suite and len(one.cid) == 6:
            association = one.association(sender=False)
            for bit in range(8 * (13 + len(one.cid))):
                changed = bytearray(one.record)
                changed[bit // 8] ^= 1 << bit % 8
                assert association.open(bytes(changed)) is None, bit
            assert association.open(one.record) == one.content


def test_additional_data_is_laid_out_as_section_5_3_says() -> None:
    """Written out by hand, from the text of the RFC, and tried with the cipher alone."""
    [one] = [
        one
        for one in ALL
        if one.suite == "PSK-AES128-CCM8" and one.by_client and len(one.cid) == 6 and one.content_type == 22
    ]
    suite = suite_of(one.suite)
    assert suite is not None
    covered = bytes.fromhex(
        "ffffffffffffffff"  # seq_num_placeholder
        "19"  # tls12_cid
        "06"  # cid_length
        "19"  # tls12_cid, the type of the record
        "fefd"  # version
        "0001"  # epoch
        "000000000000"  # sequence_number
        "c0c1c2c3c4c5"  # cid
        "0019"  # length_of_DTLSInnerPlaintext: 24 bytes of content and its type
    )
    fragment = one.record[13 + 6 :]
    nonce = one.keys[32:36] + fragment[:8]
    assert suite.aead(one.keys[:16]).decrypt(nonce, fragment[8:], covered) == one.content + b"\x16"
    assert one.record[:19].hex() == "19fefd0001000000000000c0c1c2c3c4c50029"
    assert one.record[0] == TLS12_CID


def test_the_largest_content_passes_both_ways() -> None:
    one = next(one for one in ALL if len(one.cid) == 20)
    full = bytes(PLAINTEXT_LIMIT - 1) + b"\1"
    record = one.association(sender=True).seal(APPLICATION_DATA, full)
    assert one.association(sender=False).open(record) == full
