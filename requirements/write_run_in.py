"""Write requirements/run.in from setup.cfg and pyproject.toml, so that a version range is stated in one place."""

from __future__ import annotations

import configparser
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run_in() -> str:
    """Return the text of run.in: what coapgw needs to run, and what an editable install of it is built with."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    ranges = setup["options"]["install_requires"].split("\n")
    ranges += tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    lines = ["# Written by `make lock` from setup.cfg and pyproject.toml; change those."]
    return "\n".join(lines + [line for line in ranges if line]) + "\n"


if __name__ == "__main__":
    (ROOT / "requirements" / "run.in").write_text(run_in(), encoding="utf-8")
