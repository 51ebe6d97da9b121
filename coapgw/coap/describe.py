"""Codes, options and datagrams in words, for people who test with CoAP."""

from __future__ import annotations

from typing import Final

from coapgw.coap.codec import (
    DEFINITIONS,
    HEADER_BYTES,
    TOKEN_LIMIT,
    MessageFormatError,
    decode_uint,
    encode_uint,
    parse_options,
)
from coapgw.errors import CoapgwError

CODES: Final = {
    # RFC 7252 sections 12.1.1 and 12.1.2
    0x00: "Empty",
    0x01: "GET",
    0x02: "POST",
    0x03: "PUT",
    0x04: "DELETE",
    0x41: "Created",
    0x42: "Deleted",
    0x43: "Valid",
    0x44: "Changed",
    0x45: "Content",
    0x80: "Bad Request",
    0x81: "Unauthorized",
    0x82: "Bad Option",
    0x83: "Forbidden",
    0x84: "Not Found",
    0x85: "Method Not Allowed",
    0x86: "Not Acceptable",
    0x8C: "Precondition Failed",
    0x8D: "Request Entity Too Large",
    0x8F: "Unsupported Content-Format",
    0xA0: "Internal Server Error",
    0xA1: "Not Implemented",
    0xA2: "Bad Gateway",
    0xA3: "Service Unavailable",
    0xA4: "Gateway Timeout",
    0xA5: "Proxying Not Supported",
    # RFC 7959 section 6, RFC 8132 section 6, RFC 8516 section 5, RFC 8768 section 6
    0x05: "FETCH",
    0x06: "PATCH",
    0x07: "iPATCH",
    0x5F: "Continue",
    0x88: "Request Entity Incomplete",
    0x89: "Conflict",
    0x96: "Unprocessable Entity",
    0x9D: "Too Many Requests",
    0xA8: "Hop Limit Reached",
}
CONTENT_FORMATS: Final = {  # RFC 7252 section 12.3, RFC 8949 section 9.4, RFC 8428 section 12.3
    0: "text/plain",
    40: "application/link-format",
    41: "application/xml",
    42: "application/octet-stream",
    47: "application/exi",
    50: "application/json",
    60: "application/cbor",
    110: "application/senml+json",
    112: "application/senml+cbor",
}
TYPES: Final = ("CON", "NON", "ACK", "RST")
SHOWN_BYTES: Final = 40  # of an option's value

_UINTS: Final = frozenset((6, 7, 12, 14, 16, 17, 28, 60, 258))
_BLOCKS: Final = frozenset((23, 27))
_FORMATS: Final = frozenset((12, 17))
_TEXTS: Final = frozenset((3, 8, 11, 15, 20, 35, 39))
_NUMBERS: Final = {definition.name.lower(): number for number, definition in DEFINITIONS.items()}


class OptionTextRefused(CoapgwError):
    """Text that names no option, or no value for it."""


def dotted(code: int) -> str:
    """Return a code as ``2.04``."""
    return f"{code >> 5}.{code & 0x1F:02}"


def code_text(code: int) -> str:
    """Return a code as ``2.04 Changed``, a method as ``POST``."""
    name = CODES.get(code, "")
    return name if 0 < code < 0x20 and name else f"{dotted(code)} {name}".rstrip()


def option_name(number: int) -> str:
    """Return the name of an option, or ``Option N``."""
    definition = DEFINITIONS.get(number)
    return definition.name if definition is not None else f"Option {number}"


def option_value(number: int, value: bytes) -> str:
    """Return an option's value as a person reads it."""
    if number in _UINTS:
        decoded = decode_uint(value)
        name = CONTENT_FORMATS.get(decoded) if number in _FORMATS else None
        return f"{decoded} ({name})" if name is not None else str(decoded)
    if number in _BLOCKS:  # RFC 7959 section 2.2
        block = decode_uint(value)
        return f"{block >> 4}/{'more' if block & 8 else 'last'}/{16 << (block & 7)}"
    if number in _TEXTS:
        text = printable_text(value)
        if text and "\n" not in text:
            return _shortened(text)
    return _shortened(f"0x{value.hex()}" if value else "empty")


def printable_text(data: bytes) -> str | None:
    """Return *data* as text if it is UTF-8 that can be printed without moving the cursor or worse, else None."""
    try:
        text = data.decode().replace("\r\n", "\n")
    except UnicodeDecodeError:
        return None
    return text if all(character.isprintable() or character in "\t\n" for character in text) else None


def describe_datagram(data: bytes) -> str:
    """Return type, code, Message ID, token, options and payload length of a datagram."""
    if len(data) < HEADER_BYTES or data[0] >> 6 != 1:
        return f"no CoAP message, {len(data)} bytes"
    token_end = HEADER_BYTES + (data[0] & 15)
    head = f"{TYPES[data[0] >> 4 & 3]} {code_text(data[1])} id {data[2] << 8 | data[3]}"
    if token_end > min(len(data), HEADER_BYTES + TOKEN_LIMIT):
        return f"{head}, malformed"
    try:
        options, payload_at = parse_options(data, token_end)
    except MessageFormatError as error:
        return f"{head}, malformed: {error}"
    parts = [head]
    if token_end > HEADER_BYTES:
        parts.append(f"token {data[HEADER_BYTES:token_end].hex()}")
    parts += [f"{option_name(number)} {option_value(number, value)}" for number, value in options]
    if payload_at < len(data):
        parts.append(f"{len(data) - payload_at} bytes")
    return ", ".join(parts)


def parse_option(text: str) -> tuple[int, bytes]:
    """Return the option that ``NUMBER,VALUE`` means; a name will do for the number.

    The value is ``0x`` and hexadecimal digits, a decimal number where the option's format is uint, or text.  It may be
    wrong for the option: that is what such a client is for.  Raises OptionTextRefused.
    """
    name, _, value = text.partition(",")
    number = int(name) if name.isascii() and name.isdigit() else _NUMBERS.get(name.strip().lower())
    if number is None or number > 0xFFFF:
        raise OptionTextRefused(f"option {name!r}: a number up to 65535, or a name such as Content-Format")
    if value[:2].lower() == "0x":
        try:
            return number, bytes.fromhex(value[2:])
        except ValueError:
            raise OptionTextRefused(f"option {option_name(number)}: {value!r} is not hexadecimal") from None
    if number in _UINTS | _BLOCKS and value.isascii() and value.isdigit():
        return number, encode_uint(int(value))
    return number, value.encode("utf-8", "surrogateescape")


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN_BYTES * 2 else text[: SHOWN_BYTES * 2] + "…"
