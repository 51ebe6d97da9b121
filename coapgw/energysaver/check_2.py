"""From JSON to statements, version 2: what version 1 has, and more; what is not known is a mistake."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from coapgw.energysaver.calculation import CalculationInvalid, parse_calculation
from coapgw.energysaver.check import Checking, an, conclude, what
from coapgw.energysaver.syntax import (
    Arithmetic,
    Bits,
    Constant,
    Default,
    Kind,
    Mapping,
    Repeat,
    Selector,
    Statement,
    Switch,
)

GROUPS_LIMIT: Final = 5_000  # that a template may ask for in one repeat
REPEATS_LIMIT: Final = 8  # in one another: Python nests no more than 20 loops
NEXT: Final = "next"  # as a byte: behind what was read last

_LENGTHS: Final = {
    Kind.INT: range(1, 9),
    Kind.UINT: range(1, 9),
    Kind.FLOAT: (2, 4, 8),
    Kind.TIME: range(4, 9),
}
_KINDS: Final = {kind.value: kind for kind in Kind}
_NUMBERS: Final = (Kind.INT, Kind.UINT, Kind.FLOAT)
_BITS: Final = (Kind.INT, Kind.UINT, Kind.BOOLEAN)
_TEMPLATE: Final = ("name", "comment", "version", "sense")
_MAPPING: Final = ("asset", "value", "custom_type", "default", "comment")
_SWITCH: Final = ("switch", "on", "comment")
_CASE: Final = ("case", "default", "do", "comment")
_REPEAT: Final = ("asset", "repeat", "do", "value", "comment")
_GROUPS: Final = ("byte", "endbyte", "count", "bytelength", "comment")
_SELECTOR: Final = (
    *("byte", "endbyte", "bytelength", "byteorder", "type", "comment"),
    *("signed", "bit", "bitlength", "calculation", "lengthbytes", "unit"),
)


def check_2(template: object) -> tuple[Statement, ...]:
    """Return the statements of a template of version 2 that was read from JSON.

    Raises TemplateInvalid, with all mistakes.
    """
    return conclude(_Checking2(), template)


class _Checking2(Checking):
    """One walk through a template of version 2."""

    def __init__(self) -> None:
        super().__init__()
        self._repeats = 0  # that we are inside of

    def template(self, template: object) -> tuple[Statement, ...]:
        self._expect_known(template, _TEMPLATE, "")
        return super().template(template)

    def statement(self, item: object, path: str, depth: int) -> Sequence[Statement]:
        if isinstance(item, dict):
            if "repeat" in item:
                self.text(item, "comment", path)
                self._expect_known(item, _REPEAT, path)
                return self._repeat(item, path, depth)
            self._expect_known(item, _SWITCH if "switch" in item else _MAPPING, path)
        return super().statement(item, path, depth)

    def _expect_known(self, item: object, known: Sequence[str], path: str) -> None:
        for name in item if isinstance(item, dict) else ():
            if name not in known:
                self.wrong(f"{path}/{name[:64]}", f"is not known here; there are {', '.join(known)}")

    # ------------------------------------------------------------------ mappings

    def mapping(self, item: dict[str, Any], path: str) -> Sequence[Mapping]:
        default: Default | None = None
        if "default" in item:
            self._expect_constant(item["default"], f"{path}/default")
            default = Default(item["default"])
        if isinstance(item.get("value", ""), (dict, str)):
            mappings = super().mapping(item, path)
        else:
            asset = self.asset(item["asset"], f"{path}/asset")
            self._expect_constant(item["value"], f"{path}/value")
            location = self.location(item, item["value"], path)
            mappings = () if asset is None else (Mapping(asset, item["value"], location),)
        if default is not None and any(not isinstance(one.value, Selector) for one in mappings):
            self.wrong(f"{path}/default", "is for values that are read, and this one is there always")
        return [Mapping(one.asset, one.value, one.location, default) for one in mappings]

    def _expect_constant(self, value: object, path: str) -> None:
        if isinstance(value, (dict, list)):
            self.wrong(path, f"is {what(value)}; a constant is a text, a number, true, false or null")

    def expect_degrees(self, value: Constant | Selector, place: str) -> None:
        if self._repeats:
            self.wrong(place, "cannot be in a repeat: a device is in one place")
        if isinstance(value, Selector):
            is_number = value.kind in _NUMBERS
        else:
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number:
            self.wrong(place, "needs a number as its value")

    # ------------------------------------------------------------------ selectors

    def selector(self, item: object, path: str) -> Selector | None:
        if not isinstance(item, dict):
            return super().selector(item, path)
        before = len(self.mistakes)
        self._expect_known(item, _SELECTOR, path)
        self.text(item, "comment", path)
        kind = self.kind(item, path)
        byte, endbyte, length = self._range(item, kind, path)
        if kind is None:
            return None
        prefix = self.number(item, "lengthbytes", path, 1, 4) or 0
        if prefix and kind not in (Kind.STRING, Kind.HEX):
            self.wrong(f"{path}/lengthbytes", "is for strings and hex: it says how many bytes say how long they are")
        if prefix and ("bytelength" in item or "endbyte" in item):
            self.wrong(f"{path}/lengthbytes", "says how long it is: neither bytelength nor endbyte may")
        order = item.get("byteorder", "big")
        if order not in ("big", "little"):
            self.wrong(f"{path}/byteorder", 'is neither "big" nor "little"')
        kind = self._signed(item, kind, path)
        selector = Selector(
            *(kind, byte, endbyte, None if prefix else length, order == "little"),
            follows=item.get("byte") == NEXT,
            prefix=prefix,
            bits=self._bits(item, kind, length, path),
            arithmetic=self._arithmetic(item, kind, path),
            milliseconds=self._milliseconds(item, kind, path),
        )
        return selector if len(self.mistakes) == before else None

    def kind(self, item: dict[str, Any], path: str) -> Kind | None:
        return _KINDS["time"] if item.get("type") == "time" else super().kind(item, path)

    def _range(self, item: dict[str, Any], kind: Kind | None, path: str) -> tuple[int | None, int | None, int | None]:
        byte = self._byte(item, path)
        endbyte = self.number(item, "endbyte", path, -self.reach, 0)
        length = self.number(item, "bytelength", path, 1, self.reach)
        if "byte" not in item and "endbyte" not in item:
            self.wrong(path, f'needs a byte to begin at (or "{NEXT}"), or an endbyte to count from the end, or both')
        both = "byte" in item and "endbyte" in item
        if both and "bytelength" in item:
            sentence = "is not allowed beside both byte and endbyte: they say where the range ends"
            self.wrong(f"{path}/bytelength", sentence)
        if both and kind in _LENGTHS:
            self.wrong(f"{path}/endbyte", f"is not allowed beside byte: {an(kind.value)} has a number of bytes")
        if length is None and not both:
            length = 4 if kind in (Kind.FLOAT, Kind.TIME) else 1
        allowed = _LENGTHS.get(kind) if kind is not None else None
        if allowed is not None and length is not None and length not in allowed and not both:
            self.wrong(
                f"{path}/bytelength",
                f"is {length}, and {an(kind.value if kind else '')} has {', '.join(map(str, allowed))} bytes",
            )
        return byte, endbyte, None if both else length

    def _byte(self, item: dict[str, Any], path: str) -> int | None:
        return 0 if item.get("byte") == NEXT else self.number(item, "byte", path, 0, self.reach)

    def _signed(self, item: dict[str, Any], kind: Kind, path: str) -> Kind:
        if "signed" not in item:
            return kind
        signed = item["signed"]
        if not isinstance(signed, bool):
            self.wrong(f"{path}/signed", f"is {what(signed)}, neither true nor false")
        elif kind is Kind.INT:
            return Kind.INT if signed else Kind.UINT
        elif kind is not Kind.UINT or signed:
            self.wrong(f"{path}/signed", f"is for int, and this is {an(kind.value)}")
        return kind

    def _bits(self, item: dict[str, Any], kind: Kind, length: int | None, path: str) -> Bits | None:
        if "bit" not in item:
            if "bitlength" in item:
                self.wrong(f"{path}/bitlength", "needs a bit to begin at")
            return None
        if kind not in _BITS or length is None or length > 8:
            self.wrong(f"{path}/bit", "is for int, uint and boolean, out of 1 to 8 bytes")
            return None
        first = self.number(item, "bit", path, 0, 8 * length - 1)
        if first is None:
            return None
        size = self.number(item, "bitlength", path, 1, 8 * length - first) if "bitlength" in item else 1
        return None if size is None else Bits(first, size)

    def _arithmetic(self, item: dict[str, Any], kind: Kind, path: str) -> Arithmetic | None:
        if "calculation" not in item:
            return None
        place, text = f"{path}/calculation", item["calculation"]
        if kind not in (*_NUMBERS, Kind.TIME):
            self.wrong(place, f"is for numbers, and this is {an(kind.value)}")
        elif not isinstance(text, str):
            self.wrong(place, f'is {what(text)}, not a text such as "val / 10"')
        else:
            try:
                return Arithmetic(text, *parse_calculation(text))
            except CalculationInvalid as invalid:
                self.wrong(place, str(invalid))
        return None

    def _milliseconds(self, item: dict[str, Any], kind: Kind, path: str) -> bool:
        if "unit" in item:
            if kind is not Kind.TIME:
                self.wrong(f"{path}/unit", "is for times")
            elif item["unit"] not in ("s", "ms"):
                self.wrong(f"{path}/unit", 'is neither "s" nor "ms"')
        return item.get("unit") == "ms"

    # ------------------------------------------------------------------ switches

    def switch(self, item: dict[str, Any], path: str, depth: int) -> Sequence[Switch]:
        for number, case in enumerate(item["on"] if isinstance(item.get("on"), list) else ()):
            self._expect_known(case, _CASE, f"{path}/on/{number}")
        switches = super().switch(item, path, depth)
        if switches and switches[0].on.kind is Kind.TIME:
            self.wrong(f"{path}/switch/type", "a switch cannot be of a time: take a uint")
        return switches

    def case_value(self, value: object, on: Selector | None, path: str) -> int | float | str | bool | None:
        if isinstance(value, bool) and on is not None and on.kind is Kind.BOOLEAN:
            return value
        if isinstance(value, (int, float)) and on is not None and (on.arithmetic or on.kind is Kind.FLOAT):
            return value  # compared with the decimal that is shown
        return super().case_value(value, on, path)

    # ------------------------------------------------------------------ repeats

    def _repeat(self, item: dict[str, Any], path: str, depth: int) -> Sequence[Repeat]:
        before = len(self.mistakes)
        if "asset" not in item:
            self.wrong(f"{path}/asset", "is missing: the name of the list")
        asset = self.asset(item.get("asset", "?"), f"{path}/asset")
        groups = item["repeat"]
        place = f"{path}/repeat"
        if not isinstance(groups, dict):
            self.wrong(place, f"is {what(groups)}, not an object that says where the groups are")
            return ()
        self._expect_known(groups, _GROUPS, place)
        self.text(groups, "comment", place)
        byte = self._byte(groups, place)
        endbyte = self.number(groups, "endbyte", place, -self.reach, 0)
        stride = self.number(groups, "bytelength", place, 1, self.reach)
        count = self._count(groups, place)
        do, value = self._element(item, path, depth)
        if asset is None or len(self.mistakes) > before:
            return ()
        follows = groups.get("byte", NEXT) == NEXT
        return (Repeat(asset, byte or 0, follows, endbyte or 0, count, stride, do, value),)

    def _count(self, groups: dict[str, Any], place: str) -> int | Selector | None:
        if not isinstance(groups.get("count"), dict):
            return self.number(groups, "count", place, 0, GROUPS_LIMIT)
        count = self.selector(groups["count"], f"{place}/count")
        if count is not None and (count.kind is not Kind.UINT or count.arithmetic is not None):
            self.wrong(f"{place}/count", "is a uint, without a calculation")
        return count

    def _element(self, item: dict[str, Any], path: str, depth: int) -> tuple[tuple[Statement, ...], Selector | None]:
        """Return what a repeat makes of a group."""
        if ("do" in item) == ("value" in item):
            self.wrong(path, "needs a do, which makes an object of each group, or else a value")
            return (), None
        if self._repeats >= REPEATS_LIMIT:
            self.wrong(path, f"repeats are nested more than {REPEATS_LIMIT} deep")
            return (), None
        self._repeats += 1
        try:
            if "do" in item:
                return self.block(item["do"], f"{path}/do", depth + 1), None
            return (), self.selector(item["value"], f"{path}/value")
        finally:
            self._repeats -= 1
