"""Other people's clients send and fetch what does not fit a datagram."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest

from tests.integration.gateway_process import GatewayProcess, Subscriber, coapgw, until

ICCID = "8988280666000000017"


@pytest.mark.parametrize("block_bytes", [16, 64, 1024])
def test_libcoap_sends_a_large_message(tmp_path: Path, block_bytes: int) -> None:
    body = bytes(range(256)) * 40
    data = tmp_path / "data"
    coapgw(data, "device", "add", ICCID, "--ip", "127.0.0.1")
    gateway = GatewayProcess(data).start()
    try:
        subscriber = Subscriber(gateway.mqtt)
        payload = tmp_path / "payload"
        payload.write_bytes(body)
        url = f"coap://127.0.0.1:{gateway.coap[1]}/?t=large"
        command = ["coap-client-notls", "-m", "post", "-b", str(block_bytes), "-f", str(payload), url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert "4." not in done.stdout + done.stderr
        until(subscriber.documents)
        subscriber.close()
        (document,) = subscriber.documents()
        assert base64.b64decode(document["payload"]["value"]) == body
    finally:
        gateway.stop()
    assert "Traceback" not in gateway.log.read_text()
