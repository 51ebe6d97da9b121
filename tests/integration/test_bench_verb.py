"""``coapgw bench`` against a real gateway."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.integration.gateway_process import ROOT, GatewayProcess, coapgw

ICCID = "8988280666000000017"
KEY = "q8Yt2LmZ0aXw4RbK"
COMMAND = (sys.executable, "-m", "coapgw.cli.main", "bench")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway that knows 127.0.0.1, with a key, and three more addresses."""
    data = tmp_path_factory.mktemp("bench") / "data"
    coapgw(data, "device", "add", ICCID, "--ip", "127.0.0.1")
    coapgw(data, "device", "psk", ICCID, "--set", KEY)
    for number in range(1, 4):
        coapgw(data, "device", "add", f"898828066600000010{number}", "--ip", f"127.6.0.{number}")
    process = GatewayProcess(data).start()
    yield process
    process.stop()
    assert "Traceback" not in process.log.read_text()


def _bench(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def _url(address: tuple[str, int], scheme: str = "coap", rest: str = "/?t=load") -> str:
    return f"{scheme}://{address[0]}:{address[1]}{rest}"


def _accepted(gateway: GatewayProcess) -> int:
    with socket.create_connection(gateway.http) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        page = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    (line,) = (line for line in page.splitlines() if line.startswith("coapgw_uplink_accepted_total "))
    return int(float(line.split()[1]))


def test_every_request_is_counted_and_timed(gateway: GatewayProcess) -> None:
    before = _accepted(gateway)
    done = _bench(_url(gateway.coap), "--seconds", "1", "--window", "2", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["codes"] == {"2.04": told["requests"]}
    assert told["requests"] == _accepted(gateway) - before
    assert (told["clients"], told["unanswered"]) == (16, 0)
    assert 0 < told["latency"]["p50"] <= told["latency"]["p90"] <= told["latency"]["p99"] <= told["latency"]["max"]


def test_a_rate_is_kept(gateway: GatewayProcess) -> None:
    told = json.loads(_bench(_url(gateway.coap), "--seconds", "2", "--rate", "100", "--clients", "3", "--json").stdout)
    assert told["requests"] == 200


def test_people_are_told_in_three_lines(gateway: GatewayProcess) -> None:
    done = _bench(_url(gateway.coap), "hello", "--seconds", "0.5", "--clients", "1")
    first, second, third = done.stdout.splitlines()
    assert "requests of 1 clients" in first
    assert "x 2.04 Changed, 0 unanswered" in second
    assert third.startswith("p50 ")


def test_associations_carry_it_too(gateway: GatewayProcess) -> None:
    words = ("--identity", ICCID, "--key", KEY, "--seconds", "0.5", "--json")
    done = _bench(_url(gateway.coaps, "coaps"), *words)
    told = json.loads(done.stdout)
    assert (done.returncode, told["clients"], list(told["codes"])) == (0, 4, ["2.04"])


def test_each_client_has_an_address_of_its_own(gateway: GatewayProcess) -> None:
    done = _bench(
        _url(gateway.coap), "--bind", "127.6.0.0/24", "--clients", "4", "--rate", "8", "--seconds", "1", "--json"
    )
    assert done.returncode == 1
    assert json.loads(done.stdout)["codes"] == {"2.04": 6, "4.01": 2}  # the fourth is no device


def test_refusals_are_an_exit_status(gateway: GatewayProcess) -> None:
    done = _bench(_url(gateway.coap, rest="/nothing"), "--seconds", "0.3", "--json")
    assert (done.returncode, list(json.loads(done.stdout)["codes"])) == (1, ["4.04"])


def test_nobody_there_is_one_sentence() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        closed = probe.getsockname()
    done = _bench(_url(closed), "--seconds", "1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "nobody listens" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("coaps://127.0.0.1",),
        ("http://127.0.0.1",),
        ("coap://127.0.0.1", "--bind", "127.6.0.0/30"),
        ("coap://127.0.0.1", "--bind", "here/24"),
        ("coap://127.0.0.1", "--clients", "0"),
        ("coap://127.0.0.1", "--seconds", "4000"),
    ],
)
def test_mistakes_are_told(words: tuple[str, ...]) -> None:
    done = _bench(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert done.stderr


def test_who_has_enough_is_told_what_there_was(gateway: GatewayProcess) -> None:
    running = subprocess.Popen([*COMMAND, _url(gateway.coap)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    before = _accepted(gateway)
    while _accepted(gateway) == before:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    told, _ = running.communicate(timeout=20)
    assert running.returncode == 130
    assert "requests of 16 clients" in told


def test_nothing_secret_is_told(gateway: GatewayProcess) -> None:
    wrong = "wrong key 12345678"
    done = _bench(_url(gateway.coaps, "coaps"), "--identity", ICCID, "--key", wrong, "--timeout", "1", "--seconds", "1")
    assert done.returncode == 1
    assert wrong not in done.stdout + done.stderr
    assert os.linesep == done.stderr[-1:]
