"""What the README has a newcomer type does what it says; the ports are others, not to be in anybody's way."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.gateway_process import ROOT, GatewayProcess, Subscriber, until

README = (ROOT / "README.md").read_text(encoding="utf-8")
TYPED = re.compile(r"^    (?:(?:\.venv/bin/coapgw|curl) .*)$", re.MULTILINE)
SHOWN = re.compile(r"^    (lifecycle|\d+/greetings) (\{.*\})$", re.MULTILINE)
CALLS = 4


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[GatewayProcess]:
    process = GatewayProcess(tmp_path / "data").start()
    yield process
    process.stop()


@pytest.fixture
def subscriber(gateway: GatewayProcess) -> Iterator[Subscriber]:
    subscriber = Subscriber(gateway.mqtt)
    yield subscriber
    subscriber.close()


def test_the_commands_by_hand_do_what_the_readme_says(gateway: GatewayProcess, subscriber: Subscriber) -> None:
    typed = TYPED.findall(README)
    assert len(typed) == CALLS
    added, *others = typed
    _type(gateway, added)
    until(lambda: _is_served(gateway))
    said = [_type(gateway, line) for line in others]
    assert "2.04 Changed" in said[0]
    assert "2.04 Changed" in said[1]
    assert '"secretKey"' in said[2]
    shown = SHOWN.findall(README)
    assert len(shown) == 2
    until(lambda: len(subscriber.received) >= 3)
    for (topic, payload), (real_topic, real_payload) in zip(shown, subscriber.received, strict=False):
        assert real_topic == topic
        assert re.fullmatch(re.escape(payload).replace("…", ".*"), real_payload.decode())


def _is_served(gateway: GatewayProcess) -> bool:
    """Tell whether the running gateway serves the device; asking for the resources makes no event."""
    url = f"coap://127.0.0.1:{gateway.coap[1]}/.well-known/core"
    command = [sys.executable, "-m", "coapgw.cli.main", "send", url]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=30, check=False).returncode == 0


def _type(gateway: GatewayProcess, line: str) -> str:
    """Type a line of the README, for this gateway; return what it prints."""
    line = line.replace(".venv/bin/coapgw", f"{sys.executable} -m coapgw.cli.main --data {gateway.data}")
    line = line.replace("coap://127.0.0.1/", f"coap://127.0.0.1:{gateway.coap[1]}/")
    line = line.replace(":8080/", f":{gateway.http[1]}/").replace("coapgw-data/", f"{gateway.data}/")
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, line + done.stderr
    return done.stdout
