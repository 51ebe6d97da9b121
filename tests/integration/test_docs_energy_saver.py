"""What ``docs/energy-saver.md`` shows is what happens when somebody types it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.gateway_process import ROOT, GatewayProcess, Subscriber, coapgw, until

ICCID = "8988280666000000017"
PAGE = (ROOT / "docs" / "energy-saver.md").read_text(encoding="utf-8")
EXAMPLE = re.compile(r"^    \$ (.*)\n((?:    [^$\n].*\n)*)", re.MULTILINE)
VARIES = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|\d+\.\d ms")
CALLS = 7


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[GatewayProcess]:
    process = GatewayProcess(tmp_path / "data")
    coapgw(process.data, "device", "add", ICCID, "--ip", "127.0.0.1")
    yield process.start()
    process.stop()


@pytest.fixture
def subscriber(gateway: GatewayProcess) -> Iterator[Subscriber]:
    subscriber = Subscriber(gateway.mqtt)
    yield subscriber
    subscriber.close()


def test_examples_do_what_the_page_says(gateway: GatewayProcess, subscriber: Subscriber) -> None:
    examples = EXAMPLE.findall(PAGE)
    for line, expected in examples:
        _does(gateway, line, expected)
        while " send " in line and not _translated(subscriber):  # a running gateway follows within a second
            subscriber.received.clear()
            _does(gateway, line, expected)
    assert len(examples) == CALLS
    shown = re.search(rf'^    {ICCID} (.*)"payload":(.*)}}$', PAGE, re.MULTILINE)
    assert shown is not None
    assert subscriber.documents()[-1]["payload"] == json.loads(shown[2])


def _does(gateway: GatewayProcess, line: str, expected: str) -> None:
    host, port = gateway.http
    environment = {"PATH": os.environ["PATH"], "URL": f"http://{host}:{port}", "TOKEN": gateway.token}
    tool = f"{sys.executable} -m coapgw.cli.main --data {gateway.data}"
    typed = line.replace(".venv/bin/coapgw", tool).replace("127.0.0.1/", f"127.0.0.1:{gateway.coap[1]}/")
    done = subprocess.run(
        ["bash", "-c", typed], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, line + done.stderr
    assert _unchanging(done.stdout) == _unchanging(re.sub("^    ", "", expected, flags=re.MULTILINE)), line


def _unchanging(text: str) -> str:
    return VARIES.sub("", text.rstrip("\n"))


def _translated(subscriber: Subscriber) -> bool:
    until(subscriber.documents)
    return bool(subscriber.documents()[-1]["payload"]["type"] == "JSON")
