"""What the options of a request ask of a resource before, and of its answer after (RFC 7252 section 5.10).

An application's resource may say, as attributes,

* ``etag``: the entity-tag of what it is now, bytes; None (or no such attribute) if it has none;
* ``exists``: False for one that a PUT would create;
* ``needs_freshness``: True if a request is to prove, with Echo, that it was sent just now (RFC 9175 section 2);
* ``accepted_formats``: the Content-Formats it takes, ints; None (or no such attribute): it looks for itself.

An answer's own Content-Format and ETag say whether it is what the client accepts, and has already.
"""

from __future__ import annotations

from typing import Final

from coapgw.coap.codec import (
    ACCEPT,
    CONTENT,
    CONTENT_FORMAT,
    ETAG,
    FETCH,
    GET,
    IF_MATCH,
    IF_NONE_MATCH,
    MAX_AGE,
    NOT_ACCEPTABLE,
    OBSERVE,
    PRECONDITION_FAILED,
    UNSUPPORTED_CONTENT_FORMAT,
    VALID,
    Options,
    decode_uint,
    encode_body,
    option_value,
    option_values,
    parse_options,
)

SAFE_METHODS: Final = (GET, FETCH)
_KEPT_WHEN_VALID: Final = (ETAG, OBSERVE, MAX_AGE)


def refusal(found: object, options: Options) -> int | None:
    """Return the code that refuses a request to the resource *found* because of its options, None if nothing does."""
    exists, etag = getattr(found, "exists", True), getattr(found, "etag", None)
    wanted = option_values(options, IF_MATCH)
    if wanted and not (exists and (b"" in wanted or etag in wanted)):
        return PRECONDITION_FAILED
    if exists and option_value(options, IF_NONE_MATCH) is not None:
        return PRECONDITION_FAILED
    formats, given = getattr(found, "accepted_formats", None), option_value(options, CONTENT_FORMAT)
    if formats is not None and given is not None and decode_uint(given) not in formats:
        return UNSUPPORTED_CONTENT_FORMAT
    return None


def is_unconditional(options: Options) -> bool:
    """Return whether there is neither If-Match nor If-None-Match."""
    return not any(number in (IF_MATCH, IF_NONE_MATCH) for number, _ in options)


def accepts(options: Options, content_format: int) -> bool:
    """Return whether a client that sent these options takes this Content-Format."""
    accepted = option_value(options, ACCEPT)
    return accepted is None or decode_uint(accepted) == content_format


def acceptable(method: int, options: Options, code: int, body: bytes) -> tuple[int, bytes]:
    """Return the answer, or 4.06 in its place if it is a representation the client does not accept.

    Only for methods that change nothing: for others it is too late.
    """
    if method in SAFE_METHODS and code == CONTENT and option_value(options, ACCEPT) is not None:
        given = option_value(parse_options(body, 0)[0], CONTENT_FORMAT)
        if given is not None and not accepts(options, decode_uint(given)):
            return NOT_ACCEPTABLE, b""
    return code, body


def validated(etags: list[bytes], code: int, body: bytes) -> tuple[int, bytes]:
    """Return the answer, or 2.03 in its place if the client has it already, by one of the *etags* it sent."""
    if code == CONTENT:
        options = parse_options(body, 0)[0]
        if option_value(options, ETAG) in etags:
            return VALID, encode_body([option for option in options if option[0] in _KEPT_WHEN_VALID])
    return code, body
