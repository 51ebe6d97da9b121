"""CoAP URLs: ``coap://host[:port]/path?query`` and what a request carries of them (RFC 7252 section 6).

Decided where the RFC leaves it to us: Uri-Host is sent for a name and never for an address (section 6.4 step 5), and
Uri-Port never, because the request goes to the very port that the URL names (step 7).  A lone ``?`` sends no Uri-Query.
Characters beyond ASCII are taken as their UTF-8 bytes, so that nobody has to write ``%C3%BC``.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

import attrs

from coapgw.coap.codec import URI_HOST, URI_PATH, URI_QUERY, Options
from coapgw.errors import CoapgwError

DEFAULT_PORTS: Final = {"coap": 5683, "coaps": 5684}  # RFC 7252 sections 6.1 and 6.2
OPTION_LIMIT: Final = 255  # bytes of Uri-Host, Uri-Path, Uri-Query: RFC 7252 section 5.10

_PARTS: Final = re.compile(
    r"(?:(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):)?(?://(?P<authority>[^/?#]*))?(?P<path>[^?#]*)"
    r"(?:\?(?P<query>[^#]*))?(?P<fragment>#.*)?",
    re.DOTALL,
)  # RFC 3986 appendix B
_AUTHORITY: Final = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]*)(?::(?P<port>[0-9]*))?")
_PERCENT: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
_USER: Final = re.compile(r"//.*@", re.DOTALL)
_BROKEN_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")


class UrlRefused(CoapgwError):
    """Text that is no CoAP URL, or one that no request can carry."""

    def __init__(self, url: str, reason: str) -> None:
        """Say what is wrong with *url*; what stands where web URLs have a password is not repeated."""
        super().__init__(f"{_USER.sub('//…@', url)!r}: {reason}")
        self.url = url
        self.reason = reason


@attrs.frozen
class Target:
    """Where a request goes and what it asks for.

    Args:
        scheme: ``coap`` or ``coaps``.
        host: an address (IPv6 without brackets, with its zone if one was given) or a name.
        options: Uri-Host, Uri-Path and Uri-Query.
    """

    scheme: str
    host: str
    port: int
    options: Options

    @property
    def is_secure(self) -> bool:
        """Return whether it is to be reached over DTLS."""
        return self.scheme == "coaps"

    def __str__(self) -> str:
        """Return scheme, host and port as in a URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def parse_url(url: str) -> Target:
    """Take a URL apart (RFC 7252 section 6.4).  Raises UrlRefused."""
    parts = _parts(url)
    if parts["scheme"] is None:
        raise UrlRefused(url, "a URL begins with coap:// or coaps://")
    scheme = parts["scheme"].lower()
    if scheme not in DEFAULT_PORTS:
        raise UrlRefused(url, f"{scheme} is neither coap nor coaps")
    if not parts["authority"]:
        raise UrlRefused(url, "the host is missing")
    host, is_name, port = _authority(url, parts["authority"], DEFAULT_PORTS[scheme])
    options = [(URI_HOST, host.encode())] if is_name else []
    return Target(scheme, host, port, (*options, *_path_and_query(url, parts["path"], parts["query"])))


def resolve_url(url: str, base: Target) -> Target:
    """Take *url*, and if it is only a path and a query, ask for those at the host and port of *base*.

    Raises UrlRefused.
    """
    parts = _parts(url)
    if parts["scheme"] is not None or parts["authority"] is not None:
        return parse_url(url)
    if parts["path"] and not parts["path"].startswith("/"):
        raise UrlRefused(url, "a path begins with a slash")
    host = tuple(option for option in base.options if option[0] == URI_HOST)
    return attrs.evolve(base, options=(*host, *_path_and_query(url, parts["path"], parts["query"])))


def _parts(url: str) -> dict[str, str | None]:
    """Split by RFC 3986; refuse what no part of a URL may have."""
    wrong = next((character for character in url if character.isspace() or not character.isprintable()), None)
    if wrong is not None:
        escapes = "".join(f"%{byte:02X}" for byte in wrong.encode("utf-8", "surrogateescape"))
        raise UrlRefused(url, f"write {wrong!r} as {escapes}")
    if _BROKEN_PERCENT.search(url):
        raise UrlRefused(url, "% is followed by two hexadecimal digits; itself it is %25")
    found = _PARTS.fullmatch(url)
    assert found is not None  # every text matches
    if found["fragment"] is not None:
        raise UrlRefused(url, "a CoAP URL has no fragment; write # as %23")
    return found.groupdict()


def _authority(url: str, authority: str, default_port: int) -> tuple[str, bool, int]:
    """Return host, whether it is a name, and port."""
    if "@" in authority:
        raise UrlRefused(url, "a CoAP URL has no user; the DTLS identity is given apart from it")
    found = _AUTHORITY.fullmatch(authority)
    if found is None:
        raise UrlRefused(url, "no host and port; an IPv6 address stands in brackets")
    port = int(found["port"] or default_port)
    if not 0 < port <= 0xFFFF:
        raise UrlRefused(url, f"port {port} is not one of 1 to 65535")
    host = found["host"]
    if host.startswith("["):
        return _literal(url, host[1:-1]), False, port
    try:
        name = _decoded(host.lower()).decode()
    except UnicodeDecodeError:
        raise UrlRefused(url, "the host is not UTF-8") from None
    if not name:
        raise UrlRefused(url, "the host is missing")
    if len(name.encode()) > OPTION_LIMIT:
        raise UrlRefused(url, f"the host is longer than the {OPTION_LIMIT} bytes that Uri-Host can carry")
    try:
        ipaddress.IPv4Address(name)
    except ValueError:
        return name, True, port
    return name, False, port


def _literal(url: str, literal: str) -> str:
    """Return the IPv6 address in brackets, a zone behind ``%25`` (RFC 6874) or ``%`` kept."""
    address, has_zone, zone = literal.partition("%25")
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        raise UrlRefused(url, "no IPv6 address in the brackets") from None
    return f"{address}%{_decoded(zone).decode('utf-8', 'replace')}" if has_zone else address


def _path_and_query(url: str, path: str | None, query: str | None) -> Options:
    segments = [] if path in (None, "", "/") else [_decoded(segment) for segment in _without_dots(path or "")]
    arguments = [_decoded(argument) for argument in query.split("&")] if query else []
    for value in (*segments, *arguments):
        if len(value) > OPTION_LIMIT:
            raise UrlRefused(url, f"a part of {len(value)} bytes, and an option carries at most {OPTION_LIMIT}")
    if any(segment in (b".", b"..") for segment in segments):
        raise UrlRefused(url, "a Uri-Path may not be . or .., however it is written")  # RFC 7252 section 5.10.1
    return (*((URI_PATH, value) for value in segments), *((URI_QUERY, value) for value in arguments))


def _without_dots(path: str) -> list[str]:
    """Return the segments of an absolute path, ``.`` and ``..`` resolved (RFC 3986 section 5.2.4)."""
    segments = path.split("/")[1:]
    kept: list[str] = []
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return [] if kept == [""] else kept


def _decoded(text: str) -> bytes:
    """Return the bytes, percent-encodings replaced by theirs."""
    return _PERCENT.sub(lambda found: bytes((int(found[1], 16),)), text.encode("utf-8", "surrogateescape"))
