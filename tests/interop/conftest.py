"""A broker process for clients of other people's making."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

BrokerStart = Callable[..., int]


@pytest.fixture
def start_broker() -> Iterator[BrokerStart]:
    """Start the embedded broker in a process of its own; return its port."""
    running: list[subprocess.Popen[str]] = []

    def start(users: list[dict[str, object]] | None = None, **limits: int) -> int:
        command = [sys.executable, "-m", "tests.interop.broker_process", json.dumps(users or [])]
        command += [f"{name}={value}" for name, value in limits.items()]
        broker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        running.append(broker)
        assert broker.stdout is not None
        return int(broker.stdout.readline())

    yield start
    for broker in running:
        broker.terminate()
        broker.communicate(timeout=10)
