"""The bridge to a real mosquitto: over kill -9 of either, refused passwords, and TLS as it should and should not be."""

from __future__ import annotations

import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.integration.certificates import Authority
from tests.integration.gateway_process import Device, GatewayProcess, Subscriber, coapgw, until
from tests.integration.mosquitto import Mosquitto

ICCIDS = [f"898828066600000{number:04}" for number in range(1, 5)]
ADDRESSES = [f"127.0.1.{number}" for number in range(1, 5)]

OPEN = ("allow_anonymous true",)
LASTING = (*OPEN, "persistence true", "autosave_interval 1", "autosave_on_changes true")

BrokerStart: TypeAlias = Callable[..., Mosquitto]
GatewayStart: TypeAlias = Callable[..., GatewayProcess]


@pytest.fixture
def start_mosquitto(tmp_path: Path) -> Iterator[BrokerStart]:
    """Start brokers that are stopped in the end."""
    with ExitStack() as stack:

        def start(*lines: str) -> Mosquitto:
            broker = Mosquitto(tmp_path / "mosquitto", *lines)
            stack.callback(broker.stop)
            return broker.start()

        yield start


@pytest.fixture
def start_gateway(tmp_path: Path) -> Iterator[GatewayStart]:
    """Start a gateway with four devices, as a bridge to a URL."""
    table = tmp_path / "devices.csv"
    table.write_text("iccid,ip\n" + "".join(f"{i},{a}\n" for i, a in zip(ICCIDS, ADDRESSES, strict=True)))
    coapgw(tmp_path / "data", "device", "import", str(table))
    with ExitStack() as stack:

        def start(url: str, *settings: str) -> GatewayProcess:
            gateway = GatewayProcess(
                tmp_path / "data", "mqtt.mode=bridge", f"mqtt.bridge.url={url}", "mqtt.payload=raw", *settings
            )
            stack.callback(lambda: _stopped_well(gateway))
            return gateway.start()

        yield start


def _stopped_well(gateway: GatewayProcess) -> None:
    gateway.stop()
    assert "Traceback" not in gateway.log.read_text()


def _payloads(subscriber: Subscriber) -> list[bytes]:
    return [payload for topic, payload in subscriber.received if topic != "lifecycle"]


def _post(gateway: GatewayProcess, *payloads: bytes) -> None:
    with Device(ADDRESSES[0], gateway.coap) as device:
        for payload in payloads:
            answer = device.post(payload)
            assert answer is not None
            assert answer[1] == 0x44


def test_what_a_device_sends_reaches_the_broker(start_mosquitto: BrokerStart, start_gateway: GatewayStart) -> None:
    broker = start_mosquitto(*OPEN)
    subscriber = Subscriber(broker.port)
    gateway = start_gateway(f"mqtt://127.0.0.1:{broker.port}", "uplink.acknowledge=published")
    until(lambda: "is connected to" in gateway.log.read_text())
    assert gateway.ports["mqtt"] == []
    with Device(ADDRESSES[0], gateway.coap) as device:
        answer = device.post(b"hello", b"t=alarm")
    assert answer is not None
    assert answer[1] == 0x44
    until(lambda: (f"{ICCIDS[0]}/alarm", b"hello") in subscriber.received)
    subscriber.close()


def test_nothing_is_lost_and_order_is_kept_through_kill_9_of_both(
    start_mosquitto: BrokerStart, start_gateway: GatewayStart
) -> None:
    broker = start_mosquitto(*LASTING)
    subscriber = Subscriber(broker.port, client_id="reader", clean=False)
    gateway = start_gateway(f"mqtt://127.0.0.1:{broker.port}")
    acknowledged: list[tuple[int, int]] = []
    finished = threading.Event()

    def send(number: int) -> None:
        with Device(ADDRESSES[number], gateway.coap, timeout=0.5) as device:
            count = 0
            while not finished.is_set():
                answer = device.post(b"%d %d" % (number, count))
                if answer is not None and answer[1] == 0x44:
                    acknowledged.append((number, count))
                count += 1
                time.sleep(0.001)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(len(ADDRESSES))]
    for thread in threads:
        thread.start()
    chance = random.Random(7)
    for victim in (gateway, broker, gateway, broker):
        time.sleep(chance.uniform(0.3, 0.8))
        if victim is broker:
            time.sleep(1.3)  # what mosquitto itself has taken is on its disk only now
        victim.kill()
        time.sleep(chance.uniform(0, 0.2))
        victim.start()
    time.sleep(0.5)
    finished.set()
    for thread in threads:
        thread.join()
    assert len(acknowledged) > 300

    def values() -> list[tuple[int, int]]:
        return [(int(number), int(count)) for number, count in (payload.split() for payload in _payloads(subscriber))]

    until(lambda: set(acknowledged) <= set(values()), 20, "messages that got 2.04 did not arrive")
    seen: dict[int, int] = {}
    firsts = list(dict.fromkeys(values()))
    for number, count in firsts:
        assert seen.get(number, -1) < count
        seen[number] = count
    subscriber.close()


def test_what_was_sent_while_there_was_no_broker_arrives_when_there_is(
    start_mosquitto: BrokerStart, start_gateway: GatewayStart
) -> None:
    broker = start_mosquitto(*OPEN)
    broker.kill()
    gateway = start_gateway(f"mqtt://127.0.0.1:{broker.port}")
    _post(gateway, b"one", b"two")
    until(lambda: "nobody listens there" in gateway.log.read_text())
    broker.start()
    subscriber = Subscriber(broker.port)
    until(lambda: _payloads(subscriber)[-2:] == [b"one", b"two"])
    assert gateway.log.read_text().count("has had no connection") == 1
    subscriber.close()


def test_a_refused_password_is_said_and_one_that_is_put_right_is_used(
    tmp_path: Path, start_mosquitto: BrokerStart, start_gateway: GatewayStart
) -> None:
    users = tmp_path / "users"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(users), "gateway", "right-one"], check=True)
    broker = start_mosquitto("allow_anonymous false", f"password_file {users}")
    password = tmp_path / "password"
    password.write_text("wrong-one\n")
    gateway = start_gateway(f"mqtt://gateway@127.0.0.1:{broker.port}", f"mqtt.bridge.password_file={password}")
    until(lambda: "refused the connection: " in gateway.log.read_text())
    _post(gateway, b"waits")
    password.write_text("right-one\n")
    until(lambda: "is connected to" in gateway.log.read_text(), 20)
    until(lambda: '"messages": 0' in coapgw(gateway.data, "--json", "spool", "status"))
    assert "-one" not in gateway.log.read_text()


def test_a_refused_message_is_set_aside_and_can_be_requeued_while_the_gateway_runs(
    tmp_path: Path, start_mosquitto: BrokerStart, start_gateway: GatewayStart
) -> None:
    rules = tmp_path / "rules"
    rules.write_text("topic deny +/secret\ntopic readwrite #\n")
    broker = start_mosquitto(*OPEN, f"acl_file {rules}")
    subscriber = Subscriber(broker.port)
    gateway = start_gateway(f"mqtt://127.0.0.1:{broker.port}")
    with Device(ADDRESSES[0], gateway.coap) as device:
        device.post(b"one", b"t=open")
        device.post(b"two", b"t=secret")
        device.post(b"three", b"t=open")
    until(lambda: _payloads(subscriber) == [b"one", b"three"])
    until(lambda: '"deadMessages": 1' in coapgw(gateway.data, "--json", "spool", "status"))
    assert "not authorised (0x87)" in coapgw(gateway.data, "spool", "dead", "list")
    rules.write_text("topic readwrite #\n")
    broker.reload()
    assert '"done": true' in coapgw(gateway.data, "--json", "spool", "dead", "requeue", "--all")
    until(lambda: _payloads(subscriber) == [b"one", b"three", b"two"])
    assert '"deadMessages": 0' in coapgw(gateway.data, "--json", "spool", "status")
    subscriber.close()


def test_a_message_larger_than_the_broker_takes_does_not_block_the_others(
    start_mosquitto: BrokerStart, start_gateway: GatewayStart
) -> None:
    broker = start_mosquitto(*OPEN, "max_packet_size 1000")
    subscriber = Subscriber(broker.port)
    gateway = start_gateway(f"mqtt://127.0.0.1:{broker.port}")
    _post(gateway, b"one")
    with Device(ADDRESSES[0], gateway.coap) as device:
        device.post(bytes(1100))
    _post(gateway, b"two")
    until(lambda: _payloads(subscriber) == [b"one", b"two"], 20)
    until(lambda: "the broker takes 1000" in coapgw(gateway.data, "spool", "dead", "list"))
    subscriber.close()


def test_a_message_of_mqtt_5_says_who_sent_it(start_mosquitto: BrokerStart, start_gateway: GatewayStart) -> None:
    broker = start_mosquitto(*OPEN)
    command = ["mosquitto_sub", "-p", str(broker.port), "-V", "5", "-q", "1", "-t", "+", "-C", "2", "-F", "%t %P"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as subscriber:
        until(lambda: "Sending SUBACK" in broker.log.read_text())
        gateway = start_gateway(f"mqtt://127.0.0.1:{broker.port}", "mqtt.bridge.expiry_seconds=100")
        _post(gateway, b"x")
        said, _ = subscriber.communicate(timeout=20)
    (line,) = [line for line in said.splitlines() if line.startswith(f"{ICCIDS[0]} ")]
    assert f"iccid:{ICCIDS[0]}" in line
    assert "id:1-" in line
    assert "received:1" in line


class _Tls:
    """A mosquitto behind TLS, and the settings of a gateway that trusts its CA."""

    def __init__(self, tmp_path: Path, start: BrokerStart, name: str, *lines: str) -> None:
        self.authority = Authority(tmp_path)
        certificate, key = self.authority.issue(name)
        files = (f"cafile {self.authority.file}", f"certfile {certificate}", f"keyfile {key}")
        self.broker = start(*OPEN, *files, *lines)
        self.url = f"mqtts://127.0.0.1:{self.broker.port}"
        self.trust = f"mqtt.bridge.ca_file={self.authority.file}"


def _delivers(gateway: GatewayProcess) -> bool:
    _post(gateway, b"x")
    until(lambda: "the MQTT bridge" in gateway.log.read_text())
    return "is connected to" in gateway.log.read_text()


def test_tls_with_a_ca_of_ones_own(tmp_path: Path, start_mosquitto: BrokerStart, start_gateway: GatewayStart) -> None:
    tls = _Tls(tmp_path, start_mosquitto, "127.0.0.1")
    gateway = start_gateway(tls.url, tls.trust)
    assert _delivers(gateway)
    until(lambda: '"messages": 0' in coapgw(gateway.data, "--json", "spool", "status"))


def test_a_certificate_for_another_name_is_refused(
    tmp_path: Path, start_mosquitto: BrokerStart, start_gateway: GatewayStart
) -> None:
    tls = _Tls(tmp_path, start_mosquitto, "other.example")
    gateway = start_gateway(tls.url, tls.trust)
    assert not _delivers(gateway)
    assert "its certificate is not for 127.0.0.1" in gateway.log.read_text()


def test_a_certificate_of_a_strange_ca_is_refused_unless_nothing_is_verified(
    tmp_path: Path, start_mosquitto: BrokerStart, start_gateway: GatewayStart
) -> None:
    tls = _Tls(tmp_path, start_mosquitto, "other.example")
    stranger = Authority(tmp_path, "stranger")
    gateway = start_gateway(tls.url, f"mqtt.bridge.ca_file={stranger.file}")
    assert not _delivers(gateway)
    assert "certificate verify failed" in gateway.log.read_text()
    gateway.stop()
    gateway.log.unlink()
    gateway.settings = (*gateway.settings[:-1], "mqtt.bridge.verify=false")
    gateway.start()
    assert _delivers(gateway)


def test_a_broker_that_wants_a_certificate_gets_ours(
    tmp_path: Path, start_mosquitto: BrokerStart, start_gateway: GatewayStart
) -> None:
    tls = _Tls(tmp_path, start_mosquitto, "127.0.0.1", "require_certificate true")
    certificate, key = tls.authority.issue("gateway")
    gateway = start_gateway(tls.url, tls.trust)
    assert not _delivers(gateway)
    gateway.stop()
    gateway.log.unlink()
    gateway.settings = (
        *gateway.settings,
        f"mqtt.bridge.cert_file={certificate}",
        f"mqtt.bridge.key_file={key}",
    )
    gateway.start()
    assert _delivers(gateway)
