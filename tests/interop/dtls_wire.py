"""What tests read and write of DTLS 1.2 in the clear (RFC 6347 sections 4.1 and 4.2)."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION_DATA = 20, 21, 22, 23
CLIENT_HELLO, SERVER_HELLO, HELLO_VERIFY_REQUEST, CLIENT_KEY_EXCHANGE, FINISHED = 1, 2, 3, 16, 20
RECORD_HEADER, HANDSHAKE_HEADER = 13, 12
DTLS_1_2 = b"\xfe\xfd"


@attrs.frozen
class Record:
    """One record; *sequence* is 48 bits."""

    type: int
    epoch: int
    sequence: int
    body: bytes
    version: bytes = DTLS_1_2

    def encode(self) -> bytes:
        """Return its bytes."""
        numbers = self.epoch.to_bytes(2, "big") + self.sequence.to_bytes(6, "big")
        return bytes([self.type]) + self.version + numbers + len(self.body).to_bytes(2, "big") + self.body


@attrs.frozen
class Fragment:
    """One piece of a handshake message; *length* is that of the whole message."""

    type: int
    length: int
    sequence: int
    offset: int
    body: bytes

    def encode(self) -> bytes:
        """Return its bytes."""
        return (
            bytes([self.type])
            + self.length.to_bytes(3, "big")
            + self.sequence.to_bytes(2, "big")
            + self.offset.to_bytes(3, "big")
            + len(self.body).to_bytes(3, "big")
            + self.body
        )


def records(datagram: bytes) -> Iterator[Record]:
    """Split what an honest peer sent."""
    while datagram:
        end = RECORD_HEADER + int.from_bytes(datagram[11:13], "big")
        epoch, sequence = int.from_bytes(datagram[3:5], "big"), int.from_bytes(datagram[5:11], "big")
        yield Record(datagram[0], epoch, sequence, datagram[RECORD_HEADER:end], datagram[1:3])
        datagram = datagram[end:]


def fragments(datagram: bytes) -> Iterator[Fragment]:
    """Return the handshake messages of a datagram that are in the clear."""
    for record in records(datagram):
        body = record.body if record.type == HANDSHAKE and record.epoch == 0 else b""
        while body:
            end = HANDSHAKE_HEADER + int.from_bytes(body[9:12], "big")
            yield Fragment(
                body[0],
                int.from_bytes(body[1:4], "big"),
                int.from_bytes(body[4:6], "big"),
                int.from_bytes(body[6:9], "big"),
                body[HANDSHAKE_HEADER:end],
            )
            body = body[end:]


def chosen_suites(datagrams: list[bytes]) -> list[int]:
    """Return the number of the suite in every ServerHello among *datagrams*, repeats of one hello left out."""
    chosen: dict[bytes, int] = {}
    for datagram in datagrams:
        for fragment in fragments(datagram):
            if fragment.type == SERVER_HELLO and fragment.offset == 0:
                after_session = 35 + fragment.body[34]
                chosen[fragment.body[2:34]] = int.from_bytes(fragment.body[after_session : after_session + 2], "big")
    return list(chosen.values())
