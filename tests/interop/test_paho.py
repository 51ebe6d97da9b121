"""paho-mqtt against the embedded broker in a process of its own."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from tests.interop.conftest import BrokerStart

SECONDS = 20


class PahoClient:
    """A paho client whose callbacks are queues."""

    def __init__(self, port: int, client_id: str, *, clean: bool = True, password: str | None = None) -> None:
        self.messages: queue.Queue[MQTTMessage] = queue.Queue()
        self.connects: queue.Queue[tuple[bool, int]] = queue.Queue()
        self.subscribes: queue.Queue[list[int]] = queue.Queue()
        self.client = Client(CallbackAPIVersion.VERSION2, client_id, clean_session=clean, reconnect_on_failure=False)
        self.client.on_message = lambda _client, _data, message: self.messages.put(message)
        self.client.on_connect = self._on_connect
        self.client.on_subscribe = lambda _client, _data, _mid, codes, _properties: self.subscribes.put(
            [code.value for code in codes]
        )
        if password is not None:
            self.client.username_pw_set("user", password)
        self.client.connect("127.0.0.1", port, keepalive=5)
        self.client.loop_start()
        self.present, self.code = self.connects.get(timeout=SECONDS)

    def _on_connect(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        self.connects.put((flags.session_present, reason.value))

    def subscribe(self, topic: str, qos: int) -> list[int]:
        self.client.subscribe(topic, qos)
        return self.subscribes.get(timeout=SECONDS)

    def receive(self, count: int) -> list[tuple[str, bytes, int]]:
        messages = [self.messages.get(timeout=SECONDS) for _ in range(count)]
        return [(message.topic, bytes(message.payload), message.qos) for message in messages]

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


Connect = Callable[..., PahoClient]


@pytest.fixture
def connect() -> Iterator[Connect]:
    clients: list[PahoClient] = []

    def start(port: int, client_id: str, **options: Any) -> PahoClient:
        clients.append(PahoClient(port, client_id, **options))
        return clients[-1]

    yield start
    for client in clients:
        client.close()


def test_a_burst_arrives_complete_and_in_order(start_broker: BrokerStart, connect: Connect) -> None:
    port = start_broker().port
    subscriber, publisher = connect(port, "s"), connect(port, "p")
    for qos in (1, 2):
        assert subscriber.subscribe(f"b/{qos}", qos) == [qos]
        for number in range(500):
            publisher.client.publish(f"b/{qos}", b"%d" % number, qos)
        assert subscriber.receive(500) == [(f"b/{qos}", b"%d" % number, qos) for number in range(500)]


def test_a_session_is_present_when_a_persistent_client_comes_back(start_broker: BrokerStart, connect: Connect) -> None:
    port = start_broker().port
    first = connect(port, "keeper", clean=False)
    assert not first.present
    first.subscribe("t", 1)
    first.close()
    publisher = connect(port, "p")
    publisher.client.publish("t", b"waiting", 1).wait_for_publish(SECONDS)
    again = connect(port, "keeper", clean=False)
    assert again.present
    assert again.receive(1) == [("t", b"waiting", 1)]
    again.close()
    assert not connect(port, "keeper").present


def test_a_wrong_password_is_told(start_broker: BrokerStart, connect: Connect) -> None:
    port = start_broker([{"name": "user", "password": "right"}]).port
    assert connect(port, "c", password="right").code == 0
    wrong = connect(port, "c", password="wrong")
    assert wrong.code == 0x86  # paho shows 3.1.1's 4 as MQTT 5's "bad user name or password"


def test_a_subscription_that_is_not_allowed_is_told(start_broker: BrokerStart, connect: Connect) -> None:
    port = start_broker([{"name": "user", "password": "p", "subscribe": ["mine/#"]}]).port
    client = connect(port, "c", password="p")
    assert client.subscribe("mine/+", 1) == [1]
    assert client.subscribe("#", 1) == [0x80]


def test_mqtt_5_in_both_directions(start_broker: BrokerStart) -> None:
    port = start_broker().port
    received: queue.Queue[MQTTMessage] = queue.Queue()
    connects: queue.Queue[Any] = queue.Queue()
    published: queue.Queue[int] = queue.Queue()
    subscribed: queue.Queue[Any] = queue.Queue()
    client = Client(CallbackAPIVersion.VERSION2, "", protocol=MQTTProtocolVersion.MQTTv5, reconnect_on_failure=False)
    client.on_connect = lambda _c, _d, _flags, _reason, properties: connects.put(properties)
    client.on_message = lambda _c, _d, message: received.put(message)
    client.on_publish = lambda _c, _d, _mid, reason, _properties: published.put(reason.value)
    client.on_subscribe = lambda _c, _d, _mid, codes, _properties: subscribed.put([code.value for code in codes])
    client.connect("127.0.0.1", port)
    client.loop_start()
    answer = connects.get(timeout=SECONDS)
    assert answer.AssignedClientIdentifier.startswith("auto-")
    assert answer.ReceiveMaximum == 1000
    identified = Properties(PacketTypes.SUBSCRIBE)
    identified.SubscriptionIdentifier = 7
    client.subscribe([("a/#", SubscribeOptions(2, noLocal=False, retainAsPublished=True))], properties=identified)
    assert subscribed.get(timeout=SECONDS) == [2]
    said = Properties(PacketTypes.PUBLISH)
    said.TopicAlias, said.MessageExpiryInterval, said.UserProperty = 3, 60, ("key", "value")
    for qos in (0, 1, 2):
        client.publish("a/b", b"%d" % qos, qos, retain=True, properties=said)
    got = [received.get(timeout=SECONDS) for _ in range(3)]
    assert [(message.topic, message.payload, message.qos, message.retain) for message in got] == [
        ("a/b", b"%d" % qos, qos, True) for qos in (0, 1, 2)
    ]
    for message in got:
        beside: Any = message.properties
        assert beside.SubscriptionIdentifier == [7]
        assert beside.UserProperty == [("key", "value")]
        assert beside.MessageExpiryInterval in (59, 60)
    assert [published.get(timeout=SECONDS) for _ in range(3)] == [0, 0, 0]
    client.publish("nobody/wants", b"", 1)
    assert published.get(timeout=SECONDS) == 0x10
    client.disconnect()
    client.loop_stop()
