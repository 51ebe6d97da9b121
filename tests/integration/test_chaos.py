"""A short form of ``make chaos``; tests/chaos/run.py says what happens."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.run import run

SECONDS = 12


@pytest.mark.parametrize(
    ("mode", "acknowledge"), [("embedded", "stored"), ("bridge", "stored"), ("bridge", "published")]
)
def test_nothing_that_got_a_2_04_is_lost(tmp_path: Path, mode: str, acknowledge: str) -> None:
    outcome = run(tmp_path, mode, SECONDS, seed=4, acknowledge=acknowledge)
    told = "\n".join(outcome.lines())
    print(told)
    assert outcome.acknowledged > 1000, told
    assert (outcome.missing, outcome.out_of_order, outcome.tracebacks) == (0, 0, 0), told
