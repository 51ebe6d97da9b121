"""Templates of version 2 as a function: it reads the payload into objects and lists, which json writes.

As in ``program.py`` Python source is generated once, of names made here and whole numbers that were checked; nothing a
template says becomes part of it.  Positions are known when the function is made, except behind something whose length
the payload decides: there a cursor goes along.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Final, NamedTuple, TypeAlias

from coapgw.energysaver.calculation import Calculation, CalculationFailed, Number
from coapgw.energysaver.errors import PayloadDoesNotFit
from coapgw.energysaver.numbers import float32_nearest
from coapgw.energysaver.program import FORMATS, SWITCH_ASSET, TEXTS_LIMIT, text_of
from coapgw.energysaver.syntax import Kind, Mapping, Repeat, Selector, Statement, Switch

VALUES_LIMIT: Final = 5_000  # that repeats may make of one payload
EXACT_BELOW: Final = 1e15  # a float below is whole if it looks so
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FLOATS: Final = {2: "e", 4: "f", 8: "d"}

Run: TypeAlias = Callable[[bytes], tuple[dict[str, Any], tuple[Number, Number] | None]]
"""Returns the document and (longitude, latitude), if it has both."""

_write_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode


class _Range(NamedTuple):
    """Python for where bytes are that may be read: from the first to before the last."""

    begin: str
    end: str


class _Bytes(NamedTuple):
    """Python for where the bytes of a value are; *size* if that is known."""

    start: str
    end: str
    size: int | None


class Program2:
    """A compiled template of version 2."""

    def __init__(self, statements: Sequence[Statement]) -> None:
        """Compile checked statements."""
        self._run = _Source(statements).compiled()

    def __call__(self, payload: bytes) -> tuple[str, tuple[str, str] | None]:
        """Return the document and (longitude, latitude) as text.  Raises PayloadDoesNotFit."""
        document, location = self._run(payload)
        return _write_json(document), None if location is None else (str(location[0]), str(location[1]))


# ---------------------------------------------------------------------- what the generated function calls


def _failing(asset: str) -> Callable[[int, int, int], PayloadDoesNotFit]:
    """Return what makes the error for bytes that a payload has not."""

    def fail(start: int, end: int, size: int) -> PayloadDoesNotFit:
        return PayloadDoesNotFit(asset, f"can't extract [{start}:{end}] from {size} bytes")

    return fail


def _whole(value: Number) -> Number:
    """Return a float that is whole as a whole number: 26, not 26.0."""
    return int(value) if value == int(value) and abs(value) < EXACT_BELOW else value


def _finite(asset: str, narrow: bool) -> Callable[[float], Number]:
    """Return what makes a float a number that JSON has; one of 4 bytes by the shortest decimal that it is."""

    def finite(value: float) -> Number:
        if not math.isfinite(value):
            raise PayloadDoesNotFit(asset, f"{value} is no number that JSON has")
        return _whole(float32_nearest(value) if narrow else value)

    return finite


def _calculating(asset: str, calculate: Calculation) -> Callable[[Number], Number]:
    def calculated(value: Number) -> Number:
        try:
            return _whole(calculate(value))
        except CalculationFailed as failed:
            raise PayloadDoesNotFit(asset, str(failed)) from None

    return calculated


def _timing(asset: str, milliseconds: bool) -> Callable[[Number], str]:
    """Return what writes a time (ISO 8601, UTC)."""

    def time(value: Number) -> str:
        since = timedelta(milliseconds=1) if milliseconds else timedelta(seconds=1)
        try:
            moment = (_EPOCH + value * since).replace(tzinfo=None)
        except (OverflowError, ValueError):
            raise PayloadDoesNotFit(asset, f"{value} is no time before the year 10000") from None
        return moment.isoformat(timespec="milliseconds" if milliseconds else "seconds") + "Z"

    return time


def _too_large(asset: str) -> Callable[[], PayloadDoesNotFit]:
    return lambda: PayloadDoesNotFit(asset, f"more than {TEXTS_LIMIT} bytes of texts")


def _too_many(asset: str) -> Callable[[], PayloadDoesNotFit]:
    return lambda: PayloadDoesNotFit(asset, f"more than {VALUES_LIMIT} values")


def _no_progress(asset: str) -> Callable[[int], PayloadDoesNotFit]:
    return lambda at: PayloadDoesNotFit(asset, f"a group at byte {at} takes no bytes")


# ---------------------------------------------------------------------- the source


class _Source:
    """Writes the function; every name in it is made here."""

    def __init__(self, statements: Sequence[Statement]) -> None:
        self._statements = statements
        self._lines: list[str] = []
        self._constants: dict[str, Any] = {"text_of": text_of, "misfit": PayloadDoesNotFit}
        self._names = count()
        self._needs_cursor = any(_follows(statement) for statement in _every(statements))

    def compiled(self) -> Run:
        """Return the function."""
        self._block(self._statements, "root", _Range("0", "n"), 1)
        before = ["n = len(payload)", "root = {}", "lat = long = None", f"left = {VALUES_LIMIT}"]
        before += [f"room = {TEXTS_LIMIT}"]
        before += ["at = 0"] if self._needs_cursor else []
        found = "(long, lat) if long is not None and lat is not None else None"
        source = "\n    ".join(["def run(payload):", *before]) + "\n" + "\n".join(self._lines)
        source += f"\n    return root, {found}"
        namespace: dict[str, Any] = dict(self._constants)
        exec(compile(source, "<energy saver template>", "exec"), namespace)
        run: Run = namespace["run"]
        return run

    def _name(self) -> str:
        return f"x{next(self._names)}"

    def _constant(self, value: Any) -> str:
        name = f"c{next(self._names)}"
        self._constants[name] = value
        return name

    def _write(self, depth: int, line: str) -> None:
        self._lines.append("    " * depth + line)

    def _block(self, statements: Sequence[Statement], into: str, within: _Range, depth: int) -> None:
        """Write what gives the object *into* its assets."""
        for statement in statements:
            if isinstance(statement, Mapping):
                self._mapping(statement, into, within, depth)
            elif isinstance(statement, Switch):
                self._switch(statement, into, within, depth)
            else:
                self._repeat(statement, into, within, depth)

    def _give(self, path: Sequence[str], value: str, into: str, depth: int) -> None:
        outer = "".join(f".setdefault({self._constant(name)}, {{}})" for name in path[:-1])
        self._write(depth, f"{into}{outer}[{self._constant(path[-1])}] = {value}")

    def _mapping(self, mapping: Mapping, into: str, within: _Range, depth: int) -> None:
        if not isinstance(mapping.value, Selector):
            name = self._constant(mapping.value)
            self._locate(mapping, name, depth)
        elif mapping.default is None:
            name = self._name()
            self._value(mapping.value, mapping.asset, name, within, depth)
            self._locate(mapping, name, depth)
        else:
            name = self._name()
            self._write(depth, "try:")
            self._value(mapping.value, mapping.asset, name, within, depth + 1)
            self._locate(mapping, name, depth + 1)
            self._write(depth, "except misfit:")
            self._write(depth + 1, f"{name} = {self._constant(mapping.default.value)}")
        self._give(mapping.path, name, into, depth)

    def _locate(self, mapping: Mapping, name: str, depth: int) -> None:
        if mapping.location:
            self._write(depth, f"{mapping.location} = {name}")

    def _switch(self, switch: Switch, into: str, within: _Range, depth: int) -> None:
        name, chosen = self._name(), self._name()
        self._value(switch.on, SWITCH_ASSET, name, within, depth)
        choices: dict[Any, int] = {}
        for number, case in enumerate(switch.cases):
            choices.setdefault(case.value, number)
        self._write(depth, f"{chosen} = {self._constant(choices)}.get({name}, {len(switch.cases)})")
        blocks = [(number, switch.cases[number].do) for number in choices.values()]
        for number, block in [*blocks, (len(switch.cases), switch.default)]:
            before = len(self._lines)
            self._block(block, into, within, depth + 1)
            if len(self._lines) > before:  # side by side rather than elif: thousands of cases must not nest
                self._lines.insert(before, "    " * depth + f"if {chosen} == {number}:")

    def _repeat(self, repeat: Repeat, into: str, within: _Range, depth: int) -> None:
        items, group, end = self._name(), self._name(), self._name()
        fail = self._constant(_failing(repeat.asset))
        how_many = ""
        if isinstance(repeat.count, Selector):
            how_many = self._name()
            self._value(repeat.count, repeat.asset, how_many, within, depth)
        elif repeat.count is not None:
            how_many = str(repeat.count)
        self._write(depth, f"{group} = {'at' if repeat.follows else _plus(within.begin, repeat.byte)}")
        self._write(depth, f"{end} = {_plus(within.end, repeat.endbyte)}")
        self._write(depth, f"if {group} > {end}: raise {fail}({group}, {end}, n)")
        self._write(depth, f"{items} = []")
        self._write(depth, f"for _ in range({how_many}):" if how_many else f"while {group} < {end}:")
        inner = depth + 1
        self._write(inner, f"left -= {_cost(repeat)}")
        self._write(inner, f"if left < 0: raise {self._constant(_too_many(repeat.asset))}()")
        if repeat.stride is None:
            self._write(inner, f"at = {group}")
            self._group(repeat, items, _Range(group, end), inner)
            self._write(inner, f"if at <= {group}: raise {self._constant(_no_progress(repeat.asset))}({group})")
            self._write(inner, f"{group} = at")
        else:
            after = self._name()
            self._write(inner, f"{after} = {group} + {repeat.stride}")
            self._write(inner, f"if {after} > {end}: raise {fail}({group}, {after}, n)")
            if self._needs_cursor:
                self._write(inner, f"at = {group}")
            self._group(repeat, items, _Range(group, after), inner)
            self._write(inner, f"{group} = {after}")
        if self._needs_cursor:
            self._write(depth, f"at = {group}")
        self._give(repeat.path, items, into, depth)

    def _group(self, repeat: Repeat, items: str, within: _Range, depth: int) -> None:
        name = self._name()
        if repeat.value is not None:
            self._value(repeat.value, repeat.asset, name, within, depth)
        else:
            self._write(depth, f"{name} = {{}}")
            self._block(repeat.do, name, within, depth)
        self._write(depth, f"{items}.append({name})")

    # ------------------------------------------------------------------ values

    def _value(self, selector: Selector, asset: str, name: str, within: _Range, depth: int) -> None:
        """Write what reads a value as Python has it, and moves the cursor behind it."""
        place = self._bytes(selector, asset, within, depth)
        if selector.kind in (Kind.STRING, Kind.HEX):
            self._write(depth, f"room -= {place.end} - {place.start}")
            self._write(depth, f"if room < 0: raise {self._constant(_too_large(asset))}()")
        self._write(depth, f"{name} = {self._read(selector, asset, place)}")
        if self._needs_cursor:
            self._write(depth, f"at = {place.end}")

    def _read(self, selector: Selector, asset: str, place: _Bytes) -> str:
        kind, data = selector.kind, f"payload[{place.start}:{place.end}]"
        if kind is Kind.HEX:
            return f"{data}.hex()"
        if kind is Kind.STRING:
            return f"text_of({data})"
        if kind is Kind.FLOAT:
            packed = struct.Struct("><"[selector.little] + _FLOATS[place.size or 8])
            number = f"{self._constant(packed.unpack_from)}(payload, {place.start})[0]"
            number = f"{self._constant(_finite(asset, place.size == 4))}({number})"
        elif kind is Kind.BOOLEAN and selector.bits is None:
            return f"any({data})"
        else:
            number = self._integer(selector, place, data)
        if selector.arithmetic is not None:
            number = f"{self._constant(_calculating(asset, selector.arithmetic.calculate))}({number})"
        if kind is Kind.TIME:
            return f"{self._constant(_timing(asset, selector.milliseconds))}({number})"
        return number

    def _integer(self, selector: Selector, place: _Bytes, data: str) -> str:
        """Return Python for a whole number, or for a boolean that is a bit."""
        bits = selector.bits
        kind = Kind.UINT if bits is not None or selector.kind is Kind.TIME else selector.kind
        if (kind, place.size) == (Kind.UINT, 1):
            number = f"payload[{place.start}]"
        elif (kind, place.size) in FORMATS and place.size is not None:
            packed = struct.Struct("><"[selector.little] + FORMATS[kind, place.size])
            number = f"{self._constant(packed.unpack_from)}(payload, {place.start})[0]"
        else:
            order = "little" if selector.little else "big"
            number = f"int.from_bytes({data}, '{order}', signed={kind is Kind.INT})"
        if bits is None:
            return number
        number = f"({number} >> {bits.first} & {(1 << bits.length) - 1})"
        if selector.kind is Kind.BOOLEAN:
            return f"{number} != 0"
        sign = 1 << bits.length - 1
        return f"(({number} ^ {sign}) - {sign})" if selector.kind is Kind.INT else number

    def _bytes(self, selector: Selector, asset: str, within: _Range, depth: int) -> _Bytes:
        """Write what makes sure that the payload has the bytes; return where they are."""
        fail = self._constant(_failing(asset))
        byte, endbyte, length = selector.byte, selector.endbyte, selector.length
        is_outermost = within == _Range("0", "n")
        if is_outermost and byte is not None and length is not None and not selector.follows:
            self._write(depth, f"if n < {byte + length}: raise {fail}({byte}, {byte + length}, n)")
            return _Bytes(str(byte), str(byte + length), length)
        start, end = self._name(), self._name()
        if selector.follows:
            first = "at"
        else:
            first = _plus(within.begin, byte) if byte is not None else _plus(within.end, endbyte or 0)
        self._write(depth, f"{start} = {first}")
        if selector.prefix:
            order = "little" if selector.little else "big"
            self._write(depth, f"{end} = {start} + {selector.prefix}")
            self._write(depth, f"if {end} > {within.end}: raise {fail}({start}, {end}, n)")
            size = f"int.from_bytes(payload[{start}:{end}], '{order}')"
            self._write(depth, f"{start}, {end} = {end}, {end} + {size}")
        else:
            last = f"{start} + {length}" if length is not None else _plus(within.end, endbyte or 0)
            self._write(depth, f"{end} = {last}")
        self._write(
            depth, f"if not {within.begin} <= {start} <= {end} <= {within.end}: raise {fail}({start}, {end}, n)"
        )
        return _Bytes(start, end, length)


def _plus(begin: str, number: int) -> str:
    if not number:
        return begin
    return str(number) if begin == "0" else f"{begin} {'-' if number < 0 else '+'} {abs(number)}"


def _every(statements: Sequence[Statement]) -> Iterator[Statement]:
    """Yield every statement, those inside of others included."""
    for statement in statements:
        yield statement
        if isinstance(statement, Switch):
            for block in (*(case.do for case in statement.cases), statement.default):
                yield from _every(block)
        elif isinstance(statement, Repeat):
            yield from _every(statement.do)


def _follows(statement: Statement) -> bool:
    """Return whether a statement needs to know where the last one ended."""
    if isinstance(statement, Repeat):
        return statement.follows or statement.stride is None
    selector = statement.on if isinstance(statement, Switch) else statement.value
    return isinstance(selector, Selector) and selector.follows


def _cost(repeat: Repeat) -> int:
    """Return how many values a group is counted as: what there is to do for it, repeats in it left out."""
    return max(1, sum(1 for statement in _every(repeat.do) if not isinstance(statement, Repeat)))
