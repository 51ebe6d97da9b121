"""A real mosquitto in a process of its own, which tests kill and start again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.integration.gateway_process import until


def free_port() -> int:
    """Return a TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Return whether somebody takes connections there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Mosquitto:
    """One broker; keeps its port, and its messages if they persist, over a restart.

    Args:
        directory: for its files.
        lines: more of its configuration.
    """

    def __init__(self, directory: Path, *lines: str) -> None:
        program = shutil.which("mosquitto")
        if program is None:
            pytest.fail("mosquitto is missing: apt-get install mosquitto")
        self.port = free_port()
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.log = directory / "mosquitto.log"
        settings = directory / "mosquitto.conf"
        queues = ["max_queued_messages 0", "max_inflight_messages 1000"]
        user = [f"user {os.environ.get('USER', 'root')}"] if os.getuid() == 0 else []
        settings.write_text(
            "\n".join([*user, *queues, f"persistence_location {directory}/", f"listener {self.port} 127.0.0.1", *lines])
            + "\n"
        )
        self._command = [program, "-v", "-c", str(settings)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Mosquitto:
        """Start it and wait until it listens."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)
        until(self._is_ready, 10, "mosquitto does not listen")
        return self

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()
        return listens(self.port)

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def reload(self) -> None:
        """Have it read its rules again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        """End it, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(10)
