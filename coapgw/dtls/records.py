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

_MAJOR: Final = 0xFE
_FIRST_TYPE: Final = CHANGE_CIPHER_SPEC
_LAST_TYPE: Final = TLS12_CID


def split(datagram: bytes) -> list[bytes]:
    """Return the records of a datagram in their order, up to the first thing that is none.

    What follows it is dropped (RFC 6347 section 4.1.2.7).  A record has a known kind of content type, a DTLS 1.x
    version, at most FRAGMENT_LIMIT bytes of fragment, and all of them in the datagram.  A tls12_cid record's header is
    longer (RFC 9146 section 4), by a number of bytes that is not in it: such a one ends the list as what it is, with
    all that follows.
    """
    end = len(datagram)
    if end < HEADER_BYTES:
        return []
    if end == HEADER_BYTES + (datagram[11] << 8 | datagram[12]) and _is_record(datagram, 0):
        return [datagram]  # one record fills the datagram: nearly always
    records = []
    at = 0
    while end - at >= HEADER_BYTES and _is_record(datagram, at):
        if datagram[at] == TLS12_CID:
            records.append(datagram[at:])
            break
        following = at + HEADER_BYTES + (datagram[at + 11] << 8 | datagram[at + 12])
        if following > end:
            break
        records.append(datagram[at:following])
        at = following
    return records


def _is_record(datagram: bytes, at: int) -> bool:
    """Return whether 13 bytes of *datagram* from *at* could be the header of a record."""
    return (
        _FIRST_TYPE <= datagram[at] <= _LAST_TYPE
        and datagram[at + 1] == _MAJOR
        and (datagram[at + 11] << 8 | datagram[at + 12]) <= FRAGMENT_LIMIT
    )
