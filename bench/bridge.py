"""Measure the bridge to mosquitto: ``python bench/bridge.py``; needs ``make -C bench/load`` and mosquitto.

Two figures.  Durable messages per CPU-second of the gateway, from datagram to the broker's acknowledgement, under full
load.  And how fast a backlog leaves the spool, per second and per CPU-second.  Gateway and broker have a core each; the
load generator shares the broker's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from servers import COAPLOAD, SOURCES, Running, addresses, pinned, process

from coapgw.model import Spooled
from coapgw.storage.spool_file import SpoolFile, spool_status

ROOT = Path(__file__).resolve().parents[1]
TWISTD = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]
TOOL = [sys.executable, "-m", "coapgw.cli.main"]
GROUP = 10_000
ENVELOPE = (
    b'{"type":"TELEMETRY_DATA","version":"1.0.0","id":"1-6393505d-67fa8489fb9c791fcddd43f0","received":"1670598749915",'
    b'"source":"COAP","device":{"iccid":"8988280666000002864","ip":"100.91.200.24"},'
    b'"payload":{"type":"STRING","encoding":"base64","value":"MDEyMzQ1Njc4OWFiY2RlZg==","topic":"t"}}'
)


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody has right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def mosquitto(place: Path, core: int) -> Iterator[int]:
    """Run a broker without persistence; yield its port."""
    port = free_port()
    settings = place / "mosquitto.conf"
    settings.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_inflight_messages 1000\n")
    with process(pinned(core, ["mosquitto", "-c", settings]), place / "mosquitto.log"):
        time.sleep(0.5)
        yield port


@contextmanager
def gateway(place: Path, core: int, port: int, version: str) -> Iterator[Running]:
    """Run a gateway that bridges to *port*; yield it when it is ready."""
    data = place / "data"
    command: list[str | Path] = [*TWISTD, "-n", "--pidfile=", "-l", place / "gateway.log", "coapgw", "--data", data]
    for setting in (
        'coap.listen=["127.0.0.1:0"]',
        "coaps.listen=[]",
        'http.listen="127.0.0.1:0"',
        "mqtt.mode=bridge",
        f"mqtt.bridge.url=mqtt://127.0.0.1:{port}",
        f"mqtt.bridge.version={version}",
    ):
        command += ["--set", setting]
    os.chdir(ROOT)
    with process(pinned(core, command), place / "gateway.err") as running:
        until = time.monotonic() + 30
        while not (data / "ports.json").exists():
            if running.poll() is not None or time.monotonic() > until:
                sys.exit((place / "gateway.err").read_text() + (place / "gateway.log").read_text())
            time.sleep(0.02)
        yield Running(running.pid, json.loads((data / "ports.json").read_text())["coap"][0])


def drained(data: Path, still: float) -> bool:
    """Wait until the spool is empty, for at most *still* seconds; return whether it is."""
    until = time.monotonic() + still
    while spool_status(data / "spool.db").messages:
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def register(place: Path, devices: int) -> None:
    """Make a data directory that knows the load generator's devices."""
    rows = [f"8988280666{index:09d},{ip}" for index, ip in enumerate(addresses(devices))]
    (place / "devices.csv").write_text("\n".join(["iccid,ip", *rows]) + "\n")
    imported: list[str | Path] = [*TOOL, "--data", place / "data", "device", "import", place / "devices.csv"]
    subprocess.run(imported, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)


def load(server: Running, arguments: argparse.Namespace, seconds: float, *more: str) -> list[str]:
    """Return the command of the load generator, beside the broker."""
    command: list[str | Path] = [COAPLOAD, "-p", str(server.port), "-n", str(arguments.devices), "-b", SOURCES]
    command += ["--json", "-m", "2", "-P", "/", "-l", "16", "-w", "0", "--server-pid", str(server.pid)]
    return pinned(1, [*command, "-t", str(seconds), *more])


def end_to_end(place: Path, arguments: argparse.Namespace) -> None:
    """Load a gateway and count what its CPU did until all of it was acknowledged by the broker."""
    register(place, arguments.devices)
    with mosquitto(place, 1) as port, gateway(place, 0, port, arguments.version) as server:
        full = load(server, arguments, arguments.seconds, "-W", str(arguments.window))
        for _ in range(2):  # the first time devices are introduced, which costs a message more
            begin, before = time.monotonic(), server.cpu_seconds()
            done = subprocess.run(full, check=True, stdout=subprocess.PIPE, text=True)
            is_drained = drained(place / "data", 30)
            cpu, took = server.cpu_seconds() - before, time.monotonic() - begin
            count = json.loads(done.stdout)["ok"]
        print(
            f"end to end, MQTT {arguments.version}: {count:,} messages in {took:.1f} s, {cpu:.2f} s of CPU: "
            f"{count / cpu:,.0f} per CPU-second, {count / took:,.0f} per second"
            + ("" if is_drained else "; the spool is NOT empty")
        )


def backlog(place: Path, arguments: argparse.Namespace) -> None:
    """Fill a spool, then see how fast a gateway empties it into the broker while devices go on sending."""
    register(place, arguments.devices)
    file = SpoolFile(place / "data" / "spool.db")
    for first in range(1, arguments.backlog + 1, GROUP):
        places = range(first, min(first + GROUP, arguments.backlog + 1))
        iccids = [f"8988280666{place % 1000:09d}" for place in places]
        file.commit(
            [
                Spooled(place, 1670598749915, iccid, "1-6393505d-67fa8489fb9c791fcddd43f0", iccid.encode(), ENVELOPE)
                for place, iccid in zip(places, iccids, strict=True)
            ],
            [],
            [],
        )
    file.close(arguments.backlog)
    with mosquitto(place, 1) as port, gateway(place, 0, port, arguments.version) as server:
        begin, before = time.monotonic(), server.cpu_seconds()
        first_count = spool_status(place / "data" / "spool.db").messages
        rate = ["-r", str(arguments.uplinks), "-W", "16"] if arguments.uplinks else []
        sending = None
        if rate:
            sending = subprocess.Popen(load(server, arguments, 5, *rate), stdout=subprocess.PIPE, text=True)
        is_drained = drained(place / "data", arguments.patience)
        took, cpu = time.monotonic() - begin, server.cpu_seconds() - before
        count = first_count - spool_status(place / "data" / "spool.db").messages
        print(
            f"backlog of {arguments.backlog:,}, MQTT {arguments.version}: {count:,} in {took:.1f} s, "
            f"{count / took:,.0f} per second, {count / cpu:,.0f} per CPU-second"
            + ("" if is_drained else "; the spool is NOT empty")
        )
        if sending is not None:
            answered = json.loads(sending.communicate()[0])
            print(f"meanwhile {arguments.uplinks} uplinks a second were sent for 5 s, {answered['ok']} got 2.04")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--version", default="5", choices=("5", "3.1.1"))
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--devices", type=int, default=500)
    parser.add_argument("--window", type=int, default=400, help="requests at a time")
    parser.add_argument("--backlog", type=int, default=1_000_000)
    parser.add_argument("--uplinks", type=int, default=2000, help="a second, for 5 s while the backlog drains")
    parser.add_argument("--patience", type=float, default=60, help="seconds for the backlog to drain")
    arguments = parser.parse_args()
    if shutil.which("mosquitto") is None:
        sys.exit("mosquitto is missing")
    for measure in (end_to_end, backlog):
        with tempfile.TemporaryDirectory() as place:
            measure(Path(place), arguments)


if __name__ == "__main__":
    main()
