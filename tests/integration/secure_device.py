"""A device with a key: an OpenSSL client on a socket of its own."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable

from coapgw.dtls.openssl import ClientContext, EngineFailed
from coapgw.dtls.records import pack, split
from tests.unit.coap_wire import datagram, option

MTU = 1280
REPEAT_SECONDS = 1.0


class SecureDevice:
    """Speaks CoAP over DTLS with the gateway; retransmits flights, never requests.

    Args:
        port: of the socket; 0 lets the system choose.
    """

    def __init__(
        self,
        gateway: tuple[str, int],
        identity: str,
        key: str | bytes,
        suites: Iterable[str] = ("PSK-AES128-CCM8",),
        port: int = 0,
    ) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", port))
        self._gateway = gateway
        secret = key.encode() if isinstance(key, str) else key
        self.engine = ClientContext(identity.encode(), secret, tuple(suites)).engine()
        self.is_closed = False
        self._message_id = int.from_bytes(os.urandom(2), "big")

    @property
    def port(self) -> int:
        """The port of its socket."""
        return int(self._socket.getsockname()[1])

    def connect(self, seconds: float = 5.0) -> bool:
        """Make the handshake; return whether that went well in time."""
        self.engine.begin_as_client()
        self._flush()
        deadline = time.monotonic() + seconds
        while not self.engine.is_complete and time.monotonic() < deadline:
            received = self._receive(min(REPEAT_SECONDS, max(0.01, deadline - time.monotonic())))
            try:
                if received is None:
                    self.engine.handle_timeout()
                for record in split(received or b""):
                    self.engine.receive(record)
            except EngineFailed:
                return False
            self._flush()
        return self.engine.is_complete

    def post(self, payload: bytes, query: bytes | None = None, seconds: float = 5.0) -> bytes | None:
        """Send a CON POST; return the answer, None if none came or the gateway closed the association."""
        self._message_id = self._message_id + 1 & 0xFFFF
        options = b"" if query is None else option(15, query)
        return self.request(
            datagram(message_id=self._message_id, token=b"tk", options=options, payload=payload), seconds
        )

    def request(self, data: bytes, seconds: float = 5.0) -> bytes | None:
        """Send a message; return the answer with its Message ID, None if none came or the association was closed."""
        self.send(self.engine.seal(data))
        deadline = time.monotonic() + seconds
        while not self.is_closed and time.monotonic() < deadline:
            answer = self.take(deadline - time.monotonic())
            if answer is not None and answer[2:4] == data[2:4]:
                return answer
        return None

    def take(self, seconds: float) -> bytes | None:
        """Return the next message that arrives in time; *is_closed* says whether it was a farewell."""
        received = self._receive(max(0.01, seconds))
        try:
            for record in split(received or b""):
                plaintext = self.engine.open(record)
                if plaintext is not None:
                    return plaintext
        except EngineFailed:
            self.is_closed = True
        return None

    def send(self, data: bytes) -> None:
        """Send a datagram as it is."""
        self._socket.sendto(data, self._gateway)

    def move(self) -> None:
        """Go on from another port, as behind a NAT that forgot the old one."""
        self._socket.close()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))

    def close(self) -> None:
        """Close the socket, without a word to the gateway."""
        self._socket.close()

    def __enter__(self) -> SecureDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _flush(self) -> None:
        for out in pack(self.engine.take_records(), MTU):
            self.send(out)

    def _receive(self, seconds: float) -> bytes | None:
        self._socket.settimeout(seconds)
        try:
            return self._socket.recv(65_535)
        except OSError:
            return None
