"""``coapgw spool status``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coapgw.cli.main import main
from coapgw.model import Spooled
from coapgw.storage.spool_file import SpoolFile


def test_an_empty_spool_and_none_are_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path), "spool", "status"]) == 0
    assert capsys.readouterr().out == "0 messages, 0 of 1073741824 bytes\n"


def test_what_waits_is_told_beside_the_gateway_that_has_it_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = SpoolFile(tmp_path / "spool.db")
    file.commit([Spooled(1, 1670598749915, "8988280666000000017", "id", b"topic", b"12345")], [], [])
    assert main(["--data", str(tmp_path), "spool", "status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "messages": 1,
        "bytes": 138,
        "maxBytes": 1073741824,
        "oldestReceived": "2022-12-09T15:12:29.915Z",
    }
    file.close(1)


def test_a_file_that_is_no_spool_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "spool.db").write_bytes(b"nothing of the sort" * 100)
    assert main(["--data", str(tmp_path), "spool", "status"]) == 1
    assert "spool.db cannot be read" in capsys.readouterr().err
