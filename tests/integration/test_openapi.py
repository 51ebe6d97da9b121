"""schemathesis reads the OpenAPI document of a real gateway and tries to find a request it is not true for."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.gateway_process import GatewayProcess
from tests.integration.http_client import Client

SECONDS = 20
"""How long it may take; what it did not get to in this time it did not check, and says so."""

CONFIGURATION = Path(__file__).with_name("schemathesis.toml")
ICCID = "8988280666000000017"


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[GatewayProcess]:
    process = GatewayProcess(tmp_path / "data").start()
    with Client(process) as client:
        client.ask("POST", "/v1/devices", {"iccid": ICCID, "ip": "10.0.0.17"})
        client.ask("POST", f"/v1/integrate/devices/{ICCID}/psk", {"secretKey": "12345678", "protocol": "COAP"})
    yield process
    assert process.stop() in (0, -signal.SIGTERM)
    assert "Traceback" not in process.log.read_text()


def test_document_is_true(gateway: GatewayProcess, tmp_path: Path) -> None:
    host, port = gateway.http
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "schemathesis.cli",
                *("--config-file", str(CONFIGURATION)),
                "run",
                f"http://{host}:{port}/v1/openapi.json",
            ),
            *("--header", f"Authorization: Bearer {gateway.token}", "--checks", "all", "--seed", "1"),
            *("--max-examples", "40", "--request-timeout", "10", "--workers", "2", "--no-color"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS * 5,
        check=False,
    )
    print(done.stdout[-6000:])
    assert done.returncode == 0, done.stdout[-12000:] + done.stderr
    counted = re.search(r"Selected: (\d+)/(\d+)\s+Tested: (\d+)", done.stdout)
    assert counted is not None
    assert len(set(counted.groups())) == 1, "it left operations out"
    assert re.search(r"Stateful \(in .*\n\n(?:.*\n)*?.*✅ \d+ passed", done.stdout)
