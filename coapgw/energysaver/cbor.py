"""CBOR payloads as JSON (RFC 8949 section 6.1), and SenML in CBOR as SenML in JSON (RFC 8428)."""

from __future__ import annotations

import io
import json
import math
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from typing import Any, Final

import cbor2

from coapgw.errors import Untranslatable

DEPTH_LIMIT: Final = 32
BIGNUM_LIMIT: Final = 64  # bytes
EXPONENT_LIMIT: Final = 400  # of ten; floats end before
_SENML: Final = {
    -1: "bver",
    -2: "bn",
    -3: "bt",
    -4: "bu",
    -5: "bv",
    -6: "bs",
    0: "n",
    1: "u",
    2: "v",
    3: "vs",
    4: "vb",
    5: "s",
    6: "t",
    7: "ut",
    8: "vd",
}  # RFC 8428 section 6

_write_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


class _Bignum:
    """A number of any size; not hashable, so that nobody fills a map with keys that are chosen to collide."""

    __hash__ = None  # type: ignore[assignment]
    __slots__ = ("value",)

    def __init__(self, value: int | float) -> None:
        self.value = value


def decode_cbor(payload: bytes) -> bytes:
    """Return a CBOR data item as compact UTF-8 JSON.  Raises Untranslatable.

    Byte strings become base64url without padding, or what tags 21 to 23 ask for; NaN, infinities, undefined and simple
    values become null; whole numbers as keys become texts; bignums, decimal fractions and bigfloats become numbers;
    other tags are left out.  Shared values, references and keys of other kinds are refused, and so is a key that is
    there twice.
    """
    return _write_json(_as_json(_decoded(payload), 0)).encode("utf-8", "surrogatepass")


def decode_senml_cbor(payload: bytes) -> bytes:
    """Return a SenML pack in CBOR as one in JSON, base values kept.  Raises Untranslatable."""
    pack = _decoded(payload)
    if not isinstance(pack, list | tuple) or not all(isinstance(record, Mapping) for record in pack):
        raise Untranslatable("Error: no SenML (RFC 8428): a pack is a list of records")
    records = [_as_json(record, 1, _SENML) for record in pack]
    return _write_json(records).encode("utf-8", "surrogatepass")


def _decoded(payload: bytes) -> Any:
    stream = io.BytesIO(payload)
    try:
        decoder = cbor2.CBORDecoder(
            stream, semantic_decoders=_TAGS, tag_hook=_untagged, max_depth=DEPTH_LIMIT, allow_duplicate_keys=False
        )
        value = decoder.decode()
    except (cbor2.CBORDecodeError, TypeError, ValueError, OverflowError) as error:
        raise Untranslatable(f"Error: no CBOR (RFC 8949): {str(error)[:200]}") from None
    if stream.tell() != len(payload):
        raise Untranslatable(f"Error: no CBOR (RFC 8949): {len(payload) - stream.tell()} bytes are behind it")
    return value


def _as_json(value: Any, depth: int, names: Mapping[int, str] | None = None) -> Any:
    """Return what JSON has for a value; *names* are those of keys that are whole numbers."""
    match value:
        case bool() | int() | str() | None:
            return value
        case float():
            return value if math.isfinite(value) else None
        case bytes():
            return _base64url(value)
        case list() | tuple():
            return [_as_json(item, depth + 1) for item in value]
        case _Bignum():
            return value.value
        case Mapping():
            return _object(value, depth, names or {})
        case _:
            return None  # undefined, simple values


def _object(value: Mapping[Any, Any], depth: int, names: Mapping[int, str]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, item in value.items():
        name = _name(key, names)
        if name in made:
            raise Untranslatable(f"Error: no CBOR that JSON has: the name {name[:64]!r} is there twice")
        made[name] = _as_json(item, depth + 1)
    return made


def _name(key: Any, names: Mapping[int, str]) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, bytes):
        return _base64url(key)
    if isinstance(key, int) and not isinstance(key, bool):
        return names.get(key) or str(key)
    raise Untranslatable(f"Error: no CBOR that JSON has: a {type(key).__name__} as a name")


def _base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


# ---------------------------------------------------------------------- tags


def _inner(value: Any, _immutable: bool) -> Any:
    return value


def _untagged(tag: cbor2.CBORTag, _immutable: bool) -> Any:
    return tag.value


def _refused(_value: Any, _immutable: bool) -> Any:
    raise ValueError("shared values and references are not taken")


def _bignum(sign: Callable[[int], int]) -> Callable[[Any, bool], _Bignum]:
    def decoded(value: Any, _immutable: bool) -> _Bignum:
        if not isinstance(value, bytes) or len(value) > BIGNUM_LIMIT:
            raise ValueError(f"a bignum has {BIGNUM_LIMIT} bytes at most")
        return _Bignum(sign(int.from_bytes(value, "big")))

    return decoded


def _fraction(value: Any, _immutable: bool) -> _Bignum:
    """Return a decimal fraction (RFC 8949 section 3.4.4)."""
    exponent, mantissa = _pair(value)
    return _finite(float(f"{mantissa}e{exponent}"))


def _bigfloat(value: Any, _immutable: bool) -> _Bignum:
    exponent, mantissa = _pair(value)
    return _finite(math.ldexp(float(mantissa), exponent))


def _pair(value: Any) -> tuple[int, int]:
    exponent, mantissa = value
    if isinstance(mantissa, _Bignum):
        mantissa = mantissa.value
    if not isinstance(exponent, int) or not isinstance(mantissa, int) or abs(exponent) > EXPONENT_LIMIT:
        raise ValueError("a fraction is an exponent and a mantissa, and no float is that large or small")
    return exponent, mantissa


def _finite(number: float) -> _Bignum:
    if not math.isfinite(number):
        raise OverflowError("a fraction that no float can be")
    return _Bignum(int(number) if number.is_integer() and abs(number) < 2**53 else number)


def _as_text(encode: Callable[[bytes], str]) -> Callable[[Any, bool], Any]:
    return lambda value, _immutable: encode(value) if isinstance(value, bytes) else value


_TAGS: Final[Mapping[int, Callable[[Any, bool], Any]]] = {
    **dict.fromkeys((0, 1, 30, 35, 36, 37, 52, 54, 100, 258, 260, 261, 1004, 43000, 55799), _inner),
    **dict.fromkeys((25, 28, 29, 256), _refused),
    2: _bignum(lambda number: number),
    3: _bignum(lambda number: -1 - number),
    4: _fraction,
    5: _bigfloat,
    21: _as_text(_base64url),
    22: _as_text(lambda data: b64encode(data).decode()),
    23: _as_text(bytes.hex),
}
"""What cbor2 would make Python objects of, which JSON has not; and what is not for strangers."""
