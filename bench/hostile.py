"""Measure how well-behaved devices fare while somebody floods the gateway: ``make bench-hostile BENCH=--help``.

64 devices send at a fixed rate.  Meanwhile one source sends datagrams of one kind, by the tens of thousands a second:
to a socket that nobody reads, which shows what the load alone does to this machine, then to the gateway.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from report import BLOCK_HOSTILE, spread, table, write_block
from run import noise
from servers import BUILD, COAPLOAD, JUNKLOAD, SOURCES, Running, addresses, gateway, pinned, register

DEVICES: Final = 64
RATE: Final = 2000  # messages a second of all devices
WINDOW: Final = 16  # a slot for every request that may be due while the server is busy
STRANGER: Final = "127.200.0.1"
FLOODER: Final = "127.200.0.2"  # a device, and no well-behaved one
LEAD: Final = 1.0  # seconds that the flood lasts before and after what is measured
LIMIT: Final = ("limits.network_rate=3000",)
FLOODS: Final = (
    ("nothing", "", "", ()),
    ("1 to 200 random bytes", "noise", STRANGER, ()),
    ("empty CONs", "ping", STRANGER, ()),
    ("stray RSTs", "reset", STRANGER, ()),
    ("answers to nothing", "answer", STRANGER, ()),
    ("messages of a stranger", "message", STRANGER, ()),
    ("the same, `limits.network_rate = 3000`", "message", STRANGER, LIMIT),
    ("`GET /.well-known/core` of a stranger", "discovery", STRANGER, ()),
    ("messages of a device", "message", FLOODER, ()),
    ("messages of a device, `limits.network_rate = 3000`", "message", FLOODER, LIMIT),
    ("broken DTLS hellos", "hello", STRANGER, ()),
    ("DTLS records of no association", "record", STRANGER, ()),
)
"""Title, junkload's kind, where it comes from, settings of the gateway."""


@contextmanager
def sink() -> Iterator[int]:
    """Yield the port of a socket that nobody reads."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unread:
        unread.bind(("127.0.0.1", 0))
        yield unread.getsockname()[1]


def flood(core: int, port: int, kind: str, source: str, options: argparse.Namespace) -> subprocess.Popen[str]:
    """Start a flood."""
    seconds = str(options.seconds + 2 * LEAD)
    command: list[str | Path] = [JUNKLOAD, "-p", str(port), "-k", kind, "-b", source, "-r", str(options.rate)]
    return subprocess.Popen(pinned(core, [*command, "-t", seconds]), stdout=subprocess.PIPE, text=True)


def well_behaved(core: int, server: Running, seconds: float) -> dict[str, Any]:
    """Have the devices send; return what the load generator says of them."""
    command: list[str | Path] = [COAPLOAD, "-p", str(server.port), "-n", str(DEVICES), "-b", SOURCES, "--json", "-S"]
    command += ["-r", str(RATE), "-W", str(WINDOW), "-w", "0", "-t", str(seconds), "--server-pid", str(server.pid)]
    done = subprocess.run(pinned(core, command), check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def drops(place: Path) -> int:
    """Return how many datagrams the kernel had no room for, as the gateway tells."""
    port = json.loads((place / "data" / "ports.json").read_text())["http"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        for line in page.read().decode().splitlines():
            if line.startswith("coapgw_udp_kernel_drops_total "):
                return int(float(line.split()[1]))
    raise AssertionError("the page has that line")


def measure(cores: list[int], row: tuple[str, str, str, tuple[str, ...]], options: argparse.Namespace) -> list[str]:
    """Measure beside one kind of flood; return a row of the table."""
    title, kind, source, settings = row
    load_core, server_core = cores[0], cores[-1]
    place = Path(tempfile.mkdtemp(prefix="run-", dir=BUILD))
    try:
        known = [*addresses(DEVICES), FLOODER]
        register(place, (f"8988280666{index:09d},{ip}" for index, ip in enumerate(known)))
        elsewhere: list[dict[str, Any]] = []
        here: list[dict[str, Any]] = []
        sent: list[float] = []
        secure = 'coaps.listen=["127.0.0.1:0"]'
        with gateway(place, server_core, (secure, *settings)) as server, sink() as nobody:
            well_behaved(load_core, server, 2)
            for _ in range(options.repeat):
                for port, into in (
                    (nobody, elsewhere),
                    (server.coaps_port if kind in ("hello", "record") else server.port, here),
                ):
                    running = flood(load_core, port, kind, source, options) if kind else None
                    time.sleep(LEAD)
                    into.append(well_behaved(load_core, server, options.seconds))
                    if running is not None:
                        told, _ = running.communicate()
                        sent.append(json.loads(told)["per_s"])
            dropped = drops(place)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    cells = [title, spread(sent) if sent else "0"]
    for runs in (elsewhere, here):
        cells += [spread([run[name] / 1000 for run in runs], digits=1) for name in ("p50_us", "p99_us")]
    cells.append(f"{sum(run['retransmits'] for run in here)} / {sum(run['lost'] for run in here)}")
    cells.append(spread([run["server_cpu_pct"] for run in here]))
    cells.append(f"{dropped:,}")
    return cells


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Measure devices beside floods.", prog="bench/hostile.py")
    parser.add_argument("--seconds", type=float, default=5, help="one run; default 5")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each; default 3")
    parser.add_argument("--rate", type=int, default=50_000, help="datagrams of the flood a second; default 50,000")
    parser.add_argument("--only", nargs="+", metavar="KIND", help="nothing, noise, ping, message, …; default: all")
    parser.add_argument("--write", type=Path, metavar="FILE", help="rewrite the marked block of this file")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    BUILD.mkdir(exist_ok=True)
    loops, rows = [], []
    for row in FLOODS:
        if options.only is None or (row[1] or "nothing") in options.only:
            loops.append(noise(cores[-1]))
            rows.append(measure(cores, row, options))
            print(" | ".join(rows[-1]), flush=True)
    head = ["one source floods the gateway with", "a second", "p50 ms, aimed elsewhere", "p99 ms, aimed elsewhere"]
    head += ["p50 ms", "p99 ms", "sent again / lost", "CPU % of the gateway", "dropped by the kernel"]
    about = (
        f"{DEVICES} devices send {RATE:,} messages a second, CON, each durable before its 2.04; {options.repeat} runs "
        f"of {options.seconds:g} s. *Aimed elsewhere*: the flood goes to a socket that nobody reads; load generator "
        "and flood share the other core."
    )
    text = "\n".join(
        [
            about,
            "",
            *table(head, rows),
            "",
            f"Noise of the machine: a fixed Python loop took {spread([1000 * loop for loop in loops])} ms.",
        ]
    )
    print(text)
    if options.write:
        write_block(options.write, text, BLOCK_HOSTILE)


if __name__ == "__main__":
    main()
