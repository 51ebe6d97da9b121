"""What ``docs/api.md`` shows is what a real gateway answers to curl."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.integration.gateway_process import ROOT, GatewayProcess

PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TIME = re.compile(r"\d{4}-\d\d-\d\dT[0-9:.]{12}Z")
JOB = re.compile(r"\b[0-9a-f]{24}\b")
CALLS = 18


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[GatewayProcess]:
    process = GatewayProcess(tmp_path / "data").start()
    yield process
    process.stop()


def test_examples_are_answered_as_the_page_says(gateway: GatewayProcess) -> None:
    host, port = gateway.http
    environment = {"PATH": os.environ["PATH"], "URL": f"http://{host}:{port}", "TOKEN": gateway.token}
    examples = [example for block in BLOCK.findall(PAGE) for example in re.split(r"^\$ ", block, flags=re.M)[1:]]
    jobs: dict[str, str] = {}
    for example in examples:
        line, _, expected = example.partition("\n")
        for shown, real in jobs.items():
            line = line.replace(shown, real)
        done = subprocess.run(
            ["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, line + done.stderr
        said = done.stdout.rstrip("\n")
        jobs |= dict(zip(JOB.findall(expected), JOB.findall(said), strict=True))
        assert _anonymous(said) == _anonymous(expected.rstrip("\n")), line
    assert len(examples) == CALLS


def _anonymous(text: str) -> str:
    return JOB.sub("JOB", TIME.sub("TIME", text))


def test_every_operation_of_the_document_is_on_a_page(gateway: GatewayProcess) -> None:
    host, port = gateway.http
    with urlopen(f"http://{host}:{port}/v1/openapi.json", timeout=10) as answer:
        document = json.load(answer)
    pages = PAGE + (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    for path in document["paths"]:
        assert path.replace("presharedkey", "psk") in pages, path
