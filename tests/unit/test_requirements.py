"""The lock files are whole, and follow the ranges that setup.cfg states."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements"
PIN = re.compile(r"^([a-z0-9-]+)==\S+(?: ; .*)? \\$", re.MULTILINE)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def named(text: str) -> set[str]:
    return {canonical(found[0]) for line in text.splitlines() if (found := re.match(r"[A-Za-z][\w.-]*", line))}


def test_ranges_to_lock_are_those_of_the_package() -> None:
    script = "import sys; sys.path.insert(0, 'requirements'); from write_run_in import run_in; print(run_in(), end='')"
    written = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True)
    assert (REQUIREMENTS / "run.in").read_text() == written.stdout, "run `make lock`"


@pytest.mark.parametrize("name", ["run", "test"])
def test_what_is_asked_for_is_pinned_with_hashes(name: str) -> None:
    locked = (REQUIREMENTS / f"{name}.txt").read_text()
    pins = set(PIN.findall(locked))
    assert named((REQUIREMENTS / f"{name}.in").read_text()) <= pins
    for entry in re.split(r"\n(?=[a-z0-9])", locked)[1:]:
        assert "--hash=sha256:" in entry


@pytest.mark.parametrize("name", ["run", "test"])
def test_lock_file_names_no_place(name: str) -> None:
    locked = (REQUIREMENTS / f"{name}.txt").read_text()
    assert "://" not in locked
    assert not re.search(r"^\s*(?:-i|--(?:extra-)?index-url|--find-links)", locked, re.MULTILINE)


def test_both_files_agree() -> None:
    pinned = [
        dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (REQUIREMENTS / f"{name}.txt").read_text(), re.M))
        for name in ("run", "test")
    ]
    for name in pinned[0].keys() & pinned[1].keys():
        assert pinned[0][name] == pinned[1][name]
