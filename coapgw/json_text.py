"""JSON as it is sent and taken: UTF-8, every name once, numbers that are numbers, text that can be written."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn, TypeAlias

from coapgw.errors import PeerError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

DIGITS_LIMIT = 20  # of a whole number: 64 bits; Python would take its time over thousands


class JsonInvalid(PeerError):
    """What is no JSON, or two readers would understand differently."""

    def __init__(self, reason: str) -> None:
        """Say what is wrong, where that is known."""
        super().__init__(reason)
        self.reason = reason


def parse_json(data: bytes) -> Json:
    """Return what *data* says.  Raises JsonInvalid, whatever the bytes are.

    Stricter than RFC 8259 asks of a parser: a repeated name, NaN, Infinity, a number beyond them and half a surrogate
    pair are refused, because two readers would understand them differently.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise JsonInvalid(f"not UTF-8, from byte {error.start} on") from None
    try:
        value: Json = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_int
        )
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise JsonInvalid(f"no JSON: {error.msg}, line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise JsonInvalid("nested too deep") from None
    except UnicodeEncodeError:
        raise JsonInvalid("a text holds half of a surrogate pair") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise JsonInvalid("a name is there twice in one object")
    return made


def _constant(name: str) -> NoReturn:
    raise JsonInvalid(f"no JSON: {name}")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise JsonInvalid("a number is too large")
    return value


def _int(digits: str) -> int:
    if len(digits) > DIGITS_LIMIT:
        raise JsonInvalid("a number is too large")
    return int(digits)
