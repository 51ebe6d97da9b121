"""From statements to a function: nothing of a template is interpreted per message.

Python source is generated and compiled once.  Nothing a template says ever becomes part of that source: it holds names
that are made here, and whole numbers that were checked; texts, cases and layouts are passed in as constants under such
names (docs/decisions/0011-compiled-templates.md).

The function reads values in the order of the statements and notes which case each switch took.  The cases taken decide
how the document looks: its layout, a text with a place for each value, is made when they are taken for the first time.
"""

from __future__ import annotations

import json
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from operator import itemgetter
from typing import Any, Final, TypeAlias

import attrs

from coapgw.energysaver.errors import PayloadDoesNotFit
from coapgw.energysaver.numbers import NotFinite, float32_text, float64_text
from coapgw.energysaver.syntax import Kind, Mapping, Selector, Statement, Switch

TEXTS_LIMIT: Final = 1 << 20  # bytes of a payload, each counted as often as a string or hex is made of it
LAYOUTS_LIMIT: Final = 256  # kept, of ways through the switches of a template
SWITCH_ASSET: Final = "switch"  # what an error says when it is a switch's value that cannot be had

FORMATS: Final = {
    (Kind.INT, 1): "b",
    (Kind.INT, 2): "h",
    (Kind.INT, 4): "i",
    (Kind.INT, 8): "q",
    (Kind.UINT, 1): "B",
    (Kind.UINT, 2): "H",
    (Kind.UINT, 4): "I",
    (Kind.UINT, 8): "Q",
    (Kind.FLOAT, 4): "f",
    (Kind.FLOAT, 8): "d",
}

Run: TypeAlias = Callable[[bytes], tuple[tuple[int, ...], tuple[str, ...]]]
"""Returns which case each switch took, and the values as JSON text, "" for those that were not read."""


@attrs.frozen
class Layout:
    """How a document looks: a %-format, which values go into it, and which are longitude and latitude."""

    text: str
    pick: Callable[[tuple[str, ...]], Any] | None
    location: tuple[int, int] | None


class Program:
    """A compiled template."""

    def __init__(self, statements: Sequence[Statement]) -> None:
        """Compile checked statements."""
        self._statements = statements
        self._slots: dict[int, int] = {}  # by the identity of a mapping: the place of its value
        self._layouts: OrderedDict[tuple[int, ...], Layout] = OrderedDict()
        self._run = _Source(statements, self._slots).compiled()

    def __call__(self, payload: bytes) -> tuple[str, tuple[str, str] | None]:
        """Return the document and (longitude, latitude) as text.  Raises PayloadDoesNotFit."""
        taken, values = self._run(payload)
        layout = self._layouts.get(taken)
        if layout is None:
            layout = self._make_layout(taken)
        location = layout.location
        found = None if location is None else (values[location[0]], values[location[1]])
        return layout.text % (values if layout.pick is None else layout.pick(values)), found

    def _make_layout(self, taken: tuple[int, ...]) -> Layout:
        carried_out = list(_carried_out(self._statements, iter(taken)))
        tree: dict[str, Any] = {}
        location: dict[str, int] = {}
        for mapping in carried_out:
            at = tree
            for name in mapping.path[:-1]:
                at = at.setdefault(name, {})
            at[mapping.path[-1]] = mapping
            if mapping.location:
                location[mapping.location] = self._slots[id(mapping)]
        places: list[int] = []
        text = "".join(self._written(tree, places))
        both = (location["long"], location["lat"]) if len(location) == 2 else None
        if places == list(range(len(self._slots))):
            layout = Layout(text, None, both)
        else:
            layout = Layout(text, _picking(places), both)
        while len(self._layouts) >= LAYOUTS_LIMIT:
            self._layouts.popitem(last=False)
        self._layouts[taken] = layout
        return layout

    def _written(self, tree: dict[str, Any], places: list[int]) -> Iterator[str]:
        """Yield the pieces of a format; the places of its values go to *places*."""
        yield "{"
        for number, (name, inside) in enumerate(tree.items()):
            yield ("," if number else "") + _escaped(name).replace("%", "%%") + ":"
            if isinstance(inside, dict):
                yield from self._written(inside, places)
            elif isinstance(inside.value, str):
                yield _escaped(inside.value).replace("%", "%%")
            else:
                places.append(self._slots[id(inside)])
                yield "%s"
        yield "}"


def _picking(places: Sequence[int]) -> Callable[[tuple[str, ...]], Any]:
    if not places:
        return lambda values: ()
    return itemgetter(*places) if len(places) > 1 else lambda values: (values[places[0]],)


def _carried_out(statements: Sequence[Statement], taken: Iterator[int]) -> Iterator[Mapping]:
    """Yield the mappings that are carried out when the switches take these cases, one after the other."""
    for statement in statements:
        if isinstance(statement, Mapping):
            yield statement
        elif isinstance(statement, Switch):
            number = next(taken)
            block = statement.cases[number].do if number < len(statement.cases) else statement.default
            yield from _carried_out(block, taken)


def _escaped(text: str) -> str:
    """Return a text as JSON."""
    return json.dumps(text, ensure_ascii=False)


# ---------------------------------------------------------------------- what the generated function calls


def _failing(asset: str, selector: Selector) -> Callable[[int], PayloadDoesNotFit]:
    """Return what makes the error for a range that a payload of so many bytes does not have."""
    byte, endbyte, length = selector.byte, selector.endbyte, selector.length

    def fail(size: int) -> PayloadDoesNotFit:
        start = byte if byte is not None else size + (endbyte or 0)
        end = start + length if length is not None else size + (endbyte or 0)
        return PayloadDoesNotFit(asset, f"can't extract [{start}:{end}] from {size} bytes")

    return fail


def _reading_any(asset: str, selector: Selector) -> Callable[[bytes], Any]:
    """Return what reads a value from bytes whose number only the payload decides."""
    order = "little" if selector.little else "big"

    def read(data: bytes) -> Any:
        format_ = FORMATS.get((selector.kind, len(data)))
        if format_ is None:
            raise PayloadDoesNotFit(asset, f"can't read {selector.kind.value} from {len(data)} bytes")
        if selector.kind is Kind.FLOAT:
            return struct.unpack((">", "<")[selector.little] + format_, data)[0]
        return int.from_bytes(data, order, signed=selector.kind is Kind.INT)  # type: ignore[arg-type]

    return read


def _showing(asset: str, show: Callable[[float], str]) -> Callable[[float], str]:
    """Return what shows a float as JSON; what is no number is the payload's fault."""

    def shown(value: float) -> str:
        try:
            return show(value)
        except NotFinite:
            raise PayloadDoesNotFit(asset, f"{value} is no number that JSON has") from None

    return shown


def text_of(data: bytes) -> str:
    """Return UTF-8 as text: zeros at the end are padding, bytes that are none become U+FFFD."""
    return data.rstrip(b"\0").decode("utf-8", "replace")


def _too_large(size: int) -> PayloadDoesNotFit:
    return PayloadDoesNotFit("", f"{size} bytes would become more than {TEXTS_LIMIT} bytes of texts")


def longest_payload(statements: Sequence[Statement]) -> int | None:
    """Return the length beyond which a payload could become too large a document; None if none could."""
    fixed, open_ended = texts_in(statements)
    if open_ended:
        return max(0, (TEXTS_LIMIT - fixed) // open_ended)
    return None if fixed <= TEXTS_LIMIT else 0


def texts_in(statements: Sequence[Statement]) -> tuple[int, int]:
    """Return how many bytes the strings and hexes of fixed length have together, and how many others there are."""
    fixed = open_ended = 0
    for statement in statements:
        if isinstance(statement, Switch):
            for block in (*(case.do for case in statement.cases), statement.default):
                more_fixed, more_open = texts_in(block)
                fixed, open_ended = fixed + more_fixed, open_ended + more_open
        value = statement.value if isinstance(statement, Mapping) else None
        if isinstance(value, Selector) and value.kind in (Kind.STRING, Kind.HEX):
            fixed += value.length or 0
            open_ended += value.length is None
    return fixed, open_ended


class _Source:
    """Writes the function; every name in it is made here."""

    def __init__(self, statements: Sequence[Statement], slots: dict[int, int]) -> None:
        self._statements = statements
        self._slots = slots
        self._lines: list[str] = []
        self._constants: dict[str, Any] = {"text_of": text_of, "escaped": _escaped}
        self._names = count()
        self._has_switch = False

    def compiled(self) -> Run:
        """Return the function."""
        self._block(self._statements, 1)
        names = [f"v{slot}" for slot in range(len(self._slots))]
        before = ["    n = len(payload)"]
        longest = longest_payload(self._statements)
        if longest is not None:
            before.append(f"    if n > {longest}: raise {self._constant(_too_large)}(n)")
        if self._has_switch:
            before += ["    taken = []", *(f"    {name} = ''" for name in names)]
        taken = "tuple(taken)" if self._has_switch else "()"
        after = f"    return {taken}, ({''.join(f'{name}, ' for name in names)})"
        source = "\n".join(["def run(payload):", *before, *self._lines, after])
        namespace: dict[str, Any] = dict(self._constants)
        exec(compile(source, "<energy saver template>", "exec"), namespace)
        run: Run = namespace["run"]
        return run

    def _constant(self, value: Any) -> str:
        name = f"c{next(self._names)}"
        self._constants[name] = value
        return name

    def _write(self, depth: int, line: str) -> None:
        self._lines.append("    " * depth + line)

    def _block(self, statements: Sequence[Statement], depth: int) -> None:
        for statement in statements:
            if isinstance(statement, Mapping):
                if isinstance(statement.value, Selector):
                    slot = self._slots.setdefault(id(statement), len(self._slots))
                    self._value(statement.value, statement.asset, f"v{slot}", depth, as_json=True)
            elif isinstance(statement, Switch):
                self._switch(statement, depth)

    def _switch(self, switch: Switch, depth: int) -> None:
        name = f"s{next(self._names)}"
        self._value(switch.on, SWITCH_ASSET, name, depth, as_json=False)
        choices: dict[Any, int] = {}
        for number, case in enumerate(switch.cases):
            choices.setdefault(case.value, number)
        chosen = f"k{next(self._names)}"
        self._write(depth, f"{chosen} = {self._constant(choices)}.get({name}, {len(switch.cases)})")
        self._write(depth, f"taken.append({chosen})")
        self._has_switch = True
        blocks = [(number, switch.cases[number].do) for number in dict.fromkeys(choices.values())]
        for number, block in [*blocks, (len(switch.cases), switch.default)]:
            before = len(self._lines)
            self._block(block, depth + 1)
            if len(self._lines) > before:  # side by side rather than elif: thousands of cases must not nest
                self._lines.insert(before, "    " * depth + f"if {chosen} == {number}:")

    def _value(self, selector: Selector, asset: str, name: str, depth: int, *, as_json: bool) -> None:
        """Write what reads a value: as JSON text, or as what a switch compares."""
        start, end = self._range(selector, asset, depth)
        kind, length = selector.kind, selector.length
        data = f"payload[{start}:{end}]"
        if kind is Kind.HEX:
            self._write(depth, f"{name} = '\"' + {data}.hex() + '\"'" if as_json else f"{name} = {data}.hex()")
        elif kind is Kind.STRING:
            text = f"text_of({data})"
            self._write(depth, f"{name} = escaped({text})" if as_json else f"{name} = {text}")
        elif kind is Kind.BOOLEAN:
            truth = f"payload[{start}]" if length == 1 else f"any({data})"
            self._write(depth, f"{name} = 'true' if {truth} else 'false'" if as_json else f"{name} = bool({truth})")
        else:
            self._number(selector, asset, (name, start, data), depth, as_json=as_json)

    def _number(
        self, selector: Selector, asset: str, place: tuple[str, str, str], depth: int, *, as_json: bool
    ) -> None:
        name, start, data = place
        kind, length = selector.kind, selector.length
        if length is None:
            number = f"{self._constant(_reading_any(asset, selector))}({data})"
        elif (kind, length) == (Kind.UINT, 1):
            number = f"payload[{start}]"
        else:
            packed = struct.Struct("><"[selector.little] + FORMATS[kind, length])
            number = f"{self._constant(packed.unpack_from)}(payload, {start})[0]"
        if not as_json:
            self._write(depth, f"{name} = {number}")
        elif kind is not Kind.FLOAT:
            self._write(depth, f"{name} = str({number})")
        elif length is None:
            self._write(depth, f"w = {data}")
            wide = self._constant(_showing(asset, float64_text))
            narrow = self._constant(_showing(asset, float32_text))
            self._write(depth, f"{name} = ({narrow} if len(w) == 4 else {wide})({number})")
        else:
            show = _showing(asset, float32_text if length == 4 else float64_text)
            self._write(depth, f"{name} = {self._constant(show)}({number})")

    def _range(self, selector: Selector, asset: str, depth: int) -> tuple[str, str]:
        """Write what makes sure that the payload has the bytes; return where they begin and end."""
        byte, endbyte, length = selector.byte, selector.endbyte, selector.length
        fail = self._constant(_failing(asset, selector))
        if byte is not None and length is not None:
            self._write(depth, f"if n < {byte + length}: raise {fail}(n)")
            return str(byte), str(byte + length)
        end = "n" if not endbyte else f"n - {-endbyte}"
        if byte is not None:
            self._write(depth, f"if n < {byte - (endbyte or 0)}: raise {fail}(n)")
            return str(byte), end
        assert length is not None
        if length > -(endbyte or 0):
            self._write(depth, f"raise {fail}(n)")  # it ends behind the payload, whatever that is
        else:
            self._write(depth, f"if n < {-(endbyte or 0)}: raise {fail}(n)")
        return end, f"{end} + {length}"
