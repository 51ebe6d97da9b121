"""Numbers as JSON text: as short as they can be, and exact."""

from __future__ import annotations

import math
import struct
from typing import Final

_FLOAT32: Final = struct.Struct(">f")
_FLOAT32_DIGITS: Final = range(6, 10)  # 6 always survive the way to decimal and back, 9 always suffice


class NotFinite(ValueError):
    """A float that is no number, or infinite: JSON has neither."""


def float64_text(value: float) -> str:
    """Return the shortest decimal that reads back as *value*.  Raises NotFinite."""
    if not math.isfinite(value):
        raise NotFinite(value)
    text = repr(value)
    return text[:-2] if text.endswith(".0") else text


def float32_text(value: float) -> str:
    """Return a short decimal that reads back as the same 4-byte float: no nearest one with fewer digits does.

    Raises NotFinite.
    """
    if not math.isfinite(value):
        raise NotFinite(value)
    return float64_text(float32_nearest(value))


def float32_nearest(value: float) -> float:
    """Return the number of few digits that reads back as the same 4-byte float, which is finite."""
    for digits in _FLOAT32_DIGITS:
        near = float(f"{value:.{digits}g}")
        if _reads_back(near, value):
            return near
    raise AssertionError("nine digits always suffice")


def _reads_back(candidate: float, value: float) -> bool:
    try:
        return bool(_FLOAT32.unpack(_FLOAT32.pack(candidate))[0] == value)
    except OverflowError:
        return False
