"""From JSON to statements: every mistake of a template, each with its place and a sentence."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final

from coapgw.energysaver.errors import Mistake, TemplateInvalid
from coapgw.energysaver.syntax import Case, Constant, Kind, Mapping, Repeat, Selector, Statement, Switch

NESTING_LIMIT: Final = 32  # blocks of statements in one another
PAYLOAD_LIMIT: Final = 1 << 20  # bytes that a selector may reach; no device sends more
ASSET_LIMIT: Final = 256  # characters
LEVELS_LIMIT: Final = 32  # of nested objects in an asset
MISTAKES_LIMIT: Final = 100  # that are reported; the first are enough to begin with

_LENGTHS: Final = {Kind.INT: (1, 2, 4, 8), Kind.UINT: (1, 2, 4, 8), Kind.FLOAT: (4, 8)}
_KINDS: Final = {kind.value: kind for kind in Kind if kind is not Kind.TIME}
_LOCATIONS: Final = {"location_lat": "lat", "location_long": "long"}
_TRUTH: Final = {"true": True, "false": False, 0: False, 1: True}


def check(template: object) -> tuple[Statement, ...]:
    """Return the statements of a template that was read from JSON.

    Raises TemplateInvalid, with all mistakes.
    """
    return conclude(Checking(), template)


def conclude(checking: Checking, template: object) -> tuple[Statement, ...]:
    """Return what *checking* finds in a template.  Raises TemplateInvalid, with all mistakes."""
    statements = checking.template(template)
    if not checking.mistakes:
        checking.mistakes += _collisions(statements)
    if checking.mistakes:
        raise TemplateInvalid(checking.mistakes[:MISTAKES_LIMIT])
    return statements


class Checking:
    """One walk through a template; that of version 2 derives from it."""

    reach: int = PAYLOAD_LIMIT

    def __init__(self) -> None:
        """Begin without a mistake."""
        self.mistakes: list[Mistake] = []

    def wrong(self, path: str, sentence: str) -> None:
        """Note a mistake."""
        if len(self.mistakes) <= MISTAKES_LIMIT:
            self.mistakes.append(Mistake(path, sentence))

    def template(self, template: object) -> tuple[Statement, ...]:
        """Return the statements of a template; mistakes are noted."""
        if not isinstance(template, dict):
            self.wrong("", "a template is a JSON object")
            return ()
        for name in ("name", "comment", "version"):
            self.text(template, name, "")
        if "sense" not in template:
            self.wrong("/sense", "is missing: it holds the list of statements")
            return ()
        return self.block(template["sense"], "/sense", 1)

    def block(self, block: object, path: str, depth: int) -> tuple[Statement, ...]:
        """Return the statements of a list; blocks in it are as good as their statements."""
        if not isinstance(block, list):
            self.wrong(path, f"is {what(block)}, not a list of statements")
            return ()
        if depth > NESTING_LIMIT:
            self.wrong(path, f"blocks are nested more than {NESTING_LIMIT} deep")
            return ()
        statements: list[Statement] = []
        for number, item in enumerate(block):
            statements += self.statement(item, f"{path}/{number}", depth)
        return tuple(statements)

    def statement(self, item: object, path: str, depth: int) -> Sequence[Statement]:
        """Return what a statement comes to."""
        if isinstance(item, list):
            return self.block(item, path, depth + 1)
        if not isinstance(item, dict):
            self.wrong(path, f"is {what(item)}, not a statement")
            return ()
        self.text(item, "comment", path)
        if "asset" in item and "switch" in item:
            self.wrong(path, "has both an asset and a switch: make it two statements")
            return ()
        if "asset" in item:
            return self.mapping(item, path)
        if "switch" in item:
            return self.switch(item, path, depth)
        if item.keys() - {"comment"}:
            self.wrong(path, "has neither an asset nor a switch")
        return ()

    def mapping(self, item: dict[str, Any], path: str) -> Sequence[Mapping]:
        """Return what gives an asset its value, if it is one."""
        asset = self.asset(item["asset"], f"{path}/asset")
        if "value" not in item:
            self.wrong(f"{path}/value", "is missing: a constant text, or what to take out of the payload")
            return ()
        value = item["value"] if isinstance(item["value"], str) else self.selector(item["value"], f"{path}/value")
        location = self.location(item, value, path)
        if asset is None or value is None:
            return ()
        return (Mapping(asset, value, location),)

    def asset(self, asset: object, path: str) -> str | None:
        """Return the name of an asset, if it is one."""
        if not isinstance(asset, str):
            self.wrong(path, f"is {what(asset)}, not a name")
        elif not asset or len(asset) > ASSET_LIMIT:
            self.wrong(path, f"a name has 1 to {ASSET_LIMIT} characters")
        elif not all(asset.split(".")):
            self.wrong(path, "has an empty part: dots stand between the names of nested objects")
        elif asset.count(".") >= LEVELS_LIMIT:
            self.wrong(path, f"nests objects more than {LEVELS_LIMIT} deep")
        else:
            return asset
        return None

    def location(self, item: dict[str, Any], value: Constant | Selector, path: str) -> str:
        """Return which part of a position this is: ``lat``, ``long`` or nothing."""
        if "custom_type" not in item:
            return ""
        place = f"{path}/custom_type"
        location = _LOCATIONS.get(item["custom_type"]) if isinstance(item["custom_type"], str) else None
        if location is None:
            self.wrong(place, 'is neither "location_lat" nor "location_long"')
            return ""
        self.expect_degrees(value, place)
        return location

    def expect_degrees(self, value: Constant | Selector, place: str) -> None:
        """Note a mistake if a value cannot be a longitude or latitude; None was a mistake already."""
        if isinstance(value, str) or (
            isinstance(value, Selector) and (value.kind is not Kind.FLOAT or value.length not in (8, None))
        ):
            self.wrong(place, "needs a float of 8 bytes as its value")

    def selector(self, item: object, path: str) -> Selector | None:
        """Return what selects a value, if it is one."""
        if not isinstance(item, dict):
            self.wrong(path, f"is {what(item)}, not an object that says which bytes, and what they are")
            return None
        before = len(self.mistakes)
        self.text(item, "comment", path)
        kind = self.kind(item, path)
        byte = self.number(item, "byte", path, 0, PAYLOAD_LIMIT)
        endbyte = self.number(item, "endbyte", path, -PAYLOAD_LIMIT, 0)
        length = self.number(item, "bytelength", path, 1, PAYLOAD_LIMIT)
        if "byte" not in item and "endbyte" not in item:
            self.wrong(path, "needs a byte to begin at, or an endbyte to count from the end, or both")
        both = "byte" in item and "endbyte" in item
        if both and "bytelength" in item:
            self.wrong(
                f"{path}/bytelength", "is not allowed beside both byte and endbyte: they say where the range ends"
            )
        order = item.get("byteorder", "big")
        if order not in ("big", "little"):
            self.wrong(f"{path}/byteorder", 'is neither "big" nor "little"')
        if length is None and not both:
            length = 1
        if kind in _LENGTHS and length is not None and length not in _LENGTHS[kind] and not both:
            allowed = ", ".join(map(str, _LENGTHS[kind]))
            place = f"{path}/bytelength"
            self.wrong(place, f"is {length}, and {an(kind.value)} has {allowed} bytes")
        if kind is None or len(self.mistakes) > before:
            return None
        return Selector(kind, byte, endbyte, None if both else length, order == "little")

    def switch(self, item: dict[str, Any], path: str, depth: int) -> Sequence[Switch]:
        """Return a switch, if its selector is one."""
        on = self.selector(item["switch"], f"{path}/switch")
        listed = item.get("on")
        if not isinstance(listed, list):
            sentence = "is missing: it holds the list of cases" if "on" not in item else "is not a list of cases"
            self.wrong(f"{path}/on", sentence)
            return ()
        cases: list[Case] = []
        default: tuple[Statement, ...] | None = None
        for number, case in enumerate(listed):
            place = f"{path}/on/{number}"
            if not isinstance(case, dict):
                self.wrong(place, f"is {what(case)}, not a case")
                continue
            self.text(case, "comment", place)
            if not case.keys() - {"comment"}:
                continue
            do = self.case_block(case, place, depth)
            if "case" in case and "default" in case:
                self.wrong(place, "is both a case and the default")
            elif "case" in case:
                value = self.case_value(case["case"], on, f"{place}/case")
                if value is not None:
                    cases.append(Case(value, do))
            elif "default" not in case:
                self.wrong(place, 'has neither a case nor "default":true')
            elif case["default"] is not True:
                self.wrong(f"{place}/default", "is there, but not true")
            elif default is not None:
                self.wrong(f"{place}/default", "there is a default already")
            else:
                default = do
        return () if on is None else (Switch(on, tuple(cases), default or ()),)

    def case_block(self, case: dict[str, Any], path: str, depth: int) -> tuple[Statement, ...]:
        """Return the statements of a case."""
        if "do" not in case:
            self.wrong(f"{path}/do", "is missing: it holds the list of statements")
            return ()
        return self.block(case["do"], f"{path}/do", depth + 1)

    def case_value(self, value: object, on: Selector | None, path: str) -> int | float | str | bool | None:
        """Return a case's value as the switch's selector gives it; a text that spells a number is that number."""
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            self.wrong(path, f"is {what(value)}; a case is a text or a number")
            return None
        if on is None:
            return None
        if on.kind is Kind.STRING:
            return value if isinstance(value, str) else _number_text(value)
        if on.kind is Kind.HEX:
            return (value if isinstance(value, str) else _number_text(value)).lower()
        if on.kind is Kind.BOOLEAN:
            if value in _TRUTH:
                return _TRUTH[value]
            self.wrong(path, 'can never be: the switch is a boolean, whose cases are 1 or "true", and 0 or "false"')
            return None
        try:
            return _as_float(float(value), on) if on.kind is Kind.FLOAT else _whole(value)
        except ValueError:
            self.wrong(path, f"can never be: the switch is {an(on.kind.value)}")
            return None

    def kind(self, item: dict[str, Any], path: str) -> Kind | None:
        """Return what the bytes are, if that is known."""
        written = item.get("type")
        kind = _KINDS.get(written) if isinstance(written, str) else None
        if kind is None:
            problem = "is missing" if "type" not in item else f"is {what(written)}"
            self.wrong(f"{path}/type", f"{problem}: it is one of {', '.join(_KINDS)}")
        return kind

    def number(self, item: dict[str, Any], name: str, path: str, least: int, most: int) -> int | None:
        """Return a whole number within bounds, None if it is absent or none."""
        if name not in item:
            return None
        value = item[name]
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.wrong(f"{path}/{name}", f"is {what(value)}; it is a whole number from {least} to {most}")
            return None
        return value

    def text(self, item: dict[str, Any], name: str, path: str) -> None:
        """Note a mistake if what should be a text is none."""
        if name in item and not isinstance(item[name], str):
            self.wrong(f"{path}/{name}", f"is {what(item[name])}, not a text")


def _collisions(statements: Sequence[Statement]) -> Iterator[Mistake]:
    """Yield a mistake for each asset that would have to be a value and an object at the same time.

    Of two cases of one switch only one is ever carried out, so their assets cannot meet.
    """
    return _Meeting().walk(statements)


_Path = tuple[str, ...]


class _Meeting:
    """Which assets may have been given before, on the way to a statement: as values, and as objects around them."""

    def __init__(self) -> None:
        self._seen: dict[tuple[_Path, bool], None] = {}  # (path, whether it is a value), in the order they came

    def walk(self, statements: Sequence[Statement]) -> Iterator[Mistake]:
        """Yield the mistakes of a block; its assets count as given from then on."""
        for statement in statements:
            if isinstance(statement, Mapping):
                yield from self._meet(statement.path)
                continue
            if isinstance(statement, Repeat):
                yield from self._meet(statement.path)
                yield from _Meeting().walk(statement.do)  # each element is an object of its own
                continue
            given: dict[tuple[_Path, bool], None] = {}
            for block in (*(case.do for case in statement.cases), statement.default):
                before = len(self._seen)
                yield from self.walk(block)
                while len(self._seen) > before:  # for the next case none of this has happened
                    given[self._seen.popitem()[0]] = None
            self._seen.update(given)

    def _meet(self, path: _Path) -> Iterator[Mistake]:
        for size in range(1, len(path)):
            if (path[:size], True) in self._seen:
                yield _collision(path[:size], path)
            self._seen[path[:size], False] = None
        if (path, False) in self._seen:
            yield _collision(path, (*path, "…"))
        self._seen[path, True] = None


def _collision(value: _Path, inside: _Path) -> Mistake:
    shorter, longer = ".".join(value), ".".join(inside)
    return Mistake("/sense", f"{shorter} is given a value of its own, and {longer} would have to be inside it")


def _whole(value: int | float | str) -> int:
    """Return the whole number that *value* is or spells.  Raises ValueError."""
    number = int(value) if isinstance(value, str) else value
    if isinstance(number, float):
        if not number.is_integer():
            raise ValueError(number)
        return int(number)
    return number


def _as_float(number: float, on: Selector) -> float:
    """Return a number as the floats of a selector have it.  Raises ValueError for one they cannot be."""
    if on.length != 4:
        return number
    try:
        return float(struct.unpack(">f", struct.pack(">f", number))[0])
    except OverflowError:
        raise ValueError(number) from None


def _number_text(value: int | float) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def what(value: object) -> str:
    """Return what a JSON value is, in a word or two."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {str(value)[:20]}"
        case str():
            return f'the text "{value[:20]}{"…" if len(value) > 20 else ""}"'
        case list():
            return "a list"
        case _:
            return "an object"


def an(name: str) -> str:
    """Return a noun with its article."""
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"
