"""``coapgw send`` against other people's servers: libcoap's, on OpenSSL and on GnuTLS."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import pytest

from coapgw.dtls.openssl import AEAD_SUITES, SUITES
from tests.integration.gateway_process import ROOT, until

KEY = "q8Yt2LmZ0aXw4RbK"
SERVERS = {"openssl": "coap-server-openssl", "gnutls": "coap-server-gnutls"}
SUITES_OF = {
    "openssl": frozenset(AEAD_SUITES),  # libcoap's list for OpenSSL has no CBC with a pre-shared key
    "gnutls": frozenset(SUITES) - {"PSK-AES256-CCM8"},
}


@attrs.frozen
class RunningServer:
    """A server that listens: CoAP on *port*, CoAPs on the next one."""

    name: str
    port: int

    def url(self, path: str, scheme: str = "coaps") -> str:
        return f"{scheme}://127.0.0.1:{self.port + (scheme == 'coaps')}{path}"


def _two_free_ports() -> int:
    for _ in range(50):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as first:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as second:
                try:
                    second.bind(("127.0.0.1", port + 1))
                except (OSError, OverflowError):
                    continue
                return port
    raise AssertionError("no two free ports in a row")


@contextmanager
def _running(name: str, *options: str) -> Iterator[RunningServer]:
    program = shutil.which(SERVERS[name])
    assert program is not None, f"{SERVERS[name]} is missing: apt-get install libcoap3-bin"
    port = _two_free_ports()
    command = [program, "-p", str(port), "-A", "127.0.0.1", "-k", KEY, "-v", "3", *options]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("127.0.0.1", port + 1))
            probe.setblocking(False)

            def listens() -> bool:
                try:
                    probe.send(b"not DTLS")
                    time.sleep(0.02)  # that long an ICMP error takes at most
                    probe.send(b"not DTLS")
                except ConnectionRefusedError:
                    return False
                return True

            until(listens, what=f"{program} does not listen")
        yield RunningServer(name, port)
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    """Each of the servers."""
    with _running(request.param) as running:
        yield running


def _send(*words: str, key: str | None = KEY) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coapgw.cli.main", "send", *words]
    environment = os.environ | ({"COAPGW_KEY": key} if key is not None else {})
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    assert KEY not in done.stdout + done.stderr
    return done


def _send_json(*words: str) -> tuple[int, dict[str, Any]]:
    done = _send(*words, "--json")
    value = json.loads(done.stdout)
    assert isinstance(value, dict)
    return done.returncode, value


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_that_the_server_has(server: RunningServer, suite: str) -> None:
    words = (server.url("/time"), "--identity", "me", "--cipher", suite, "--timeout", "10")
    status, value = _send_json(*words)
    if suite in SUITES_OF[server.name]:
        assert (status, value["code"], value["suite"]) == (0, "2.05", suite)
    else:
        assert status == 1
        assert value["error"].endswith("with the alert handshake_failure: it has none of our suites")


def test_ccm8_is_agreed_if_nothing_is_said(server: RunningServer) -> None:
    assert _send_json(server.url("/time"), "--identity", "me")[1]["suite"] == "PSK-AES128-CCM8"


@pytest.mark.parametrize("scheme", ["coap", "coaps"])
def test_methods_options_and_payloads(server: RunningServer, scheme: str) -> None:
    url, known = server.url("/example_data", scheme), ("--identity", "me") if scheme == "coaps" else ()
    status, value = _send_json(url, "-m", "put", "--payload-hex", "00ff41", "--content-format", "42", *known)
    assert (status, value["code"]) in ((0, "2.01"), (0, "2.04"))
    status, value = _send_json(url, *known)
    assert (status, value["payloadHex"]) == (0, "00ff41")
    assert {"number": 12, "name": "Content-Format", "value": "42 (application/octet-stream)"} in value["options"]
    status, value = _send_json(server.url("/nowhere", scheme), "--non", *known)
    assert (status, value["code"], value["payload"]) == (1, "4.04", "Not Found")
    status, value = _send_json(url, "-m", "delete", *known)
    assert (status, value["code"]) == (1, "4.05")


def test_one_association_serves_many_requests(server: RunningServer) -> None:
    done = _send(server.url("/?n=1"), "--identity", "me", "--repeat", "20", "-v")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].startswith("20 requests: 20 answered 2.xx, 0 refused, 0 unanswered; ")
    assert done.stderr.count("ClientKeyExchange") == 1


def test_a_handshake_can_be_watched(server: RunningServer) -> None:
    said = _send(server.url("/time"), "--identity", "me", "-vv").stderr
    for step in ("-> ClientHello", "<- HelloVerifyRequest", "ServerHelloDone", "-> ClientKeyExchange", "Finished"):
        assert step in said
    assert "PSK-AES128-CCM8, handshake" in said
    assert KEY.encode().hex() not in said


def test_a_wrong_key_reads_like_one(server: RunningServer) -> None:
    done = _send(server.url("/time"), "--identity", "me", "--timeout", "2", key="another key")
    assert done.returncode == 1
    assert "wrong key, unknown identity or inactive device" in done.stderr


@pytest.mark.parametrize("name", SERVERS)
def test_lost_datagrams_are_made_up_for(name: str) -> None:
    """The server's second flight and one of its answers are lost."""
    with _running(name, "-l", "2,7") as lossy:
        status, value = _send_json(lossy.url("/time"), "--identity", "me", "--repeat", "5")
    assert status == 0
    assert value["succeeded"] == 5
