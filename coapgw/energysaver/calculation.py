"""The small language of a template's calculations: arithmetic on one value, ``val``.

::

    sum     := product (("+" | "-") product)*
    product := sign (("*" | "/" | "%") sign)*
    sign    := ("-" | "+") sign | power
    power   := atom ["**" whole]          a whole number from 0 to 8
    atom    := "val" | number | "(" sum ")" | function "(" sum ("," sum)* ")"
    function:= "abs" | "ceil" | "floor" | "round" | "min" | "max"

What is written is parsed into a tree and compiled from that: nothing a template says is ever evaluated as Python.
Whole numbers stay exact through ``+``, ``-``, ``*`` and ``%``; the other operations are those of 8-byte floats.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

LENGTH_LIMIT: Final = 200  # characters
NESTING_LIMIT: Final = 32
POWER_LIMIT: Final = 8
DIGITS: Final = 15  # significant ones of a result: what a float always has, and no noise of binary fractions behind

Number: TypeAlias = "int | float"
Calculation: TypeAlias = Callable[[Number], Number]
"""Raises CalculationFailed."""

_TOKEN: Final = re.compile(r"\s*(?:((?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)|([a-z]+)|(\*\*|[-+*/%(),]))")
_ARGUMENTS: Final[Mapping[str, tuple[int, int]]] = {
    "abs": (1, 1),
    "ceil": (1, 1),
    "floor": (1, 1),
    "round": (1, 2),
    "min": (2, 8),
    "max": (2, 8),
}
_SYMBOLS: Final = {"+": "+", "-": "-", "*": "*", "/": "/", "%": "%"}


class CalculationInvalid(ValueError):
    """A text that is no calculation; its message is for who wrote it."""


class CalculationFailed(ValueError):
    """A value that a calculation has no result for."""


class Linear(NamedTuple):
    """A calculation that is ``factor * val + offset``, which can be undone."""

    factor: float
    offset: float


class _Term(NamedTuple):
    """A part of a calculation: Python that was made here, and what it is as a linear function, None if it is none."""

    source: str
    linear: Linear | None


def parse_calculation(text: str) -> tuple[Calculation, Linear | None]:
    """Return what calculates, and what it is if it can be undone.  Raises CalculationInvalid."""
    if len(text) > LENGTH_LIMIT:
        raise CalculationInvalid(f"has {len(text)} characters; {LENGTH_LIMIT} are taken")
    parsing = _Parsing(text)
    term = parsing.sum(1)
    if parsing.token is not None:
        raise CalculationInvalid(f"{parsing.token!r} is not expected {parsing.where()}")
    if "val" not in parsing.seen:
        raise CalculationInvalid("does not use val, the value that was read")
    names = {"floor": _floor, "ceil": _ceil, "round": _round, "power": _power, "abs": abs, "min": min, "max": max}
    scope: dict[str, Any] = {"__builtins__": {}, **names, **parsing.constants}
    calculate: Calculation = eval(compile(f"lambda val: {term.source}", "<calculation>", "eval"), scope)
    return _guarded(calculate), term.linear if term.linear is not None and term.linear.factor else None


def _guarded(calculate: Calculation) -> Calculation:
    """Return a calculation whose results JSON has, without the noise of binary fractions."""

    def guarded(val: Number) -> Number:
        try:
            result = calculate(val)
            if isinstance(result, int):
                return result
            rounded = float(f"{result:.{DIGITS}g}")
        except ZeroDivisionError:
            raise CalculationFailed(f"division by zero, with val = {val}") from None
        except (OverflowError, ValueError):
            raise CalculationFailed(f"no result, with val = {val}") from None
        if not math.isfinite(rounded):
            raise CalculationFailed(f"no finite result, with val = {val}")
        return rounded

    return guarded


def _floor(value: Number) -> int:
    return math.floor(value)


def _ceil(value: Number) -> int:
    return math.ceil(value)


def _round(value: Number, digits: Number = 0) -> Number:
    """Round to the nearest, halves away from zero as people do."""
    places = int(digits)
    if not -DIGITS <= places <= DIGITS:
        raise ValueError(places)
    if isinstance(value, int) and places >= 0:
        return value
    shifted = float(f"{abs(value) * 10.0**places:.{DIGITS}g}")
    rounded = math.copysign(math.floor(shifted + 0.5), value) / 10.0**places
    return int(rounded) if places <= 0 else rounded


def _power(value: Number, exponent: int) -> float:
    return float(value) ** exponent


class _Parsing:
    """A walk through the tokens, with one in view."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = self._split(text)
        self._at = 0
        self.token: str | None = None
        self.constants: dict[str, Number] = {}
        self.seen: set[str] = set()
        self._advance()

    def _split(self, text: str) -> Iterator[tuple[int, str]]:
        at, end = 0, len(text.rstrip())
        while at < end:
            found = _TOKEN.match(text, at)
            if found is None:
                raise CalculationInvalid(f"{text[at:].lstrip()[:10]!r} is no number, operator or function")
            yield found.start(found.lastindex or 0), found.group(found.lastindex or 0)
            at = found.end()

    def _advance(self) -> str | None:
        """Return the token in view, and look at the next."""
        before = self.token
        self._at, self.token = next(self._tokens, (len(self._text), None))
        return before

    def where(self) -> str:
        """Return where we are, for a sentence."""
        return f"at character {self._at + 1}"

    def _expect(self, wanted: str) -> None:
        if self.token != wanted:
            found = "the end" if self.token is None else repr(self.token)
            raise CalculationInvalid(f"{wanted!r} is expected {self.where()}, not {found}")
        self._advance()

    def sum(self, depth: int) -> _Term:
        if depth > NESTING_LIMIT:
            raise CalculationInvalid(f"is nested more than {NESTING_LIMIT} deep")
        term = self._product(depth)
        while self.token in ("+", "-"):
            operator = self._advance()
            term = _added(term, self._product(depth), operator == "-")
        return term

    def _product(self, depth: int) -> _Term:
        term = self._sign(depth)
        while self.token in ("*", "/", "%"):
            operator = self._advance() or ""
            term = _multiplied(term, self._sign(depth), operator)
        return term

    def _sign(self, depth: int) -> _Term:
        negative = False
        while self.token in ("+", "-"):
            negative ^= self._advance() == "-"
        term = self._power(depth)
        if not negative:
            return term
        linear = None if term.linear is None else Linear(-term.linear.factor, -term.linear.offset)
        return _Term(f"(-{term.source})", linear)

    def _power(self, depth: int) -> _Term:
        term = self._atom(depth)
        if self.token != "**":
            return term
        self._advance()
        exponent = self._advance() or ""
        if not exponent.isdigit() or len(exponent) > 2 or int(exponent) > POWER_LIMIT:
            raise CalculationInvalid(f"behind ** stands a whole number from 0 to {POWER_LIMIT}")
        return _Term(f"power({term.source},{int(exponent)})", None)

    def _atom(self, depth: int) -> _Term:
        token = self._advance()
        if token == "(":
            term = self.sum(depth + 1)
            self._expect(")")
            return _Term(f"({term.source})", term.linear)
        if token == "val":
            self.seen.add(token)
            return _Term("val", Linear(1.0, 0.0))
        if token is not None and token in _ARGUMENTS:
            return self._call(token, depth)
        if token is None or not (token[0].isdigit() or token[0] == "."):
            found = "the end" if token is None else repr(token)
            raise CalculationInvalid(f"a number, val, a function or '(' is expected, not {found}")
        number: Number = int(token) if token.isdigit() else float(token)
        if not math.isfinite(number):
            raise CalculationInvalid(f"{token!r} is too large")
        name = f"n{len(self.constants)}"
        self.constants[name] = number
        return _Term(name, Linear(0.0, float(number)))

    def _call(self, function: str, depth: int) -> _Term:
        self._expect("(")
        terms = [self.sum(depth + 1)]
        while self.token == ",":
            self._advance()
            terms.append(self.sum(depth + 1))
        self._expect(")")
        least, most = _ARGUMENTS[function]
        if not least <= len(terms) <= most:
            raise CalculationInvalid(f"{function} takes {least if least == most else f'{least} to {most}'} values")
        linear = terms[0].linear if function == "round" else None  # the nearest that can be had is looked for anyway
        return _Term(f"{function}({_listed(terms)})", linear)


def _listed(terms: Sequence[_Term]) -> str:
    return ",".join(term.source for term in terms)


def _added(one: _Term, other: _Term, is_minus: bool) -> _Term:
    linear = None
    if one.linear is not None and other.linear is not None:
        sign = -1 if is_minus else 1
        linear = Linear(one.linear.factor + sign * other.linear.factor, one.linear.offset + sign * other.linear.offset)
    return _Term(f"({one.source}{'-' if is_minus else '+'}{other.source})", linear)


def _multiplied(one: _Term, other: _Term, operator: str) -> _Term:
    source = f"({one.source}{_SYMBOLS[operator]}{other.source})"
    if one.linear is None or other.linear is None or operator == "%":
        return _Term(source, None)
    if other.linear.factor == 0:
        by = other.linear.offset
        if operator == "/":
            return _Term(source, Linear(one.linear.factor / by, one.linear.offset / by) if by else None)
        return _Term(source, Linear(one.linear.factor * by, one.linear.offset * by))
    if one.linear.factor == 0 and operator == "*":
        by = one.linear.offset
        return _Term(source, Linear(other.linear.factor * by, other.linear.offset * by))
    return _Term(source, None)
