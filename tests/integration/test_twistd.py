"""``twistd coapgw`` as a process: what an operator reads and which exit status a supervisor sees."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TWISTD = "import sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()"


def twistd(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", TWISTD, *arguments],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("daemon", [["-n"], []])
def test_wrong_configuration_ends_with_status_2_and_every_mistake(daemon: list[str], tmp_path: Path) -> None:
    configuration = tmp_path / "coapgw.toml"
    configuration.write_text('[uplink]\nacknowledge = "soon"\nmax_payload = "many"\n')
    done = twistd(*daemon, "coapgw", "--config", str(configuration), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    told = done.stderr.splitlines()
    assert len(told) == 2
    assert "uplink.acknowledge" in told[0]
    assert "uplink.max_payload" in told[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coapgw.toml"]


def test_missing_configuration_file_ends_with_status_2(tmp_path: Path) -> None:
    done = twistd("-n", "coapgw", "--config", "absent.toml", cwd=tmp_path)
    assert done.returncode == 2
    assert "absent.toml" in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_option_ends_with_status_2(tmp_path: Path) -> None:
    done = twistd("-n", "coapgw", "--bogus", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "twistd coapgw: option --bogus not recognized\n")


def test_help_lists_coapgw_with_a_description(tmp_path: Path) -> None:
    lines = [line.split() for line in twistd("--help", cwd=tmp_path).stdout.splitlines()]
    at = next(number for number, line in enumerate(lines) if line[:1] == ["coapgw"])
    assert len(lines[at]) > 3
