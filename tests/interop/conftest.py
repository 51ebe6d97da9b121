"""What clients of other people's making talk to: a broker process, a gateway with DTLS."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from tests.interop.coaps_server import CoapsServer, running_gateway
from tests.interop.interop_table import InteropTable


@attrs.frozen
class RunningBroker:
    """A broker process that listens."""

    port: int
    pid: int

    def memory(self) -> int:
        """Return the resident bytes of the process (proc(5))."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024


BrokerStart = Callable[..., RunningBroker]


@pytest.fixture
def start_broker() -> Iterator[BrokerStart]:
    """Start the embedded broker in a process of its own."""
    running: list[subprocess.Popen[str]] = []

    def start(users: list[dict[str, object]] | None = None, **limits: int) -> RunningBroker:
        command = [sys.executable, "-m", "tests.interop.broker_process", json.dumps(users or [])]
        command += [f"{name}={value}" for name, value in limits.items()]
        broker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        running.append(broker)
        assert broker.stdout is not None
        return RunningBroker(int(broker.stdout.readline()), broker.pid)

    yield start
    for broker in running:
        broker.terminate()
        broker.communicate(timeout=10)


@pytest.fixture(scope="session")
def interop_table() -> Iterator[InteropTable]:
    """The table of docs/interop.md."""
    table = InteropTable()
    yield table
    table.write()


@pytest.fixture(scope="module")
def coaps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CoapsServer]:
    """A gateway with DTLS."""
    with running_gateway(tmp_path_factory.mktemp("coaps") / "data") as server:
        yield server
