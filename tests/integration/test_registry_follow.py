"""The registry between processes: one changes it, another follows; many open it at once; and the tool as a process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from coapgw.errors import DeviceExists
from coapgw.model import Device
from tests.unit.registries import iccid, registry_in

TOOL = (sys.executable, "-m", "coapgw.cli.main")
DEADLINE = 20.0

FOLLOWER = """
import sys, time
from pathlib import Path
from twisted.internet import reactor
from coapgw.storage.database import open_registry
from coapgw.storage.devices import DeviceRegistry
from coapgw.storage.directory import DeviceDirectory
from coapgw.storage.follower import RegistryFollower

database = open_registry("", Path(sys.argv[1]))
directory = DeviceDirectory(DeviceRegistry(database, lambda: 0).changes_since)
directory.load()
def tell(iccids):
    for iccid in iccids:
        device = directory.by_iccid(iccid)
        print(repr(time.time()), iccid, device.ip if device else "gone", flush=True)
directory.subscribe(tell)
service = RegistryFollower(directory, "devices", reactor)
def start():
    service.startService()
    print("ready", flush=True)
reactor.callWhenRunning(start)
reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
reactor.run()
database.close()
"""


@pytest.fixture
def follower(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process whose directory follows the registry in *tmp_path*, ready."""
    command = (sys.executable, "-W", "error", "-c", FOLLOWER, str(tmp_path))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert line_of(process) == ["ready"]
        yield process
        process.terminate()
        _, said = process.communicate(timeout=DEADLINE)
        assert (process.returncode, said) == (0, "")


def line_of(process: subprocess.Popen[str]) -> list[str]:
    """Return the words of the next line that *process* writes."""
    output: IO[str] | None = process.stdout
    assert output is not None
    line = output.readline()
    assert line, process.communicate()
    return line.split()


def tool(data: Path, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = (*TOOL, "--data", str(data), *words)
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=DEADLINE, check=False)


def test_change_by_another_process_is_seen_within_a_second(tmp_path: Path, follower: subprocess.Popen[str]) -> None:
    for words, expected in (
        (["add", iccid(1), "--ip", "10.0.0.1"], "10.0.0.1"),
        (["set", iccid(1), "--ip", "10.0.0.2"], "10.0.0.2"),
        (["remove", iccid(1)], "gone"),
    ):
        done = tool(tmp_path, "device", *words)
        committed_before = time.time()
        assert done.returncode == 0, done.stderr
        seen_at, seen, ip = line_of(follower)
        assert (seen, ip) == (iccid(1), expected)
        assert float(seen_at) - committed_before < 1.0


def test_change_is_seen_although_the_writer_was_killed(tmp_path: Path, follower: subprocess.Popen[str]) -> None:
    writer = (
        "import os, signal, sys; from pathlib import Path\n"
        "from coapgw.model import Device; from coapgw.storage.database import open_registry\n"
        "from coapgw.storage.devices import DeviceRegistry\n"
        "registry = DeviceRegistry(open_registry('', Path(sys.argv[1])), lambda: 0)\n"
        "registry.add(Device(sys.argv[2])); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run((sys.executable, "-c", writer, str(tmp_path), iccid(1)), check=False, timeout=DEADLINE)
    assert killed.returncode == -9
    assert line_of(follower)[1:] == [iccid(1), "None"]
    assert tool(tmp_path, "device", "add", iccid(1)).returncode == 1


def test_fresh_registry_may_be_opened_by_many_at_once(tmp_path: Path) -> None:
    for attempt in range(3):
        data = tmp_path / str(attempt)
        commands = [(*TOOL, "--data", str(data), "device", "add", iccid(number)) for number in range(6)]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for command in commands]
        ends = [(process.communicate(timeout=DEADLINE), process.returncode) for process in processes]
        assert [status for _, status in ends] == [0] * 6, ends
        with registry_in(data) as opened:
            assert len(opened.devices.list(100)) == 6
            changes = opened.devices.changes_since(0)
            assert changes is not None
            assert changes.version == 6


def test_one_address_goes_to_one_of_many(tmp_path: Path) -> None:
    with registry_in(tmp_path) as opened:
        opened.devices.add(Device(iccid(99)))
    commands = [
        (*TOOL, "--data", str(tmp_path), "device", "add", iccid(number), "--ip", "10.0.0.1") for number in range(6)
    ]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for command in commands]
    ends = [(process.communicate(timeout=DEADLINE), process.returncode) for process in processes]
    assert sorted(status for _, status in ends) == [0, 1, 1, 1, 1, 1], ends
    assert all(b"has this address" in errors for (_, errors), status in ends if status)


def test_import_reads_standard_input(tmp_path: Path) -> None:
    done = tool(tmp_path, "--json", "device", "import", "-", given=f"\ufefficcid,ip\r\n{iccid(1)},10.0.0.1\r\n")
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (0, {"imported": 1}, "")
    done = tool(tmp_path, "device", "import", "-", given="iccid\nx\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("coapgw: stdin, line 2: ")


def test_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    with registry_in(tmp_path) as opened:
        opened.devices.import_all(Device(iccid(number)) for number in range(5000))
    for words in ("device list", "--json device list", "--help"):
        with subprocess.Popen(
            (*TOOL, "--data", str(tmp_path), *words.split()), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.close()
            assert process.stderr is not None
            assert process.stderr.read() == b""
        assert process.returncode == 0


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&-", ">/dev/full", ">&- 2>&-"])
@pytest.mark.parametrize("words", ["device list", "device import -", "device add x", "--help", "nothing"])
def test_missing_streams_make_no_traceback(tmp_path: Path, redirection: str, words: str) -> None:
    line = f'"$0" -m coapgw.cli.main --data "$1" {words} {redirection}'
    command = ("sh", "-c", line, sys.executable, str(tmp_path))
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode in (0, 1, 2)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_name_that_the_terminal_cannot_show_is_shown_otherwise(tmp_path: Path) -> None:
    tool(tmp_path, "device", "add", iccid(1), "--name", "Zähler")
    done = subprocess.run(
        (*TOOL, "--data", str(tmp_path), "device", "show", iccid(1)),
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
        timeout=DEADLINE,
    )
    assert b"Z\\xe4hler" in done.stdout


AS_NOBODY = """
import os, sys
from coapgw.cli.main import main
import coapgw.storage.upgrade
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.exit(main(sys.argv[1:]))
"""  # what nobody may not read is imported before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_registry_of_another_user_is_refused_in_a_sentence() -> None:
    data = Path(tempfile.mkdtemp())  # pytest's directories are its user's alone
    try:
        with registry_in(data):
            pass
        for mode, file_mode, said in (
            (0o755, 0o600, "this user may not read it"),
            (0o755, 0o644, "this user may not write it"),
            (0o700, 0o600, "cannot be opened: Permission denied"),
        ):
            data.chmod(mode)
            (data / "registry.db").chmod(file_mode)
            command = (sys.executable, "-c", AS_NOBODY, "--data", str(data), "device", "list")
            done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
            assert (done.returncode, done.stdout) == (1, "")
            assert said in done.stderr
            assert done.stderr.count("\n") == 1
    finally:
        shutil.rmtree(data)


def test_taken_address_names_the_device_also_between_connections(tmp_path: Path) -> None:
    with registry_in(tmp_path) as first, registry_in(tmp_path) as second:
        first.devices.add(Device(iccid(1), ip="10.0.0.1"))
        with pytest.raises(DeviceExists, match=iccid(1)):
            second.devices.add(Device(iccid(2), ip="10.0.0.1"))
