"""The whole gateway as an operator runs it: from a datagram to a subscriber, over restarts and kill -9."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import pytest

from coapgw.mqtt.packets import Connect, Subscribe, encode
from tests.integration.gateway_process import ROOT, TWISTD, Device, GatewayProcess, Subscriber, coapgw, until

Starter: TypeAlias = Callable[[GatewayProcess], GatewayProcess]

ICCIDS = [f"898828066600000{number:04}" for number in range(1, 9)]
ADDRESSES = [f"127.0.1.{number}" for number in range(1, 9)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with eight devices."""
    table = tmp_path / "devices.csv"
    table.write_text("iccid,ip\n" + "".join(f"{i},{a}\n" for i, a in zip(ICCIDS, ADDRESSES, strict=True)))
    coapgw(tmp_path / "data", "device", "import", str(table))
    return tmp_path / "data"


@pytest.fixture
def started() -> Iterator[Starter]:
    """Start gateways that are stopped in the end, whatever happens."""
    with ExitStack() as stack:

        def start(gateway: GatewayProcess) -> GatewayProcess:
            stack.callback(gateway.stop)
            return gateway.start()

        yield start


@pytest.fixture
def gateway(data: Path, request: pytest.FixtureRequest) -> Iterator[GatewayProcess]:
    """A running gateway."""
    process = GatewayProcess(data, *getattr(request, "param", ())).start()
    yield process
    process.stop()
    assert "Traceback" not in process.log.read_text()


def _values(subscriber: Subscriber) -> list[tuple[str, bytes]]:
    return [(d["device"]["iccid"], base64.b64decode(d["payload"]["value"])) for d in subscriber.documents()]


def _code(answer: bytes | None) -> int:
    assert answer is not None, "no answer"
    return answer[1]


def _post(gateway: GatewayProcess, payload: bytes, number: int = 0) -> int:
    with Device(ADDRESSES[number], gateway.coap) as device:
        return _code(device.post(payload))


def test_a_post_reaches_a_subscriber(gateway: GatewayProcess) -> None:
    subscriber = Subscriber(gateway.mqtt)
    with Device(ADDRESSES[0], gateway.coap) as device:
        answer = device.post(b"hello", b"t=greetings")
    assert answer is not None
    assert answer[:2] == b"\x62\x44"
    until(lambda: len(subscriber.received) == 2)
    (event_topic, event), (topic, message) = subscriber.received
    assert (event_topic, json.loads(event)["type"]) == ("lifecycle", "LIFECYCLE")
    assert topic == f"{ICCIDS[0]}/greetings"
    document = json.loads(message)
    assert document["device"] == {"iccid": ICCIDS[0], "ip": ADDRESSES[0]}
    assert document["payload"] == {"type": "STRING", "encoding": "base64", "value": "aGVsbG8=", "topic": "greetings"}
    subscriber.close()


def test_a_stranger_is_refused_and_a_device_that_is_added_is_served_within_a_second(gateway: GatewayProcess) -> None:
    with Device("127.0.9.9", gateway.coap) as stranger:
        assert _code(stranger.post(b"x")) == 0x81
        coapgw(gateway.data, "device", "add", "89882806660000099999", "--ip", "127.0.9.9")
        time.sleep(1)
        assert _code(stranger.post(b"x")) == 0x44
        coapgw(gateway.data, "device", "set", "89882806660000099999", "--status", "INACTIVE")
        time.sleep(1)
        assert _code(stranger.post(b"x")) == 0x81


def test_a_lifecycle_event_is_published_once_in_a_life_also_over_restarts(data: Path, started: Starter) -> None:
    gateway = started(GatewayProcess(data))
    subscriber = Subscriber(gateway.mqtt)
    for stop in (gateway.stop, gateway.kill, gateway.stop):
        assert _post(gateway, b"x") == 0x44
        stop()
        gateway.start()
    assert _post(gateway, b"last") == 0x44
    until(lambda: (ICCIDS[0], b"last") in _values(subscriber), 20)
    events = {json.loads(payload)["id"] for topic, payload in subscriber.received if topic == "lifecycle"}
    assert len(events) == 1  # a repeat has the same id
    subscriber.close()


@pytest.mark.parametrize("clean", [True, False], ids=["clean session", "persistent session"])
@pytest.mark.parametrize("acknowledge", ["stored", "published"])
def test_kill_9_under_load_loses_nothing_that_got_2_04(
    data: Path, started: Starter, clean: bool, acknowledge: str
) -> None:
    """Several rounds of kill -9 at random moments; order per device holds, repeats apart."""
    gateway = started(GatewayProcess(data, f"uplink.acknowledge={acknowledge}"))
    subscriber = Subscriber(gateway.mqtt, client_id="keeper", clean=clean)
    acknowledged: list[tuple[str, bytes]] = []
    ended = threading.Event()

    def send(number: int) -> None:
        sent = 0
        while not ended.is_set():
            device = Device(ADDRESSES[number], gateway.coap, timeout=0.3)
            while not ended.is_set():
                sent += 1
                payload = b"%d" % sent
                answer = device.post(payload)
                if answer is None:
                    break
                if answer[1] == 0x44:
                    acknowledged.append((ICCIDS[number], payload))
            device.close()
            time.sleep(0.05)

    senders = [threading.Thread(target=send, args=(number,)) for number in range(len(ICCIDS))]
    for sender in senders:
        sender.start()
    source = random.Random(f"{clean}{acknowledge}")
    for _ in range(4):
        time.sleep(source.uniform(0.3, 1.0))
        gateway.kill()
        gateway.start()
        before = len(subscriber.received)
        until(lambda: len(subscriber.received) > before, 20)  # noqa: B023 - it is called within this round
    time.sleep(0.5)
    ended.set()
    for sender in senders:
        sender.join()
    assert len(acknowledged) > 500
    until(lambda: set(acknowledged) <= set(_values(subscriber)), 20, "messages that got 2.04 did not arrive")
    for iccid in ICCIDS:
        arrived = [int(value) for sender_id, value in dict.fromkeys(_values(subscriber)) if sender_id == iccid]
        assert arrived == sorted(arrived)
    subscriber.close()


@pytest.mark.parametrize("gateway", [("spool.max_bytes=20000",)], indirect=True)
def test_an_absent_subscriber_does_not_fill_the_spool(gateway: GatewayProcess) -> None:
    Subscriber(gateway.mqtt, client_id="away", clean=False).close()
    payloads = [b"%04d" % number * 250 for number in range(60)]
    with Device(ADDRESSES[0], gateway.coap) as device:
        assert {_code(device.post(payload)) for payload in payloads} == {0x44}
    subscriber = Subscriber(gateway.mqtt, client_id="away", clean=False)
    until(lambda: {(ICCIDS[0], payload) for payload in payloads} <= set(_values(subscriber)))
    subscriber.close()


@pytest.mark.parametrize("gateway", [("spool.max_bytes=20000",)], indirect=True)
def test_a_full_spool_is_5_03_and_a_stuck_subscriber_does_not_keep_it_full(gateway: GatewayProcess) -> None:
    with socket.create_connection(("127.0.0.1", gateway.mqtt)) as stuck:
        stuck.sendall(encode(Connect("stuck")) + encode(Subscribe(1, ((b"#", 1),))))
        assert stuck.recv(100)
        with Device(ADDRESSES[0], gateway.coap) as device:
            codes = [_code(device.post(b"%04d" % number * 250)) for number in range(30)]
        assert set(codes) == {0x44, 0xA3}
        until(lambda: _post(gateway, b"late" * 250) == 0x44)
        assert "have not acknowledged" in gateway.log.read_text()


def test_on_a_full_disk_devices_get_5_03_and_nothing_that_got_2_04_is_lost(data: Path, started: Starter) -> None:
    """No file may grow beyond 1 MB; messages of 20 kB wait for a subscriber that is away."""
    gateway = started(GatewayProcess(data, file_bytes=1 << 20))
    Subscriber(gateway.mqtt, client_id="away", clean=False).close()
    with Device(ADDRESSES[0], gateway.coap) as device:
        codes = [_code(device.post(b"%06d" % number * 3000)) for number in range(150)]
    assert set(codes) == {0x44, 0xA3}
    assert "devices get 5.03" in gateway.log.read_text()
    subscriber = Subscriber(gateway.mqtt, client_id="away", clean=False)
    until(lambda: len(set(_values(subscriber))) == codes.count(0x44))
    gateway.raise_file_limit()  # somebody made room
    until(lambda: _post(gateway, b"x") == 0x44)
    until(lambda: "the spool works again" in gateway.log.read_text())
    subscriber.close()


def test_who_asks_twice_to_stop_is_shown_no_traceback(data: Path, started: Starter) -> None:
    gateway = started(GatewayProcess(data))
    os.kill(gateway.pid, signal.SIGINT)  # a Ctrl-C that was pressed twice, or timeout(1), which signals twice
    assert gateway.stop() in (0, -signal.SIGTERM, -signal.SIGINT)
    log = gateway.log.read_text()
    assert "Server Shut Down" in log
    assert "Traceback" not in log


def test_stopping_answers_what_it_took_and_starts_again_where_it_was(data: Path, started: Starter) -> None:
    gateway = started(GatewayProcess(data))
    devices = [Device(address, gateway.coap) for address in ADDRESSES]
    answers: list[bytes | None] = []
    threads = [threading.Thread(target=lambda d=device: answers.append(d.post(b"x"))) for device in devices]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    assert gateway.stop() in (0, -signal.SIGTERM)  # twistd ends by the signal that stopped it
    for thread in threads:
        thread.join()
    assert not (data / "ports.json").exists()
    gateway.start()
    subscriber = Subscriber(gateway.mqtt)
    for number, device in enumerate(devices):
        device.close()
        assert _post(gateway, b"after", number) == 0x44
    until(lambda: [value for _, value in _values(subscriber)].count(b"after") == 8)
    subscriber.close()
    assert gateway.stop() in (0, -signal.SIGTERM)  # twistd ends by the signal that stopped it


@pytest.mark.parametrize("gateway", [("coap.listen=['localhost:0']",)], indirect=True)
def test_localhost_is_a_place_to_listen_for_coap(gateway: GatewayProcess) -> None:
    assert _post(gateway, b"x") == 0x44


@pytest.mark.parametrize("gateway", [("limits.device_rate=0.01",)], indirect=True)
def test_a_device_over_its_rate_is_told_when_to_come_again(gateway: GatewayProcess) -> None:
    assert _post(gateway, b"x") == 0x44
    assert _post(gateway, b"x") == 0x9D


def test_more_clients_than_files_are_turned_away_without_a_line_each(data: Path, started: Starter) -> None:
    gateway = started(GatewayProcess(data, open_files=400))
    with ExitStack() as stack:
        for _ in range(400):
            stack.enter_context(socket.create_connection(("127.0.0.1", gateway.mqtt)))
        assert _post(gateway, b"x") == 0x44
    Subscriber(gateway.mqtt).close()
    log = gateway.log.read_text()
    assert "mqtt.embedded.max_connections" in log
    assert "EMFILE" not in log


def test_a_second_gateway_on_the_same_data_is_refused_with_a_sentence(gateway: GatewayProcess) -> None:
    command = [*TWISTD, "-n", "--pidfile=", "coapgw", "--data", str(gateway.data), "--set", "coap.listen=[]"]
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert second.returncode == 1
    assert "another gateway runs on" in second.stderr
    assert "Traceback" not in second.stderr + second.stdout  # the log goes to stdout
    assert _post(gateway, b"x") == 0x44
    assert (gateway.data / "ports.json").exists()
