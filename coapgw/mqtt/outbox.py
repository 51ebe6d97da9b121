"""What one connection has to send, gathered until the end of the reactor's turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from coapgw.mqtt.writer_5 import Writer5

WINDOW: Final = 1000
"""Messages in flight to one client.  3.1.1 has no Receive Maximum; 1000 carry 30,000 a second over a round trip of
33 ms, cost at most that many repeats when a client comes back, and are far from running out of identifiers."""
FULL_BYTES: Final = 262_144
"""Gathered in one turn, or while the transport takes nothing, before messages wait in their session instead.  Twisted's
transports say "no more" at 64 KiB already, which a burst to a quick subscriber fills, so that is no reason to drop."""


@attrs.define(eq=False)
class Outbox:
    """Bytes on their way to one peer.

    Args:
        wake: told when there are bytes after there were none.
        writer: of MQTT 5; None for 3.1.1.
        window: messages in flight at most.
        held: answers that wait for the disk; see Journal.
        closed: nothing more may be said; what was held is not sent.

    ``full`` means that messages should wait in their session; replies may still be added.
    """

    wake: Callable[[], None]
    writer: Writer5 | None = None
    window: int = WINDOW
    held: int = 0
    closed: bool = False
    full: bool = False
    paused: bool = False
    size: int = 0
    _parts: list[bytes] = attrs.Factory(list)

    def __len__(self) -> int:
        """Return how many packets ``take`` will return."""
        return 0 if self.paused else len(self._parts)

    def append(self, packet: bytes) -> None:
        """Add the bytes of a packet."""
        parts = self._parts
        if not parts:
            self.wake()
        parts.append(packet)
        self.size += len(packet)
        if self.size >= FULL_BYTES:
            self.full = True

    def pause(self) -> None:
        """The transport takes no more for now: gather."""
        self.paused = True

    def resume(self) -> None:
        """The transport takes bytes again."""
        self.paused = False
        if self._parts:
            self.wake()

    def take(self) -> bytes:
        """Return everything and begin anew; nothing while paused."""
        if self.paused:
            return b""
        data = b"".join(self._parts)
        self.discard()
        return data

    def discard(self) -> None:
        """Forget everything."""
        self._parts.clear()
        self.size = 0
        self.full = False
