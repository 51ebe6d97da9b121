"""What a device saves that sends a payload instead of the JSON it becomes (PRODUCT section 5)."""

from __future__ import annotations

from typing import Final

JOULES_PER_BYTE: Final = 0.013
JOULES_PER_MESSAGE: Final = 94.084  # connection and headers, whatever is in it


def energy_saved_percent(payload_bytes: int, document_bytes: int) -> float:
    """Return what sending *payload_bytes* instead of *document_bytes* saves, in percent with two decimals."""
    saved = JOULES_PER_BYTE * (document_bytes - payload_bytes)
    return round(100 * saved / (JOULES_PER_BYTE * document_bytes + JOULES_PER_MESSAGE), 2)
