"""The part of JSON Schema (draft 2020-12) that the operations use: the same words are checked and published.

Our own hundred lines, because a message must never hold the value (it may be a key), because 5000 keys are to be
checked in milliseconds, and because every mistake is to be told at once.  A test holds them against ``jsonschema``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Final, TypeAlias

from coapgw.http.refusals import Mistake, RequestInvalid
from coapgw.json_text import Json

Schema: TypeAlias = Mapping[str, Any]
"""A schema as OpenAPI shows it."""

SHOWN_MISTAKES: Final = 20  # of one body; who made five thousand the same way needs no more
SHOWN_NAME: Final = 64  # characters of a field that is not known

CHECKED: Final = frozenset(
    (
        *("type", "enum", "pattern", "minLength", "maxLength", "minimum", "maximum"),
        *("properties", "required", "additionalProperties", "items", "minItems", "maxItems"),
    )
)
TOLD: Final = frozenset(("title", "description", "examples", "format", "default", "writeOnly"))

_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def expect(schema: Schema, value: Json) -> None:
    """Raise RequestInvalid with what is wrong with *value*, if anything is."""
    mistakes = list(islice(mistakes_in(schema, value), SHOWN_MISTAKES))
    if mistakes:
        raise RequestInvalid(mistakes)


def mistakes_in(schema: Schema, value: Json, field: str = "") -> Iterator[Mistake]:
    """Yield everything in *value* that is not as *schema* says; *field* is where we are."""
    if "type" in schema and not _is_of(schema["type"], value):
        yield Mistake(field, f"shall be {_types_in_words(schema['type'])}")
        return
    if "enum" in schema and not any(value == one and type(value) is type(one) for one in schema["enum"]):
        yield Mistake(field, "shall be " + " or ".join(str(one) for one in schema["enum"]))
    if isinstance(value, str):
        yield from _in_text(schema, value, field)
    elif isinstance(value, dict):
        yield from _in_object(schema, value, field)
    elif isinstance(value, list):
        yield from _in_array(schema, value, field)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _in_number(schema, value, field)


def unchecked_words(schema: Schema) -> set[str]:
    """Return what *schema* says that ``mistakes_in`` does not look at, and nobody would notice."""
    found = set(schema) - CHECKED - TOLD
    if schema.get("additionalProperties", False) is not False:
        found.add("additionalProperties")
    for part in (*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])):
        found |= unchecked_words(part)
    return found


def _is_of(types: str | list[str], value: Json) -> bool:
    for name in [types] if isinstance(types, str) else types:
        if isinstance(value, _TYPES[name]) and (name == "boolean" or not isinstance(value, bool)):
            return True
        if name == "integer" and isinstance(value, float) and value.is_integer():
            return True
    return False


def _types_in_words(types: str | list[str]) -> str:
    named = {"object": "an object", "array": "an array", "string": "a text", "integer": "a whole number"}
    named |= {"number": "a number", "boolean": "true or false", "null": "null"}
    return " or ".join(named[name] for name in ([types] if isinstance(types, str) else types))


def _in_text(schema: Schema, value: str, field: str) -> Iterator[Mistake]:
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    if len(value) < least or (most is not None and len(value) > most):
        yield Mistake(field, f"shall have {_range(least, most)} characters")
    elif "pattern" in schema and re.fullmatch(schema["pattern"], value) is None:
        yield Mistake(field, schema.get("description") or f"shall match {schema['pattern']}")


def _in_number(schema: Schema, value: float, field: str) -> Iterator[Mistake]:
    least, most = schema.get("minimum"), schema.get("maximum")
    if (least is not None and value < least) or (most is not None and value > most):
        yield Mistake(field, f"shall be {_range(least, most)}")


def _in_object(schema: Schema, value: dict[str, Json], field: str) -> Iterator[Mistake]:
    properties: Mapping[str, Schema] = schema.get("properties", {})
    prefix = f"{field}." if field else ""
    for name in schema.get("required", ()):
        if name not in value:
            yield Mistake(prefix + name, "is missing")
    for name, part in value.items():
        if name in properties:
            yield from mistakes_in(properties[name], part, prefix + name)
        elif schema.get("additionalProperties") is False:
            yield Mistake(prefix + name[:SHOWN_NAME], "is no field here")


def _in_array(schema: Schema, value: list[Json], field: str) -> Iterator[Mistake]:
    least, most = schema.get("minItems", 0), schema.get("maxItems")
    if len(value) < least or (most is not None and len(value) > most):
        yield Mistake(field, f"shall have {_range(least, most)} elements")
        return
    if "items" in schema:
        for place, part in enumerate(value):
            yield from mistakes_in(schema["items"], part, f"{field}[{place}]")


def _range(least: int | None, most: int | None) -> str:
    if most is None:
        return f"at least {least}"
    return f"at most {most}" if not least else f"{least} to {most}"
