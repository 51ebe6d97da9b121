"""The servers that are measured, each started on a core of its own and stopped again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs

BENCH = Path(__file__).resolve().parent
BUILD = BENCH / "build"
COAPLOAD = BUILD / "coapload"
COAPSLOAD = BUILD / "coapsload"
JUNKLOAD = BUILD / "junkload"
PROGRAMS = Path(sys.executable).parent
SOURCES = "127.0.0.0/8"  # every simulated device has an address of its own out of these
START_SECONDS = 30.0
STOP_SECONDS = 20.0


class NoStart(Exception):
    """A server that did not start; the message holds the end of its log."""


@attrs.frozen
class Running:
    """A server that listens.

    Args:
        pid: its process; all its threads count.
        port: UDP port on 127.0.0.1; 0 if it serves DTLS only.
        mqtt_port: where a subscriber gets what was sent; None if the server forgets it.
        coaps_port: UDP port of DTLS on 127.0.0.1, 0 if there is none.
    """

    pid: int
    port: int
    mqtt_port: int | None = None
    coaps_port: int = 0

    def cpu_seconds(self) -> float:
        """Return the CPU time used so far, user and system (/proc/PID/stat, resolution 10 ms)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@attrs.frozen
class Contestant:
    """A kind of server, and the request that it answers with 2.04.

    Args:
        key: its name on the command line.
        title: its name in the table.
        promise: what its 2.04 means.
        request: coapload's options for method, path and query.
    """

    key: str
    title: str
    promise: str
    request: tuple[str, ...] = ("-m", "2", "-P", "/")


GATEWAY = Contestant("gateway", "**coapgw**", "committed to disk, then delivered over MQTT at QoS 1")
CONTESTANTS = (
    GATEWAY,
    Contestant("txthings", "bare txThings server", "nothing: received and forgotten"),
    Contestant("aiocoap", "bare aiocoap server", "nothing: received and forgotten"),
    Contestant(
        "libcoap",
        "libcoap's `coap-server` (C)",
        "nothing: kept in memory (PUT `/example_data`; it takes no POST)",
        ("-m", "3", "-P", "/example_data", "-u", ""),
    ),
)


def pinned(core: int, command: Sequence[str | Path]) -> list[str]:
    """Return *command* tied to one core."""
    return ["taskset", "-c", str(core), *map(str, command)]


def addresses(devices: int) -> list[str]:
    """Return the source addresses of the simulated devices, in order."""
    listed = subprocess.run(
        [COAPLOAD, "-n", str(devices), "-b", SOURCES, "--list"], check=True, capture_output=True, text=True
    )
    return [line.split(",")[1] for line in listed.stdout.splitlines()]


@contextmanager
def process(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[str]]:
    """Run *command*, its standard output on a pipe and its errors in *log*; end it with SIGTERM."""
    with log.open("w") as errors:
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            yield running
        finally:
            running.send_signal(signal.SIGTERM)
            try:
                running.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def tail(log: Path, lines: int = 15) -> str:
    """Return the end of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""


def free_port() -> int:
    """Return a UDP port of 127.0.0.1 that nobody has right now."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def register(place: Path, rows: Iterable[str]) -> None:
    """Import devices, ``iccid,ip`` a row, into the data directory of the gateway that will run in *place*."""
    device_list = place / "devices.csv"
    device_list.write_text("\n".join(["iccid,ip", *rows]) + "\n")
    command: list[str | Path] = [PROGRAMS / "coapgw", "--data", place / "data", "device", "import", device_list]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


@contextmanager
def gateway(place: Path, core: int, settings: Sequence[str] = ()) -> Iterator[Running]:
    """Run ``twistd -n coapgw`` with embedded broker, the devices registered in *place*, and *settings*."""
    data, log = place / "data", place / "gateway.log"
    own_settings = (
        'coap.listen=["127.0.0.1:0"]',
        "coaps.listen=[]",
        'http.listen="127.0.0.1:0"',
        'mqtt.embedded.listen=["127.0.0.1:0"]',
        "uplink.acknowledge=stored",
    )
    command: list[str | Path] = [PROGRAMS / "twistd", "-n", "--pidfile=", "-l", log, "coapgw", "--data", data]
    for setting in (*own_settings, *settings):
        command += ["--set", setting]
    ports_file = data / "ports.json"
    with process(pinned(core, command), place / "gateway.err") as running:
        deadline = time.monotonic() + START_SECONDS
        while not ports_file.exists():
            if running.poll() is not None or time.monotonic() > deadline:
                raise NoStart(tail(place / "gateway.err") + tail(log))
            time.sleep(0.05)
        time.sleep(0.2)  # the file may still be growing, and start-up work ending
        ports = json.loads(ports_file.read_text())
        coap, coaps, mqtt = ports["coap"] or [0], ports["coaps"] or [0], ports["mqtt"] or [None]
        yield Running(running.pid, coap[0], mqtt[0], coaps[0])


@contextmanager
def peer(contestant: Contestant, place: Path, core: int) -> Iterator[Running]:
    """Run one of the plain servers."""
    port = free_port()
    log = place / f"{contestant.key}.log"
    command: list[str | Path]
    if contestant.key == "libcoap":
        command = ["coap-server-notls", "-A", "127.0.0.1", "-p", str(port), "-v", "0"]
    else:
        command = [sys.executable, BENCH / "peers" / f"{contestant.key}_server.py", str(port)]
    with process(pinned(core, command), log) as running:
        if contestant.key == "libcoap":
            time.sleep(1)  # it says nothing when it is ready
        elif running.stdout is None or not (line := running.stdout.readline()):
            raise NoStart(tail(log))
        else:
            port = int(line)
        if running.poll() is not None:
            raise NoStart(tail(log))
        yield Running(running.pid, port)


class Subscriber:
    """A ``mosquitto_sub`` at QoS 1 that writes the id of every message to a file, one a line."""

    def __init__(self, port: int, place: Path, core: int) -> None:
        """Subscribe to everything but lifecycle events, which are no messages of devices."""
        self._file = place / "delivered"
        self._seen = 0
        self._place = 0
        receive = ["mosquitto_sub", "-h", "127.0.0.1", "-p", str(port), "-i", "bench", "-q", "1", "-t", "#"]
        with self._file.open("wb") as out:
            self._receiver = subprocess.Popen(pinned(core, [*receive, "-T", "lifecycle"]), stdout=subprocess.PIPE)
            # the envelope begins {"type":…,"version":…,"id":…
            keep_id = pinned(core, ["stdbuf", "-oL", "cut", "-d,", "-f3"])
            self._keeper = subprocess.Popen(keep_id, stdin=self._receiver.stdout, stdout=out)
        if self._receiver.stdout:
            self._receiver.stdout.close()
        time.sleep(1)  # until it has subscribed; it does not say when

    def delivered(self) -> int:
        """Return how many messages have arrived, repeats included."""
        with self._file.open("rb") as ids:
            ids.seek(self._place)
            while chunk := ids.read(1 << 20):
                self._seen += chunk.count(b"\n")
                self._place += len(chunk)
        return self._seen

    def wait_for(self, count: int, still_seconds: float = 5.0) -> float:
        """Wait until *count* messages are here, or none has come for *still_seconds*; return the seconds it took."""
        begin = last_change = time.monotonic()
        last = self.delivered()
        while last < count and time.monotonic() - last_change < still_seconds:
            time.sleep(0.02)
            if (now_here := self.delivered()) != last:
                last, last_change = now_here, time.monotonic()
        return time.monotonic() - begin

    def close(self) -> tuple[int, int]:
        """End it; return how many messages arrived, and how many different ones."""
        self._receiver.terminate()
        self._receiver.wait()
        self._keeper.wait()
        ids = self._file.read_bytes().splitlines()
        return len(ids), len(set(ids))
