"""Bytes to options and txThings messages, and back, strictly by RFC 7252 section 3.

The message path needs three things of a datagram: its header, its options and where its payload begins.  It gets them
as plain ints and bytes.  ``to_message`` makes the ``txthings.coap.Message`` that mounted resources know, and
``encode_body`` turns an answer's options and payload back into bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, TypeAlias

from txthings import coap

from coapgw.errors import PeerError

CON: Final = 0
NON: Final = 1
ACK: Final = 2
RST: Final = 3

EMPTY: Final = 0
GET: Final = 1
POST: Final = 2
PUT: Final = 3
DELETE: Final = 4
FETCH: Final = 5  # RFC 8132 section 6
PATCH: Final = 6
IPATCH: Final = 7

VALID: Final = 0x43
CHANGED: Final = 0x44
CONTENT: Final = 0x45
CONTINUE: Final = 0x5F  # RFC 7959 section 2.9
BAD_REQUEST: Final = 0x80
UNAUTHORIZED: Final = 0x81
BAD_OPTION: Final = 0x82
FORBIDDEN: Final = 0x83
NOT_FOUND: Final = 0x84
METHOD_NOT_ALLOWED: Final = 0x85
NOT_ACCEPTABLE: Final = 0x86
REQUEST_ENTITY_INCOMPLETE: Final = 0x88  # RFC 7959 section 2.9
PRECONDITION_FAILED: Final = 0x8C
REQUEST_ENTITY_TOO_LARGE: Final = 0x8D
UNSUPPORTED_CONTENT_FORMAT: Final = 0x8F
TOO_MANY_REQUESTS: Final = 0x9D  # RFC 8516
INTERNAL_SERVER_ERROR: Final = 0xA0
SERVICE_UNAVAILABLE: Final = 0xA3
GATEWAY_TIMEOUT: Final = 0xA4
PROXYING_NOT_SUPPORTED: Final = 0xA5

IF_MATCH: Final = 1
URI_HOST: Final = 3
ETAG: Final = 4
IF_NONE_MATCH: Final = 5
OBSERVE: Final = 6
URI_PATH: Final = 11
CONTENT_FORMAT: Final = 12
MAX_AGE: Final = 14
URI_QUERY: Final = 15
HOP_LIMIT: Final = 16
ACCEPT: Final = 17
BLOCK2: Final = 23
BLOCK1: Final = 27
SIZE2: Final = 28
PROXY_URI: Final = 35
PROXY_SCHEME: Final = 39
SIZE1: Final = 60
ECHO: Final = 252
NO_RESPONSE: Final = 258

TEXT_PLAIN: Final = 0
LINK_FORMAT: Final = 40  # application/link-format, RFC 6690 section 7.3

HEADER_BYTES: Final = 4
TOKEN_LIMIT: Final = 8  # RFC 7252 section 3: lengths 9 to 15 are reserved, a message format error
PAYLOAD_MARKER: Final = 0xFF
OPTION_NUMBER_LIMIT: Final = 0xFFFF  # RFC 7252 section 12.2: the registry ends at 65535

Options: TypeAlias = tuple[tuple[int, bytes], ...]


MESSAGE_PARTS: Final = ("header", "token", "code", "option")


class MessageFormatError(PeerError):
    """Not a CoAP message (RFC 7252 section 3): rejected with RST, or in silence."""

    def __init__(self, text: str, part: str = "option") -> None:
        """Say what is wrong, and in which *part* of the message: one of MESSAGE_PARTS."""
        super().__init__(text)
        self.part = part


class OptionRefused(PeerError):
    """A critical option we do not know, or know but not like this (RFC 7252 sections 5.4.1, 5.4.3, 5.4.5)."""

    def __init__(self, number: int) -> None:
        """Remember the option *number*."""
        super().__init__(f"option {number}")
        self.number = number


class OptionDefinition(NamedTuple):
    """A row of an RFC's option table: value lengths in bytes, both included, and whether it may occur again."""

    name: str
    shortest: int
    longest: int
    repeatable: bool = False


ANY_LENGTH: Final = 65804  # the longest value an option can carry: 65535 + 269

DEFINITIONS: Final[dict[int, OptionDefinition]] = {
    # RFC 7252 section 5.10
    1: OptionDefinition("If-Match", 0, 8, repeatable=True),
    3: OptionDefinition("Uri-Host", 1, 255),
    4: OptionDefinition("ETag", 1, 8, repeatable=True),
    5: OptionDefinition("If-None-Match", 0, 0),
    7: OptionDefinition("Uri-Port", 0, 2),
    8: OptionDefinition("Location-Path", 0, 255, repeatable=True),
    11: OptionDefinition("Uri-Path", 0, 255, repeatable=True),
    12: OptionDefinition("Content-Format", 0, 2),
    14: OptionDefinition("Max-Age", 0, 4),
    # The RFC ends at 255.  A longer topic is to be answered 4.00 with a reason, not 4.02: the resource has to see it.
    15: OptionDefinition("Uri-Query", 0, ANY_LENGTH, repeatable=True),
    17: OptionDefinition("Accept", 0, 2),
    20: OptionDefinition("Location-Query", 0, 255, repeatable=True),
    35: OptionDefinition("Proxy-Uri", 1, 1034),
    39: OptionDefinition("Proxy-Scheme", 1, 255),
    60: OptionDefinition("Size1", 0, 4),
    # RFC 7641 section 2
    6: OptionDefinition("Observe", 0, 3),
    # RFC 7959 sections 2.1 and 4
    23: OptionDefinition("Block2", 0, 3),
    27: OptionDefinition("Block1", 0, 3),
    28: OptionDefinition("Size2", 0, 4),
    # RFC 7967 section 2
    258: OptionDefinition("No-Response", 0, 1),
    # RFC 8768 section 3.  Its length is 1; 0 and what is over 255 is to be answered 4.00, not ignored.
    16: OptionDefinition("Hop-Limit", 0, 4),
    # RFC 9175 sections 2.2.1 and 3.2.1
    252: OptionDefinition("Echo", 1, 40),
    292: OptionDefinition("Request-Tag", 0, 8, repeatable=True),
}


def parse_options(data: bytes, start: int) -> tuple[Options, int]:
    """Walk the options of a message (RFC 7252 section 3.1).

    Args:
        data: the whole datagram.
        start: where the options begin, behind the token.

    Returns:
        ((number, value), …) in the order they came, and where the payload begins (the end of *data* if there is none).

    Raises:
        MessageFormatError: a field is cut off, a nibble is 15, a number passes 65535, a payload marker has no payload.
    """
    at, end, number = start, len(data), 0
    options: list[tuple[int, bytes]] = []
    while at < end:
        first = data[at]
        if first == PAYLOAD_MARKER:
            if at + 1 == end:
                raise MessageFormatError("payload marker without a payload")
            return tuple(options), at + 1
        at += 1
        delta, length = first >> 4, first & 15
        if delta > 12:
            delta, at = _extended(delta, data, at)
        if length > 12:
            length, at = _extended(length, data, at)
        number += delta
        if number > OPTION_NUMBER_LIMIT:
            raise MessageFormatError("option number past 65535")
        value_end = at + length
        if value_end > end:
            raise MessageFormatError("option value cut off")
        options.append((number, data[at:value_end]))
        at = value_end
    return tuple(options), end


def _extended(nibble: int, data: bytes, at: int) -> tuple[int, int]:
    """Read an extended option delta or length; return it and the place behind it."""
    if nibble == 13 and at < len(data):
        return data[at] + 13, at + 1
    if nibble == 14 and at + 1 < len(data):
        return (data[at] << 8 | data[at + 1]) + 269, at + 2
    raise MessageFormatError("reserved nibble" if nibble == 15 else "extended field cut off")


def known_options(options: Options) -> Options:
    """Leave out what a server may ignore; raise OptionRefused for what it must not.

    An option with a length outside its definition, and a repeat of one that does not repeat, count as unknown (RFC 7252
    sections 5.4.3 and 5.4.5): elective ones (even numbers) are ignored, critical ones (odd numbers) refused.
    """
    kept: list[tuple[int, bytes]] = []
    before = -1
    for number, value in options:
        definition = DEFINITIONS.get(number)
        if (
            definition is not None
            and definition.shortest <= len(value) <= definition.longest
            and (number != before or definition.repeatable)
        ):
            kept.append((number, value))
        elif number & 1:
            raise OptionRefused(number)
        before = number
    return tuple(kept)


def option_value(options: Options, number: int) -> bytes | None:
    """Return the value of an option that does not repeat, None if it is not there."""
    return next((value for found, value in options if found == number), None)


def option_values(options: Options, number: int) -> list[bytes]:
    """Return the values of an option that may repeat, in their order."""
    return [value for found, value in options if found == number]


def encode_options(options: Iterable[tuple[int, bytes]]) -> bytes:
    """Encode (number, value) pairs, sorted by number, repeats in the order given (RFC 7252 section 3.1)."""
    out = bytearray()
    before = 0
    for number, value in sorted(options, key=lambda option: option[0]):
        delta, delta_more = _nibble(number - before)
        length, length_more = _nibble(len(value))
        out.append(delta << 4 | length)
        out += delta_more + length_more + value
        before = number
    return bytes(out)


def _nibble(value: int) -> tuple[int, bytes]:
    """Return the nibble and the extended bytes of an option delta or length."""
    if value < 13:
        return value, b""
    if value < 269:
        return 13, bytes((value - 13,))
    return 14, (value - 269).to_bytes(2, "big")


def encode_body(options: Iterable[tuple[int, bytes]] = (), payload: bytes = b"") -> bytes:
    """Encode what follows the token: options, and the payload behind its marker if there is one."""
    block = encode_options(options)
    return block + b"\xff" + payload if payload else block


def add_options(body: bytes, more: Iterable[tuple[int, bytes]]) -> bytes:
    """Return a *body* as ``encode_body`` makes it with *more* options."""
    options, payload_at = parse_options(body, 0)
    return encode_body([*options, *more], body[payload_at:])


def encode_uint(value: int) -> bytes:
    """Encode a uint option value in as few bytes as it takes; 0 takes none (RFC 7252 section 3.2)."""
    return value.to_bytes((value.bit_length() + 7) // 8, "big")


def decode_uint(value: bytes) -> int:
    """Decode a uint option value; leading zero bytes are accepted (RFC 7252 section 3.2)."""
    return int.from_bytes(value, "big")


def to_message(header: bytes, options: Options, payload: bytes) -> coap.Message:
    """Make the txThings message of a request.

    Args:
        header: the four header bytes and the token, as received.
        options: as ``known_options`` returns them.
        payload: empty if there is none.
    """
    message = coap.Message(
        mtype=header[0] >> 4 & 3,
        mid=header[2] << 8 | header[3],
        code=header[1],
        payload=payload,
        token=header[HEADER_BYTES:],
    )
    for number, value in options:
        # txThings has no format for Accept (17) and would leave it as bytes; EVIDENCE lists its other lapses.
        known = coap.UintOption if number == coap.ACCEPT else coap.option_formats.get(number, coap.OpaqueOption)
        option = known(number)
        option.decode(value)
        message.opt.addOption(option)
    return message


def message_options(message: coap.Message) -> Sequence[tuple[int, bytes]]:
    """Return the options of a txThings message as (number, value).

    Uint and block values are encoded here: txThings writes Content-Format 0 as a zero byte and pads block options.
    """
    out: list[tuple[int, bytes]] = []
    for option in message.opt.optionList():
        if isinstance(option, coap.BlockOption):
            number, more, exponent = option.value
            out.append((option.number, encode_uint(number << 4 | (8 if more else 0) | exponent)))
        elif isinstance(option, coap.UintOption):
            out.append((option.number, encode_uint(int(option.value))))
        else:
            value = option.value
            out.append((option.number, value.encode() if isinstance(value, str) else bytes(value)))
    return out
