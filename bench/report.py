"""The figures as Markdown."""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median

from figures import Measured, Plan, Run, Surroundings
from servers import CONTESTANTS, GATEWAY

BLOCK_COAP = ("<!-- bench: begin; `make bench BENCH='--write FILE'` replaces what follows -->", "<!-- bench: end -->")
BLOCK_COAPS = (
    "<!-- bench-coaps: begin; `make bench-coaps BENCH='--write FILE'` replaces what follows -->",
    "<!-- bench-coaps: end -->",
)
BLOCK_CID = (
    "<!-- bench-cid: begin; `make bench-cid BENCH='--write FILE'` replaces what follows -->",
    "<!-- bench-cid: end -->",
)
BLOCK_HOSTILE = (
    "<!-- bench-hostile: begin; `make bench-hostile BENCH='--write FILE'` replaces what follows -->",
    "<!-- bench-hostile: end -->",
)
BLOCK_SCALE = (
    "<!-- bench-scale: begin; `make bench-scale BENCH='--write FILE'` replaces what follows -->",
    "<!-- bench-scale: end -->",
)


def spread(values: Sequence[float], unit: str = "", digits: int = 0) -> str:
    """Return the median and, if there were several values, what lies on both sides of it."""
    middle = f"{median(values):,.{digits}f}{unit}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> list[str]:
    """Return a table; every column but the first *texts* holds numbers."""
    ruler = ["---" if column < texts else "---:" for column in range(len(head))]
    return [f"| {' | '.join(cells)} |" for cells in (head, ruler, *rows)]


def processor() -> str:
    """Return what the processor calls itself."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def libcoap_version() -> str:
    """Return the name and version of libcoap, as far as its server tells."""
    told = subprocess.run(["coap-server-notls", "-?"], check=False, capture_output=True, text=True)
    found = re.search(r"coap-server\S* v([\d.]+)", told.stderr + told.stdout)
    return f"libcoap {found[1]}" if found else "libcoap"


def conditions(plan: Plan, around: Surroundings) -> list[str]:
    """Return where and how it was measured."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("Twisted", "txThings", "SQLAlchemy", "aiocoap"))
    sharing = "" if plan.server_core != plan.load_core else " **One core for everything: these figures mean little.**"
    loops = [1000 * seconds for seconds in around.loops]
    syncs = [1000 * seconds for seconds in around.syncs]
    waits = math.isfinite(around.quiet)
    return [
        f"{plan.devices} devices, each with an address and a socket of its own and {plan.window} requests outstanding; "
        f"{plan.payload}-byte payload, CON; {plan.seconds:g} s a run after {plan.warm_up:g} s of warm-up, "
        f"{plan.repeat} runs of each server, taking turns; median (lowest-highest). The server has one core, "
        f"load generator and subscriber share another.{sharing}",
        "",
        f"{processor()}, {os.cpu_count()} cores; Linux {platform.release().partition('-')[0]}; "
        f"Python {platform.python_version()}; {libraries}; {libcoap_version()}.",
        "",
        f"Noise of the machine: a fixed Python loop before each run took {spread(loops, ' ms')}; 4 KiB appended and on "
        f"disk ({around.filesystem}): {spread(syncs, ' ms', 2)}."
        + (f" Each run waited, a minute at most, for the loop to take {1000 * around.quiet:g} ms or less." * waits),
    ]


def full_load(measured: dict[str, Measured]) -> list[str]:
    """Return the table of all servers under full load."""
    rows = []
    for contestant in CONTESTANTS:
        runs = measured[contestant.key].full if contestant.key in measured else []
        if not runs:
            continue
        rows.append(
            [
                contestant.title,
                contestant.promise,
                spread([run.per_cpu_second for run in runs]),
                spread([run.req_per_s for run in runs]),
                spread([run.p50_us / 1000 for run in runs], digits=1),
                spread([run.p99_us / 1000 for run in runs], digits=1),
                spread([run.server_cpu_pct for run in runs]),
                spread([run.server_rss_kib / 1024 for run in runs]),
            ]
        )
    head = ["server", "what its 2.04 means", "per CPU second", "per second", "p50 ms", "p99 ms", "CPU %", "memory MiB"]
    return [
        "### Full load",
        "",
        *table(head, rows, texts=2),
        "",
        "Only the gateway's row includes a disk and a subscriber; the other servers authenticate nobody, store nothing "
        "and deliver nothing.",
    ]


def gateway_figures(measured: Measured) -> list[str]:
    """Return what only the gateway has: half load and delivery."""
    lines: list[str] = []
    if half := measured.half:
        head = ["half of that load", "per second", "p50 ms", "p99 ms", "max ms", "per CPU second", "CPU %"]
        row = [
            GATEWAY.title,
            spread([run.req_per_s for run in half]),
            spread([run.p50_us / 1000 for run in half], digits=1),
            spread([run.p99_us / 1000 for run in half], digits=1),
            spread([run.max_us / 1000 for run in half], digits=1),
            spread([run.per_cpu_second for run in half]),
            spread([run.server_cpu_pct for run in half]),
        ]
        lines += ["", "### Half load", "", *table(head, [row])]
    if measured.deliveries:
        rows = [
            [
                f"{one.sent:,}",
                f"{one.acknowledged:,}",
                f"{one.delivered:,}",
                f"{max(0, one.acknowledged - one.delivered):,}",
                f"{one.repeats:,}",
                f"{one.behind_seconds:.2f}",
                f"{one.per_cpu_second:,.0f}",
            ]
            for one in measured.deliveries
        ]
        head = ["sent", "got 2.04", "delivered", "missing", "repeats", "behind, s", "per CPU second to the end"]
        lines += [
            "",
            "### Delivered against acknowledged",
            "",
            "One `mosquitto_sub -q 1`, every message counted by its id. *Delivered* may exceed *got 2.04* by what was "
            "in flight when a run ended. *Behind*: until the subscriber had everything after full load ended; the last "
            "column counts the gateway's CPU time until then.",
            "",
            *table(head, rows),
        ]
    return lines


def long_run(slices: Sequence[Run], seconds: float) -> list[str]:
    """Return the long run, slice by slice."""
    rows = [
        [
            f"{number * seconds:.0f}-{(number + 1) * seconds:.0f} s",
            f"{run.per_cpu_second:,.0f}",
            f"{run.req_per_s:,.0f}",
            f"{run.p50_us / 1000:.1f}",
            f"{run.p99_us / 1000:.1f}",
            f"{run.server_rss_kib / 1024:,.0f}",
        ]
        for number, run in enumerate(slices)
    ]
    return [
        "",
        "### Flat while the table of remembered exchanges fills",
        "",
        f"Full load for {len(slices) * seconds:.0f} s; an exchange is remembered for 247 s (RFC 7252 section 4.8.2). "
        f"Each slice comes from new sockets: an endpoint has 65,536 Message IDs, and none is used twice. "
        "`coap.max_exchanges` is raised, so that none is forgotten early.",
        "",
        *table(["", "per CPU second", "per second", "p50 ms", "p99 ms", "memory MiB"], rows),
    ]


def write_report(plan: Plan, measured: dict[str, Measured], around: Surroundings, slice_seconds: float) -> str:
    """Return everything as Markdown."""
    lines = [*conditions(plan, around), "", *full_load(measured)]
    if GATEWAY.key in measured:
        lines += gateway_figures(measured[GATEWAY.key])
        if slices := measured[GATEWAY.key].slices:
            lines += long_run(slices, slice_seconds)
    troubles = [
        f"{key}: {', '.join(run.troubles())}"
        for key, one in measured.items()
        for run in (*one.full, *one.half, *one.slices)
        if run.troubles()
    ]
    if troubles:
        lines += ["", "Requests that did not simply get their 2.04:", "", *(f"* {trouble}" for trouble in troubles)]
    return "\n".join(lines) + "\n"


def write_block(file: Path, text: str, marks: tuple[str, str] = BLOCK_COAP) -> None:
    """Replace what is between two *marks* in *file* by *text*."""
    before, begin, rest = file.read_text(encoding="utf-8").partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not begin or not end:
        raise SystemExit(f"{file} has no marked block:\n{marks[0]}\n{marks[1]}")
    file.write_text(f"{before}{begin}\n\n{text}\n{end}{after}", encoding="utf-8")
