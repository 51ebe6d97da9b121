"""GET /bootstrap at a real gateway process, by raw datagrams, with kill -9 and a full disk."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.gateway_process import ROOT, TWISTD, Device, GatewayProcess, coapgw, until
from tests.integration.secure_device import SecureDevice
from tests.unit.coap_wire import NON, datagram, option

GET = 1
PATH = option(11, b"bootstrap")
ICCID, ADDRESS = "8988280666000000017", "127.0.1.17"
Starter = Callable[[GatewayProcess], GatewayProcess]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with one device."""
    coapgw(tmp_path / "data", "device", "add", ICCID, "--ip", ADDRESS)
    return tmp_path / "data"


@pytest.fixture
def started() -> Iterator[Starter]:
    """Start gateways that are stopped in the end, whatever happens."""
    with ExitStack() as stack:

        def start(gateway: GatewayProcess) -> GatewayProcess:
            stack.callback(gateway.stop)
            return gateway.start()

        yield start


class Asking:
    """A device that bootstraps, with a new Message ID each time."""

    def __init__(self, gateway: GatewayProcess, host: str = "127.0.0.1", address: str = ADDRESS) -> None:
        self._to, self._address, self._message_id = (host, gateway.coap[1]), address, 0

    def __call__(self, kind: int = 0) -> bytes:
        self._message_id += 1
        with Device(self._address, self._to) as device:
            return device.request(datagram(kind, GET, self._message_id, options=PATH))

    def fields(self) -> list[str]:
        answer = self()
        assert answer[:2] == b"\x60\x45"
        assert answer[4] == 0xFF
        return answer[5:].decode().split(",")


def stored_key(data: Path) -> str:
    return str(json.loads(coapgw(data, "device", "psk", ICCID, "--json"))["secretKey"])


def test_device_gets_the_key_that_is_stored_and_an_operators_key_is_its_next(data: Path, started: Starter) -> None:
    gateway = started(GatewayProcess(data))
    ask = Asking(gateway)
    iccid, key, url = ask.fields()
    assert (iccid, key) == (ICCID, stored_key(data))
    assert url == f"coaps://127.0.0.1:{gateway.coaps[1]}"
    answer = ask(NON)
    assert answer[:2] == b"\x50\x45"
    assert b"\0" not in answer
    assert answer[5:].decode() == f"{ICCID},{key},{url}"
    coapgw(data, "device", "psk", ICCID, "--set", "Tr0ub4dor&3")
    assert ask.fields()[1] == "Tr0ub4dor&3"
    assert Asking(gateway, address="127.0.1.99")()[1] == 0x81
    assert "Tr0ub4dor&3" not in gateway.log.read_text()
    assert key not in gateway.log.read_text()


def test_key_works_at_once_and_one_asked_for_over_dtls_too(data: Path, started: Starter) -> None:
    """Every call makes a key: neither the handshake right after it nor the answer over DTLS comes too early."""
    gateway = started(GatewayProcess(data, "bootstrap.rotate_after_seconds=0"))
    ask = Asking(gateway)
    for _ in range(5):
        with SecureDevice(gateway.coaps, ICCID, ask.fields()[1]) as device:
            assert device.connect()
            answer = device.request(datagram(0, GET, 7, options=PATH))
            assert answer is not None
            assert answer[1] == 0x45
            until(lambda: device.take(0.1) is None and device.is_closed)
        with SecureDevice(gateway.coaps, ICCID, answer[5:].decode().split(",")[1]) as device:
            assert device.connect()
            reply = device.post(b"hello")
            assert reply is not None
            assert reply[1] == 0x44


def test_key_that_was_sent_survives_kill_9(data: Path, started: Starter) -> None:
    gateway = started(GatewayProcess(data, "bootstrap.rotate_after_seconds=0"))
    for _ in range(3):
        key = Asking(gateway).fields()[1]
        gateway.kill()
        assert stored_key(data) == key
        gateway.start()


def test_on_a_full_disk_there_is_no_key_that_is_not_stored(data: Path, started: Starter) -> None:
    """No file may grow beyond 512 kB, and every call makes a key; other devices help, as one may not ask for ever."""
    others = [f"127.0.2.{number}" for number in range(1, 41)]
    rows = "".join(f"{int(ICCID) + number},{address}\n" for number, address in enumerate(others, 1))
    data.with_suffix(".csv").write_text(f"iccid,ip\n{rows}")
    coapgw(data, "device", "import", str(data.with_suffix(".csv")))
    gateway = started(GatewayProcess(data, "bootstrap.rotate_after_seconds=0", file_bytes=512 << 10))
    ask = Asking(gateway)
    sent = ask.fields()[1]
    for address in others * 20:
        answer = Asking(gateway, address=address)()
        if answer[1] == 0xA0:
            break
    assert answer[1] == 0xA0
    assert json.loads(answer[5:])["statusText"] == "Internal Server Error"
    assert [ask()[1] for _ in range(3)] == [0xA0] * 3
    assert gateway.log.read_text().count("devices cannot bootstrap") == 1
    assert stored_key(data) == sent
    gateway.raise_file_limit()  # somebody made room
    until(lambda: ask()[1] == 0x45)
    assert "devices can bootstrap again" in gateway.log.read_text()
    assert "Traceback" not in gateway.log.read_text()


@pytest.mark.parametrize(
    ("listen", "host", "shown"),
    [("0.0.0.0:0", "127.0.0.5", "127.0.0.5"), ("[::1]:0", "::1", "[::1]"), ("[::]:0", "::1", "[::1]")],
)
def test_url_names_the_address_that_was_asked(data: Path, started: Starter, listen: str, host: str, shown: str) -> None:
    coapgw(data, "device", "set", ICCID, "--ip", host)
    gateway = started(GatewayProcess(data, f"coap.listen=['{listen}']"))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as device:
        device.bind((host, 0))
        device.settimeout(5)
        device.sendto(datagram(0, GET, 1, options=PATH), (host, gateway.coap[1]))
        answer = device.recv(2048)
    assert answer.endswith(f",coaps://{shown}:{gateway.coaps[1]}".encode())


def test_gateway_does_not_start_without_what_unseals_its_keys(data: Path) -> None:
    coapgw(data, "device", "psk", ICCID, "--rotate")
    key_file = data / "keys.key"
    key = key_file.read_bytes()
    key_file.chmod(0o644)
    assert "may not be wider than 0600" in refused_start(data)
    key_file.unlink()
    assert "keys.key, which unseals the keys of devices, is missing" in refused_start(data)
    assert not key_file.exists()
    key_file.touch(0o600)
    assert "is no key file" in refused_start(data)
    key_file.write_bytes(bytes(32))
    assert "is not the file that seals the keys of devices" in refused_start(data)
    key_file.write_bytes(key)
    assert stored_key(data)


def refused_start(data: Path) -> str:
    """Start a gateway that ends by itself; return what it says."""
    listen = [f"{section}.listen=['127.0.0.1:0']" for section in ("coap", "coaps", "mqtt.embedded")]
    settings = [word for setting in listen for word in ("--set", setting)]
    command = [*TWISTD, "-n", "--pidfile=", "coapgw", "--data", str(data), *settings]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    return done.stderr
