"""``coapgw spool status`` and ``coapgw spool dead …``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coapgw.cli.main import main
from coapgw.model import Spooled
from coapgw.storage.dead_letters import DeadLetter
from coapgw.storage.spool_file import SpoolFile


def test_an_empty_spool_is_told_from_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = "0 messages, 0 of 1073741824 bytes\n"
    assert main(["--data", str(tmp_path), "spool", "status"]) == 0
    assert capsys.readouterr().out == f"{empty}there is no spool in {tmp_path}: no gateway has run there\n"
    SpoolFile(tmp_path / "spool.db").close(1)
    assert main(["--data", str(tmp_path), "spool", "status"]) == 0
    assert capsys.readouterr().out == empty


def test_no_dead_letters_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path), "spool", "dead", "list"]) == 0
    assert capsys.readouterr().out == "no dead letters\n"
    assert main(["--data", str(tmp_path), "spool", "dead", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"deadLetters": []}


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
        "deadMessages": 0,
        "deadBytes": 0,
    }
    file.close(1)


def test_a_file_that_is_no_spool_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "spool.db").write_bytes(b"nothing of the sort" * 100)
    assert main(["--data", str(tmp_path), "spool", "status"]) == 1
    assert "spool.db cannot be read" in capsys.readouterr().err


def _dead(data: Path, *places: int) -> None:
    """Leave a spool with these dead letters and one message behind them."""
    file = SpoolFile(data / "spool.db")
    letters = [DeadLetter(place, 1, "1" * 19, f"id{place}", b"t", b"xy", "not authorised", 2) for place in places]
    file.commit([letter.message for letter in letters], [], [])
    file.commit([], [], [(place, place) for place in places], letters)
    last = max(places) + 1
    file.commit([Spooled(last, 1, "1" * 19, "last", b"t", b"z")], [], [])
    file.close(last)


def _waiting(data: Path) -> list[Spooled]:
    file = SpoolFile(data / "spool.db")
    try:
        return file.read(0, 100)
    finally:
        file.close(file.reserved)


def _said(data: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    assert main(["--data", str(data), "spool", *words, "--json"]) == 0
    said: dict[str, object] = json.loads(capsys.readouterr().out)
    return said


def test_dead_letters_are_counted_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _said(tmp_path, capsys, "dead", "list") == {"deadLetters": []}
    _dead(tmp_path, 1, 2, 3)
    held = _said(tmp_path, capsys, "status")
    assert (held["messages"], held["deadMessages"], held["deadBytes"]) == (1, 3, 3 * 131)
    assert _said(tmp_path, capsys, "dead", "list", "--after", "2") == {
        "deadLetters": [
            {
                "place": 3,
                "id": "id3",
                "iccid": "1" * 19,
                "topic": "t",
                "bytes": 2,
                "received": "1970-01-01T00:00:00.001Z",
                "setAside": "1970-01-01T00:00:00.002Z",
                "reason": "not authorised",
            }
        ]
    }
    assert main(["--data", str(tmp_path), "spool", "dead", "list", "--limit", "1"]) == 0
    assert capsys.readouterr().out.endswith("2 bytes, received 1970-01-01T00:00:00.001Z: not authorised\n")


def test_without_a_gateway_they_are_requeued_and_dropped_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _dead(tmp_path, 1, 2, 3)
    assert _said(tmp_path, capsys, "dead", "drop", "2") == {"messages": 1, "done": True}
    assert _said(tmp_path, capsys, "dead", "requeue", "--all") == {"messages": 2, "done": True}
    assert [message.message_id for message in _waiting(tmp_path)] == ["last", "id1", "id3"]
    held = _said(tmp_path, capsys, "status")
    assert (held["messages"], held["bytes"], held["deadMessages"], held["deadBytes"]) == (3, 392, 0, 0)


def test_one_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert main(["--data", str(tmp_path), "spool", "dead", "drop", "7"]) == 1
    _dead(tmp_path, 1)
    assert main(["--data", str(tmp_path), "spool", "dead", "requeue", "7"]) == 1
    assert main(["--data", str(tmp_path), "spool", "dead", "drop"]) == 2
