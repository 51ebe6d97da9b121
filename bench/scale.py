"""Measure what grows: a start with a hundred thousand devices and messages, memory, counting, NON beside CON.

make bench-scale BENCH=--help
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from figures import Plan, Run
from report import BLOCK_SCALE, spread, table, write_block
from run import load, noise
from servers import (
    BUILD,
    GATEWAY,
    PROGRAMS,
    Running,
    Subscriber,
    addresses,
    free_port,
    gateway,
    pinned,
    register,
    tail,
)

SOURCE: Final = BUILD.parents[1] / "coapgw"
FIRST: Final = int(IPv4Address("127.1.0.0"))
POST: Final = b"\x41\x02%b\x01\xb4data\xff" + b"x" * 64
SETTINGS: Final = ("coaps.listen=[]", 'http.listen="127.0.0.1:0"', "mqtt.mode=bridge")
NOBODY: Final = "mqtt.bridge.url=mqtt://127.0.0.1:9"
HISTOGRAMS: Final = {"storing_times", "commit_times", "delays"}


class Bench:
    """The measurements, each giving lines of Markdown."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Use the last core for the gateway and the first for the rest."""
        cores = sorted(os.sched_getaffinity(0))
        self.server_core, self.load_core = cores[-1], cores[0]
        self.devices: int = options.devices
        self.repeat: int = options.repeat
        self.plan = Plan(self.server_core, self.load_core, 64, 2, 64, options.seconds, 2, options.repeat)
        self.loops: list[float] = []

    # ------------------------------------------------------------------ a start

    def restart(self) -> list[str]:
        """Kill a gateway that has many devices and a full spool; measure until the next one answers 2.04."""
        with temporary() as place:
            register(place, (f"8988280666{number:09d},{host(number)}" for number in range(self.devices)))
            port = free_port()
            first, _ = self._start(place, port)
            spooled = self._spool(port, self.devices)
            first.send_signal(signal.SIGKILL)
            first.wait()
            size = sum(file.stat().st_size for file in (place / "data").iterdir())
            taken = []
            for _ in range(self.repeat):
                self.loops.append(noise(self.server_core))
                running, seconds = self._start(place, port)
                taken.append(seconds)
                running.send_signal(signal.SIGKILL)
                running.wait()
        return [
            "### A start",
            "",
            f"{self.devices:,} registered devices, {spooled:,} messages in the spool ({size / 1e6:.0f} MB), the "
            f"process killed before: from its start to the first 2.04 on the wire {spread(taken, ' s', 2)}.",
        ]

    def _start(self, place: Path, port: int) -> tuple[subprocess.Popen[bytes], float]:
        """Start a gateway; return it, and how many seconds it took until a device had its 2.04."""
        command: list[str | Path] = [PROGRAMS / "twistd", "-n", "--pidfile=", "-l", place / "log", "coapgw"]
        command += ["--data", place / "data"]
        for setting in (*SETTINGS, NOBODY, f'coap.listen=["127.0.0.1:{port}"]'):
            command += ["--set", setting]
        begin = time.monotonic()
        running = subprocess.Popen(pinned(self.server_core, command), stderr=subprocess.DEVNULL)
        with device(0, port) as one:
            one.settimeout(0.01)
            number = os.getpid() & 0xFFFF
            while time.monotonic() - begin < 60 and running.poll() is None:
                number = number + 1 & 0xFFFF
                try:
                    one.send(POST % number.to_bytes(2, "big"))
                    if one.recv(1500)[1] == 0x44:
                        return running, time.monotonic() - begin
                except ConnectionRefusedError:
                    time.sleep(0.005)  # nobody listens yet
                except TimeoutError:
                    continue
        sys.exit(tail(place / "log"))

    def _spool(self, port: int, count: int) -> int:
        """Have devices send, so that so many messages wait; return how many do."""
        done = 0
        while done < count:
            done += load(self.plan, GATEWAY, Running(os.getpid(), port), 1.0, "-W", "2", "-b", "127.1.0.0/16").ok
        return done

    # ------------------------------------------------------------------ memory

    def memory(self) -> list[str]:
        """Have each of many devices send once; measure what the process grew by."""
        with temporary() as place:
            register(place, (f"8988280666{number:09d},{host(number)}" for number in range(self.devices)))
            with gateway(place, self.server_core) as server:
                assert server.mqtt_port is not None
                before = resident(server.pid)
                answered = 0
                for number in range(self.devices):
                    with device(number, server.port) as one:
                        one.settimeout(5)
                        one.send(POST % b"\0\1")
                        answered += one.recv(1500)[1] == 0x44
                after = resident(server.pid)
        return [
            "",
            "### A hundred thousand devices",
            "",
            f"{self.devices:,} registered devices, each from an address of its own: {before / 2**20:,.0f} MiB before "
            f"any sent, {after / 2**20:,.0f} MiB after each had sent once and {answered:,} had their 2.04: "
            f"**{(after - before) / self.devices:,.0f} bytes each**, endpoint, remembered exchange and last-seen time "
            "together.",
        ]

    # ------------------------------------------------------------------ throughput

    def _rate(self, *options: str) -> Run:
        """Return what a gateway gets done at full load."""
        self.loops.append(noise(self.server_core))
        with temporary() as place:
            register(place, (f"8988280666{index:09d},{ip}" for index, ip in enumerate(addresses(self.plan.devices))))
            with gateway(place, self.server_core) as server:
                assert server.mqtt_port is not None
                subscriber = Subscriber(server.mqtt_port, place, self.load_core)
                load(self.plan, GATEWAY, server, self.plan.warm_up)
                run = load(self.plan, GATEWAY, server, self.plan.seconds, "-W", str(self.plan.window), *options)
                subscriber.close()
        return run

    def non(self) -> list[str]:
        """Measure NON beside CON, taking turns."""
        runs: dict[str, list[Run]] = {"CON": [], "NON": []}
        for _ in range(self.repeat):
            runs["CON"].append(self._rate())
            runs["NON"].append(self._rate("-N"))
        rows = [
            [kind, spread([one.per_cpu_second for one in some]), spread([one.req_per_s for one in some])]
            for kind, some in runs.items()
        ]
        return ["", "### NON beside CON", "", *table(["requests", "per CPU second", "per second"], rows)]

    def counting(self) -> list[str]:
        """Measure the gateway as it is beside a copy without the lines that only count, taking turns."""
        runs: dict[str, list[Run]] = {"as it is": [], "without the lines that count": []}
        with temporary() as place:
            removed = copy_without_counting(place / "coapgw")
            for turn in range(2 * self.repeat):
                for kind in list(runs)[:: 1 if turn % 2 else -1]:
                    with python_path(place if kind != "as it is" else None):
                        runs[kind].append(self._rate())
        rows = [[kind, spread([one.per_cpu_second for one in some])] for kind, some in runs.items()]
        ratios = [one.per_cpu_second / other.per_cpu_second for one, other in zip(*runs.values(), strict=True)]
        return [
            "",
            "### What counting costs",
            "",
            *table(["the gateway", "per CPU second"], rows),
            "",
            f"{removed} lines count. Rate with them to that without, of the same turn: {spread(ratios, digits=3)}.",
        ]


@contextmanager
def temporary() -> Iterator[Path]:
    """Yield a directory on the checkout's disk."""
    place = Path(tempfile.mkdtemp(prefix="run-", dir=BUILD))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def host(number: int) -> str:
    """Return the address of a device."""
    return str(IPv4Address(FIRST + number))


@contextmanager
def device(number: int, port: int) -> Iterator[socket.socket]:
    """Yield the socket of a device, connected to the gateway."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind((host(number), 0))
        one.connect(("127.0.0.1", port))
        yield one


def resident(pid: int) -> int:
    """Return the resident memory of a process in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def python_path(place: Path | None) -> Iterator[None]:
    """Have processes import from *place* first."""
    if place is not None:
        os.environ["PYTHONPATH"] = str(place)
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH", None)


class Uncounted(ast.NodeTransformer):
    """Takes out the lines that only count."""

    def __init__(self) -> None:
        """Begin with none."""
        self.removed = 0

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        """Take out what is added to a counter."""
        target = ast.unparse(node.target)
        if "counters." in target or target.startswith(("exchange.tally[", "self.malformed[")):
            self.removed += 1
            return ast.Pass()
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        """Take out what is given to a histogram."""
        call = node.value
        if (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and call.func.attr == "observe"
            and isinstance(call.func.value, ast.Attribute)
            and call.func.value.attr in HISTOGRAMS
        ):
            self.removed += 1
            return ast.Pass()
        return node


def copy_without_counting(place: Path) -> int:
    """Copy the package to *place* without the lines that only count; return how many those are."""
    shutil.copytree(SOURCE, place, ignore=shutil.ignore_patterns("__pycache__"))
    uncounted = Uncounted()
    for file in place.rglob("*.py"):
        file.write_text(ast.unparse(uncounted.visit(ast.parse(file.read_text()))))
    return uncounted.removed


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Measure what grows.", prog="bench/scale.py")
    parts = ("restart", "memory", "non", "counting")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--devices", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=6, help="one run; default 6")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each; default 3")
    parser.add_argument("--write", type=Path, metavar="FILE", help="rewrite the marked block of this file")
    options = parser.parse_args()
    BUILD.mkdir(exist_ok=True)
    bench = Bench(options)
    lines: list[str] = []
    for part in parts:
        if part in options.only:
            lines += getattr(bench, part)()
            print(lines[-1], flush=True)
    milliseconds = [1000 * loop for loop in bench.loops]
    if milliseconds:
        lines += ["", f"Noise of the machine: a fixed Python loop took {spread(milliseconds)} ms."]
    print("\n".join(lines))
    if options.write:
        write_block(options.write, "\n".join(lines), BLOCK_SCALE)


if __name__ == "__main__":
    main()
