"""A real gateway in a process of its own, and what tests use around it: a plain socket client, a real MQTT client."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from tests.unit.coap_wire import datagram, option

ROOT = Path(__file__).parents[2]
START_SECONDS = 60.0  # on a machine with much else to do
TWISTD = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]


def until(holds: Callable[[], object], seconds: float = 30.0, what: str = "nothing happened in time") -> None:
    """Wait until something holds; fails the test if it does not."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def coapgw(data: Path, *arguments: str) -> str:
    """Run the command line tool; return what it prints."""
    command = [sys.executable, "-m", "coapgw.cli.main", "--data", str(data), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class GatewayProcess:
    """``twistd -n coapgw`` on ports of the system's choice; keeps its ports over a restart."""

    def __init__(
        self,
        data: Path,
        *settings: str,
        file_bytes: int | None = None,
        open_files: int | None = None,
        reactor: str | None = None,
    ) -> None:
        """Limit, as a full disk and a system do, how large a file may grow and how many may be open."""
        self.data = data
        self.settings = settings
        limits = [f"--fsize={file_bytes}:"] if file_bytes is not None else []
        limits += [f"--nofile={open_files}:{open_files}"] if open_files is not None else []
        self._limit = ["prlimit", *limits] if limits else None
        self._reactor = [f"--reactor={reactor}"] if reactor is not None else []
        self.ports: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self.log = data.with_suffix(".log")

    def start(self) -> GatewayProcess:
        """Start it and wait until it is ready."""
        listen = {"coap": "coap.listen", "coaps": "coaps.listen", "mqtt": "mqtt.embedded.listen"}
        ports = {kind: (self.ports.get(kind) or [0])[0] for kind in listen}
        settings = [f"{key}=['127.0.0.1:{ports[kind]}']" for kind, key in listen.items()]
        settings += [f"http.listen=127.0.0.1:{self.ports.get('http') or 0}", *self.settings]
        options = [argument for setting in settings for argument in ("--set", setting)]
        twistd = [*(self._limit or []), *TWISTD, *self._reactor, "-n", "--pidfile="]
        command = [*twistd, "coapgw", "--data", str(self.data), *options]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        until(self._is_ready, START_SECONDS, "the gateway was not ready in time")
        return self

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()
        try:
            self.ports = json.loads((self.data / "ports.json").read_text())
        except (OSError, ValueError):
            return False
        return True

    @property
    def coap(self) -> tuple[str, int]:
        """Where it takes CoAP."""
        return "127.0.0.1", int(self.ports["coap"][0])

    @property
    def coaps(self) -> tuple[str, int]:
        """Where it takes CoAP over DTLS."""
        return "127.0.0.1", int(self.ports["coaps"][0])

    @property
    def mqtt(self) -> int:
        """Its MQTT port."""
        return int(self.ports["mqtt"][0])

    @property
    def http(self) -> tuple[str, int]:
        """Where it takes HTTP."""
        return "127.0.0.1", int(self.ports["http"])

    @property
    def token(self) -> str:
        """The administrator's token."""
        return (self.data / "admin.token").read_text().strip()

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def raise_file_limit(self) -> None:
        """Let files grow again."""
        subprocess.run(["prlimit", f"--pid={self.pid}", "--fsize=unlimited:"], check=True)

    def kill(self) -> None:
        """End it as a power cut would."""
        (self.data / "ports.json").unlink(missing_ok=True)
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """End it in order; return its exit status."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self._process.wait(20)


class Device:
    """A device with a socket of its own, on the address the gateway knows it by."""

    def __init__(self, address: str, gateway: tuple[str, int], timeout: float = 5.0) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, 0))
        self._socket.connect(gateway)
        self._socket.settimeout(timeout)
        self._message_id = int.from_bytes(os.urandom(2), "big")

    def post(self, payload: bytes, query: bytes | None = None) -> bytes | None:
        """Send a CON POST; return the answer, or None if none came."""
        self._message_id = self._message_id + 1 & 0xFFFF
        options = b"" if query is None else option(15, query)
        try:
            self._socket.send(datagram(message_id=self._message_id, token=b"tk", options=options, payload=payload))
            while True:
                answer = self._socket.recv(2048)
                if answer[2:4] == self._message_id.to_bytes(2, "big"):
                    return answer
        except OSError:  # timeout, or nobody listens
            return None

    def request(self, data: bytes) -> bytes:
        """Send a datagram; return the next that comes."""
        self._socket.send(data)
        return self._socket.recv(2048)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Subscriber:
    """A paho client in its own thread that keeps what it receives and comes back by itself."""

    def __init__(
        self, port: int, filters: Sequence[tuple[str, int]] = (("#", 1),), client_id: str = "", clean: bool = True
    ) -> None:
        self.received: list[tuple[str, bytes]] = []
        self._filters = list(filters)
        self._subscribed = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=clean)
        self._client.on_connect = lambda client, *_: client.subscribe(self._filters)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = lambda _client, _data, message: self.received.append(
            (message.topic, bytes(message.payload))
        )
        self._client.reconnect_delay_set(1, 1)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._subscribed.wait(60), "no SUBACK in time"

    def documents(self) -> list[dict[str, Any]]:
        """What was received, as JSON, events left out."""
        return [json.loads(payload) for _, payload in self.received if b'"TELEMETRY_DATA"' in payload]

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()
