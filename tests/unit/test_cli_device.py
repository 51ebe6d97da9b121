"""The command line tool, in this process: what it prints, what it refuses, and its exit status."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coapgw.cli.device_csv import CsvInvalid, read_devices
from coapgw.cli.main import main
from coapgw.model import Device, DeviceStatus
from tests.unit.registries import iccid, registry_in

ONE, TWO, THREE = iccid(1), iccid(2), iccid(3)
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@attrs.frozen
class Said:
    """How a call ended, and what it wrote."""

    status: int
    out: str
    err: str

    @property
    def value(self) -> Any:
        """The one JSON value on standard output."""
        assert self.err == ""
        return json.loads(self.out)


Tool: TypeAlias = Callable[..., Said]


@pytest.fixture
def tool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Tool:
    """The tool, working in a data directory that is not there yet."""

    def call(*words: str) -> Said:
        status = main(["--data", str(tmp_path / "data"), *words])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Said(status, out, err)

    return call


def test_device_is_added_shown_changed_and_removed(tool: Tool) -> None:
    added = tool("device", "add", ONE, "--ip", "::ffff:10.0.0.1", "--name", "Zähler", "--imsi", "901405100000001")
    assert added == Said(0, f"added {ONE}\n", "")
    shown = tool("device", "show", ONE, "--json").value
    assert TIME.fullmatch(shown.pop("createdAt"))
    assert TIME.fullmatch(shown.pop("updatedAt"))
    assert shown == {"iccid": ONE, "imsi": "901405100000001", "ip": "10.0.0.1", "name": "Zähler", "status": "ACTIVE"}
    lines = tool("device", "show", ONE).out.splitlines()
    assert lines[:3] == [f"iccid      {ONE}", "imsi       901405100000001", "ip         10.0.0.1"]
    assert tool("device", "set", ONE, "--ip", "", "--imsi", "", "--status", "INACTIVE") == Said(0, f"set {ONE}\n", "")
    shown = tool("device", "show", ONE, "--json").value
    assert set(shown) == {"iccid", "name", "status", "createdAt", "updatedAt"}
    assert shown["status"] == "INACTIVE"
    assert tool("device", "remove", ONE) == Said(0, f"removed {ONE}\n", "")
    assert tool("device", "show", ONE) == Said(1, "", f"coapgw: no device '{ONE}'\n")


def test_add_and_set_answer_with_the_device(tool: Tool) -> None:
    added = tool("device", "add", ONE, "--name", "x", "--json").value
    assert (added["iccid"], added["name"]) == (ONE, "x")
    assert tool("device", "set", ONE, "--name", "y", "--json").value["name"] == "y"
    assert tool("device", "remove", ONE, "--json").value == {"removed": ONE}


@pytest.mark.parametrize(
    "words", [["--json", "device", "list"], ["device", "--json", "list"], ["device", "list", "--json"]]
)
def test_json_may_stand_anywhere(tool: Tool, words: list[str]) -> None:
    tool("device", "add", ONE)
    assert [device["iccid"] for device in tool(*words).value["items"]] == [ONE]


def test_list_has_a_line_a_device(tool: Tool) -> None:
    tool("device", "add", TWO)
    tool("device", "add", ONE, "--ip", "10.0.0.1", "--name", "one")
    lines = tool("device", "list").out.splitlines()
    assert [line.split() for line in lines] == [[ONE, "ACTIVE", "10.0.0.1", "-", "one"], [TWO, "ACTIVE", "-", "-", "-"]]


def test_list_takes_all_pages_or_as_many_as_wanted(tool: Tool, tmp_path: Path) -> None:
    with registry_in(tmp_path / "data") as opened:
        opened.devices.import_all([Device(iccid(number)) for number in range(1500)])
    assert [line.split()[0] for line in tool("device", "list").out.splitlines()] == [iccid(n) for n in range(1500)]
    assert len(tool("device", "list", "--json").value["items"]) == 1500
    for limit in (0, 3, 1000, 1001, 9999):
        assert len(tool("device", "list", "--limit", str(limit)).out.splitlines()) == min(limit, 1500)
    assert len(tool("device", "list", "--q", iccid(120)[:-1]).out.splitlines()) == 10


def test_list_by_status(tool: Tool) -> None:
    tool("device", "add", ONE)
    tool("device", "add", TWO, "--status", "INACTIVE")
    assert tool("device", "list", "--status", "INACTIVE").out.split()[0] == TWO


def test_what_the_registry_refuses_is_a_sentence_and_status_1(tool: Tool) -> None:
    tool("device", "add", ONE, "--ip", "10.0.0.1")
    taken = f"ip '10.0.0.1': device {ONE} has this address"
    assert tool("device", "add", TWO, "--ip", "10.0.0.1") == Said(1, "", f"coapgw: {taken}\n")
    refused = tool("device", "add", TWO, "--ip", "10.0.0.1", "--json")
    assert (refused.status, refused.value) == (1, {"error": taken})
    assert tool("device", "add", "12").err == "coapgw: iccid '12': an ICCID has 18 to 20 digits\n"
    assert tool("device", "show", "\udc80").err == "coapgw: no device '\\udc80'\n"
    assert tool("device", "set", ONE, "--name", "\udc80").status == 1
    assert tool("device", "list").out.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["device"],
        ["device", "add"],
        ["device", "add", ONE, "--status", "ASLEEP"],
        ["device", "list", "--limit", "-1"],
        ["device", "list", "--lim", "1"],
        ["--dat", "x", "device", "list"],
        ["nothing"],
        ["config"],
        ["config", "check"],
    ],
)
def test_wrong_command_line_is_status_2(tool: Tool, words: list[str]) -> None:
    said = tool(*words)
    assert said.status == 2
    assert "usage: coapgw" in said.err


@pytest.mark.parametrize("words", [["--help"], ["device", "--help"], ["device", "import", "--help"], ["--version"]])
def test_help_is_status_0(tool: Tool, words: list[str]) -> None:
    said = tool(*words)
    assert (said.status, said.err) == (0, "")
    assert "coapgw" in said.out


@pytest.mark.parametrize(
    "words",
    [
        ["device", "list", "--data", "elsewhere"],
        ["device", "show", ONE, "--config=x.toml"],
        ["spool", "status", "-s", "spool.max_bytes=1"],
        ["device", "list", "--set", "spool.max_bytes=1"],
        ["device", "psk", ONE, "--set", "KEYKEYKEY", "--data", "elsewhere"],
        ["send", "coap://127.0.0.1/", "--data=elsewhere"],
    ],
)
def test_options_of_the_tool_behind_the_verb_are_told_where_they_belong(tool: Tool, words: list[str]) -> None:
    said = tool(*words)
    assert said.status == 2
    assert "goes before the verb" in said.err


def test_wrong_configuration_is_status_2_with_every_mistake(tool: Tool) -> None:
    words = ["--set", "nothing.here=1", "--set", "coap.listen=7", "device", "list"]
    said = tool(*words)
    assert said.status == 2
    assert len(said.err.splitlines()) == 2
    refused = tool("--json", *words)
    assert refused.status == 2
    assert len(refused.value["errors"]) == 2
    assert refused.value["error"] == refused.value["errors"][0]


def test_registry_url_is_where_the_devices_are(tool: Tool, tmp_path: Path) -> None:
    configuration = tmp_path / "x.toml"
    configuration.write_text(f'[registry]\nurl = "sqlite:///{tmp_path}/other.db"\n')
    assert tool("--config", str(configuration), "device", "add", ONE).status == 0
    assert tool("device", "list").out == ""
    assert ONE in tool("--set", f"registry.url=sqlite:///{tmp_path}/other.db", "device", "list").out


def test_registry_that_cannot_be_opened_is_a_sentence(tool: Tool, tmp_path: Path) -> None:
    url = "registry.url=nosuchdatabase://me:hunter2@host/name"
    said = tool("--set", url, "device", "list")
    assert said.status == 1
    assert "nosuchdatabase" in said.err
    assert "hunter2" not in said.err
    (tmp_path / "data").write_text("a file")
    assert "data directory" in tool("device", "list", "--json").value["error"]


def test_config_check_tells_good_from_wrong(tool: Tool, tmp_path: Path) -> None:
    good, wrong = tmp_path / "good.toml", tmp_path / "wrong.toml"
    good.write_text('[mqtt]\ntopic_prefix = "x/"\n')
    wrong.write_text("[mqtt]\ntopic_prefix = 1\nnothing = 2\n")
    assert tool("config", "check", str(good)) == Said(0, f"{good} is good\n", "")
    assert tool("config", "check", str(good), "--json").value["mqtt"]["topic_prefix"] == "x/"
    said = tool("config", "check", str(wrong))
    assert (said.status, len(said.err.splitlines())) == (2, 2)
    assert f"{wrong}:2" in said.err or "line 2" in said.err
    assert tool("--set", "spool.max_bytes=no", "config", "check", str(good)).status == 2
    assert tool("config", "check", str(tmp_path / "none.toml")).status == 2
    assert not (tmp_path / "data").exists()


def imported(tool: Tool, tmp_path: Path, content: str | bytes) -> Said:
    table = tmp_path / "x.csv"
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    return tool("device", "import", str(table))


def test_import_takes_what_a_spreadsheet_writes(tool: Tool, tmp_path: Path) -> None:
    content = (
        f'\ufeffstatus,name,iccid,ip,imsi\r\nINACTIVE,"a, ""b""",{ONE},10.0.0.1,901405100000001\r\n\r\n,, {TWO} ,,\r\n'
    )
    assert imported(tool, tmp_path, content) == Said(0, "imported 2 devices\n", "")
    with registry_in(tmp_path / "data") as opened:
        first, second = (attrs.evolve(device, created_at=0, updated_at=0) for device in opened.devices.list(9))
    assert first == Device(ONE, "901405100000001", "10.0.0.1", 'a, "b"', DeviceStatus.INACTIVE)
    assert second == Device(TWO)


def test_import_answers_with_the_count(tool: Tool, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(f"iccid\n{ONE}\n")
    assert tool("device", "import", str(tmp_path / "x.csv"), "--json").value == {"imported": 1}
    (tmp_path / "x.csv").write_text("iccid\n")
    assert tool("device", "import", str(tmp_path / "x.csv"), "--json").value == {"imported": 0}


def test_import_tells_every_mistake_with_its_line_and_adds_nothing(tool: Tool, tmp_path: Path) -> None:
    content = f'iccid,ip,name,status\n{ONE},10.0.0.1,,\n12,10.0.0.999,,\n\n{TWO},,"two\nlines",X\n{THREE}\n'
    said = imported(tool, tmp_path, content)
    assert said.status == 1
    assert [line.partition("x.csv, ")[2].partition(": ")[0] for line in said.err.splitlines()] == [
        *("line 3", "line 3", "line 5", "line 5", "line 7")
    ]
    assert "'12': an ICCID" in said.err
    assert tool("device", "list").out == ""


def test_import_tells_what_does_not_fit_the_registry_with_its_line(tool: Tool, tmp_path: Path) -> None:
    tool("device", "add", ONE, "--ip", "10.0.0.1")
    said = imported(tool, tmp_path, f"iccid,ip\n{TWO},10.0.0.2\n\n{ONE},\n{THREE},10.0.0.1\n")
    assert said.status == 1
    place = f"{tmp_path}/x.csv, line"
    assert said.err.splitlines() == [
        f"{place} 4: iccid '{ONE}': this device is registered already",
        f"{place} 5: ip '10.0.0.1': device {ONE} has this address",
    ]
    said = imported(tool, tmp_path, f"iccid,ip\n{TWO},10.0.0.2\n{THREE},10.0.0.2\n{TWO},\n")
    assert said.err.splitlines() == [
        f"{place} 3: ip '10.0.0.2': device {TWO} in an earlier row has this address",
        f"{place} 4: iccid '{TWO}': this device is in an earlier row already",
    ]
    assert len(tool("device", "list").out.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "line 1: a header"),
        ("iccid;ip\n", "line 1: unknown column 'iccid;ip'"),
        ("iccid,mac\n", "line 1: unknown column 'mac'"),
        ("iccid,ip,ip\n", "line 1: column 'ip' is there twice"),
        ("ip\n", "line 1: a header"),
        (f"{ONE},10.0.0.1\n", "line 1: unknown column"),
        (f'iccid\n"{ONE}', "line 2: unexpected end of data"),
        (f"iccid\n{ONE}\n\xff".encode("latin-1"), "line 3: not UTF-8"),
        ("iccid,name\n" + ONE + "," + "x" * 200_000, "line 2: field larger"),
        (f"iccid,name\n{ONE},a\0b", "line 2: name"),
        ("iccid\n8.98828E+18\n", "line 2: iccid '8.98828E+18'"),
    ],
)
def test_import_of_what_is_no_table_of_devices(tool: Tool, tmp_path: Path, content: str | bytes, said: str) -> None:
    refused = imported(tool, tmp_path, content)
    assert refused.status == 1
    assert f"x.csv, {said}" in refused.err
    assert tool("device", "list").out == ""


def test_long_wrong_value_is_not_shown_in_full(tool: Tool) -> None:
    said = tool("device", "add", ONE, "--name", "x" * 10_000)
    assert said.err == f"coapgw: name '{'x' * 99}…: a name has 1 to 64 printable characters\n"


def test_import_of_a_file_that_is_not_there(tool: Tool, tmp_path: Path) -> None:
    said = tool("device", "import", str(tmp_path / "none.csv"))
    assert said == Said(1, "", f"coapgw: {tmp_path}/none.csv: No such file or directory\n")
    assert tool("device", "import", str(tmp_path)).status == 1


def test_thousand_mistakes_are_not_all_printed(tool: Tool, tmp_path: Path) -> None:
    said = imported(tool, tmp_path, "iccid\n" + "x\n" * 1000)
    assert len(said.err.splitlines()) == 51
    assert said.err.endswith("and 950 more mistakes\n")


@given(st.binary(max_size=200) | st.text(alphabet='iccd,ip"\r\n 1.', max_size=80).map(str.encode))
def test_any_bytes_are_devices_or_refused(data: bytes) -> None:
    for content in (data, b"iccid,name,ip\n" + data):
        try:
            rows, mistakes = read_devices(content), ["line 1: none"]
        except CsvInvalid as invalid:
            rows, mistakes = [], list(invalid.mistakes)
        assert all(row.line > 1 for row in rows)
        assert mistakes
        assert all(re.match(r"line [1-9]\d*: .", mistake) for mistake in mistakes)
