"""DTLS records in a few words, for people who watch a handshake."""

from __future__ import annotations

from typing import Final

from coapgw.dtls.alerts import alert_name
from coapgw.dtls.records import ALERT, APPLICATION_DATA, CHANGE_CIPHER_SPEC, HANDSHAKE, HEADER_BYTES, epoch_of, split

_MESSAGE_HEADER_BYTES: Final = 12  # RFC 6347 section 4.2.2
_MESSAGES: Final = {  # RFC 5246 section 7.4, RFC 6347 section 4.2.1
    0: "HelloRequest",
    1: "ClientHello",
    2: "ServerHello",
    3: "HelloVerifyRequest",
    4: "NewSessionTicket",
    11: "Certificate",
    12: "ServerKeyExchange",
    13: "CertificateRequest",
    14: "ServerHelloDone",
    15: "CertificateVerify",
    16: "ClientKeyExchange",
    20: "Finished",
}
_TYPES: Final = {
    CHANGE_CIPHER_SPEC: "ChangeCipherSpec",
    ALERT: "alert",
    HANDSHAKE: "handshake message",
    APPLICATION_DATA: "application data",
}


def describe_records(datagram: bytes) -> str:
    """Return what the records of a datagram are, as far as it can be read without a key."""
    return ", ".join(_describe(record) for record in split(datagram)) or "no DTLS record"


def _describe(record: bytes) -> str:
    kind = _TYPES.get(record[0], f"record of type {record[0]}")
    body = record[HEADER_BYTES:]
    if record[0] == APPLICATION_DATA:
        return f"{kind}, {len(body)} bytes sealed"
    if epoch_of(record):
        return "Finished (sealed)" if record[0] == HANDSHAKE else f"{kind} (sealed)"
    if record[0] == HANDSHAKE and len(body) >= _MESSAGE_HEADER_BYTES:
        return _message(body)
    if record[0] == ALERT and len(body) == 2:
        return f"alert {alert_name(body[1])}"
    return kind


def _message(body: bytes) -> str:
    name = _MESSAGES.get(body[0], f"handshake message {body[0]}")
    if body[1:4] != body[9:12]:
        return f"{name} (a fragment)"
    if body[0] == 1 and body[4:6] != b"\0\0":
        return f"{name} with the cookie"
    return name
