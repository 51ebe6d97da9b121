"""One client of aMQTT: the bytes of the glue on one side, what aMQTT reads and writes on the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from amqtt.adapters import ReaderAdapter, WriterAdapter

from coapgw.mqtt.amqtt_guard import ClientRefused, Guard
from coapgw.mqtt.connection import FLUSH_SECONDS, Closing

if TYPE_CHECKING:
    from coapgw.mqtt.amqtt_engine import AmqttEngine

STALLED_SECONDS: Final = 10.0  # for a client to read something
UNREAD_BYTES: Final = 65_536  # of a client that aMQTT has not read before the socket is not read either
RETAINED_QOS_0: Final = 0x31  # first byte of a PUBLISH, section 3.3.1


class ClientReader(ReaderAdapter):  # type: ignore[misc]  # aMQTT ships no types
    """What aMQTT reads of one client."""

    def __init__(self, relieved: Callable[[], None], new_future: Callable[[], Any]) -> None:
        """Have *relieved* called whenever something was read; wait by futures of asyncio's."""
        self._new_future = new_future
        self._buffer = bytearray()
        self._needed = 0
        self._more: Any = None
        self._ended = False
        self._relieved = relieved

    @property
    def is_full(self) -> bool:
        """Whether more is there than is being waited for."""
        return len(self._buffer) > max(UNREAD_BYTES, self._needed)

    def feed(self, data: bytes) -> None:
        """Have more to read."""
        self._buffer += data
        if len(self._buffer) >= self._needed:
            self._wake()

    def feed_eof(self) -> None:
        """Have no more to read, ever."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    async def read(self, n: int = -1) -> bytes:
        """Return *n* bytes; fewer if there will be no more."""
        while len(self._buffer) < n and not self._ended:
            self._needed = n
            self._more = self._new_future()
            try:
                await self._more
            finally:
                self._more = None
                self._needed = 0
        size = len(self._buffer) if n < 0 else n
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        self._relieved()
        return data


class ClientWriter(WriterAdapter):  # type: ignore[misc]  # the same
    """Where aMQTT writes to one client."""

    def __init__(self, connection: AmqttConnection) -> None:
        """Write to *connection*."""
        self._connection = connection

    def write(self, data: bytes) -> None:
        """Send a packet, unless it is one that the client should not see."""
        self._connection.send(bytes(data))

    async def drain(self) -> None:
        """Wait until the socket takes more.  Raises ConnectionResetError if it never will."""
        await self._connection.drained()

    def get_peer_info(self) -> tuple[str, int]:
        """Return where the client is; the port is in the text."""
        return self._connection.peer, 0

    def get_ssl_info(self) -> None:
        """TLS ends before aMQTT."""

    async def close(self) -> None:
        """Close when everything is written."""
        self._connection.finish()


class AmqttConnection:
    """One client's connection, as the glue sees it: bytes in, bytes out.

    Attributes:
        peer: where it came from.
        closing: what the glue has to do with the transport.
        guard: what it may say.
        is_accepted: aMQTT's plugins have let it in.
    """

    is_5 = False

    def __init__(self, engine: AmqttEngine, peer: str, guard: Guard) -> None:
        """Made by ``AmqttEngine.open_connection``."""
        self._engine = engine
        self.peer = peer
        self.guard = guard
        self.closing = Closing.NO
        self.is_accepted = False
        self.reader = ClientReader(self._relieved, engine.new_future)
        self.writer = ClientWriter(self)
        self._output: list[bytes] = []
        self._lost = False
        self._was_congested = False
        self._paused_since: float | None = None
        self._closing_since = 0.0
        self._waiting: list[Any] = []  # futures

    @property
    def client_id(self) -> str:
        """The client's id, once it was accepted."""
        assert self.guard.client is not None
        return self.guard.client.client_id

    @property
    def is_open(self) -> bool:
        """Whether the client can still be sent to."""
        return self.closing is Closing.NO

    # ------------------------------------------------------------------ the glue's side

    def receive_data(self, data: bytes, now: float) -> None:
        """Take bytes from the client; what is wrong with them ends in ``closing``, not in an exception."""
        if not self.is_open:
            return
        engine, guard = self._engine, self.guard
        engine.counters.bytes_in += len(data)
        is_new = guard.client is None
        try:
            passed = guard.receive(data, now)
        except ClientRefused as refused:
            engine.refused(is_new)
            if refused.answer:
                self._output.append(refused.answer)
                self.finish()
            else:
                self.fail()
            return
        self.reader.feed(passed)
        if is_new and guard.client is not None:
            engine.serve(self)

    def data_to_send(self) -> bytes:
        """Return what to write now."""
        output, self._output = self._output, []
        data = b"".join(output)
        self._engine.counters.bytes_out += len(data)
        return data

    @property
    def is_congested(self) -> bool:
        """Whether the client should not be read from for now."""
        self._was_congested = self.reader.is_full or self._engine.is_busy()
        return self._was_congested

    def pause(self) -> None:
        """The transport's buffer is full."""
        self._paused_since = self._engine.now

    def resume(self) -> None:
        """The transport takes bytes again."""
        self._paused_since = None
        self._let_go()

    def connection_lost(self, now: float) -> None:
        """The transport is gone."""
        self._lost = True
        self.closing = Closing.ABORT
        self.reader.feed_eof()
        self._let_go()
        self._engine.forget(self)

    # ------------------------------------------------------------------ the engine's side

    def fail(self) -> None:
        """Close at once; aMQTT finds that the client has gone."""
        if self.closing is not Closing.ABORT:
            self.closing = Closing.ABORT
            self._output.clear()
            self.reader.feed_eof()
            self._let_go()
            self._engine.wake(self)

    def finish(self) -> None:
        """Close when everything is written."""
        if self.is_open:
            self.closing = Closing.FLUSH
            self._closing_since = self._engine.now
            self.reader.feed_eof()
            self._engine.wake(self)

    def look(self, now: float) -> bool:
        """Close if the client has been silent, or has read nothing, for too long; return whether that is so."""
        if self.closing is Closing.FLUSH:
            is_overdue = now - self._closing_since > FLUSH_SECONDS
        elif self._paused_since is not None:
            is_overdue = now - self._paused_since > STALLED_SECONDS
        else:
            if self._was_congested:  # it is we who do not listen
                self.guard.last_heard = now
            is_overdue = self.is_open and self.guard.is_overdue(now)
        if is_overdue:
            self.fail()
        return is_overdue

    def send(self, data: bytes) -> None:
        """Send a packet of aMQTT's, unless it is a retained message that this client has not asked for."""
        if not self.is_open:
            return
        if data[0] == RETAINED_QOS_0 and not self._engine.is_asked_for(self.client_id, _topic(data)):
            self._engine.counters.withheld += 1
            return
        self._output.append(data)
        self._engine.wake(self)

    async def drained(self) -> None:
        """Wait until the transport takes more.  Raises ConnectionResetError if it never will."""
        while self._paused_since is not None and self.is_open:
            room = self._engine.new_future()
            self._waiting.append(room)
            await room
        if self._lost or self.closing is Closing.ABORT:
            raise ConnectionResetError

    def _let_go(self) -> None:
        waiting, self._waiting = self._waiting, []
        for room in waiting:
            if not room.done():
                room.set_result(None)

    def _relieved(self) -> None:
        if self._was_congested and not self.is_congested:
            self._engine.wake(self)

    def look_whether_relieved(self) -> None:
        """Be read from again if that is possible."""
        self._relieved()


def _topic(publish: bytes) -> bytes:
    """Return the topic of an encoded PUBLISH."""
    start = 2
    while publish[start - 1] & 0x80:
        start += 1
    size = int.from_bytes(publish[start : start + 2], "big")
    return publish[start + 2 : start + 2 + size]


__all__ = ["AmqttConnection", "ClientReader", "ClientWriter"]
