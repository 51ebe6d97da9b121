"""A CoAP client that shows what is on the wire: it repeats what is lost, and hides nothing of what comes."""

from __future__ import annotations

import random
import socket
import time
from collections import deque
from collections.abc import Iterable
from typing import Protocol

import attrs

from coapgw.coap.codec import OBSERVE, Options, decode_uint, encode_options, option_value, option_values, parse_options
from tests.integration.secure_device import SecureDevice
from tests.unit.coap_wire import ACK, CON, NON, datagram

FIRST_WAIT, LONGEST_WAIT = 0.25, 1.0  # seconds until a request is repeated: this client's own choice
PATIENCE = 60.0


class Channel(Protocol):
    """Datagrams to and from the server, plain or sealed."""

    def send(self, data: bytes) -> None:
        """Send one."""

    def receive(self, seconds: float) -> bytes | None:
        """Return the next that comes in time."""

    def close(self) -> None:
        """Close it."""


class PlainChannel:
    """A UDP socket."""

    def __init__(self, server: tuple[str, int], source: str = "") -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((source, 0))
        self._socket.connect(server)

    def send(self, data: bytes) -> None:
        """Send one."""
        self._socket.send(data)

    def receive(self, seconds: float) -> bytes | None:
        """Return the next that comes in time."""
        self._socket.settimeout(max(0.001, seconds))
        try:
            return self._socket.recv(65_535)
        except OSError:
            return None

    def close(self) -> None:
        """Close it."""
        self._socket.close()


class SecureChannel:
    """A DTLS association, established."""

    def __init__(self, server: tuple[str, int], identity: str, key: str) -> None:
        self._device = SecureDevice(server, identity, key)
        assert self._device.connect(30), "no handshake"

    def send(self, data: bytes) -> None:
        """Send one."""
        self._device.send(self._device.engine.seal(data))

    def receive(self, seconds: float) -> bytes | None:
        """Return the next that comes in time."""
        return self._device.take(max(0.001, seconds))

    def close(self) -> None:
        """Close it."""
        self._device.close()


@attrs.frozen
class Message:
    """A message of the server's."""

    kind: int
    code: int
    message_id: int
    token: bytes
    options: Options
    payload: bytes

    @classmethod
    def decode(cls, data: bytes) -> Message:
        """Take one apart; anything malformed is the end of the test."""
        assert data[0] >> 6 == 1
        token_end = 4 + (data[0] & 15)
        options, payload_at = parse_options(data, token_end)
        return cls(
            data[0] >> 4 & 3,
            data[1],
            int.from_bytes(data[2:4], "big"),
            data[4:token_end],
            options,
            data[payload_at:],
        )

    @property
    def text(self) -> str:
        """The code as ``2.05``."""
        return f"{self.code >> 5}.{self.code & 31:02}"

    @property
    def observed(self) -> int | None:
        """The Observe number."""
        value = self.value(OBSERVE)
        return None if value is None else decode_uint(value)

    def value(self, number: int) -> bytes | None:
        """Return the value of an option."""
        return option_value(self.options, number)

    def values(self, number: int) -> list[bytes]:
        """Return the values of an option that repeats."""
        return option_values(self.options, number)


@attrs.define
class Exchange:
    """A request as it was sent, and what came: the acknowledgement (None to a NON), and the answer."""

    message_id: int
    token: bytes
    acknowledgement: Message | None = None
    answer: Message | None = None
    sent: int = 0

    @property
    def response(self) -> Message:
        """The answer."""
        assert self.answer is not None
        return self.answer


class WireClient:
    """Requests one after the other, notifications beside them.

    Args:
        room: what stands before every path.
        seed: of Message IDs and tokens.
    """

    def __init__(self, channel: Channel, room: str, seed: int) -> None:
        self.channel = channel
        self.room = room
        self._random = random.Random(seed)
        self._message_id = self._random.randrange(1, 0xFFFF)
        self._heard: set[int] = set()
        self._forgotten: set[bytes] = set()
        self.notifications: deque[Message] = deque()

    def next_message_id(self) -> int:
        """Return one that was not used yet."""
        self._message_id = self._message_id % 0xFFFF + 1
        return self._message_id

    def request(
        self,
        code: int,
        path: str,
        options: Iterable[tuple[int, bytes]] = (),
        payload: bytes = b"",
        *,
        kind: int = CON,
        token: bytes | None = None,
        absolute: bool = False,
    ) -> Exchange:
        """Send a request until it is answered; a NON goes out anew, for nobody else will repeat it."""
        if token is None:
            token = self._random.randbytes(4)
        segments = ([] if absolute else [self.room]) + path.strip("/").split("/")
        block = encode_options([*((11, segment.encode()) for segment in segments if segment), *options])
        exchange = Exchange(self.next_message_id(), token)
        deadline, wait = time.monotonic() + PATIENCE, FIRST_WAIT
        while exchange.answer is None:
            assert time.monotonic() < deadline, f"no answer to {path}"
            if exchange.acknowledgement is None:
                if kind == NON and exchange.sent:
                    exchange.message_id = self.next_message_id()
                self.channel.send(datagram(kind, code, exchange.message_id, token, block, payload))
                exchange.sent += 1
            until = min(deadline, time.monotonic() + wait)
            wait = min(LONGEST_WAIT, 2 * wait) if kind == CON else 2.0
            self._take_until(exchange, until)
        return exchange

    def _take_until(self, exchange: Exchange, until: float) -> None:
        while exchange.answer is None and (left := until - time.monotonic()) > 0:
            self._take(exchange, left)

    def _take(self, exchange: Exchange | None, seconds: float) -> None:
        data = self.channel.receive(seconds)
        if data is None:
            return
        message = Message.decode(data)
        if message.kind == ACK:
            if exchange is not None and message.message_id == exchange.message_id and exchange.acknowledgement is None:
                exchange.acknowledgement = message
                if message.code:
                    exchange.answer = message
            return
        if message.kind not in (CON, NON) or not message.code:
            return
        if message.token in self._forgotten:
            self.channel.send(b"\x70\x00" + data[2:4])
            return
        if message.kind == CON:
            self.channel.send(b"\x60\x00" + data[2:4])
        if message.message_id in self._heard:
            return
        self._heard.add(message.message_id)
        if exchange is not None and message.token == exchange.token:
            exchange.answer = message
        else:
            self.notifications.append(message)

    def notification(self, token: bytes, payload: bytes | None = None, seconds: float = PATIENCE) -> Message:
        """Return the next notification with this token, or the next that has this payload."""
        deadline = time.monotonic() + seconds
        while True:
            while self.notifications:
                message = self.notifications.popleft()
                if message.token == token and payload in (None, message.payload):
                    return message
            assert time.monotonic() < deadline, "no notification"
            self._take(None, deadline - time.monotonic())

    def silence(self, seconds: float) -> list[Message]:
        """Wait, acknowledge what comes, and return it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._take(None, deadline - time.monotonic())
        heard = list(self.notifications)
        self.notifications.clear()
        return heard

    def forget(self, token: bytes) -> None:
        """Reject what comes with this token from now on."""
        self._forgotten.add(token)

    def close(self) -> None:
        """Close the channel."""
        self.channel.close()
