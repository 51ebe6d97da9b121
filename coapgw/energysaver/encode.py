"""The way back: from values to the payload that a template would turn into them.

A template says how to read; here it is followed to write.  What is written is a set of bits at places, some counted
from the beginning and some from the end: the length is not known before everything is placed.  Where a switch leaves
several ways, they are tried, those that speak of most values first; and what came out is read again by the template: a
payload is returned only if it becomes exactly the values.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, TypeAlias

import attrs

from coapgw.energysaver.calculation import CalculationFailed, Number
from coapgw.energysaver.syntax import Bits, Case, Kind, Repeat, Selector, Statement, Switch
from coapgw.energysaver.syntax import Mapping as Given
from coapgw.errors import CoapgwError
from coapgw.json_text import Json

PAYLOAD_LIMIT: Final = 65_536  # bytes
WAYS_LIMIT: Final = 500  # through switches that are tried

Values: TypeAlias = "Mapping[str, Json]"

_FLOATS: Final = {2: "e", 4: "f", 8: "d"}


class ValuesDoNotFit(CoapgwError):
    """Values that no payload becomes by this template; *path* names the one that is why, "" if it is all of them."""

    def __init__(self, path: str, sentence: str) -> None:
        """Say which value, and what is wrong with it."""
        super().__init__(f"{path}: {sentence}" if path else sentence)
        self.path = path
        self.sentence = sentence


def encode(statements: Sequence[Statement], values: Values, read: Callable[[bytes], Json]) -> bytes:
    """Return the shortest payload found that becomes *values*; bits that nothing speaks of are 0.

    Args:
        read: what the template makes of a payload; may raise anything of coapgw's.

    Raises:
        ValuesDoNotFit: there is none.
    """
    first: ValuesDoNotFit | None = None
    ways: list[tuple[int, ...]] = [()]
    for _ in range(WAYS_LIMIT):
        if not ways:
            break
        writing = _Writing(ways.pop())
        try:
            writing.block(statements, values, _Scope(_Place(False, 0), _Place(True, 0)), "")
            payload = writing.image.payload()
            if _is_same(read(payload), values):
                return payload
            raise ValuesDoNotFit("", "these values do not come back from any payload: the template reads less or more")
        except _Undecided as undecided:
            ways += [(*writing.chosen, number) for number in reversed(undecided.numbers)]
        except CoapgwError as failed:
            refused = failed if isinstance(failed, ValuesDoNotFit) else ValuesDoNotFit("", str(failed))
            first = first or refused
    raise first or ValuesDoNotFit("", "no case of a switch has these values")


class _Undecided(Exception):
    """A switch that nothing was chosen for; *numbers* are the cases worth a try, the last one the default."""

    def __init__(self, numbers: Sequence[int]) -> None:
        super().__init__(numbers)
        self.numbers = numbers


class _Place(NamedTuple):
    """A byte, counted from the beginning, or from the end (then *offset* is 0 or less)."""

    from_end: bool
    offset: int

    def plus(self, number: int) -> _Place:
        return _Place(self.from_end, self.offset + number)


class _Scope(NamedTuple):
    """The bytes that statements speak of: the payload, or a group."""

    begin: _Place
    end: _Place


@attrs.define
class _Image:
    """Bits at places."""

    front: dict[int, tuple[int, int]] = attrs.Factory(dict)  # by offset: bits, and which of them are meant
    back: dict[int, tuple[int, int]] = attrs.Factory(dict)
    otherwise: list[tuple[_Place, bytes]] = attrs.Factory(list)  # for bits that nothing else speaks of
    size: int | None = None  # of the payload, as soon as that is known
    reach: int = 0  # how far the front goes, at least

    def put(self, place: _Place, data: bytes, masks: bytes, path: str) -> None:
        """Note bytes, and which of their bits are meant."""
        if place.from_end and self.size is not None:
            place = _Place(False, self.size + place.offset)
        if place.offset + len(data) > (0 if place.from_end else PAYLOAD_LIMIT) or (
            not place.from_end and place.offset < 0
        ):
            raise ValuesDoNotFit(path, "has no place in a payload")
        side = self.back if place.from_end else self.front
        for at, (value, mask) in enumerate(zip(data, masks, strict=True), place.offset):
            side[at] = _merged(side.get(at, (0, 0)), (value & mask, mask), path)
        if not place.from_end:
            self.reach = max(self.reach, place.offset + len(data))

    def end_at(self, size: int, path: str) -> None:
        """Note how long the payload is."""
        if self.size not in (None, size) or not 0 <= size <= PAYLOAD_LIMIT:
            raise ValuesDoNotFit(path, "needs a payload of another length than the other values do")
        self.size = size

    def payload(self) -> bytes:
        """Return all bytes; raises ValuesDoNotFit if there are two for one place."""
        behind = -min(self.back, default=0)
        size = self.reach + behind if self.size is None else self.size
        if size < max(self.reach, behind):
            raise ValuesDoNotFit("", "the values need more bytes than the payload has")
        for offset, meant in self.back.items():
            self.front[size + offset] = _merged(self.front.get(size + offset, (0, 0)), meant, "")
        for place, data in self.otherwise:
            for at, bits in enumerate(data, place.offset + (size if place.from_end else 0)):
                value, mask = self.front.get(at, (0, 0))
                self.front[at] = (value | (bits & ~mask), 0xFF)
        return bytes(self.front.get(at, (0, 0))[0] for at in range(size))


def _merged(one: tuple[int, int], other: tuple[int, int], path: str) -> tuple[int, int]:
    both = one[1] & other[1]
    if one[0] & both != other[0] & both:
        raise ValuesDoNotFit(path, "is in the same bits as another value, which wants them otherwise")
    return one[0] | other[0], one[1] | other[1]


class _Writing:
    """One way through a template."""

    def __init__(self, chosen: tuple[int, ...]) -> None:
        self.chosen = chosen
        self._left = list(reversed(chosen))
        self.image = _Image()
        self._cursor: _Place = _Place(False, 0)

    def block(self, statements: Sequence[Statement], values: Values, scope: _Scope, prefix: str) -> None:
        """Write what becomes the values of an object; *prefix* is where it is, for sentences."""
        for statement in statements:
            if isinstance(statement, Given):
                self._given(statement, values, scope, prefix)
            elif isinstance(statement, Switch):
                self._switch(statement, values, scope, prefix)
            else:
                self._repeat(statement, values, scope, prefix)

    def _given(self, given: Given, values: Values, scope: _Scope, prefix: str) -> None:
        path = prefix + given.asset
        value = _found(values, given.path, path)
        if not isinstance(given.value, Selector):
            if not _is_same(given.value, value):
                raise ValuesDoNotFit(path, "is always the constant of the template")
            return
        try:
            self._write(given.value, value, scope, path)
        except ValuesDoNotFit:
            if given.default is None or not _is_same(given.default.value, value):
                raise  # else: without its bytes, it is the default

    def _switch(self, switch: Switch, values: Values, scope: _Scope, prefix: str) -> None:
        if not self._left:
            raise _Undecided(_worth_trying(switch, values))
        number = self._left.pop()
        if number == len(switch.cases):
            self._skip(switch, scope, prefix)
            self.block(switch.default, values, scope, prefix)
        else:
            case = switch.cases[number]
            self._write(switch.on, _as_value(switch.on, case), scope, f"{prefix}switch")
            self.block(case.do, values, scope, prefix)

    def _skip(self, switch: Switch, scope: _Scope, prefix: str) -> None:
        """Leave the bytes of a switch to others, or let them be what no case is."""
        start, end = self._range(switch.on, scope)
        if end is None or start.from_end != end.from_end:
            raise ValuesDoNotFit(f"{prefix}switch", "the default case does not say what the switch reads")
        size = end.offset - start.offset
        self.image.put(start, bytes(size), bytes(size), f"{prefix}switch")
        self.image.otherwise.append((start, _no_case(switch, size)))
        self._cursor = end

    def _repeat(self, repeat: Repeat, values: Values, scope: _Scope, prefix: str) -> None:
        path = prefix + repeat.asset
        items = _found(values, repeat.path, path)
        if not isinstance(items, list):
            raise ValuesDoNotFit(path, "is a list")
        if isinstance(repeat.count, Selector):
            self._write(repeat.count, len(items), scope, path)
        elif repeat.count is not None and repeat.count != len(items):
            raise ValuesDoNotFit(path, f"has {len(items)} elements; the template says {repeat.count}")
        group = self._cursor if repeat.follows else scope.begin.plus(repeat.byte)
        end = scope.end.plus(repeat.endbyte)
        for number, item in enumerate(items):
            within = _Scope(group, end if repeat.stride is None else group.plus(repeat.stride))
            self._cursor = group
            self._element(repeat, item, within, f"{path}[{number}]")
            if repeat.stride is not None:
                zeros = bytes(repeat.stride)
                self.image.put(group, zeros, zeros, path)
                self._cursor = within.end
            elif self._cursor <= group:
                raise ValuesDoNotFit(f"{path}[{number}]", "takes no bytes")
            group = self._cursor
        if repeat.count is None:
            self._meet(group, end, path)
        self._cursor = group

    def _element(self, repeat: Repeat, item: Json, within: _Scope, path: str) -> None:
        if repeat.value is not None:
            self._write(repeat.value, item, within, path)
        elif isinstance(item, dict):
            self.block(repeat.do, item, within, f"{path}.")
        else:
            raise ValuesDoNotFit(path, "is an object")

    def _meet(self, here: _Place, end: _Place, path: str) -> None:
        """Note that two places are the same."""
        if here.from_end == end.from_end:
            if here != end:
                raise ValuesDoNotFit(path, "ends elsewhere than the bytes that it is made of")
        else:
            front, back = (end, here) if here.from_end else (here, end)
            self.image.end_at(front.offset - back.offset, path)

    # ------------------------------------------------------------------ values

    def _range(self, selector: Selector, scope: _Scope) -> tuple[_Place, _Place | None]:
        """Return where a value begins and ends; its end is not known if its length is the value's."""
        if selector.follows:
            start = self._cursor
        elif selector.byte is not None:
            start = scope.begin.plus(selector.byte)
        else:
            start = scope.end.plus(selector.endbyte or 0)
        if selector.prefix:
            return start, None
        if selector.length is not None:
            return start, start.plus(selector.length)
        return start, scope.end.plus(selector.endbyte or 0)

    def _write(self, selector: Selector, value: Json, scope: _Scope, path: str) -> None:
        start, end = self._range(selector, scope)
        size = None if end is None or start.from_end != end.from_end else end.offset - start.offset
        data = _bytes_of(selector, value, size, path)
        if selector.prefix:
            order = "little" if selector.little else "big"
            if len(data) >= 1 << 8 * selector.prefix:
                raise ValuesDoNotFit(path, f"has {len(data)} bytes: too many for {selector.prefix} that say how many")
            data = len(data).to_bytes(selector.prefix, order) + data  # type: ignore[arg-type]
        masks = b"\xff" * len(data)
        if selector.bits is not None:
            masks = _shifted((1 << selector.bits.length) - 1, selector.bits, len(data), selector.little)
        self.image.put(start, data, masks, path)
        self._cursor = start.plus(len(data))
        if end is not None:
            self._meet(self._cursor, end, path)
            self._cursor = end if selector.length is None else self._cursor


def _worth_trying(switch: Switch, values: Values) -> Sequence[int]:
    """Return the cases whose values are there, those that speak of most first; the number of cases is the default."""
    blocks = [*(case.do for case in switch.cases), switch.default]
    numbers: list[tuple[int, int]] = []
    for number, block in enumerate(blocks):
        said = [statement for statement in block if not isinstance(statement, Switch)]
        if all(_speaks_truly(statement, values) for statement in said):
            numbers.append((-len(said), number))
    return [number for _, number in sorted(numbers)]


def _speaks_truly(statement: Given | Repeat, values: Values) -> bool:
    try:
        value = _found(values, statement.path, "")
    except ValuesDoNotFit:
        return False
    if isinstance(statement, Repeat) or isinstance(statement.value, Selector):
        return True
    return _is_same(statement.value, value)


def _no_case(switch: Switch, size: int) -> bytes:
    """Return bytes that no case of a switch is for, as far as whole numbers go."""
    taken = {case.value for case in switch.cases}
    for number in range(len(taken) + 1):
        if number not in taken:
            with suppress(ValuesDoNotFit):
                return _bytes_of(switch.on, bool(number) if switch.on.kind is Kind.BOOLEAN else number, size, "")
    return bytes(size)


def _found(values: Values, path: Sequence[str], where: str) -> Json:
    found: Any = values
    for name in path:
        if not isinstance(found, Mapping) or name not in found:
            raise ValuesDoNotFit(where, "is missing")
        found = found[name]
    value: Json = found
    return value


def _as_value(on: Selector, case: Case) -> Json:
    """Return a case's value as an asset of the same bytes would be."""
    return bool(case.value) if on.kind is Kind.BOOLEAN else case.value


def _is_same(one: object, other: object) -> bool:
    """Return whether two JSON values are the same: numbers by what they are, true is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_is_same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return bool(one == other)


# ---------------------------------------------------------------------- a value as bytes


def _bytes_of(selector: Selector, value: Json, size: int | None, path: str) -> bytes:
    """Return the bytes of a value, as many as *size* says if it does.  Raises ValuesDoNotFit."""
    match selector.kind:
        case Kind.STRING | Kind.HEX:
            return _filled(_text_bytes(selector.kind, value, path), selector.kind, size, path)
        case Kind.BOOLEAN:
            if not isinstance(value, bool):
                raise ValuesDoNotFit(path, "is true or false")
            if selector.bits is not None:
                return _shifted(int(value), selector.bits, size or 1, selector.little)
            return bytes((size or 1) - 1) + bytes((value,))
        case Kind.TIME:
            return _number_bytes(selector, _since_epoch(selector, value, path), size, path)
        case _:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValuesDoNotFit(path, "is a number")
            return _number_bytes(selector, value, size, path)


def _text_bytes(kind: Kind, value: Json, path: str) -> bytes:
    if not isinstance(value, str):
        raise ValuesDoNotFit(path, "is a text")
    if kind is Kind.STRING:
        return value.encode("utf-8", "replace")
    try:
        return bytes.fromhex(value)
    except ValueError:
        raise ValuesDoNotFit(path, "is pairs of hexadecimal digits") from None


def _filled(data: bytes, kind: Kind, size: int | None, path: str) -> bytes:
    if size is None or len(data) == size:
        return data
    if len(data) > size or kind is Kind.HEX:
        raise ValuesDoNotFit(path, f"has {len(data)} bytes; there are {size}")
    return data.ljust(size, b"\0")


def _since_epoch(selector: Selector, value: Json, path: str) -> int:
    try:
        if not isinstance(value, str) or not value.endswith("Z"):
            raise ValueError
        moment = datetime.fromisoformat(value[:-1]).replace(tzinfo=UTC)
    except ValueError:
        raise ValuesDoNotFit(path, "is a time such as 2022-12-09T15:12:29Z") from None
    passed = moment - datetime(1970, 1, 1, tzinfo=UTC)
    milliseconds = (passed.days * 86_400 + passed.seconds) * 1000 + passed.microseconds // 1000
    return milliseconds if selector.milliseconds else milliseconds // 1000


def _number_bytes(selector: Selector, value: Number, size: int | None, path: str) -> bytes:
    length = size or 8
    if selector.kind is Kind.FLOAT:
        raw = _before(selector, float(value), path)[0]
        try:
            return struct.pack("><"[selector.little] + _FLOATS[length], raw)
        except (OverflowError, struct.error, KeyError):
            raise ValuesDoNotFit(path, f"is no float of {length} bytes") from None
    whole = _whole_before(selector, value, path)
    bits = 8 * length if selector.bits is None else selector.bits.length
    is_signed = selector.kind is Kind.INT
    least, most = (-(1 << bits - 1), (1 << bits - 1) - 1) if is_signed else (0, (1 << bits) - 1)
    if not least <= whole <= most:
        raise ValuesDoNotFit(path, f"is {whole} in the payload, which holds {least} to {most}")
    whole &= (1 << bits) - 1
    if selector.bits is not None:
        return _shifted(whole, selector.bits, length, selector.little)
    return whole.to_bytes(length, "little" if selector.little else "big")


def _shifted(value: int, bits: Bits, length: int, little: bool) -> bytes:
    return (value << bits.first).to_bytes(length, "little" if little else "big")


def _whole_before(selector: Selector, value: Number, path: str) -> int:
    """Return the whole number that a value is made of."""
    for candidate in _before(selector, value, path):
        nearest = round(candidate)
        for whole in (nearest, nearest - 1, nearest + 1):
            if _after(selector, whole) == value:
                return whole
    raise ValuesDoNotFit(path, "is not what a whole number becomes")


def _before(selector: Selector, value: Number, path: str) -> Sequence[Number]:
    """Return what a value may have been before it was calculated."""
    arithmetic = selector.arithmetic
    if arithmetic is None:
        return (value,)
    if arithmetic.linear is None:
        raise ValuesDoNotFit(path, f"the calculation {arithmetic.text} cannot be undone")
    try:
        before = (value - arithmetic.linear.offset) / arithmetic.linear.factor
    except OverflowError:
        raise ValuesDoNotFit(path, "is too large") from None
    if not math.isfinite(before):
        raise ValuesDoNotFit(path, "is too large")
    return (before,)


def _after(selector: Selector, whole: int) -> Number | None:
    if selector.arithmetic is None:
        return whole
    try:
        return selector.arithmetic.calculate(whole)
    except CalculationFailed:
        return None
