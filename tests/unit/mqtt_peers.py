"""Both ends of MQTT joined in memory: a client that says exactly what a test wants, and the real client machine."""

from __future__ import annotations

from collections.abc import Sequence

from coapgw.mqtt.broker import Broker
from coapgw.mqtt.client import MqttClient
from coapgw.mqtt.connection import Closing, Connection
from coapgw.mqtt.packets import (
    ConnAck,
    Connect,
    Packet,
    PubAck,
    Publish,
    SubAck,
    Subscribe,
    encode,
)
from coapgw.mqtt.parser import Parser


class Peer:
    """A client without a mind of its own: ``send`` packets, ``receive`` what the broker has to say."""

    def __init__(self, broker: Broker, *, now: float = 0.0, loopback: bool = True) -> None:
        connection = broker.open_connection("127.0.0.1:4711", loopback, now)
        assert connection is not None
        self.connection: Connection = connection
        self.now = now
        self._parser = Parser(1 << 28)

    def send(self, *packets: Packet) -> Peer:
        self.connection.receive_data(b"".join(encode(packet) for packet in packets), self.now)
        return self

    def receive(self) -> list[Packet]:
        """Return everything the broker sends, in as many turns as it wants."""
        packets: list[Packet] = []
        while data := self.connection.data_to_send():
            packets += self._parser.packets(data)
        return packets

    def messages(self) -> list[Publish]:
        return [packet for packet in self.receive() if isinstance(packet, Publish)]

    def ack(self, *messages: Publish) -> Peer:
        return self.send(*(PubAck(message.packet_id) for message in messages))

    def lose(self) -> None:
        self.connection.connection_lost(self.now)

    @property
    def is_open(self) -> bool:
        return self.connection.closing is Closing.NO


def connected(
    broker: Broker,
    client_id: str = "client",
    *filters: tuple[bytes, int],
    clean: bool = True,
    now: float = 0.0,
    keepalive: int = 0,
    user: str | None = None,
    password: bytes | None = None,
) -> Peer:
    """Return a client that is connected and has subscribed."""
    peer = Peer(broker, now=now)
    peer.send(Connect(client_id, clean, keepalive, None, user, password))
    if filters:
        peer.send(Subscribe(1, filters))
    answers = peer.connection.data_to_send()
    assert answers[:4] in (encode(ConnAck(False, 0)), encode(ConnAck(True, 0)))
    if filters:
        assert answers[4:].startswith(encode(SubAck(1, tuple(qos for _, qos in filters))))
    return peer


class Wire:
    """The client machine and a broker connection, and the bytes between them."""

    def __init__(self, broker: Broker, settings: Connect) -> None:
        self.client = MqttClient(settings, self, lambda: None)
        connection = broker.open_connection("127.0.0.1:4712", True, 0.0)
        assert connection is not None
        self.connection: Connection = connection
        self.told: list[str] = []
        self.messages: list[Publish] = []
        self.acked: list[int] = []
        self.client.start(0.0)
        self.move()

    def move(self, now: float = 0.0) -> None:
        """Let bytes flow until there are none."""
        while True:
            up, down = self.client.data_to_send(now), self.connection.data_to_send()
            if not up and not down:
                return
            self.connection.receive_data(up, now)
            self.client.receive_data(down)

    def connected(self, session_present: bool) -> None:
        self.told.append(f"connected {session_present}")

    def refused(self, code: int) -> None:
        self.told.append(f"refused {code}")

    def received(self, message: Publish) -> None:
        self.messages.append(message)

    def acknowledged(self, packet_id: int, reason: int) -> None:
        self.acked.append(packet_id)

    def subscribed(self, packet_id: int, codes: Sequence[int]) -> None:
        self.told.append(f"subscribed {list(codes)}")
