"""The management API of a real gateway: what it does to devices, and what clients can do to it."""

from __future__ import annotations

import signal
import sqlite3
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from http.client import HTTPException
from pathlib import Path
from typing import TypeAlias

import pytest

from coapgw.http.protocol import CONNECTIONS
from tests.integration.gateway_process import ROOT, TWISTD, Device, GatewayProcess, Subscriber, coapgw, until
from tests.integration.http_client import Client, connected, received
from tests.integration.mosquitto import Mosquitto

Starter: TypeAlias = Callable[[GatewayProcess], GatewayProcess]

ICCID = "8988280666000000017"
SECRET = "correct horse battery"
JOBS = "/v1/integrate/devices/psk/jobs"
OK = 0x44


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """One gateway for every test that leaves it as it was."""
    process = GatewayProcess(tmp_path_factory.mktemp("gateway") / "data").start()
    yield process
    assert process.stop() in (0, -signal.SIGTERM)
    log = process.log.read_text()
    assert "Traceback" not in log
    assert "Unhandled" not in log
    assert process.token not in log
    assert SECRET not in log


@pytest.fixture
def client(gateway: GatewayProcess) -> Iterator[Client]:
    with Client(gateway) as opened:
        yield opened


@pytest.fixture
def started() -> Iterator[Starter]:
    """Start gateways that are stopped in the end, whatever happens."""
    with ExitStack() as stack:

        def start(gateway: GatewayProcess) -> GatewayProcess:
            stack.callback(gateway.stop)
            return gateway.start()

        yield start


def post(gateway: GatewayProcess, address: str, payload: bytes = b"x") -> int | None:
    with Device(address, gateway.coap) as device:
        answer = device.post(payload)
    return None if answer is None else answer[1]


def test_device_is_served_within_a_second_and_seen(gateway: GatewayProcess, client: Client) -> None:
    assert client.ask("POST", "/v1/devices", {"iccid": ICCID, "ip": "127.0.2.1"}).status == 201
    until(lambda: post(gateway, "127.0.2.1") == OK, 1.0, "not served within a second")
    shown = client.ask("GET", f"/v1/devices/{ICCID}").json
    assert shown["createdAt"] <= shown["lastSeenAt"]
    assert client.ask("PATCH", f"/v1/devices/{ICCID}", {"status": "INACTIVE"}).status == 200
    until(lambda: post(gateway, "127.0.2.1") == 0x81, 1.0, "still served after a second")
    assert client.ask("DELETE", f"/v1/devices/{ICCID}").status == 204
    assert client.ask("GET", f"/v1/devices/{ICCID}").status == 404


def test_what_was_answered_has_taken_effect(gateway: GatewayProcess, client: Client) -> None:
    for number in range(10):
        iccid, address = f"89882806660000003{number:02}", f"127.0.4.{number + 1}"
        assert client.ask("POST", "/v1/devices", {"iccid": iccid, "ip": address}).status == 201
        assert post(gateway, address) == OK
        assert client.ask("PATCH", f"/v1/devices/{iccid}", {"status": "INACTIVE"}).status == 200
        assert post(gateway, address) == 0x81
        assert client.ask("DELETE", f"/v1/devices/{iccid}").status == 204


def test_everything_is_there_again_after_a_restart(tmp_path: Path, started: Starter) -> None:
    gateway = started(GatewayProcess(tmp_path / "data"))
    with Client(gateway) as client:
        client.ask("POST", "/v1/devices", {"iccid": ICCID, "ip": "127.0.0.1", "name": "Zähler"})
        key = client.ask("POST", f"/v1/integrate/devices/{ICCID}/psk", {"secretKey": SECRET, "protocol": "COAP"}).json
        until(lambda: post(gateway, "127.0.0.1") == OK)
        device = client.ask("GET", f"/v1/devices/{ICCID}").json
        token = gateway.token
    gateway.stop()
    started(gateway)
    assert gateway.token == token
    with Client(gateway) as client:
        assert client.ask("GET", f"/v1/devices/{ICCID}").json == device
        assert client.ask("GET", f"/v1/integrate/devices/{ICCID}/psk/COAP").json == key
        assert "lastSeenAt" in device


def test_five_thousand_keys_are_set_by_a_job_while_others_are_served(tmp_path: Path, started: Starter) -> None:
    gateway = started(GatewayProcess(tmp_path / "data"))
    iccids = [f"8988280666{number:09}" for number in range(5000)]
    table = tmp_path / "devices.csv"
    table.write_text("iccid\n" + "\n".join(iccids[:-1]) + "\n")
    coapgw(gateway.data, "device", "import", str(table))
    with Client(gateway) as client:
        keys = [{"deviceId": one, "secretKey": f"secret-{one}", "protocol": "COAP"} for one in iccids]
        begun = time.monotonic()
        posted = client.ask("POST", JOBS, {"keys": keys})
        assert posted.status == 202
        slowest = 0.0
        while (job := client.ask("GET", posted.headers["location"]).json)["status"] in ("SCHEDULED", "IN_PROGRESS"):
            asked = time.monotonic()
            assert client.ask("GET", f"/v1/devices/{iccids[0]}").status == 200
            slowest = max(slowest, time.monotonic() - asked)
        seconds = time.monotonic() - begun
        print(f"5000 keys: {seconds:.2f} s; another request meanwhile: {slowest * 1000:.0f} ms at most")
        assert (job["status"], job["succeeded"], job["failed"]) == ("FAILED", 4999, 1)
        assert job["errors"] == [{"deviceId": iccids[-1], "message": f"no device {iccids[-1]!r}"}]
        shown = client.ask("GET", f"/v1/integrate/devices/{iccids[7]}/psk/COAP").json
        assert shown["secretKey"] == f"secret-{iccids[7]}"


def test_what_was_answered_is_there_after_kill_9(tmp_path: Path, started: Starter) -> None:
    gateway = started(GatewayProcess(tmp_path / "data"))
    answered: list[str] = []

    def register() -> None:
        with suppress(OSError, HTTPException), Client(gateway) as client:
            for number in range(10_000):
                iccid = f"8988280666{number:09}"
                assert client.ask("POST", "/v1/devices", {"iccid": iccid}).status == 201
                path = f"/v1/integrate/devices/{iccid}/psk"
                assert client.ask("POST", path, {"secretKey": f"key-{number:09}", "protocol": "COAP"}).status == 200
                answered.append(iccid)

    registering = threading.Thread(target=register)
    registering.start()
    until(lambda: len(answered) > 100)
    gateway.kill()
    registering.join()
    gateway.start()
    with Client(gateway) as client:
        for iccid in answered:
            key = client.ask("GET", f"/v1/integrate/devices/{iccid}/psk/COAP").json
            assert key["secretKey"] == f"key-{iccid[-9:]}"


def test_of_many_that_want_the_same_one_gets_it(gateway: GatewayProcess) -> None:
    statuses: list[int] = []

    def register(number: int) -> None:
        with Client(gateway) as client:
            device = {"iccid": f"89882807770000000{number:02}", "ip": "10.9.9.9"}
            statuses.append(client.ask("POST", "/v1/devices", device).status)

    threads = [threading.Thread(target=register, args=(number,)) for number in range(90)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [201] + [409] * 89
    with Client(gateway) as client:
        (device,) = client.ask("GET", "/v1/devices?q=10.9.9.9").json["items"]
        assert client.ask("DELETE", f"/v1/devices/{device['iccid']}").status == 204


def test_without_the_token_nothing_but_health_is_shown(gateway: GatewayProcess) -> None:
    assert stat.S_IMODE((gateway.data / "admin.token").stat().st_mode) == 0o600
    for token in ("", "x", gateway.token[:-1], gateway.token.upper()):
        with Client(gateway, token) as stranger:
            refused = stranger.ask("GET", "/v1/devices")
            assert (refused.status, refused.headers["www-authenticate"]) == (401, 'Bearer realm="coapgw"')
            assert stranger.ask("GET", "/healthz").json == {"status": "ok"}
            assert stranger.ask("GET", "/readyz").status == 200
            assert b"coapgw_http_unauthorised_total" in stranger.ask("GET", "/metrics").body


def test_nothing_is_logged_of_requests(gateway: GatewayProcess, client: Client) -> None:
    before = gateway.log.read_bytes()
    for number in range(200):
        client.ask("GET", "/v1/devices" if number % 2 else "/nowhere")
    with connected(gateway) as noise:
        noise.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
        received(noise)
    assert gateway.log.read_bytes() == before


def test_counters_move(gateway: GatewayProcess, client: Client) -> None:
    def counter(name: str) -> float:
        lines = client.ask("GET", "/metrics").body.decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    before = counter("coapgw_uplink_unauthorised_total")
    assert post(gateway, "127.0.9.9") == 0x81
    assert counter("coapgw_uplink_unauthorised_total") == before + 1
    assert counter("coapgw_ready") == 1


# ---------------------------------------------------------------------- readiness


def test_full_spool_is_not_ready(tmp_path: Path, started: Starter) -> None:
    broker = Mosquitto(tmp_path / "mosquitto", "allow_anonymous true")  # not there yet
    bridge = ("mqtt.mode=bridge", f"mqtt.bridge.url=mqtt://127.0.0.1:{broker.port}")
    gateway = started(GatewayProcess(tmp_path / "data", "spool.max_bytes=20000", *bridge))
    with Client(gateway) as client:
        client.ask("POST", "/v1/devices", {"iccid": ICCID, "ip": "127.0.0.1"})
        until(lambda: post(gateway, "127.0.0.1") == OK)
        with Device("127.0.0.1", gateway.coap) as device:
            answers = [device.post(b"x" * 900) for _ in range(30)]
        assert answers[-1] is not None
        assert answers[-1][1] != OK
        not_ready = client.ask("GET", "/readyz")
        assert (not_ready.status, not_ready.json["errors"]) == (503, [{"message": "the spool is full"}])
        assert client.ask("GET", "/healthz").status == 200
        broker.start()
        try:
            until(lambda: client.ask("GET", "/readyz").status == 200)
        finally:
            broker.stop()


def test_failing_disk_is_not_ready(tmp_path: Path, started: Starter) -> None:
    gateway = started(GatewayProcess(tmp_path / "data", file_bytes=1 << 20))
    with Client(gateway) as client:
        client.ask("POST", "/v1/devices", {"iccid": ICCID, "ip": "127.0.0.1"})
        Subscriber(gateway.mqtt, client_id="away", clean=False).close()
        until(lambda: post(gateway, "127.0.0.1") == OK)
        with Device("127.0.0.1", gateway.coap) as device:
            while (answer := device.post(b"x" * 20_000)) is not None and answer[1] == OK:
                pass
        not_ready = client.ask("GET", "/readyz")
        assert not_ready.status == 503
        assert {"message": "the disk refuses the spool's commits"} in not_ready.json["errors"]
        gateway.raise_file_limit()
        until(lambda: post(gateway, "127.0.0.1") == OK)
        assert client.ask("GET", "/readyz").status == 200


def test_failing_registry_is_not_ready_and_devices_are_served_as_they_were(tmp_path: Path, started: Starter) -> None:
    gateway = started(GatewayProcess(tmp_path / "data"))

    def rename(before: str, after: str) -> None:
        with closing(sqlite3.connect(gateway.data / "registry.db")) as registry:
            registry.execute(f"ALTER TABLE {before} RENAME TO {after}")

    with Client(gateway) as client:
        client.ask("POST", "/v1/devices", {"iccid": ICCID, "ip": "127.0.0.1"})
        until(lambda: post(gateway, "127.0.0.1") == OK)
        rename("registry_version", "gone")
        until(lambda: client.ask("GET", "/readyz").status == 503)
        assert client.ask("GET", "/readyz").json["errors"] == [{"message": "the device registry cannot be read"}]
        assert client.ask("GET", "/healthz").status == 200
        assert client.ask("PATCH", f"/v1/devices/{ICCID}", {"name": "x"}).status == 500
        assert post(gateway, "127.0.0.1") == OK
        rename("gone", "registry_version")
        until(lambda: client.ask("GET", "/readyz").status == 200)
        assert client.ask("PATCH", f"/v1/devices/{ICCID}", {"name": "x"}).status == 200


# ---------------------------------------------------------------------- abuse


def test_body_that_is_too_large_is_refused_and_its_sender_reads_why(gateway: GatewayProcess, client: Client) -> None:
    for size, path in ((70_000, "/v1/devices"), (5_000_000, "/v1/devices"), (5_000_000, JOBS)):
        refused = client.ask("POST", path, raw=b"x" * size)
        assert (refused.status, refused.json["statusText"]) == (413, "Content Too Large")


def test_deep_json_is_a_400(client: Client) -> None:
    for raw in (b"[" * 10_000, b'{"a":' * 10_000, b"[" * 2_000_000):
        path = JOBS if len(raw) > 60_000 else "/v1/devices"
        assert client.ask("POST", path, raw=raw).status == 400


def test_huge_header_is_refused(gateway: GatewayProcess, client: Client) -> None:
    for data in (b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", b"x" * 100_000):
        with connected(gateway) as sender:
            sender.sendall(data)
            answer = received(sender)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
    assert client.ask("GET", "/healthz").status == 200


def test_long_pipeline_is_answered_whole_and_keeps_nobody_waiting(gateway: GatewayProcess, client: Client) -> None:
    count = 3000
    slowest = 0.0
    with connected(gateway) as sender:
        sender.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * count)
        answers = b""
        while answers.count(b"HTTP/1.1 200 OK") < count:
            begun = time.monotonic()
            assert client.ask("GET", "/healthz").status == 200
            slowest = max(slowest, time.monotonic() - begun)
            answers += sender.recv(1 << 20)
    print(f"a request beside a pipeline of {count}: {slowest * 1000:.0f} ms at most")
    assert slowest < 1.0


def test_slow_clients_keep_nobody_else_out(gateway: GatewayProcess) -> None:
    memory_before = _resident(gateway)
    with ExitStack() as stack:
        slow = [stack.enter_context(connected(gateway)) for _ in range(1000)]
        for one in slow[:500]:
            with suppress(ConnectionError):  # cut already, for want of room
                one.sendall(b"POST /v1/devices HTTP/1.1\r\nContent-Length: 60000\r\n\r\n" + b"x" * 1000)
        begun = time.monotonic()
        with Client(gateway) as client:
            assert client.ask("GET", "/v1/devices").status == 200
            waited = time.monotonic() - begun
            page = client.ask("GET", "/metrics").body.decode()
        grown = _resident(gateway) - memory_before
        files = len(list(Path(f"/proc/{gateway.pid}/fd").iterdir()))
    print(f"beside 1000 idle connections: {waited * 1000:.0f} ms, {grown} kB more memory")
    assert "coapgw_http_evicted_connections_total" in page
    assert waited < 1.0
    assert grown < 8_000
    assert files < CONNECTIONS + 100


def _resident(gateway: GatewayProcess) -> int:
    """Return the memory of the gateway in kB."""
    lines = Path(f"/proc/{gateway.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


# ---------------------------------------------------------------------- start and stop


def test_it_stops_in_order_with_clients_connected_and_a_job_under_way(tmp_path: Path, started: Starter) -> None:
    gateway = started(GatewayProcess(tmp_path / "data"))
    with ExitStack() as stack:
        for _ in range(20):
            idle = stack.enter_context(connected(gateway))
            idle.sendall(b"GET /healthz HTTP/1.1\r\n")
        client = stack.enter_context(Client(gateway))
        keys = [{"deviceId": f"8988280666{n:09}", "secretKey": SECRET, "protocol": "COAP"} for n in range(5000)]
        assert client.ask("POST", JOBS, {"keys": keys}).status == 202
        begun = time.monotonic()
        assert gateway.stop() in (0, -signal.SIGTERM)
        assert time.monotonic() - begun < 5
    assert "Traceback" not in gateway.log.read_text()


def test_token_that_is_none_ends_the_start_with_a_sentence(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    (data / "admin.token").write_text("")
    settings = [f"--set={key}=127.0.0.1:0" for key in ("http.listen",)]
    settings += ["--set=coap.listen=['127.0.0.1:0']", "--set=mqtt.embedded.listen=['127.0.0.1:0']"]
    command = [*TWISTD, "-n", "--pidfile=", "coapgw", "--data", str(data), *settings]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "admin.token is no token" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
