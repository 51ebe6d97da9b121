"""The text side of the configuration: reading a TOML file and ``--set`` words, and finding the line of a key.

``tomllib`` does all the parsing and keeps no line numbers.  They are found afterwards, only when there is a mistake to
report: a TOML statement ends at the first line with which it parses, and parsed alone it tells which keys it brings.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TypeAlias

import attrs

from coapgw.config_values import shown_text

FILE_LIMIT = 1 << 20  # bytes; a file beyond that is no configuration (and /dev/zero has no end)
EFFORT_LIMIT = 6_000_000  # characters parsed to find lines, one to two seconds; keys beyond are named without a line
DEPTH_LIMIT = 8  # levels of keys that are given lines; the deepest key of ours has 5

KeyPath: TypeAlias = tuple[str | int, ...]
"""Names from the root of the document; an int is an index in a list or array of tables."""

_BARE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PLACE = re.compile(r"\s*\(at line (\d+), column (\d+)\)$")


class Unreadable(Exception):
    """A file or text that is no TOML; the sentence says where and why."""


def dotted(path: KeyPath) -> str:
    """Return a key path as people write it: ``mqtt.embedded.users[0].name``."""
    name = ""
    for part in path:
        if isinstance(part, int):
            name += f"[{part}]"
        else:
            name += ("." if name else "") + (part if _BARE.fullmatch(part) else shown_text(part))
    return name


def read_text(path: Path) -> str:
    """Return the text of the file; raises Unreadable."""
    try:
        with path.open("rb") as stream:
            content = stream.read(FILE_LIMIT + 1)
    except OSError as error:
        raise Unreadable(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise Unreadable(f"{shown_text(str(path))}: not the name of a file") from None
    if len(content) > FILE_LIMIT:
        raise Unreadable(f"{path}: too large, a configuration has at most {FILE_LIMIT} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise Unreadable(f"{path}:{line}: not UTF-8: byte 0x{error.object[error.start]:02x}") from None


def parsed(text: str, name: str) -> dict[str, object]:
    """Return the document in *text*; raises Unreadable, which calls it *name*."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        place = _PLACE.search(message)
        if place is None:  # "(at end of document)"
            raise Unreadable(f"{name}:{text.rstrip().count(chr(10)) + 1}: {message}") from None
        raise Unreadable(f"{name}:{place[1]}: {message[: place.start()]}, column {place[2]}") from None
    except RecursionError:
        raise Unreadable(f"{name}: nested too deeply") from None
    except ValueError:  # int() refuses to read thousands of digits, and tomllib passes that on
        raise Unreadable(f"{name}: a number has too many digits") from None


@attrs.frozen
class Override:
    """One ``--set`` word: the *path* of a key and its *value*; *label* names it in sentences, without the value."""

    label: str
    path: KeyPath
    value: object = attrs.field(repr=False)  # may hold a password


def parsed_override(word: str) -> Override:
    """Part ``SECTION.KEY=VALUE``; VALUE is a TOML value, and a word that is none is text.  Raises Unreadable.

    The label shows no more of the word than its key: the rest may hold a password.
    """
    key, equals, value = word.partition("=")
    key = key.strip()
    shown_key = re.match(r"[\w.-]{0,80}", key, re.ASCII)
    label = f"--set {shown_key[0] if shown_key else ''}{'=' if equals else ''}…"
    if not equals:
        raise Unreadable(f"{label}: expected SECTION.KEY=VALUE")
    return Override(label, tuple(key.split(".")), _override_value(value))


def _override_value(text: str) -> object:
    try:
        document = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    # A line break in the text could begin another statement: then the text is no TOML value.
    return document["value"] if len(document) == 1 else text


def key_lines(text: str) -> dict[KeyPath, int]:
    """Return the line, from 1, on which the statement begins that first brings each key of a valid document.

    Tables that are only named on the way to a key are keys too.  Past EFFORT_LIMIT, which only a list of a thousand
    lines in one statement reaches, the keys that follow are missing.
    """
    index = _KeyIndex()
    lines = text.replace("\r\n", "\n").split("\n")  # TOML knows no other line ends
    begin, effort = 0, 0
    for end, line in enumerate(lines, start=1):
        # A comma outside of a comment ends no statement: spares parsing a long list again with each of its lines.
        if line.rstrip().endswith(",") and "#" not in line:
            continue
        statement = "\n".join(lines[begin:end])
        effort += len(statement)
        if effort > EFFORT_LIMIT:
            break
        try:
            document = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue
        if statement.lstrip().startswith("["):
            index.enter_table(document, begin + 1)
        else:
            index.add_keys(document, begin + 1)
        begin = end
    return index.lines


@attrs.define
class _KeyIndex:
    """The lines found so far, and the table the next statement belongs to."""

    lines: dict[KeyPath, int] = attrs.field(factory=dict)
    table: KeyPath = ()
    elements: dict[KeyPath, int] = attrs.field(factory=dict)  # arrays of tables, how many elements so far

    def enter_table(self, document: dict[str, object], line: int) -> None:
        """Go on in the table that ``[a.b]`` or ``[[a.b]]`` names; *document* is that statement, parsed."""
        self.table = ()
        table: object = document
        while isinstance(table, dict) and table and len(self.table) < 2 * DEPTH_LIMIT:
            name, table = next(iter(table.items()))
            self._descend(name)
            if isinstance(table, list):
                self.elements[self.table] = self.elements.get(self.table, 0) + 1
            self.lines.setdefault(self.table, line)
            if self.table in self.elements:  # the last element so far is the one that is meant
                self._descend(self.elements[self.table] - 1)
                self.lines.setdefault(self.table, line)

    def _descend(self, part: str | int) -> None:
        self.table = (*self.table, part)

    def add_keys(self, document: dict[str, object], line: int) -> None:
        """Take the keys of a ``key = value`` statement; *document* is that statement, parsed."""
        waiting: list[tuple[KeyPath, object]] = [(self.table, document)]
        while waiting:
            path, value = waiting.pop()
            if path:
                self.lines.setdefault(path, line)
            if len(path) - len(self.table) >= DEPTH_LIMIT:
                continue
            if isinstance(value, dict):
                waiting.extend(((*path, name), inner) for name, inner in value.items())
            elif isinstance(value, list):
                waiting.extend(((*path, at), inner) for at, inner in enumerate(value))
