"""The client's end of a DTLS association, as a machine without I/O around another one.

It has the verbs of the message layer, so that the same pump moves it::

    client.begin(now)
    client.receive_datagram(data, address, now)
    for data, address in client.datagrams_to_send(now): ...
    client.next_timer()  ->  client.handle_timer(now)
    client.close()

What the upper machine wants to send waits in it until the handshake is complete, then travels in records; what comes in
records is handed up.  Flights are repeated by the engine's own timer (RFC 6347 section 4.2.4).  A client has one
association: it stays on its engine, whatever the suite.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Hashable, Iterable
from typing import Final, Protocol

from coapgw.dtls.alerts import CLOSE_NOTIFY, FATAL, KEY_ALERTS, alert_name
from coapgw.dtls.openssl import EngineFailed
from coapgw.dtls.records import ALERT, HEADER_BYTES, epoch_of, pack, split
from coapgw.errors import PeerError

HANDSHAKE_SECONDS: Final = 30.0  # OpenSSL repeats a flight after 1, 3, 7 and 15 s
PLAINTEXT_LIMIT: Final = 16_384  # bytes in one record: RFC 6347 section 4.1, RFC 5246 section 6.2.1
_ALERT_BYTES: Final = 2
_KEY_CAUSES: Final = "wrong key, unknown identity or inactive device"


class HandshakeFailed(PeerError):
    """No association came of it; the sentence says how far it got."""


class AssociationEnded(PeerError):
    """An association that the server ended."""


class ClientEngine(Protocol):
    """What ``openssl.Engine`` does for a client."""

    is_complete: bool

    def begin_as_client(self) -> None:
        """Make the first flight.  Raises EngineFailed."""

    def receive(self, record: bytes) -> None:
        """Take a record of the handshake.  Raises EngineFailed."""

    def take_records(self) -> list[bytes]:
        """Return what is to be sent."""

    def timeout(self) -> float | None:
        """Return in how many seconds ``handle_timeout`` is due."""

    def handle_timeout(self) -> None:
        """Repeat the last flight.  Raises EngineFailed."""

    @property
    def suite(self) -> str:
        """The suite that was agreed."""

    def open(self, record: bytes) -> bytes | None:
        """Return application data of a record.  Raises EngineFailed."""

    def seal(self, plaintext: bytes) -> bytes:
        """Return a record.  Raises EngineFailed."""

    def close(self) -> bytes:
        """Return a close_notify."""


class UpperMachine(Protocol):
    """What travels inside: a message layer."""

    def receive_datagram(self, data: bytes, address: Hashable, now: float, /) -> None:
        """Take a datagram."""

    def datagrams_to_send(self, now: float, /) -> Iterable[tuple[bytes, Hashable]]:
        """Return what is to be sent."""

    def next_timer(self) -> float | None:
        """Return when ``handle_timer`` is due."""

    def handle_timer(self, now: float, /) -> None:
        """Do what is due."""


class Stage(enum.Enum):
    """How far the client has come; the sentence of a failure depends on it."""

    UNANSWERED = enum.auto()  # not a byte has come
    ANSWERED = enum.auto()
    FINISHED = enum.auto()  # our Finished is out: the first thing that proves the key
    ESTABLISHED = enum.auto()
    ENDED = enum.auto()


class DtlsClient:
    """One association with one server.

    Args:
        engine: in client role, not begun.
        upper: what travels inside; its wake has to be the pump's.
        peer: the server's address, as the pump and *upper* know it.
        mtu: largest datagram of a flight, bytes.
        handshake_seconds: when to give up.
        established: called once, when *upper* can be heard.
        ended: called once with the reason, unless ``close`` came first.
    """

    def __init__(
        self,
        engine: ClientEngine,
        upper: UpperMachine,
        peer: Hashable,
        *,
        mtu: int = 1280,
        handshake_seconds: float = HANDSHAKE_SECONDS,
        wake: Callable[[], None] = lambda: None,
        established: Callable[[], None] = lambda: None,
        ended: Callable[[HandshakeFailed | AssociationEnded], None] = lambda _: None,
    ) -> None:
        """Wait for ``begin``."""
        self.stage = Stage.UNANSWERED
        self._engine = engine
        self._upper = upper
        self._peer = peer
        self._mtu = mtu
        self._handshake_seconds = handshake_seconds
        self._wake = wake
        self._established = established
        self._ended = ended
        self._records: list[bytes] = []
        self._deadline = math.inf
        self._repeat_due = math.inf

    @property
    def suite(self) -> str:
        """OpenSSL's name of the suite that was agreed; empty before."""
        return self._engine.suite if self._engine.is_complete else ""

    def begin(self, now: float) -> None:
        """Send the first ClientHello."""
        self._deadline = now + self._handshake_seconds
        try:
            self._engine.begin_as_client()
        except EngineFailed as failed:
            self._end(HandshakeFailed(f"the DTLS handshake cannot begin: {failed.reason}"))
            return
        self._collect(now)
        self._wake()

    def close(self) -> None:
        """Say goodbye (RFC 5246 section 7.2.1); nothing else is sent or taken after that."""
        if self.stage is Stage.ESTABLISHED:
            self._records += split(self._engine.close())
            self._wake()
        self.stage = Stage.ENDED

    # ------------------------------------------------------------------ the verbs

    def receive_datagram(self, data: bytes, address: Hashable, now: float) -> None:
        """Take a datagram; raises nothing that the peer could cause."""
        for record in split(data):
            if self.stage is Stage.ESTABLISHED:
                self._open(record, now)
            elif self.stage is not Stage.ENDED:
                self._shake_hands(record)
        self._collect(now)

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Hashable]]:
        """Return what is to be sent: flights, and once the handshake is complete what *upper* has to say."""
        records, self._records = self._records, []
        out = [(datagram, self._peer) for datagram in pack(records, self._mtu)]
        if self.stage is Stage.ESTABLISHED:
            for plaintext, _ in self._upper.datagrams_to_send(now):
                try:
                    out.append((self._engine.seal(plaintext), self._peer))
                except EngineFailed as failed:
                    self._end(AssociationEnded(f"a message could not be sent: {failed.reason}"))
                    break
        return out

    def crowd(self, *, crowded: bool) -> None:
        """Do nothing: there is one peer only."""

    def next_timer(self) -> float | None:
        """Return when ``handle_timer`` is to be called, or None."""
        if self.stage is Stage.ENDED:
            return None
        if self.stage is Stage.ESTABLISHED:
            return self._upper.next_timer()
        due = min(self._deadline, self._repeat_due)
        return None if due == math.inf else due

    def handle_timer(self, now: float) -> None:
        """Repeat a flight, give the handshake up, or let *upper* do what is due."""
        if self.stage is Stage.ESTABLISHED:
            self._upper.handle_timer(now)
        elif now >= self._deadline:
            self._end(self._timed_out())
        elif now >= self._repeat_due and self.stage is not Stage.ENDED:
            try:
                self._engine.handle_timeout()
            except EngineFailed:  # repeated often enough, it says
                self._end(self._timed_out())
            self._collect(now)

    # ------------------------------------------------------------------ inside

    def _shake_hands(self, record: bytes) -> None:
        if self.stage is Stage.UNANSWERED:
            self.stage = Stage.ANSWERED
        refusal = _fatal_alert(record)
        if refusal is not None:  # nobody has signed it; a client that gives up too early can begin again
            self._end(self._refused(refusal))
            return
        try:
            self._engine.receive(record)
        except EngineFailed as failed:
            self._end(HandshakeFailed(f"the DTLS handshake failed: {failed.reason}"))
            return
        if self._engine.is_complete:
            self.stage = Stage.ESTABLISHED
            self._established()

    def _open(self, record: bytes, now: float) -> None:
        try:
            plaintext = self._engine.open(record)
        except EngineFailed as failed:
            self._end(AssociationEnded(f"the server ended the DTLS association: {failed.reason}"))
            return
        if plaintext is not None:
            self._upper.receive_datagram(plaintext, self._peer, now)

    def _collect(self, now: float) -> None:
        """Take what the engine has to send, and look at its clock."""
        records = self._engine.take_records()
        self._records += records
        if self.stage in (Stage.UNANSWERED, Stage.ANSWERED) and any(epoch_of(record) for record in records):
            self.stage = Stage.FINISHED
        timeout = self._engine.timeout() if self.stage not in (Stage.ESTABLISHED, Stage.ENDED) else None
        self._repeat_due = math.inf if timeout is None else now + timeout

    def _end(self, reason: HandshakeFailed | AssociationEnded) -> None:
        if self.stage is not Stage.ENDED:
            self.stage = Stage.ENDED
            self._ended(reason)

    def _timed_out(self) -> HandshakeFailed:
        if self.stage is Stage.UNANSWERED:
            return HandshakeFailed("no answer to our ClientHello: nobody is there, or something in between drops it")
        if self.stage is Stage.ANSWERED:
            return HandshakeFailed("the DTLS handshake began and then stopped: answers of the server were lost")
        return HandshakeFailed(f"no answer to our Finished: {_KEY_CAUSES}")

    def _refused(self, description: int) -> HandshakeFailed:
        name = alert_name(description)
        if self.stage is Stage.FINISHED or description in KEY_ALERTS:
            return HandshakeFailed(f"the server refused the handshake with the alert {name}: {_KEY_CAUSES}")
        if description == 40:
            return HandshakeFailed(f"the server refused the handshake with the alert {name}: it has none of our suites")
        return HandshakeFailed(f"the server refused the handshake with the alert {name}")


def _fatal_alert(record: bytes) -> int | None:
    """Return the description of an alert in the clear that ends a handshake."""
    if record[0] != ALERT or epoch_of(record) or len(record) != HEADER_BYTES + _ALERT_BYTES:
        return None
    level, description = record[HEADER_BYTES:]
    return description if level == FATAL or description == CLOSE_NOTIFY else None
