"""A checked template as a tree of statements; ``check.py`` makes it, ``program.py`` compiles it."""

from __future__ import annotations

import enum
from typing import TypeAlias

import attrs

from coapgw.energysaver.calculation import Calculation, Linear


class Kind(enum.Enum):
    """What the bytes of a selector are."""

    INT = "int"
    UINT = "uint"
    FLOAT = "float"
    BOOLEAN = "boolean"
    STRING = "string"
    HEX = "hex"
    TIME = "time"


Constant: TypeAlias = "str | int | float | bool | None"
"""A value that a template gives as it is."""


@attrs.frozen
class Bits:
    """A part of a whole number: *length* bits from *first* on, 0 being the least significant one."""

    first: int
    length: int


@attrs.frozen
class Arithmetic:
    """What is done to a number before it is given to an asset; *linear* if it can be undone."""

    text: str
    calculate: Calculation
    linear: Linear | None


@attrs.frozen
class Selector:
    """Bytes of a payload, and what they are; the second line of fields is for templates of version 2.

    The range is ``[byte, byte + length)``, ``[byte, n + endbyte)`` or ``[n + endbyte, n + endbyte + length)`` for a
    payload of *n* bytes: *length* is None in the second form, *byte* in the third, *endbyte* in the first.

    Args:
        follows: the range begins behind what was read last, and *byte* is 0.
        prefix: bytes at the beginning that say how many more there are; 0 if none do, and *length* is None if any do.
        milliseconds: since the epoch, rather than seconds.
    """

    kind: Kind
    byte: int | None
    endbyte: int | None
    length: int | None
    little: bool

    follows: bool = False
    prefix: int = 0
    bits: Bits | None = None
    arithmetic: Arithmetic | None = None
    milliseconds: bool = False


@attrs.frozen
class Default:
    """What an asset is given when the payload has not the bytes."""

    value: Constant


@attrs.frozen
class Mapping:
    """Give an asset a value: a constant, or what a selector selects; *location* is ``lat``, ``long`` or nothing."""

    asset: str
    value: Constant | Selector
    location: str = ""
    default: Default | None = None

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


@attrs.frozen
class Repeat:
    """Give an asset a list, an element for each group of bytes (version 2).

    Groups begin at *byte*, or behind what was read last if it *follows*, and end at ``n + endbyte`` at the latest.

    Args:
        count: of groups; None is as many as there are.
        stride: bytes of a group; None is as many as were read of it.
        do: makes an object of each group.
        value: or a value; one of both is there.
    """

    asset: str
    byte: int
    follows: bool
    endbyte: int
    count: int | Selector | None
    stride: int | None
    do: tuple[Statement, ...]
    value: Selector | None = None

    @property
    def path(self) -> tuple[str, ...]:
        """The names of the nested objects, the last one that of the list."""
        return tuple(self.asset.split("."))


Statement: TypeAlias = "Mapping | Switch | Repeat"
