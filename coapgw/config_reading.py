"""Reads TOML into a tree of attrs classes, by their declarations, and collects every mistake on the way.

A tree's fields are sections (attrs classes) or leaves.  The type of a leaf says how it is read:
``Annotated[T, reader]``, an Enum of words, ``tuple[leaf, ...]`` for a list, or inside a list an attrs class for a
table.
"""

from __future__ import annotations

import difflib
import enum
import functools
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs

from coapgw.config_text import KeyPath, dotted, key_lines, parsed, parsed_override, read_text
from coapgw.config_values import Masked, Wrong, kind_of, shown

_Tree = TypeVar("_Tree")
_Hint = Any  # a type annotation: no static type covers a class, Annotated[…] and tuple[…, ...]
_Places = Callable[[KeyPath], tuple[int, str]]
"""From a key to its line, 0 if there is none, and the beginning of a sentence about it."""
_FAILED = object()


@attrs.define
class Source:
    """A file or an override: a TOML *value* that belongs at *path* in a tree of class *root*.

    *given* are the leaves that were found, right or wrong; *complaints* are keys and what is wrong with them.
    """

    root: type[Any]
    path: KeyPath
    value: object = attrs.field(repr=False)  # may hold a password
    places: _Places
    given: set[KeyPath] = attrs.field(factory=set)
    complaints: list[tuple[KeyPath, str]] = attrs.field(factory=list)

    def read_into(self, values: dict[KeyPath, object]) -> list[str]:
        """Put what is right into *values*, leaf by leaf; return the sentences about the rest, by line."""
        hint = _hint_at(self.root, self.path)
        if hint is None:
            self._unknown(None, self.path)
        else:
            self._section_or_leaf(hint, self.path, self.value, values)
        located = [(self.places(path), sentence) for path, sentence in self.complaints]
        located.sort(key=lambda found: found[0][0])
        return [f"{place}: {sentence}" for (_, place), sentence in located]

    def complained(self, path: KeyPath) -> bool:
        """Return whether something is wrong with the key, a part of it, or a section it is in."""
        return any(path[: len(other)] == other[: len(path)] for other, _ in self.complaints)

    def _complain(self, path: KeyPath, sentence: str) -> object:
        self.complaints.append((path, sentence))
        return _FAILED

    def _unknown(self, shape: type[Any] | None, path: KeyPath) -> None:
        self._complain(path, f"no such key{_suggestion(self.root, shape, path)}")

    def _section_or_leaf(self, hint: _Hint, path: KeyPath, value: object, values: dict[KeyPath, object]) -> None:
        if not attrs.has(hint):
            self.given.add(path)
            result = self._leaf(hint, path, value)
            if result is not _FAILED:
                values[path] = result
        elif isinstance(value, dict):
            hints = _hints(hint)
            for name, inner in value.items():
                if name in hints:
                    self._section_or_leaf(hints[name], (*path, name), inner, values)
                else:
                    self._unknown(hint, (*path, name))
        else:
            # By its kind only: what stands in a wrong place may hold a password.
            self._complain(path, f"expected a table of keys, got {kind_of(value)}")

    def _leaf(self, hint: _Hint, path: KeyPath, value: object) -> object:
        """Return what *value* means to a key of type *hint*; or complain, and return _FAILED."""
        item = _item(hint)
        if item is not None:
            return self._list(item, path, value)
        if attrs.has(hint):
            return self._table(hint, path, value)
        try:
            return _reader(hint)(value)
        except Wrong as wrong:
            got = f"{kind_of(value)} that is not shown" if _mask(hint) else shown(value)
            reason = f"; {wrong.reason}" if wrong.reason else ""
            return self._complain(path, f"expected {wrong.expected}, got {got}{reason}")

    def _list(self, item: _Hint, path: KeyPath, value: object) -> object:
        if isinstance(value, list):
            items = [self._leaf(item, (*path, at), inner) for at, inner in enumerate(value)]
            return _FAILED if _FAILED in items else tuple(items)
        if attrs.has(item):
            return self._complain(path, f"expected a list of tables, got {kind_of(value)}")
        bracket = isinstance(value, str) and value.startswith("[")
        quotes = "; where a shell takes the quotes away, put the whole word in single quotes" if bracket else ""
        return self._complain(path, f"expected a list, got {shown(value)}{quotes}")

    def _table(self, shape: type[Any], path: KeyPath, value: object) -> object:
        hints = _hints(shape)
        if not isinstance(value, dict):
            return self._complain(path, f"expected a table with {', '.join(hints)}, got {kind_of(value)}")
        for name in value:
            if name not in hints:
                self._unknown(shape, (*path, name))
        required = [field.name for field in attrs.fields(shape) if field.default is attrs.NOTHING]
        missing = [name for name in required if name not in value]
        for name in missing:
            self._complain(path, f"{name} is missing")
        fields = {name: self._leaf(hints[name], (*path, name), value[name]) for name in hints if name in value}
        return _FAILED if missing or _FAILED in fields.values() else shape(**fields)


def file_source(root: type[Any], path: Path) -> Source:
    """Return what the file *path* says about a tree of class *root*; raises Unreadable."""
    text = read_text(path)
    document = parsed(text, str(path))
    lines = functools.cache(lambda: key_lines(text))  # when the first mistake asks for a line

    def place(key: KeyPath) -> tuple[int, str]:
        known = next((key[:depth] for depth in range(len(key), 0, -1) if key[:depth] in lines()), ())
        line = lines().get(known, 0)
        return line, f"{path}:{line}: {dotted(key)}" if line else f"{path}: {dotted(key)}"

    return Source(root, (), document, place)


def override_source(root: type[Any], word: str) -> Source:
    """Return what one ``--set`` word says about a tree of class *root*; raises Unreadable."""
    override = parsed_override(word)

    def place(key: KeyPath) -> tuple[int, str]:
        return 0, override.label if key == override.path else f"{override.label}: {dotted(key)}"

    return Source(root, override.path, override.value, place)


def built(shape: type[_Tree], path: KeyPath, values: Mapping[KeyPath, object]) -> _Tree:
    """Return the section of class *shape* at *path*, with the *values* that there are and defaults for the others."""
    fields: dict[str, Any] = {}
    for name, hint in _hints(shape).items():
        key = (*path, name)
        if attrs.has(hint):
            fields[name] = built(hint, key, values)
        elif key in values:
            fields[name] = values[key]
    return shape(**fields)


def leaves(root: type[Any], path: KeyPath = ()) -> Iterator[KeyPath]:
    """Yield the path of every leaf of a tree of class *root*, in the order of its declaration."""
    for name, hint in _hints(root).items():
        if attrs.has(hint):
            yield from leaves(hint, (*path, name))
        else:
            yield (*path, name)


def record_json(record: object) -> dict[str, object]:
    """Return a tree as JSON objects, its leaves as the file would have them, secrets masked."""
    return {name: _json(hint, getattr(record, name)) for name, hint in _hints(type(record)).items()}


def _json(hint: _Hint, value: object) -> object:
    if attrs.has(hint):
        return record_json(value)
    if isinstance(value, tuple):
        return [_json(_item(hint), inner) for inner in value]
    mask = _mask(hint)
    if mask is not None:
        return mask(str(value))
    if isinstance(value, enum.Enum):
        return str(value.value)
    return value if isinstance(value, str | bool | int | float) else str(value)


def _hints(shape: _Hint) -> Mapping[str, _Hint]:
    """Return the names of a class's fields, with their types."""
    return _evaluated_hints(shape)


@functools.cache
def _evaluated_hints(shape: _Hint) -> Mapping[str, _Hint]:
    return typing.get_type_hints(shape, include_extras=True)


def _hint_at(root: type[Any], path: KeyPath) -> _Hint | None:
    """Return the type of the leaf or section at *path*, or None."""
    hint: _Hint = root
    for name in path:
        hint = _hints(hint).get(str(name)) if attrs.has(hint) else None
    return hint


def _item(hint: _Hint) -> _Hint | None:
    """Return the type of the items of ``tuple[item, ...]``, None for a type that is no list."""
    origin: object = typing.get_origin(hint)
    return typing.get_args(hint)[0] if origin is tuple else None


def _reader(hint: _Hint) -> Callable[[object], object]:
    """Return the reader of a type that is one value."""
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return functools.partial(_word, hint)
    reader: Callable[[object], object] = typing.get_args(hint)[1]
    return reader


def _word(words: type[enum.Enum], value: object) -> enum.Enum:
    for word in words:
        if value == word.value:
            return word
    raise Wrong("one of " + ", ".join(f'"{word.value}"' for word in words))


def _mask(hint: _Hint) -> Callable[[str], str] | None:
    """Return what makes a value of this type fit to be shown, None if it is as it is."""
    return next((note.masked for note in typing.get_args(hint) if isinstance(note, Masked)), None)


def _suggestion(root: type[Any], shape: type[Any] | None, path: KeyPath) -> str:
    """Return "; did you mean …?" if a key of the table *shape*, or any key, looks like the last name of *path*."""
    name = str(path[-1])[:80]
    siblings = [*_hints(shape)] if shape is not None else []
    near = [dotted((*path[:-1], sibling)) for sibling in difflib.get_close_matches(name, siblings, n=1)]
    if not near:
        known = [dotted(leaf) for leaf in leaves(root)]
        near = difflib.get_close_matches(dotted(path)[:80], known, n=1)
        near = near or [key for key in known if key.rpartition(".")[2] == name]
    return f"; did you mean {near[0]}?" if len(near) == 1 else ""
