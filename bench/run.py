"""Measure the gateway and, in the same run, plain CoAP servers: ``make bench``, ``make bench BENCH=--help``.

The server has one core to itself, load generator and subscriber share another one.  Contestants take turns, so that a
machine that slows down slows all of them; a fixed loop, timed before every run, shows whether it did.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import attrs
from figures import Delivery, Measured, Plan, Run, Surroundings
from report import write_block, write_report
from servers import (
    BUILD,
    COAPLOAD,
    CONTESTANTS,
    GATEWAY,
    SOURCES,
    Contestant,
    Running,
    Subscriber,
    addresses,
    gateway,
    peer,
    pinned,
    register,
)

NOISE_LOOP = "import time; t = time.perf_counter()\nfor i in range(5_000_000): pass\nprint(time.perf_counter() - t)"
# Retransmissions would hide a full socket buffer: Linux's default one holds 180 to 280 small datagrams.
OPEN_LOOP_WINDOW = 16  # a slot for every request that may be due while the server is busy with a commit
LONG_SLICES, SLICE_SECONDS = 13, 20  # 260 s: longer than EXCHANGE_LIFETIME (247 s, RFC 7252 section 4.8.2)
LONG_EXCHANGES = 20_000_000  # room for all of them: 247 s at up to 80,000 a second


def load(plan: Plan, contestant: Contestant, server: Running, seconds: float, *more: str) -> Run:
    """Run coapload once and return what it says.

    Every run opens new sockets, so its Message IDs are those of new endpoints: no run comes near the 65,536 that an
    endpoint has within EXCHANGE_LIFETIME.
    """
    command: list[str | Path] = [COAPLOAD, "-p", str(server.port), "-n", str(plan.devices), "-b", SOURCES, "--json"]
    command += ["-l", str(plan.payload), "-w", "0", "-t", str(seconds), "--server-pid", str(server.pid)]
    command += [*contestant.request, *(more or ("-W", str(plan.window)))]
    done = subprocess.run(pinned(plan.load_core, command), check=True, stdout=subprocess.PIPE, text=True)
    run = Run.from_json(done.stdout)
    if run.mid_wraps:
        sys.exit("Message IDs came round within one run: use fewer --seconds, or more --devices")
    if more:
        return run
    # coapload counts from the end of its warm-up, which is when it has sent the first request of every slot
    return attrs.evolve(run, sent=run.sent + plan.devices * plan.window)


def measure_gateway(plan: Plan, place: Path, into: Measured, *, long: bool) -> None:
    """Measure the gateway at full load, then at half of it; or, if *long*, in slices for longer than 247 s."""
    settings = (f"coap.max_exchanges={LONG_EXCHANGES}",) if long else ()
    register(place, (f"8988280666{index:09d},{ip}" for index, ip in enumerate(addresses(plan.devices))))
    with gateway(place, plan.server_core, settings) as server:
        if server.mqtt_port is None:
            raise AssertionError("the gateway has a broker")
        subscriber = Subscriber(server.mqtt_port, place, plan.load_core)
        runs = [load(plan, GATEWAY, server, plan.warm_up)]
        subscriber.wait_for(runs[0].ok)
        cpu_before = server.cpu_seconds()
        if long:
            into.slices = [load(plan, GATEWAY, server, SLICE_SECONDS) for _ in range(LONG_SLICES)]
            runs += into.slices
        else:
            into.full.append(load(plan, GATEWAY, server, plan.seconds))
            runs.append(into.full[-1])
        behind = subscriber.wait_for(sum(run.ok for run in runs))
        cpu = server.cpu_seconds() - cpu_before
        acknowledged_at_full = sum(run.ok for run in runs[1:])
        if not long:
            rate = f"{into.full[-1].req_per_s / 2:.0f}"
            into.half.append(load(plan, GATEWAY, server, plan.seconds, "-W", str(OPEN_LOOP_WINDOW), "-r", rate))
            runs.append(into.half[-1])
            subscriber.wait_for(sum(run.ok for run in runs))
        arrived, different = subscriber.close()
        into.deliveries.append(
            Delivery(
                sent=sum(run.sent for run in runs),
                acknowledged=sum(run.ok for run in runs),
                delivered=different,
                repeats=arrived - different,
                behind_seconds=behind,
                per_cpu_second=acknowledged_at_full / cpu,
            )
        )


def measure_peer(plan: Plan, contestant: Contestant, place: Path, into: Measured) -> None:
    """Measure a plain server at full load."""
    with peer(contestant, place, plan.server_core) as server:
        load(plan, contestant, server, plan.warm_up)
        into.full.append(load(plan, contestant, server, plan.seconds))


def noise(core: int) -> float:
    """Return how many seconds a fixed loop takes on *core* just now."""
    command = pinned(core, [sys.executable, "-c", NOISE_LOOP])
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def quiet(core: int, limit: float) -> float:
    """Wait, a minute at most, until the fixed loop takes no more than so many seconds; return what it took."""
    for _ in range(60):
        taken = noise(core)
        if taken <= limit:
            break
        time.sleep(1)
    return taken


def sync_seconds(place: Path, times: int = 100) -> float:
    """Return the median time of appending 4 KiB to a file in *place* and having it on disk."""
    taken = []
    with (place / "sync").open("wb", buffering=0) as file:
        for _ in range(times):
            begin = time.perf_counter()
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - begin)
    return median(taken)


def filesystem(place: Path) -> str:
    """Return the type of the file system that *place* is on."""
    found = subprocess.run(["stat", "-f", "-c", "%T", place], check=True, stdout=subprocess.PIPE, text=True)
    return found.stdout.strip()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description="Measure the gateway and its peers.", prog="bench/run.py")
    keys = [contestant.key for contestant in CONTESTANTS]
    parser.add_argument("--only", nargs="+", choices=keys, default=keys, help="which servers; default: all")
    parser.add_argument("--seconds", type=float, default=10, help="one run; default 10")
    parser.add_argument("--warm-up", type=float, default=3, help="before it; default 3")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each server; default 3")
    parser.add_argument("--devices", type=int, default=64)
    parser.add_argument("--window", type=int, default=2, help="outstanding requests per device; default 2")
    parser.add_argument("--payload", type=int, default=64, help="bytes; default 64")
    parser.add_argument("--long", action="store_true", help="also the gateway for 260 s, in slices")
    parser.add_argument(
        "--quiet",
        type=float,
        default=math.inf,
        metavar="MS",
        help="before each run wait, a minute at most, until the fixed loop takes no more: others use the machine too",
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="rewrite the marked block of this file")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure, print, write."""
    options = parse()
    cores = sorted(os.sched_getaffinity(0))
    plan = Plan(
        server_core=cores[-1],
        load_core=cores[0],
        devices=options.devices,
        window=options.window,
        payload=options.payload,
        seconds=options.seconds,
        warm_up=options.warm_up,
        repeat=options.repeat,
    )
    BUILD.mkdir(exist_ok=True)
    measured = {contestant.key: Measured() for contestant in CONTESTANTS if contestant.key in options.only}
    around = Surroundings(filesystem=filesystem(BUILD), quiet=options.quiet / 1000)
    entered = [contestant for contestant in CONTESTANTS if contestant.key in measured]
    rounds = [(contestant, False) for _ in range(plan.repeat) for contestant in entered]
    if options.long:
        measured.setdefault(GATEWAY.key, Measured())
        rounds.append((GATEWAY, True))
    for number, (contestant, long) in enumerate(rounds, 1):
        print(f"{number}/{len(rounds)} {contestant.key}{' for 260 s' if long else ''}", file=sys.stderr, flush=True)
        # on the checkout's disk, not in a /tmp that may be memory
        place = Path(tempfile.mkdtemp(prefix="run-", dir=BUILD))
        try:
            around.loops.append(quiet(plan.server_core, around.quiet))
            around.syncs.append(sync_seconds(place))
            if contestant is GATEWAY:
                measure_gateway(plan, place, measured[contestant.key], long=long)
            else:
                measure_peer(plan, contestant, place, measured[contestant.key])
        finally:
            shutil.rmtree(place, ignore_errors=True)
    everything = {key: attrs.asdict(value) for key, value in measured.items()}
    (BUILD / "last.json").write_text(json.dumps(everything, indent=1))
    text = write_report(plan, measured, around, SLICE_SECONDS)
    print(text)
    if options.write:
        write_block(options.write, text)


if __name__ == "__main__":
    main()
