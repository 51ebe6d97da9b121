"""JSON as it is sent and taken: UTF-8, every name once, numbers that are numbers, text that can be written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn, TypeAlias

from coapgw.http.refusals import Mistake, RequestInvalid

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


def parse_json(data: bytes) -> Json:
    """Return what *data* says.  Raises RequestInvalid, whatever the bytes are.

    Stricter than RFC 8259 asks of a parser: a repeated name, NaN, Infinity, a number beyond them and half a surrogate
    pair are refused, because two readers would understand them differently.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _invalid(f"not UTF-8, from byte {error.start} on") from None
    try:
        value: Json = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_int
        )
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise _invalid(f"no JSON: {error.msg}, line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise _invalid("nested too deep") from None
    except UnicodeEncodeError:
        raise _invalid("a text holds half of a surrogate pair") from None
    return value


def write_json(value: Json | Mapping[str, Any]) -> bytes:
    """Return *value* as ASCII JSON without spaces."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def _invalid(reason: str) -> RequestInvalid:
    return RequestInvalid([Mistake("", reason)])


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _invalid("a name is there twice in one object")
    return made


def _constant(name: str) -> NoReturn:
    raise _invalid(f"no JSON: {name}")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _invalid("a number is too large")
    return value


def _int(digits: str) -> int:
    if len(digits) > 20:  # 64 bits; Python would take its time over thousands
        raise _invalid("a number is too large")
    return int(digits)
