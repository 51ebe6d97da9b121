"""An established peer of a suite that stays with OpenSSL: the CBC suites, at 60 to 75 kB each."""

from __future__ import annotations

from collections.abc import Hashable

from coapgw.dtls.handshake import HandshakeEngine
from coapgw.dtls.openssl import EngineFailed
from coapgw.dtls.records import ALERT, HEADER_BYTES


class ConnectionAssociation:
    """An association whose records OpenSSL opens and seals; it also repeats the last flight of the handshake."""

    cid = b""  # OpenSSL has none

    __slots__ = ("_engine", "address", "ended", "iccid", "last_heard", "serial")

    def __init__(self, engine: HandshakeEngine, address: Hashable, iccid: str, serial: int) -> None:
        """Take over an engine whose handshake is complete."""
        self._engine = engine
        self.address = address
        self.iccid = iccid
        self.serial = serial
        self.last_heard = 0.0
        self.ended = False

    def open(self, record: bytes) -> bytes | None:
        """Return the application data of a record, None if it has none; *ended* tells whether it closed us.

        None for what is not exactly one record: OpenSSL would take the first, and keep the others until the next call.
        """
        if len(record) < HEADER_BYTES or record[11] << 8 | record[12] != len(record) - HEADER_BYTES:
            return None
        try:
            return self._engine.open(record)
        except EngineFailed:
            self.ended = True
            return None

    def seal(self, content_type: int, plaintext: bytes) -> bytes:
        """Return a record; of alerts there is only one, close_notify.  Raises EngineFailed."""
        return self._engine.close() if content_type == ALERT else self._engine.seal(plaintext)

    def is_worn(self) -> bool:
        """Say no: the MAC of a CBC suite is as long as a hash."""
        return False

    def repeat_flight(self) -> list[bytes] | None:
        """Return what OpenSSL has to say to the record opened last."""
        return self._engine.take_records() or None
