"""Measure coaps: messages, handshakes, memory, and messages beside a storm of handshakes.

    make bench-coaps BENCH=--help

The gateway has one core to itself, load generator and subscriber share another one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from report import BLOCK_COAPS, spread, table, write_block
from run import noise
from servers import BUILD, COAPSLOAD, Running, Subscriber, gateway, pinned, register

from coapgw.model import WrittenKey
from coapgw.storage.database import open_registry
from coapgw.storage.keys import DeviceKeys
from coapgw.storage.sealing import open_seal

KEY = "q8Yt2LmZ0aXw4RbK"
SUITES = ("PSK-AES128-CCM8", "PSK-AES128-GCM-SHA256", "PSK-AES128-CBC-SHA256")
NO_LIMITS = ("coaps.max_handshakes=0", "coaps.handshakes_per_second=0")
SOURCES = "127.0.0.0/8"


@contextmanager
def coaps_gateway(core: int, devices: int, settings: Sequence[str] = ()) -> Iterator[tuple[Running, Path]]:
    """Run a gateway that serves DTLS to so many devices, all with the same key; yield it and its place."""
    BUILD.mkdir(exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="run-", dir=BUILD))
    try:
        register(place, (f"8988280666{number:09d}," for number in range(devices)))
        give_keys(place / "data", devices)
        listen = ("coap.listen=[]", 'coaps.listen=["127.0.0.1:0"]')
        with gateway(place, core, (*listen, *settings)) as server:
            yield server, place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def give_keys(data: Path, devices: int) -> None:
    """Give so many devices of a registry the same key."""
    registry = open_registry("", data)
    try:
        keys = DeviceKeys(registry, open_seal(data, registry), lambda: time.time_ns() // 1_000_000)
        keys.set_all(WrittenKey(f"8988280666{number:09d}", KEY) for number in range(devices))
    finally:
        registry.close()


def load(core: int, server: Running, *options: str | Path) -> dict[str, Any]:
    """Run coapsload once and return what it says."""
    command: list[str | Path] = [COAPSLOAD, "-p", str(server.coaps_port), "-k", KEY, "--json"]
    command += ["--server-pid", str(server.pid), *options]
    done = subprocess.run(pinned(core, command), check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


class Bench:
    """The measurements, each giving lines of Markdown."""

    def __init__(self, server_core: int, load_core: int, seconds: float, repeat: int) -> None:
        """Measure for *seconds* a run."""
        self._server_core = server_core
        self._load_core = load_core
        self._seconds = f"{seconds:g}"
        self._repeat = repeat
        self.loops: list[float] = []

    def messages(self) -> list[str]:
        """Measure durable messages, delivered to one subscriber, by suite."""
        rows = []
        for suite in SUITES:
            runs, missing = [], 0
            for _ in range(self._repeat):
                self.loops.append(noise(self._server_core))
                with coaps_gateway(self._server_core, 500, NO_LIMITS) as (server, place):
                    assert server.mqtt_port is not None
                    subscriber = Subscriber(server.mqtt_port, place, self._load_core)
                    options = ("data", "-n", "500", "-c", f"{suite}:@SECLEVEL=0", "-w", "0", "-t", self._seconds)
                    runs.append(load(self._load_core, server, *options))
                    subscriber.wait_for(runs[-1]["ok"])
                    missing += max(0, runs[-1]["ok"] - subscriber.close()[1])
            figures = [spread([run[name] for run in runs]) for name in ("per_cpu_second", "req_per_s")]
            delays = [spread([run[name] / 1000 for run in runs], digits=1) for name in ("p50_us", "p99_us")]
            rows.append([f"`{suite}`", *figures, *delays, str(missing)])
        head = [
            "500 associations, one CON each outstanding",
            "per CPU second",
            "per second",
            "p50 ms",
            "p99 ms",
            "missing",
        ]
        return ["### Messages over DTLS", "", *table(head, rows)]

    def handshakes(self) -> list[str]:
        """Measure full handshakes, from ClientHello without a cookie to close_notify."""
        rows = []
        for suite in (*SUITES, "ECDHE-PSK-AES128-CBC-SHA256"):
            runs = []
            for _ in range(self._repeat):
                with coaps_gateway(self._server_core, 2000, NO_LIMITS) as (server, _):
                    options = ("handshake", "-n", "32", "-I", "2000", "-c", f"{suite}:@SECLEVEL=0", "-t", self._seconds)
                    runs.append(load(self._load_core, server, *options))
            figures = [spread([run[name] for run in runs]) for name in ("per_cpu_second", "handshakes_per_s")]
            delays = [spread([run[name] for run in runs], digits=1) for name in ("p50_ms", "p99_ms")]
            failures = str(sum(run["handshake_failures"] for run in runs))
            rows.append([f"`{suite}`", *figures, *delays, failures])
        head = ["full handshakes, 32 at a time", "per CPU second", "per second", "p50 ms", "p99 ms", "failed"]
        return ["", "### Handshakes", "", *table(head, rows)]

    def memory(self, sessions: int) -> list[str]:
        """Measure what an idle association costs the process, all told."""
        with coaps_gateway(self._server_core, sessions, NO_LIMITS) as (server, _):
            options = ("hold", "-n", str(sessions), "-b", SOURCES, "-C", "64", "-t", "2")
            run = load(self._load_core, server, *options)
        text = (
            f"{run['established']:,} of {sessions:,} associations established and left idle: the process grew by "
            f"**{run['server_bytes_per_session']:,} bytes for each** (resident memory, all told), to "
            f"{run['server_rss_idle_kib'] / 1024:,.0f} MiB. Then each sent one message: {run['answered']:,} answered."
        )
        return ["", "### Memory", "", text]

    def storm(self) -> list[str]:
        """Measure messages of established associations at a fixed rate, with and without a storm of handshakes."""
        rows = []
        for title, storm in (("alone", False), ("beside 64 clients that do nothing but handshakes", True)):
            with coaps_gateway(self._server_core, 600) as (server, _):
                data = ("data", "-n", "100", "-w", "1", "-t", self._seconds, "-r", "2000")
                running = None
                if storm:
                    flood = [
                        "handshake",
                        "-n",
                        "64",
                        "--first",
                        "100",
                        "-I",
                        "500",
                        "-t",
                        str(float(self._seconds) + 4),
                    ]
                    command = [str(COAPSLOAD), "-p", str(server.coaps_port), "-k", KEY, "--json", *flood]
                    running = subprocess.Popen(pinned(self._load_core, command), stdout=subprocess.PIPE, text=True)
                run = load(self._load_core, server, *data)
                begun = "0"
                if running is not None:
                    begun = f"{json.loads(running.communicate()[0])['handshakes_per_s']:,.0f}"
                delays = [f"{run[name] / 1000:.1f}" for name in ("p50_us", "p99_us", "max_us")]
                rows.append([title, f"{run['req_per_s']:,.0f}", *delays, str(run["lost"]), begun])
        head = [
            "2,000 messages a second of 100 associations",
            "per second",
            "p50 ms",
            "p99 ms",
            "max ms",
            "lost",
            "handshakes/s",
        ]
        return ["", "### Beside a storm of handshakes", "", "With the default limits.", "", *table(head, rows)]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Measure coaps.", prog="bench/coaps.py")
    parser.add_argument("--seconds", type=float, default=8, help="one run; default 8")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each; default 3")
    parser.add_argument("--sessions", type=int, default=18_000, help="idle associations; default 18000")
    parser.add_argument("--only", nargs="+", choices=("messages", "handshakes", "memory", "storm"))
    parser.add_argument("--write", type=Path, metavar="FILE", help="rewrite the marked block of this file")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    bench = Bench(cores[-1], cores[0], options.seconds, options.repeat)
    parts = {
        "messages": bench.messages,
        "handshakes": bench.handshakes,
        "memory": lambda: bench.memory(options.sessions),
        "storm": bench.storm,
    }
    lines: list[str] = []
    for name in options.only or parts:
        print(name, file=sys.stderr, flush=True)
        lines += parts[name]()
    if bench.loops:
        loops = spread([1000 * seconds for seconds in bench.loops], " ms")
        lines += ["", f"Noise of the machine: a fixed Python loop took {loops}."]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        write_block(options.write, text, BLOCK_COAPS)


if __name__ == "__main__":
    main()
