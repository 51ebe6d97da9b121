"""The record layer on the wire: RFC 6347 section 4.1.

A record is ``type(1) version(2) epoch(2) sequence_number(6) length(2) fragment(length)``; a datagram holds one or more.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

CHANGE_CIPHER_SPEC: Final = 20  # content types, RFC 5246 section 6.2.1
ALERT: Final = 21
HANDSHAKE: Final = 22
APPLICATION_DATA: Final = 23
TLS12_CID: Final = 25  # RFC 9146 section 4

DTLS_1_0: Final = 0xFEFF  # also the version of a first ClientHello: RFC 6347 section 4.2.1
DTLS_1_2: Final = 0xFEFD

HEADER: Final = struct.Struct(">BHQH")  # type, version, epoch << 48 | sequence number, length
HEADER_BYTES: Final = 13
PLAINTEXT_LIMIT: Final = 2**14  # bytes, RFC 5246 section 6.2.1
FRAGMENT_LIMIT: Final = 2**14 + 2048  # bytes of a protected fragment, RFC 5246 section 6.2.3
RECORD_LIMIT: Final = HEADER_BYTES + FRAGMENT_LIMIT
LAST_SEQUENCE: Final = 2**48 - 1

_VERSION_MAJOR: Final = 0xFE
_ORDINARY: Final = range(CHANGE_CIPHER_SPEC, APPLICATION_DATA + 1)


def split(datagram: bytes, cid_bytes: int = 0) -> list[bytes]:
    """Return the records of a datagram in their order, up to the first thing that is none.

    What follows it is dropped (RFC 6347 section 4.1.2.7).  A record has a content type that we know, a DTLS 1.x
    version, and a fragment of 1 to FRAGMENT_LIMIT bytes that the datagram holds all of.

    Args:
        cid_bytes: the length of our Connection IDs, which precede the length of a tls12_cid record (RFC 9146
            section 4); with 0 there are no such records.
    """
    end = len(datagram)
    records = []
    at = 0
    while end - at > HEADER_BYTES:
        body = at + HEADER_BYTES
        content_type = datagram[at]
        if content_type not in _ORDINARY:
            if content_type != TLS12_CID or not cid_bytes or end - at <= HEADER_BYTES + cid_bytes:
                break
            body += cid_bytes
        length = datagram[body - 2] << 8 | datagram[body - 1]
        following = body + length
        if datagram[at + 1] != _VERSION_MAJOR or not 0 < length <= FRAGMENT_LIMIT or following > end:
            break
        if not at and following == end:
            return [datagram]
        records.append(datagram[at:following])
        at = following
    return records


def pack(records: Iterable[bytes], mtu: int) -> list[bytes]:
    """Return *records* in their order, in as few datagrams of at most *mtu* bytes as that takes.

    A record that is larger goes in a datagram of its own: records cannot be cut.
    """
    datagrams: list[bytes] = []
    waiting: list[bytes] = []
    size = 0
    for record in records:
        if waiting and size + len(record) > mtu:
            datagrams.append(b"".join(waiting))
            waiting, size = [], 0
        waiting.append(record)
        size += len(record)
    if waiting:
        datagrams.append(b"".join(waiting))
    return datagrams


def epoch_of(record: bytes) -> int:
    """Return the epoch of what begins with a header."""
    return record[3] << 8 | record[4]


def sequence_of(record: bytes) -> int:
    """Return the sequence number of what begins with a header; every epoch counts its own from 0."""
    return int.from_bytes(record[5:11], "big")


def plain_record(content_type: int, sequence: int, fragment: bytes) -> bytes:
    """Return an unprotected record of epoch 0."""
    return HEADER.pack(content_type, DTLS_1_2, sequence, len(fragment)) + fragment
