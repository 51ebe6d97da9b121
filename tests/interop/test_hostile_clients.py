"""Clients that do not read, do not speak or ask for too much, on real sockets: others are served, memory stays."""

from __future__ import annotations

import socket
from contextlib import closing

from coapgw.mqtt.packets import (
    ConnAck,
    Connect,
    PingReq,
    PingResp,
    Publish,
    SubAck,
    Subscribe,
    encode,
    encode_publish,
)
from coapgw.mqtt.parser import Parser
from tests.interop.conftest import BrokerStart

SECONDS = 20
MEGABYTE = 1 << 20


class RawClient:
    """A blocking socket that speaks MQTT as told."""

    def __init__(self, port: int, *packets: bytes, receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(SECONDS)
        self.socket.connect(("127.0.0.1", port))
        self.socket.sendall(b"".join(packets))
        self._parser = Parser(MEGABYTE)

    def close(self) -> None:
        self.socket.close()

    def receive(self) -> list[object]:
        """Return what one read brings; nothing when the broker has closed."""
        try:
            return list(self._parser.packets(self.socket.recv(65_536)))
        except ConnectionResetError:
            return []

    def wait_for(self, last: object) -> list[object]:
        """Return what comes before *last*."""
        found: list[object] = []
        while last not in found:
            received = self.receive()
            assert received or not found, "closed"
            found += received
        return found[: found.index(last)]


def connect(name: str) -> bytes:
    return encode(Connect(name))


SUBSCRIBE = encode(Subscribe(1, ((b"flood", 0),)))


def test_a_client_that_never_reads_costs_bounded_memory(start_broker: BrokerStart) -> None:
    broker = start_broker()
    stuck = [RawClient(broker.port, connect(f"stuck{number}"), SUBSCRIBE, receive_buffer=4096) for number in range(5)]
    for one in stuck:
        one.wait_for(SubAck(1, (0,)))
    with closing(RawClient(broker.port, connect("publisher"))) as publisher:
        publisher.wait_for(ConnAck(False, 0))
        before = broker.memory()
        flood = encode_publish(b"flood", bytes(10_000)) * 50
        for _ in range(120):  # 60 MB
            publisher.socket.sendall(flood + encode(PingReq()))
            publisher.wait_for(PingResp())
        assert broker.memory() - before < 16 * MEGABYTE
    for one in stuck:
        one.close()


def test_a_client_that_asks_and_never_reads_is_cut(start_broker: BrokerStart) -> None:
    broker = start_broker()
    with closing(RawClient(broker.port, connect("c"), receive_buffer=4096)) as client:
        client.wait_for(ConnAck(False, 0))
        before = broker.memory()
        cut = False
        try:
            for _ in range(1000):
                client.socket.sendall(encode(PingReq()) * 10_000)
        except (ConnectionResetError, BrokenPipeError):
            cut = True
        assert cut
        assert broker.memory() - before < 16 * MEGABYTE


def test_silent_sockets_are_closed_and_others_served(start_broker: BrokerStart) -> None:
    broker = start_broker(connect_timeout=1)
    silent = [RawClient(broker.port) for _ in range(200)]
    with closing(RawClient(broker.port, connect("c"), SUBSCRIBE)) as client:
        client.wait_for(SubAck(1, (0,)))
        assert [one.receive() for one in silent] == [[]] * 200
        client.socket.sendall(encode_publish(b"flood", b"still here"))
        assert client.wait_for(Publish(b"flood", b"still here")) == []
    for one in silent:
        one.close()


def test_a_claim_of_256_megabytes_is_cut_at_once(start_broker: BrokerStart) -> None:
    broker = start_broker()
    for first in (b"", connect("c")):
        with closing(RawClient(broker.port, first, b"\x30\xff\xff\xff\x7f")) as client:
            while client.receive():
                pass
