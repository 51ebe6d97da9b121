"""Say where the microseconds of a message go: ``python bench/microseconds.py``; ``perf`` and ``py-spy`` on the PATH.

Three runs at full load.  The first, undisturbed, says what a message costs.  The second samples the process with perf:
which share is whose thread's, the kernel's for which system call, a library's.  The third samples with py-spy who holds
the interpreter, to divide the interpreter's share among the packages.  A sample belongs to the innermost frame of ours.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coaps import NO_LIMITS, SUITES, coaps_gateway
from coaps import load as load_coaps
from figures import Plan
from report import table
from run import load
from servers import BUILD, GATEWAY, Running, Subscriber, addresses, gateway, register

SECONDS = 10.0
SYSCALL = re.compile(r"(?:__x64_sys|__arm64_sys|__se_sys|__do_sys)_(\w+)")
INTERPRETER = "interpreter"
KERNEL_AREAS = {
    "recvfrom": "receive",
    "recvmsg": "receive",
    "sendto": "send",
    "sendmsg": "send",
    "fdatasync": "fdatasync",
    "fsync": "fdatasync",
    "pwrite64": "write the log",
    "epoll_wait": "epoll",
    "epoll_ctl": "epoll",
    "futex": "futex (threads wait for each other)",
}
LIBRARIES = {"libsqlite3": "SQLite", "_sqlite3": "SQLite", "libcrypto": "OpenSSL", "libssl": "OpenSSL"}
PACKAGE = re.compile(r"coapgw/(\w+)/|coapgw/(\w+)\.py")


@contextmanager
def plain(cores: list[int]) -> Iterator[Running]:
    """Run the gateway for plain CoAP, with a subscriber."""
    place = Path(tempfile.mkdtemp(prefix="run-", dir=BUILD))
    try:
        register(place, (f"8988280666{index:09d},{ip}" for index, ip in enumerate(addresses(64))))
        with gateway(place, cores[0]) as server:
            yield from subscribed(server, place, cores)
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def secure(cores: list[int]) -> Iterator[Running]:
    """Run the gateway for CoAP over DTLS, with a subscriber."""
    with coaps_gateway(cores[0], 500, NO_LIMITS) as (server, place):
        yield from subscribed(server, place, cores)


def subscribed(server: Running, place: Path, cores: list[int]) -> Iterator[Running]:
    """Have somebody take the messages."""
    assert server.mqtt_port is not None
    subscriber = Subscriber(server.mqtt_port, place, cores[-1])
    try:
        yield server
    finally:
        subscriber.close()


def full_load(server: Running, cores: list[int], seconds: float) -> float:
    """Send as fast as answers come; return messages per CPU-second."""
    if server.coaps_port:
        options = ("data", "-n", "500", "-c", f"{SUITES[0]}:@SECLEVEL=0", "-w", "0", "-t", f"{seconds:g}")
        return float(load_coaps(cores[-1], server, *options)["per_cpu_second"])
    return load(Plan(cores[0], cores[-1], 64, 2, 64, 0, seconds, 1), GATEWAY, server, seconds).per_cpu_second


def sampled(command: list[str], server: Running, cores: list[int]) -> None:
    """Run a profiler for ``SECONDS`` amid the load."""
    profiler = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    full_load(server, cores, SECONDS + 4)
    if profiler.wait():
        sys.exit(f"{command[0]} failed")


def kernel_area(frames: list[str]) -> str:
    """Return what the kernel did, by the system call."""
    for frame in reversed(frames):
        call = SYSCALL.match(frame)
        if call:
            area = KERNEL_AREAS.get(call[1], "other system calls")
            if area in ("receive", "send"):
                kind = "MQTT's TCP" if any(name.startswith("tcp_") for name in frames) else "datagrams"
                return f"kernel: {area} {kind}"
            return f"kernel: {area}"
    return "kernel: interrupts, page faults"


def samples(recorded: Path) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """Yield of every sample of perf's: the thread, and (symbol, library) from the innermost frame out."""
    command = ["perf", "script", "-i", str(recorded), "-F", "tid,ip,sym,dso"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for sample in told.split("\n\n"):
        head, *lines = [line for line in sample.splitlines() if line.strip()] or [""]
        if lines:
            parts = [line.split(None, 1)[1].rsplit(" (", 1) for line in lines]
            yield int(head.split()[0]), [(part[0].partition("+")[0], part[-1].rstrip(")")) for part in parts]


def by_area(recorded: Path, pid: int) -> Counter[tuple[str, str]]:
    """Count perf's samples by thread and area."""
    counted: Counter[tuple[str, str]] = Counter()
    for tid, frames in samples(recorded):
        library = Path(frames[0][1]).name
        if "kernel" in library or "vdso" in library:
            area = kernel_area([name for name, where in frames if "kernel" in where])
        else:
            area = next((name for begin, name in LIBRARIES.items() if library.startswith(begin)), INTERPRETER)
        counted["reactor" if tid == pid else "writer", area] += 1
    return counted


def by_package(recorded: Path) -> Counter[str]:
    """Count py-spy's samples of the reactor's thread by the package of the innermost frame of ours."""
    counted: Counter[str] = Counter()
    for line in recorded.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        if "MainThread" in stack:
            counted[package(stack.split(";"))] += int(count)
    return counted


def package(stack: list[str]) -> str:
    """Return whose code it is: a package of ours, or Twisted."""
    for frame in reversed(stack):
        found = PACKAGE.search(frame)
        if found:
            return f"coapgw.{found[1] or found[2]}"
    return "Twisted's reactor"


def measure(kind: str, cores: list[int]) -> None:
    """Measure one kind of message and print a table."""
    with (plain if kind == "plain" else secure)(cores) as server, tempfile.TemporaryDirectory() as place:
        full_load(server, cores, 3)
        cost = 1e6 / full_load(server, cores, SECONDS)
        perf, spy = Path(place) / "perf", Path(place) / "spy"
        duration = f"{SECONDS:g}"
        command = ["perf", "record", "-q", "-o", str(perf), "-e", "cpu-clock", "-F", "999", "-g", "-p", str(server.pid)]
        sampled([*command, "--", "sleep", duration], server, cores)
        command = ["py-spy", "record", "--gil", "-t", "-r", "250", "-f", "raw", "-d", duration, "-o", str(spy)]
        sampled([*command, "-p", str(server.pid)], server, cores)
        areas, packages = by_area(perf, server.pid), by_package(spy)
    every = sum(areas.values())
    rows: list[tuple[str, str, float]] = []
    for (thread, area), count in areas.items():
        share = cost * count / every
        if (thread, area) == ("reactor", INTERPRETER) and packages:
            rows += [(thread, f"Python: {name}", share * n / packages.total()) for name, n in packages.items()]
        else:
            rows.append((thread, "Python" if area == INTERPRETER else area, share))
    rows.sort(key=lambda row: (row[0], -row[2]))
    small = [row for row in rows if row[2] < 0.1]
    lines = [(thread, area, f"{share:.1f}") for thread, area, share in rows if share >= 0.1]
    lines.append(("both", "each less than 0.1", f"{sum(row[2] for row in small):.1f}"))
    lines.append(("", f"**all of it**: {1e6 / cost:,.0f} messages per CPU-second", f"**{cost:.1f}**"))
    print(f"\n{kind}\n")
    print("\n".join(table(["thread", "what", "µs a message"], lines, 2)), flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Say where the time goes.", prog="bench/microseconds.py")
    parser.add_argument("--only", choices=("plain", "coaps"))
    options = parser.parse_args()
    for tool in ("perf", "py-spy"):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is not on the PATH (Debian: apt-get install linux-perf; pip install py-spy)")
    BUILD.mkdir(exist_ok=True)
    begun = time.monotonic()
    for kind in (options.only,) if options.only else ("plain", "coaps"):
        measure(kind, sorted(os.sched_getaffinity(0), reverse=True))
    print(f"\n{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
