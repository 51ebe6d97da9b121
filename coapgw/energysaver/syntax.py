"""A checked template as a tree of statements; ``check.py`` makes it, ``program.py`` compiles it."""

from __future__ import annotations

import enum
from typing import TypeAlias

import attrs


class Kind(enum.Enum):
    """What the bytes of a selector are."""

    INT = "int"
    UINT = "uint"
    FLOAT = "float"
    BOOLEAN = "boolean"
    STRING = "string"
    HEX = "hex"


@attrs.frozen
class Selector:
    """Bytes of a payload, and what they are.

    The range is ``[byte, byte + length)``, ``[byte, n + endbyte)`` or ``[n + endbyte, n + endbyte + length)`` for a
    payload of *n* bytes: *length* is None in the second form, *byte* in the third, *endbyte* in the first.
    """

    kind: Kind
    byte: int | None
    endbyte: int | None
    length: int | None
    little: bool


@attrs.frozen
class Mapping:
    """Give an asset a value: a constant, or what a selector selects; *location* is ``lat``, ``long`` or nothing."""

    asset: str
    value: str | Selector
    location: str = ""

    @property
    def path(self) -> tuple[str, ...]:
        """The names of the nested objects, the last one that of the value."""
        return tuple(self.asset.split("."))


@attrs.frozen
class Case:
    """What to do for one value of a switch; *value* is as a selector of the switch's kind gives it."""

    value: int | float | str | bool
    do: tuple[Statement, ...]


@attrs.frozen
class Switch:
    """Do what the first case that equals says, otherwise *default*."""

    on: Selector
    cases: tuple[Case, ...]
    default: tuple[Statement, ...]


Statement: TypeAlias = "Mapping | Switch"
