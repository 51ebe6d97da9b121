"""The embedded broker of a real gateway: its listeners, and what it keeps when it is killed."""

from __future__ import annotations

import queue
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.integration.certificates import Authority
from tests.integration.gateway_process import Device, GatewayProcess, coapgw, until

SECONDS = 30
ICCID = "8988280666000000017"
CHANGED = 0x44  # CoAP 2.04
FREE = "['127.0.0.1:0']"


def new_client(client_id: str = "", *, transport: str = "tcp", **more: Any) -> Client:
    return Client(
        CallbackAPIVersion.VERSION2,
        client_id,
        protocol=MQTTProtocolVersion.MQTTv5,
        transport="websockets" if transport == "websockets" else "tcp",
        reconnect_on_failure=False,
        **more,
    )


def keep(seconds: int) -> Properties:
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = seconds
    return properties


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Callable[..., GatewayProcess]]:
    running: list[GatewayProcess] = []

    def start(*settings: str) -> GatewayProcess:
        running.append(GatewayProcess(tmp_path / "data", *settings).start())
        return running[-1]

    yield start
    for one in running:
        one.stop()


def test_every_listener_takes_clients(tmp_path: Path, gateway: Callable[..., GatewayProcess]) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("127.0.0.1")
    running = gateway(
        f"mqtt.embedded.tls_listen={FREE}",
        f"mqtt.embedded.websocket_listen={FREE}",
        f"mqtt.embedded.websocket_tls_listen={FREE}",
        f"mqtt.embedded.cert_file={certificate}",
        f"mqtt.embedded.key_file={key}",
        "mqtt.embedded.users=[{name='page',password='secret',publish=['#'],subscribe=['#']}]",
    )
    ports = running.ports["mqtt"]
    assert len(ports) == 4
    received: queue.Queue[tuple[int, bytes]] = queue.Queue()
    clients: list[Client] = []
    for at, (port, transport, tls) in enumerate(
        zip(ports, ("tcp", "tcp", "websockets", "websockets"), (False, True, False, True), strict=True)
    ):
        client = new_client(f"c{at}", transport=transport)
        client.username_pw_set("page", "secret")
        if tls:
            client.tls_set(str(authority.file), tls_version=ssl.PROTOCOL_TLS_CLIENT)
        there = threading.Event()
        client.on_connect = lambda client, *_: client.subscribe("all", 1)
        client.on_subscribe = lambda *_, there=there: there.set()
        client.on_message = lambda _c, _d, message, at=at: received.put((at, bytes(message.payload)))
        client.connect("127.0.0.1", port)
        client.loop_start()
        assert there.wait(SECONDS), (transport, tls)
        clients.append(client)
    large = bytes(200_000)
    for client in clients:
        client.publish("all", large, 1)
    got = [received.get(timeout=SECONDS) for _ in range(16)]
    assert sorted(at for at, _ in got) == sorted([0, 1, 2, 3] * 4)
    assert {payload for _, payload in got} == {large}
    for client in clients:
        client.disconnect()
        client.loop_stop()


def test_a_certificate_that_cannot_be_used_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "none.pem").write_text("none")
    running = GatewayProcess(
        tmp_path / "data", f"mqtt.embedded.tls_listen={FREE}", f"mqtt.embedded.cert_file={tmp_path / 'none.pem'}"
    )
    with pytest.raises(AssertionError, match="holds no certificates"):
        running.start()


class Publisher:
    """Publishes numbers at QoS 1 or 2 and remembers which were acknowledged; may lose its broker at any time."""

    def __init__(self, port: int, qos: int) -> None:
        self.sent: dict[int, int] = {}
        self.answered: list[int] = []  # identifiers; paho calls back under a lock of its own, so nothing is done there
        self._client = new_client()
        self._client.on_publish = lambda _client, _data, mid, _reason, _properties: self.answered.append(mid)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._qos = qos

    def publish(self, number: int) -> None:
        self.sent[self._client.publish("t", b"%d" % number, self._qos).mid] = number

    @property
    def acknowledged(self) -> list[int]:
        return [self.sent[mid] for mid in list(self.answered)]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def is_taken(device: Device) -> bool:
    """Send an uplink; return whether it was answered with 2.04."""
    answer = device.post(b"up")
    return answer is not None and answer[1] == CHANGED


@pytest.mark.parametrize("qos", [1, 2])
def test_what_was_acknowledged_is_there_after_kill_9(gateway: Callable[..., GatewayProcess], qos: int) -> None:
    running = gateway()
    away = new_client("away")
    there = threading.Event()
    away.on_connect = lambda client, *_: client.subscribe("#", qos)
    away.on_subscribe = lambda *_: there.set()
    away.connect("127.0.0.1", running.mqtt, clean_start=True, properties=keep(3600))
    away.loop_start()
    assert there.wait(SECONDS)
    away.disconnect()
    away.loop_stop()

    coapgw(running.data, "device", "add", ICCID, "--ip", "127.0.0.7")
    acknowledged: set[bytes] = set()
    uplinks = 0
    with Device("127.0.0.7", running.coap) as device:
        until(lambda: is_taken(device), what="the device is not known")
        for round_ in range(3):
            publisher = Publisher(running.mqtt, qos)
            for number in range(round_ * 10_000, round_ * 10_000 + 3000):
                publisher.publish(number)
                if number % 100 == 0:
                    uplinks += is_taken(device)
            until(lambda publisher=publisher: len(publisher.answered) >= 500)  # type: ignore[misc]  # mypy, lambdas
            running.kill()
            acknowledged |= {b"%d" % number for number in publisher.acknowledged}
            publisher.close()
            running.start()

    back = new_client("away")
    received: queue.Queue[MQTTMessage] = queue.Queue()
    back.on_message = lambda _client, _data, message: received.put(message)
    back.connect("127.0.0.1", running.mqtt, clean_start=False, properties=keep(3600))
    back.loop_start()
    got: list[bytes] = []
    devices = 0
    while acknowledged - set(got) or devices < uplinks:
        message = received.get(timeout=SECONDS)
        if message.topic == "t":
            got.append(bytes(message.payload))
        elif message.topic == ICCID:
            devices += 1
    back.disconnect()
    back.loop_stop()
    if qos == 2:
        assert len(got) == len(set(got))
    firsts = [int(payload) for payload in dict.fromkeys(got)]
    assert firsts == sorted(firsts)
    assert len(acknowledged) >= 1500


def test_what_is_in_the_spool_outlives_a_damaged_file_of_sessions(gateway: Callable[..., GatewayProcess]) -> None:
    running = gateway()
    received: queue.Queue[MQTTMessage] = queue.Queue()

    def subscribed(**more: Any) -> Client:
        client = new_client("page", **more)
        there = threading.Event()
        client.on_connect = lambda client, *_: client.subscribe("#", 1)
        client.on_subscribe = lambda *_: there.set()
        client.on_message = lambda _client, _data, message: received.put(message)
        client.connect("127.0.0.1", running.mqtt)
        client.loop_start()
        assert there.wait(SECONDS)
        return client

    silent = subscribed(manual_ack=True)
    coapgw(running.data, "device", "add", ICCID, "--ip", "127.0.0.7")
    with Device("127.0.0.7", running.coap) as device:
        until(lambda: is_taken(device), what="the device is not known")
    while received.get(timeout=SECONDS).topic != ICCID:
        pass
    running.kill()
    silent.loop_stop()
    (running.data / "broker.db-wal").unlink()  # SQLite would mend the file with it
    (running.data / "broker.db").write_bytes(b"no database" * 1000)
    running.start()
    back = subscribed()
    while received.get(timeout=SECONDS).topic != ICCID:
        pass
    back.disconnect()
    back.loop_stop()
    assert len(list(running.data.glob("broker.db.damaged-*Z"))) == 1


def test_users_come_and_go_while_it_runs(tmp_path: Path, gateway: Callable[..., GatewayProcess]) -> None:
    running = gateway("mqtt.embedded.anonymous=no")
    secret = tmp_path / "secret"
    secret.write_text("first\n")
    coapgw(running.data, "mqtt-user", "add", "anna", "--subscribe", "a/#", "--password-file", str(secret))

    def code(password: str, ended: threading.Event | None = None) -> int:
        client = new_client("c")
        client.username_pw_set("anna", password)
        codes: queue.Queue[int] = queue.Queue()
        client.on_connect = lambda _client, _data, _flags, reason, _properties: codes.put(reason.value)
        if ended is not None:
            client.on_disconnect = lambda *_: ended.set()
        client.connect("127.0.0.1", running.mqtt)
        client.loop_start()
        answer = codes.get(timeout=SECONDS)
        if ended is None:
            client.disconnect()
            client.loop_stop()
        return answer

    until(lambda: code("first") == 0)
    assert code("wrong") == 0x86
    ended = threading.Event()
    assert code("first", ended) == 0
    secret.write_text("second\n")
    coapgw(running.data, "mqtt-user", "passwd", "anna", "--password-file", str(secret))
    assert ended.wait(SECONDS)
    until(lambda: code("second") == 0)
    assert code("first") == 0x86
    assert "anna" in coapgw(running.data, "mqtt-user", "list")
    coapgw(running.data, "mqtt-user", "remove", "anna")
    until(lambda: code("second") == 0x86)
    assert "first" not in running.log.read_text()
