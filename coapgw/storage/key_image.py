"""A key as the memory image holds it: still sealed, and small, for there may be a million."""

from __future__ import annotations

from typing import Final, NewType

from coapgw.model import KeyFormat

KeyImage = NewType("KeyImage", bytes)
"""Eight bytes of serial, one of format, then the secret as ``storage.sealing`` sealed it."""

_SERIAL_BYTES: Final = 8
_HEAD: Final = _SERIAL_BYTES + 1
_FORMATS: Final = (KeyFormat.STRING, KeyFormat.HEX)
_CODES: Final = {key_format.value: bytes((code,)) for code, key_format in enumerate(_FORMATS)}


def image_of(serial: int, key_format: str, sealed: bytes) -> KeyImage:
    """Return the image of a key, from what its row in the database has."""
    return KeyImage(serial.to_bytes(_SERIAL_BYTES, "big") + _CODES[key_format] + sealed)


def serial_of(image: KeyImage) -> int:
    """Return the serial of a key."""
    return int.from_bytes(image[:_SERIAL_BYTES], "big")


def parts_of(image: KeyImage) -> tuple[int, KeyFormat, bytes]:
    """Return the serial, the format and the sealed secret."""
    return serial_of(image), _FORMATS[image[_SERIAL_BYTES]], image[_HEAD:]
