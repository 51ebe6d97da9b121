"""What the command line tool says, to a person or, with ``--json``, to a program.

With ``--json`` standard output gets exactly one JSON value, whatever happens: the result, or ``{"error": sentence}``,
with all sentences in ``"errors"`` if there are several.  Without it, results go to standard output and what went wrong
to standard error, one sentence a line.  A mistake in the command line itself is always told by argparse.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import attrs

SHOWN_ERRORS: Final = 50  # of a thousand mistakes in a file the first few tell the story

Json = dict[str, object]


@attrs.frozen
class Output:
    """Where a verb says what it did; *json* as the operator asked for it."""

    json: bool

    def result(self, lines: Iterable[str], value: Mapping[str, object]) -> None:
        """Say *lines* to a person, or *value* to a program."""
        if self.json:
            print(json.dumps(value))
            return
        for line in lines:
            print(line)

    def errors(self, sentences: Sequence[str]) -> None:
        """Say what went wrong; one sentence at least."""
        shown = list(sentences[:SHOWN_ERRORS])
        if len(sentences) > len(shown):
            shown.append(f"and {len(sentences) - len(shown)} more mistakes")
        if self.json:
            several: Json = {"errors": shown} if len(shown) > 1 else {}
            print(json.dumps({"error": shown[0]} | several))
            return
        for sentence in shown:
            print(f"coapgw: {sentence}" if len(shown) == 1 else sentence, file=sys.stderr)


def read_stdin() -> bytes:
    """Return all of standard input.  Raises OSError."""
    with open(0, "rb", closefd=False) as stdin:  # sys.stdin is None if there is none, which is an OSError here
        return stdin.read()
