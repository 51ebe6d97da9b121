"""``make demo``: what a newcomer sees first."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.integration.gateway_process import ROOT


def test_the_demo_ends_by_itself_and_only_well_if_messages_arrived() -> None:
    command = [sys.executable, "-m", "coapgw.cli.demo", "--seconds", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "the gateway is ready" in done.stdout
    assert '"DEVICE_FIRST_TIME_REGISTERED"' in done.stdout
    assert re.search(r"^coap +127\.1\.0\.\d -> 2\.05 +GET /bootstrap", done.stdout, re.MULTILINE)
    assert re.search(r"^coaps 127\.1\.0\.\d -> 2\.04", done.stdout, re.MULTILINE)
    assert re.search(r"^coap +127\.1\.0\.\d -> 2\.04", done.stdout, re.MULTILINE)
    assert done.stdout.splitlines()[-1].endswith("0 missing, 0 without a 2.04")
