"""``coapgw send`` against resources that are observed, and that want an address proven first."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.integration.gateway_process import ROOT
from tests.interop.etsi import KEY, EtsiServer, running_etsi_gateway
from tests.interop.wire_client import PlainChannel, WireClient

PUT = 3
SEND = [sys.executable, "-m", "coapgw.cli.main", "--json", "send"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtsiServer]:
    """A gateway that trusts no network."""
    with running_etsi_gateway(tmp_path_factory.mktemp("observe"), 3) as running:
        yield running


def _change(server: EtsiServer, room: int, value: bytes) -> None:
    client = WireClient(PlainChannel(server.coap, server.source(room)), str(room), int(value))
    client.request(PUT, "obs", payload=value)
    client.close()


def test_a_large_answer_is_got_with_echo(server: EtsiServer) -> None:
    url = f"coap://127.0.0.1:{server.coap[1]}/0/large"
    done = subprocess.run(
        [*SEND, "-v", "--bind", server.source(0), url], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout)["code"] == "2.05"
    assert "4.01 Unauthorized" in done.stderr
    assert "Echo 0x" in done.stderr


@pytest.mark.parametrize("room", [1, 2], ids=["UDP", "DTLS"])
def test_every_state_is_shown(server: EtsiServer, room: int) -> None:
    if room == 1:
        where = ["--bind", server.source(room), f"coap://127.0.0.1:{server.coap[1]}/{room}/obs"]
    else:
        where = ["--identity", server.iccid(room), "--key", KEY, f"coaps://127.0.0.1:{server.coaps[1]}/{room}/obs"]
    command = [*SEND, "-v", "--observe", "3", *where]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        shown: list[str] = []
        while not any("2.05" in line for line in shown):
            shown.append(process.stderr.readline())
            assert shown[-1], shown
        _change(server, room, b"1")
        printed, rest = process.communicate(timeout=60)
    assert process.returncode == 0
    assert [answer["payload"] for answer in json.loads(printed)["answers"]] == ["0", "1"]
    assert "Observe 1" in rest  # the goodbye
