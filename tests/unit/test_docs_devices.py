"""What ``docs/devices.md`` shows is what the tool does."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from coapgw.cli.main import main

PAGE = (Path(__file__).parents[2] / "docs" / "devices.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(console|csv)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TIME = re.compile(r"\d{4}-\d\d-\d\dT[0-9:.]{12}Z")


def test_examples_do_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    table, calls = "", 0
    for kind, text in BLOCK.findall(PAGE):
        if kind == "csv":
            table = text
            continue
        for example in text.split("$ coapgw ")[1:]:
            line, _, expected = example.partition("\n")
            words = shlex.split(line)
            if words[-1].endswith(".csv"):
                Path(words[-1]).write_text(table, encoding="utf-8")
            main(words)
            said = capsys.readouterr()
            assert TIME.sub("TIME", said.out + said.err) == TIME.sub("TIME", expected), line
            calls += 1
    assert calls == 15
