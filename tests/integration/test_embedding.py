"""The example of docs/embedding.md, as it stands there."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.gateway_process import ROOT, TWISTD, Device, coapgw, until
from tests.unit.coap_wire import datagram, option


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """The example, running; its data directory."""
    (tmp_path / "gateway.tac").write_text(
        (ROOT / "docs/embedding.md").read_text().split("```python\n")[1].split("```")[0]
    )
    data = tmp_path / "data"
    coapgw(data, "device", "add", "8988280666000000017", "--ip", "127.0.0.1", "--name", "greenhouse")
    process = subprocess.Popen([*TWISTD, "-n", "--pidfile=", "-y", "gateway.tac"], cwd=tmp_path, env=None)
    try:
        until((data / "ports.json").exists, 20)
        yield data
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(20)
    assert status in (0, -signal.SIGTERM)


def test_an_observer_is_told_what_another_device_puts(data: Path) -> None:
    url = f"coap://127.0.0.1:{json.loads((data / 'ports.json').read_text())['coap'][0]}/door"
    command = [sys.executable, "-u", "-m", "coapgw.cli.main", "send", "--observe", "60", url]
    observer = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert observer.stdout is not None
        lines = iter(observer.stdout.readline, "")
        assert "closed\n" in lines
        coapgw(data, "send", "-m", "put", url, "open")
        assert "open\n" in lines
    finally:
        observer.terminate()
        observer.communicate(timeout=20)


def test_an_application_serves_its_resource_beside_the_gateways(data: Path) -> None:
    port = json.loads((data / "ports.json").read_text())["coap"][0]
    with Device("127.0.0.1", ("127.0.0.1", port)) as device:
        answer = device.post(b"hello")
        assert answer is not None
        assert answer[1] == 0x44
        answer = device.request(datagram(code=1, message_id=1, options=option(11, b"clock")))
    assert answer.startswith(b"\x60\x45\x00\x01\xff")
    assert answer.endswith(b" greenhouse")
