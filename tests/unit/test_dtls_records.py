"""Records: what a datagram holds, and what goes into one."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coapgw.dtls.records import (
    ALERT,
    APPLICATION_DATA,
    CHANGE_CIPHER_SPEC,
    DTLS_1_2,
    FRAGMENT_LIMIT,
    HANDSHAKE,
    HEADER,
    HEADER_BYTES,
    epoch_of,
    pack,
    plain_record,
    sequence_of,
    split,
)

FIRST = plain_record(HANDSHAKE, 7, b"hello")
SECOND = plain_record(ALERT, 8, b"\2\x28")
CID = bytes.fromhex("19fefd0001000000000002aabbcc0003010203")  # a Connection ID of three bytes

types = st.sampled_from([CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION_DATA])
sequences = st.integers(0, 2**48 - 1)
record_lists = st.lists(st.builds(plain_record, types, sequences, st.binary(min_size=1, max_size=60)), max_size=6)


def test_header_is_that_of_the_rfc() -> None:
    record = HEADER.pack(APPLICATION_DATA, DTLS_1_2, 1 << 48 | 0x0A0B, 3) + b"abc"
    assert record == bytes.fromhex("17 fefd 0001 000000000a0b 0003 616263")
    assert (epoch_of(record), sequence_of(record)) == (1, 0x0A0B)
    assert (epoch_of(FIRST), sequence_of(FIRST)) == (0, 7)
    assert HEADER.size == HEADER_BYTES


def test_records_come_apart_in_their_order() -> None:
    assert split(FIRST) == [FIRST]
    assert split(FIRST + SECOND + FIRST) == [FIRST, SECOND, FIRST]
    assert split(b"") == []


def test_first_thing_that_is_no_record_ends_them() -> None:
    for odd in (
        b"\0",
        SECOND[:-1],  # cut short
        b"\x13" + SECOND[1:],  # content types that do not exist
        b"\x18" + SECOND[1:],
        b"\x80" + SECOND[1:],
        SECOND[:1] + b"\3" + SECOND[2:],  # TLS
        plain_record(HANDSHAKE, 1, b""),
        plain_record(HANDSHAKE, 1, bytes(FRAGMENT_LIMIT + 1)),
        CID,
    ):
        assert split(odd) == []
        assert split(FIRST + odd) == [FIRST]
        if odd[:1] != SECOND[:1]:
            assert split(FIRST + odd + SECOND) == [FIRST]


def test_largest_fragment_is_taken() -> None:
    largest = plain_record(HANDSHAKE, 1, bytes(FRAGMENT_LIMIT))
    assert split(largest) == [largest]
    assert split(FIRST + largest) == [FIRST, largest]


def test_old_version_of_a_first_client_hello_is_taken() -> None:
    hello = b"\x16\xfe\xff" + FIRST[3:]
    assert split(hello) == [hello]


def test_records_with_connection_id_have_a_longer_header() -> None:
    assert split(CID, cid_bytes=3) == [CID]
    assert split(CID + FIRST + CID, cid_bytes=3) == [CID, FIRST, CID]
    assert split(CID, cid_bytes=2) == []
    assert split(CID[:14], cid_bytes=3) == []
    assert split(FIRST + CID[:-1], cid_bytes=3) == [FIRST]


@given(record_lists)
def test_what_was_joined_comes_apart(records: list[bytes]) -> None:
    assert split(b"".join(records)) == records


@given(st.binary(max_size=120), st.integers(0, 8))
def test_any_bytes_split_into_a_beginning_of_them(datagram: bytes, cid_bytes: int) -> None:
    records = split(datagram, cid_bytes)
    assert datagram.startswith(b"".join(records))
    assert all(len(record) > HEADER_BYTES for record in records)


@given(record_lists, st.binary(max_size=40))
def test_rubbish_behind_records_costs_them_nothing(records: list[bytes], rubbish: bytes) -> None:
    assert split(b"".join(records) + rubbish)[: len(records)] == records


@given(record_lists, st.integers(1, 200))
def test_datagrams_keep_to_the_mtu(records: list[bytes], mtu: int) -> None:
    datagrams = pack(records, mtu)
    assert b"".join(datagrams) == b"".join(records)
    for datagram in datagrams:
        assert len(datagram) <= mtu or len(split(datagram)) == 1
    for one, following in pairwise(datagrams):
        assert len(one) + len(split(following)[0]) > mtu  # no datagram more than it takes


@pytest.mark.parametrize("content_type", [CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION_DATA])
def test_every_content_type_is_taken(content_type: int) -> None:
    record = plain_record(content_type, 0, b"x")
    assert split(record) == [record]
