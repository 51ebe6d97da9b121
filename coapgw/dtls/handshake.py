"""One half-open peer: from a ClientHello with a valid cookie to an association, or to nothing.

The handshake itself is OpenSSL's (``openssl.py``); here are its time, its limits, and what is taken from it in the end.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Hashable
from typing import Final, Protocol

from coapgw.dtls.association import CipherCache
from coapgw.dtls.cid import CidAssociation, CidTranslation
from coapgw.dtls.hello import ClientHello
from coapgw.dtls.openssl import EngineFailed
from coapgw.dtls.records import (
    ALERT,
    APPLICATION_DATA,
    CHANGE_CIPHER_SPEC,
    HANDSHAKE,
    HEADER_BYTES,
    TLS12_CID,
    epoch_of,
    pack,
    sequence_of,
)
from coapgw.dtls.suites import derive_keys, suite_of
from coapgw.model import Credential

HANDSHAKE_SECONDS: Final = 60.0  # OpenSSL has repeated a flight five times by then: 1, 2, 4, 8 and 16 s apart
REPEAT_SECONDS: Final = 0.2  # since our flight, until a repeated hello is no duplicate that crossed it on its way
UNPROVEN_LIMIT: Final = 3  # Finished messages that cannot be read; one may be an attacker's, or damaged
MESSAGE_LIMIT: Final = 1024  # bytes of a handshake message: identity and key share are the longest a client has
BYTES_LIMIT: Final = 16_384  # that one peer sends for one handshake: ten flights; OpenSSL keeps what comes too early
LARGEST_SHIFT: Final = 2**40  # of sequence numbers, so that no hello makes them overflow
EARLY_RECORDS: Final = 4  # application data that overtook the Finished on its way
_DECRYPT_ERROR: Final = b"\x02\x33"  # fatal(2), decrypt_error(51): RFC 5246 section 7.2


class HandshakeEngine(Protocol):
    """What ``openssl.Engine`` does, for a handshake that it does."""

    is_complete: bool
    credential: Credential | None
    cid: bytes | None
    peer_cid: bytes | None

    def begin_as_server(self, hello: bytes) -> None:
        """Take the ClientHello.  Raises EngineFailed."""

    def receive(self, record: bytes) -> None:
        """Take a record.  Raises EngineFailed."""

    def take_records(self) -> list[bytes]:
        """Return what is to be sent."""

    def timeout(self) -> float | None:
        """Return in how many seconds ``handle_timeout`` is due."""

    def handle_timeout(self) -> None:
        """Repeat the last flight.  Raises EngineFailed."""

    @property
    def suite(self) -> str:
        """The suite that was agreed."""

    @property
    def has_secrets(self) -> bool:
        """Whether *suite* and *secrets* can be asked for."""

    def secrets(self) -> tuple[bytes, bytes, bytes]:
        """Return master secret, client random and server random."""

    def open(self, record: bytes) -> bytes | None:
        """Return application data of a record.  Raises EngineFailed."""

    def seal(self, plaintext: bytes) -> bytes:
        """Return a record.  Raises EngineFailed."""

    def close(self) -> bytes:
        """Return a close_notify."""


class Stage(enum.Enum):
    """How far a handshake has come."""

    UNDER_WAY = enum.auto()
    COMPLETE = enum.auto()
    FAILED = enum.auto()
    UNPROVEN = enum.auto()
    TIMED_OUT = enum.auto()


class Handshake:
    """One half-open peer.

    Args:
        network: the source network it counts for.
    """

    __slots__ = (
        "_ciphers_changed",
        "_deadline",
        "_flight_at",
        "_hello_sequence",
        "_mtu",
        "_outbox",
        "_shift",
        "_translation",
        "_unread",
        "address",
        "due",
        "early",
        "early_content",
        "engine",
        "finished",
        "flight",
        "last_heard",
        "network",
        "random",
        "received",
        "sent",
        "stage",
    )

    def __init__(
        self, engine: HandshakeEngine, hello: ClientHello, address: Hashable, *, network: str, mtu: int, now: float
    ) -> None:
        """Begin with a hello whose cookie is valid."""
        self.engine = engine
        self.address = address
        self.network = network
        self.random = hello.random
        self.stage = Stage.UNDER_WAY
        self.early: list[bytes] = []  # records
        self.early_content: list[bytes] = []  # of records with a Connection ID, which were opened here
        self.finished: bytes | None = None  # the client's record with it
        self.flight: list[bytes] = []  # our last records
        self.last_heard = now
        self.due = math.inf
        self._mtu = mtu
        self._flight_at = now
        self._outbox: list[bytes] = []
        self._shift: int | None = None  # from OpenSSL's sequence numbers in epoch 0 to ours
        self._deadline = now + HANDSHAKE_SECONDS
        self.received = len(hello.record)  # bytes of records, from the hello with the cookie on
        self.sent = 0
        self._ciphers_changed = False
        self._translation: CidTranslation | None = None
        self._unread = 0
        self._hello_sequence = min(sequence_of(hello.record), LARGEST_SHIFT)
        try:
            engine.begin_as_server(hello.record)
        except EngineFailed:
            self.stage = Stage.FAILED
        self._collect(now)

    def receive(self, record: bytes, now: float) -> None:
        """Take a record of the peer; *stage* says what became of the handshake."""
        if self.stage is not Stage.UNDER_WAY:
            return
        self.received += len(record)
        if self.received > BYTES_LIMIT:
            self.stage = Stage.FAILED
            return
        if record[0] == TLS12_CID:
            self._receive_with_cid(record, now)
            return
        protected = epoch_of(record) > 0
        if not protected and record[0] == HANDSHAKE and _is_too_long(record):
            return
        if protected and record[0] == APPLICATION_DATA:
            if len(self.early) < EARLY_RECORDS:
                self.early.append(record)
            return
        if protected and self.engine.cid and self.engine.peer_cid is not None:
            return  # who has a Connection ID of ours shows it from the first protected record on
        self._step(record, record, now)

    def _receive_with_cid(self, record: bytes, now: float) -> None:
        """Open a record with our Connection ID, and have OpenSSL read what is in it."""
        if self._translation is None and self.engine.peer_cid is not None and self.engine.has_secrets:
            self._translation = self._begin_translation()
        if self._translation is None:
            return  # it overtook what it takes to open it; the peer repeats it
        content = self._translation.association.open(record)
        if content is None:
            self._note_unread(now)
        elif self._translation.association.content_type == APPLICATION_DATA:
            if len(self.early_content) < EARLY_RECORDS:
                self.early_content.append(content)
        else:
            self._step(record, self._translation.inward(record, content), now)

    def _begin_translation(self) -> CidTranslation | None:
        suite = suite_of(self.engine.suite)
        if suite is None or not self.engine.cid or self.engine.peer_cid is None:
            return None
        keys = derive_keys(suite, *self.engine.secrets())
        association = CidAssociation(
            *(self.address, "", 0, suite, keys, 0, CipherCache(1)),
            newest=-1,
            cid=self.engine.cid,
            peer_cid=self.engine.peer_cid,
        )
        return CidTranslation(association)

    @property
    def cid_association(self) -> CidAssociation | None:
        """What opened and sealed the protected records of the handshake, None without Connection IDs."""
        return None if self._translation is None else self._translation.association

    def _step(self, record: bytes, translated: bytes, now: float) -> None:
        """Have OpenSSL read a record of the peer, as it was or *translated*."""
        self.last_heard = now
        try:
            self.engine.receive(translated)
        except EngineFailed:
            self.stage = Stage.FAILED
        if self.engine.is_complete:
            self.stage = Stage.COMPLETE
            self.finished = record
        elif record[0] == CHANGE_CIPHER_SPEC:
            self._ciphers_changed = True
        elif epoch_of(record) > 0 and translated[0] == HANDSHAKE and self.stage is Stage.UNDER_WAY:
            self._note_unread(now)
            return
        self._collect(now)

    def _note_unread(self, now: float) -> None:
        """Count a Finished that could not be read; a few are enough."""
        self.last_heard = now
        if self._ciphers_changed:
            self._unread += 1
            if self._unread >= UNPROVEN_LIMIT:
                self.stage = Stage.UNPROVEN
        self._collect(now)

    def handle_timer(self, now: float) -> None:
        """Repeat the flight, or give up."""
        if now >= self._deadline:
            self.stage = Stage.TIMED_OUT
            return
        try:
            self.engine.handle_timeout()
        except EngineFailed:
            self.stage = Stage.TIMED_OUT
        self._collect(now)

    def repeat_flight(self, now: float) -> bool:
        """Send our flight again, to a client that repeats its hello and so has not got it; return whether we do.

        OpenSSL's own timer begins at 1 s and doubles: a client that is more patient with losses than that would wait.
        """
        if now - self._flight_at < REPEAT_SECONDS:
            return False
        self._flight_at = self.last_heard = now
        self._outbox += [self._outward(record) for record in self.flight]
        return True

    def take_datagrams(self) -> list[bytes]:
        """Return what is to be sent, as datagrams of at most the MTU."""
        outbox, self._outbox = self._outbox, []
        self.sent += sum(map(len, outbox))
        return pack(outbox, self._mtu)

    def _collect(self, now: float) -> None:
        """Take what the engine has to send, and look at its clock."""
        records = self.engine.take_records()
        if records:
            self.flight = [self._renumbered(record) for record in records]  # protected ones as OpenSSL made them
            self._flight_at = now
            self._outbox += [self._outward(record) for record in self.flight]
        if self.stage is Stage.UNPROVEN:
            self._outbox.append(_plain_alert(self.flight, _DECRYPT_ERROR))
        timeout = self.engine.timeout()
        self.due = self._deadline if timeout is None else min(self._deadline, now + timeout)

    def _renumbered(self, record: bytes) -> bytes:
        """Return a record of OpenSSL's; in epoch 0 with a number that no HelloVerifyRequest of ours had.

        The first has that of the ClientHello (RFC 6347 section 4.2.1), and OpenSSL always begins with 1: to a client
        that repeated its hello, and looks for repeated numbers, some of our flight would have been seen before.
        """
        if epoch_of(record):
            return record
        if self._shift is None:
            self._shift = max(0, self._hello_sequence - sequence_of(record))
        if not self._shift:
            return record
        return record[:5] + (sequence_of(record) + self._shift).to_bytes(6, "big") + record[11:]

    def _outward(self, record: bytes) -> bytes:
        """Return what the peer is sent for a record of OpenSSL's."""
        if self._translation is None or not epoch_of(record):
            return record
        return self._translation.outward(record)


def _plain_alert(flight: list[bytes], alert: bytes) -> bytes:
    """Return an alert in epoch 0, with the sequence number behind those of the *flight* before it."""
    sequence = 1 + max((sequence_of(record) for record in flight), default=0)
    return bytes((ALERT,)) + b"\xfe\xfd\0\0" + sequence.to_bytes(6, "big") + b"\0\2" + alert


def _is_too_long(record: bytes) -> bool:
    """Return whether a record announces a message that is longer than any a client has to send.

    OpenSSL makes room for whole messages, ten of them ahead: a few bytes of each would cost a megabyte.
    """
    at = HEADER_BYTES
    while at < len(record):
        if int.from_bytes(record[at + 1 : at + 4], "big") > MESSAGE_LIMIT:
            return True
        at += 12 + int.from_bytes(record[at + 9 : at + 12], "big")
    return False
