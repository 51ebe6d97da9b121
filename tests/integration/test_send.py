"""``coapgw send`` against a real gateway: what ``docs/send.md`` shows is what it does."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from coapgw.dtls.openssl import SUITES
from tests.integration.gateway_process import ROOT, GatewayProcess, Subscriber, coapgw, until

ICCID = "8988280666000000017"
KEY = "q8Yt2LmZ0aXw4RbK"
PAGE = (ROOT / "docs" / "send.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CHANGING = (  # what differs from one run to the next
    (re.compile(r"\d+\.\d ms"), "N ms"),
    (re.compile(r"^ +\d+\.\d{4} (->|<-)", re.MULTILINE), r"N \1"),
    (re.compile(r"\bid \d+, token [0-9a-f]{16}"), "id N, token N"),
    (re.compile(r'("(?:s|handshakeS)econds": )[0-9.e-]+'), r"\1N"),
)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway that knows 127.0.0.1, with a key."""
    data = tmp_path_factory.mktemp("send") / "data"
    coapgw(data, "device", "add", ICCID, "--ip", "127.0.0.1")
    coapgw(data, "device", "psk", ICCID, "--set", KEY)
    process = GatewayProcess(data).start()
    yield process
    process.stop()
    assert "Traceback" not in process.log.read_text()


def _send(
    *words: str, stdin: bytes = b"", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "coapgw.cli.main", "send", *words]
    return subprocess.run(
        command,
        cwd=ROOT,
        input=stdin,
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
        check=False,
    )


def _unchanging(text: str, gateway: GatewayProcess) -> str:
    for pattern, stands_for_it in CHANGING:
        text = pattern.sub(stands_for_it, text)
    return text.replace(f":{gateway.coap[1]}", ":5683").replace(f":{gateway.coaps[1]}", ":5684")


def _examples() -> list[tuple[str, str]]:
    found = []
    for text in BLOCK.findall(PAGE):
        for example in text.split("$ coapgw send ")[1:]:
            line, _, expected = example.partition("\n")
            found.append((line, expected))
    return found


@pytest.mark.parametrize(("line", "expected"), _examples())
def test_examples_do_what_the_page_says(gateway: GatewayProcess, line: str, expected: str) -> None:
    line = line.replace("coap://127.0.0.1", f"coap://127.0.0.1:{gateway.coap[1]}")
    line = line.replace("coaps://127.0.0.1", f"coaps://127.0.0.1:{gateway.coaps[1]}")
    words = shlex.split(line)
    said = _send(*words).stdout.decode()
    assert _unchanging(said, gateway) == _unchanging(expected, gateway)


def test_the_page_has_examples() -> None:
    assert len(_examples()) == 11


def test_the_program_on_the_page_runs(gateway: GatewayProcess) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    program = program.replace("coaps://192.0.2.10/", f"coaps://127.0.0.1:{gateway.coaps[1]}/")
    program += f"""
from twisted.internet.defer import ensureDeferred
from twisted.internet.task import react

react(lambda reactor: ensureDeferred(report(reactor, {KEY.encode()!r})))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert done.stdout.startswith(b"True 0."), done.stderr


def test_messages_arrive(gateway: GatewayProcess) -> None:
    subscriber = Subscriber(gateway.mqtt)
    url = f"coap://127.0.0.1:{gateway.coap[1]}/data?t=by/send"
    assert _send(url, "--file", "-", stdin=b"\x00\xffbinary", environment={}).returncode == 0
    assert _send(url, "--non", "text").returncode == 0
    until(lambda: len(subscriber.documents()) == 2)
    subscriber.close()
    assert [found["payload"]["value"] for found in subscriber.documents()] == ["AP9iaW5hcnk=", "dGV4dA=="]


def test_a_name_is_resolved_and_sent(gateway: GatewayProcess) -> None:
    url = f"coap://localhost:{gateway.coap[1]}/?t=x"
    said = _send(url, "hello", "--bind", "127.0.0.1", "-v")
    assert said.returncode == 0, said.stdout
    assert b"Uri-Host localhost" in said.stdout


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_carries_messages(gateway: GatewayProcess, suite: str) -> None:
    url = f"coaps://127.0.0.1:{gateway.coaps[1]}/?t=x"
    words = (url, "--file", "-", "--identity", ICCID, "--cipher", suite, "--json")
    done = _send(*words, stdin=b"x" * 5000, environment={"COAPGW_KEY": KEY})
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["suite"] == suite


def test_the_key_is_never_shown(gateway: GatewayProcess) -> None:
    bootstrap, url = f"coap://127.0.0.1:{gateway.coap[1]}", f"coaps://127.0.0.1:{gateway.coaps[1]}/?t=x"
    for words, stdin in (
        (("--bootstrap", bootstrap, "/?t=x", "hello"), b""),
        ((url, "hello", "--identity", ICCID, "--key", KEY), b""),
        ((url, "hello", "--identity", ICCID, "--hex-key", "-"), KEY.encode().hex().encode()),
    ):
        done = _send(*words, "-vv", stdin=stdin)
        assert done.returncode == 0, done.stdout
        assert KEY.encode() not in done.stdout
        assert KEY.encode().hex().encode() not in done.stdout


@pytest.mark.parametrize(("identity", "key"), [(ICCID, "another key 1234"), ("8988280666000000025", KEY)])
def test_nobody_gets_in_without_the_key(gateway: GatewayProcess, identity: str, key: str) -> None:
    url = f"coaps://127.0.0.1:{gateway.coaps[1]}/"
    done = _send(url, "hello", "--identity", identity, environment={"COAPGW_KEY": key})
    assert done.returncode == 1
    assert b"wrong key, unknown identity or inactive device" in done.stdout


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (("coap://127.0.0.1:{port}/nowhere",), 1, b"4.04 Not Found"),
        (("coap://127.0.0.1:{port}/", "x", "--bind", "127.0.0.2"), 1, b"4.01 Unauthorized"),
        (("coap://nosuch.invalid/",), 1, b"coapgw: the name nosuch.invalid does not resolve\n"),
        (("coap://127.0.0.1:{port}/", "x" * 65_000), 1, b"coapgw: a payload of 65000 bytes"),
        (("coap://127.0.0.1:{port}/bootstrap", "--bootstrap", "coaps://127.0.0.1"), 2, b"over coap://"),
    ],
)
def test_the_exit_status_tells(gateway: GatewayProcess, words: tuple[str, ...], status: int, sentence: bytes) -> None:
    done = _send(*(word.format(port=gateway.coap[1]) for word in words))
    assert (done.returncode, sentence in done.stdout) == (status, True), done.stdout
    assert b"Traceback" not in done.stdout


@pytest.mark.parametrize("words", [("coap://127.0.0.1:{port}",), ("coap://127.0.0.1:{port}", "--repeat", "9")])
def test_an_interrupt_ends_it_in_silence(words: tuple[str, ...]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(20)
        command = [sys.executable, "-m", "coapgw.cli.main", "send"]
        command += [word.format(port=server.getsockname()[1]) for word in words]
        sending = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        server.recv(100)  # now it waits for an answer
        sending.send_signal(signal.SIGINT)
        assert sending.communicate(timeout=20)[0] == b""
    assert sending.returncode == 130
