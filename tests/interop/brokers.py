"""Brokers of other people's making, each in a process of its own, with MQTT on a port of the system's choice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path

import pytest

from tests.integration.gateway_process import until
from tests.integration.mosquitto import free_port, listens

RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")  # Debian's wrapper would change the user
START_SECONDS = 60


class ForeignBroker(ABC):
    """One broker; *directory* is for its files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _command(self) -> tuple[list[str], dict[str, str]]:
        """Return what to run, and what to add to the environment."""

    def start(self) -> None:
        """Start it and wait until it listens."""
        command, environment = self._command()
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdout=log,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,
            )
        until(self._is_ready, START_SECONDS, "the broker does not listen")

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.directory / "log").read_text()
        return listens(self.port)

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)  # RabbitMQ's is a shell script that starts the server
        self._process.wait()
        until(lambda: not listens(self.port), 10, "the broker still listens")

    def stop(self) -> None:
        """End it for good."""
        if self._process is not None and self._process.poll() is None:
            self.kill()


class Nats(ForeignBroker):
    """nats-server, whose MQTT needs JetStream."""

    def _command(self) -> tuple[list[str], dict[str, str]]:
        program = shutil.which("nats-server")
        if program is None:
            pytest.fail("nats-server is missing: apt-get install nats-server")
        settings = self.directory / "nats.conf"
        settings.write_text(
            f"server_name: test\nlisten: 127.0.0.1:{free_port()}\n"
            f'jetstream {{ store_dir: "{self.directory}/store" }}\n'
            f"mqtt {{ listen: 127.0.0.1:{self.port} }}\n"
        )
        return [program, "-c", str(settings)], {}


class RabbitMq(ForeignBroker):
    """rabbitmq-server with its MQTT plugin, and an Erlang port mapper of its own."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._mapper = {"ERL_EPMD_PORT": str(free_port()), "ERL_EPMD_ADDRESS": "127.0.0.1"}
        self._distribution = free_port()

    def _command(self) -> tuple[list[str], dict[str, str]]:
        if not RABBITMQ.exists():
            pytest.fail("RabbitMQ is missing: apt-get install rabbitmq-server")
        (self.directory / "plugins").write_text("[rabbitmq_mqtt].\n")
        settings = self.directory / "rabbitmq.conf"
        settings.write_text(f"listeners.tcp = none\nmqtt.listeners.tcp.1 = 127.0.0.1:{self.port}\n")
        return [str(RABBITMQ)], {
            **self._mapper,
            "HOME": str(self.directory),  # for the cookie
            "RABBITMQ_NODENAME": "coapgw@localhost",
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "RABBITMQ_CONFIG_FILE": str(settings),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.directory),
            "RABBITMQ_LOGS": "-",
        }

    def stop(self) -> None:
        super().stop()
        environment = {**os.environ, **self._mapper}
        # The mapper becomes a daemon; it goes only when it has noticed that its node has gone.
        command = ["epmd", "-kill"]
        until(lambda: subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0)
