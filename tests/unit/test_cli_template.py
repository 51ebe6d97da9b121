"""``coapgw template``, in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.test_cli_device import Said, Tool, tool  # noqa: F401 - tool is a fixture

TEXT = '{"name":"meter","sense":[{"asset":"t","value":{"byte":0,"bytelength":2,"type":"int"}}]}'


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "room.json").write_text(TEXT)
    return str(tmp_path / "room.json")


def test_check_tells_a_template_from_none(tool: Tool, file: str, tmp_path: Path) -> None:  # noqa: F811
    assert tool("template", "check", file) == Said(0, f"{file}: a template\n", "")
    assert tool("template", "check", file, "--json").value == {"valid": True, "name": "meter", "version": "1"}
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"sense":[{"asset":"a","value":{"type":"int"}},{"asset":5}]}')
    said = tool("template", "check", str(wrong))
    assert (said.status, said.out) == (1, "")
    assert len(said.err.splitlines()) >= 2
    assert "/sense/0/value: " in said.err
    told = tool("template", "check", str(wrong), "--json").value
    assert not told["valid"]
    assert told["mistakes"][0]["path"] == "/sense/0/value"
    assert not list(tmp_path.glob("*/registry.db"))  # needs no data directory


def test_payload_is_translated(tool: Tool, file: str) -> None:  # noqa: F811
    for written in ("001a", "00 1A", "00:1a"):
        assert tool("template", "test", file, written) == Said(0, '{"t":26}\n', "")
    assert tool("template", "test", file, "001a", "--json").value == {
        "translatedPayload": '{"t":26}',
        "reducedBytes": 6,
        "energyUsageReduction": 0.08,
    }
    said = tool("template", "test", file, "00")
    assert said == Said(1, "", "coapgw: Asset path:t, Error: can't extract [0:2] from 1 bytes\n")
    assert tool("template", "test", file, "0").status == 1
    assert tool("template", "test", file, "zz").status == 1
    assert tool("template", "test", f"{file}.none", "00").err.endswith("room.json.none: No such file or directory\n")


def test_template_is_activated_listed_shown_and_forgotten(tool: Tool, file: str) -> None:  # noqa: F811
    said = tool("template", "activate", file)
    assert said.status == 0
    assert said.out.startswith("meter is active (")
    first = said.out.split("(")[1].split(")")[0]
    assert tool("template", "activate", file, "--name", "other").status == 0
    assert [line.split()[1::2] for line in tool("template", "list").out.splitlines()] == [
        ["INACTIVE", "meter"],
        ["ACTIVE", "other"],
    ]
    assert tool("template", "show", first).out == TEXT + "\n"
    assert tool("template", "deactivate") == Said(0, "other is not active any more\n", "")
    assert tool("template", "deactivate", "--json").value == {"deactivated": None}
    assert tool("template", "remove", first).status == 0
    assert tool("template", "remove", first) == Said(1, "", f"coapgw: no template {first!r}\n")
    assert [one["name"] for one in tool("template", "list", "--json").value["items"]] == ["other"]


def test_what_is_no_template_cannot_be_activated(tool: Tool, file: str) -> None:  # noqa: F811
    Path(file).write_text(TEXT.replace("byte", "bite"))
    said = tool("template", "activate", file)
    assert said.status == 1
    assert "/sense/0/value" in said.err
    assert json.loads(tool("template", "list", "--json").out) == {"items": []}
    Path(file).write_bytes(b"\xff\xfe")
    assert tool("template", "activate", file).status == 1


def test_name_is_the_files_if_the_template_has_none(tool: Tool, file: str) -> None:  # noqa: F811
    Path(file).write_text(TEXT.replace('"name":"meter",', ""))
    assert tool("template", "activate", file).out.startswith("room is active")
    Path(file).write_text(TEXT.replace("meter", "\\n" + "x" * 100))
    assert tool("template", "activate", file).out.startswith("x" * 64 + " is active")


def test_values_are_written_as_a_payload(tool: Tool, file: str) -> None:  # noqa: F811
    assert tool("template", "encode", file, '{"t":26}') == Said(0, "001a\n", "")
    assert tool("template", "encode", file, '{"t":26}', "--json").value == {"payload": "001a", "bytes": 2}
    for values, sentence in (
        ('{"t":99999}', "t: is 99999 in the payload, which holds -32768 to 32767"),
        ("{}", "t: is missing"),
        ("[]", "JSON: values are an object"),
    ):
        assert tool("template", "encode", file, values) == Said(1, "", f"coapgw: {sentence}\n")
    assert tool("template", "encode", file, "{").status == 1


def test_schema_is_printed(tool: Tool) -> None:  # noqa: F811
    assert json.loads(tool("template", "schema").out)["title"] == "Energy Saver template"
