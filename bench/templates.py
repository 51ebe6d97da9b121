"""Measure what a template costs an uplink: ``python bench/templates.py``; needs ``make -C bench/load``.

The gateway without a template and with one take turns, both with payloads of five bytes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from statistics import median

from figures import Measured, Plan
from report import write_block
from run import measure_gateway, noise
from servers import BUILD, PROGRAMS

TEMPLATE = Path(__file__).resolve().parents[1] / "etc" / "templates" / "room.json"
PAYLOAD = 5  # bytes; any five fit
BLOCK = (
    "<!-- bench-templates: begin; `python bench/templates.py --write FILE` replaces what follows -->",
    "<!-- bench-templates: end -->",
)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Measure what a template costs.", prog="bench/templates.py")
    parser.add_argument("--seconds", type=float, default=6, help="one run; default 6")
    parser.add_argument("--repeat", type=int, default=5, help="runs of each; default 5")
    parser.add_argument("--write", type=Path, metavar="FILE", help="rewrite the marked block of this file")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    plan = Plan(cores[-1], cores[0], 64, 2, PAYLOAD, options.seconds, 2, options.repeat)
    BUILD.mkdir(exist_ok=True)
    without, with_template, loops = Measured(), Measured(), []
    for _ in range(plan.repeat):
        for is_active, into in ((False, without), (True, with_template)):
            place = Path(tempfile.mkdtemp(prefix="run-", dir=BUILD))
            loops.append(noise(plan.server_core))
            try:
                if is_active:
                    tool: list[str | Path] = [
                        PROGRAMS / "coapgw",
                        "--data",
                        place / "data",
                        "template",
                        "activate",
                        TEMPLATE,
                    ]
                    subprocess.run(tool, check=True, stdout=subprocess.DEVNULL)
                measure_gateway(plan, place, into, long=False)
            finally:
                shutil.rmtree(place, ignore_errors=True)
    rates = {
        title: [run.per_cpu_second for run in measured.full]
        for title, measured in (("none: forwarded in base64", without), ("three values, JSON", with_template))
    }
    rows = [
        f"| {title} | {median(figures):,.0f} ({min(figures):,.0f}-{max(figures):,.0f}) |"
        for title, figures in rates.items()
    ]
    plain, translated = (median(figures) for figures in rates.values())
    lost = sum(one.acknowledged - one.delivered for both in (without, with_template) for one in both.deliveries)
    text = "\n".join(
        [
            f"64 devices, payloads of {PAYLOAD} bytes, acknowledged when stored, one subscriber at QoS 1; "
            f"{plan.repeat} runs of {plan.seconds:g} s of each, taking turns.",
            "",
            "| template | durable messages per CPU second |",
            "| --- | ---: |",
            *rows,
            "",
            f"With a template: **{100 * translated / plain:.0f} %** of the rate without. Acknowledged and not "
            f"delivered: {max(0, lost)}. Noise of the machine: a fixed Python loop took "
            f"{1000 * median(loops):.0f} ms ({1000 * min(loops):.0f}-{1000 * max(loops):.0f}).",
        ]
    )
    print(text)
    if options.write:
        write_block(options.write, text, BLOCK)


if __name__ == "__main__":
    main()
