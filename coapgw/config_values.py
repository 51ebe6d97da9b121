"""What a value of the configuration may be: readers from TOML values, and how values are shown to people.

A reader is a function from what ``tomllib`` found to the value the gateway works with; it raises Wrong.  It stands in
the type of a key, ``Annotated[int, whole(1)]``, so that a key, its default and its check are declared in one place:
``config.py``.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import math
import re
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, TypeAlias

import attrs

LARGEST = 2**63 - 1  # what SQLite, and TOML for that matter, call an integer
TOPIC_LIMIT = 65535  # bytes of UTF-8; MQTT 3.1.1 section 1.5.3
PREFIX_LIMIT = 1024  # bytes; leaves room for the ICCID and the 253 characters of a device's topic
NAME_LIMIT = 256  # characters of a user name
SHOWN_LIMIT = 60  # characters of a wrong value that are shown
HIDDEN = "***"

Network: TypeAlias = "ipaddress.IPv4Network | ipaddress.IPv6Network"


class Wrong(Exception):
    """A value that is not what was *expected*; the *reason* says more where that helps, and never holds the value."""

    def __init__(self, expected: str, reason: str = "") -> None:
        """Take both as parts of a sentence: "expected …, got 5: …"."""
        super().__init__(expected)
        self.expected = expected
        self.reason = reason


@attrs.frozen
class Masked:
    """Marks a key whose value is or holds a secret; *masked* makes of it what may be shown."""

    masked: Callable[[str], str]


def hidden(secret: str) -> str:
    """Return what is shown in place of a *secret*."""
    return HIDDEN if secret else ""


def without_password(url: str) -> str:
    """Return *url* as it may be shown: no password, no values in the query, no user name that stands alone.

    Hides rather too much than too little: a password with an unescaped ``@``, ``/`` or ``?`` stays hidden as well, and
    a user name without a password is a token to some brokers.
    """
    scheme, mark, rest = url.partition("://")
    if not mark:
        return hidden(url)
    user_info, at, address = rest.rpartition("@")
    user, colon, _ = user_info.partition(":")
    shown_user = f"{user}:{HIDDEN}@" if colon else f"{HIDDEN}@" if at else ""
    address, question, query = address.partition("?")
    if question:
        query = re.sub(r"=[^&]*", f"={HIDDEN}", query)
    return f"{scheme}://{shown_user}{address}{question}{query}"


def repr_without_password(url: str) -> str:
    """Return the repr of *url*, its secrets masked; for ``attrs.field(repr=…)``."""
    return repr(without_password(url))


def shown(value: object) -> str:
    """Return a TOML *value* for a sentence about it: text quoted and shortened, tables and lists by their kind."""
    if isinstance(value, str):
        return shown_text(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(value)
    if isinstance(value, int):
        return str(value) if abs(value) <= LARGEST else "a number out of all bounds"
    return kind_of(value)


def shown_text(text: str) -> str:
    """Return *text* quoted as in TOML, shortened, without anything a terminal would act upon."""
    quoted = json.dumps(text[:SHOWN_LIMIT] + ("…" if len(text) > SHOWN_LIMIT else ""), ensure_ascii=False)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in quoted)


def kind_of(value: object) -> str:
    """Return what kind of TOML value this is, without showing it."""
    for kinds, name in (
        (str, "text"),
        (bool, "true or false"),  # before int, of which Python thinks it is one
        (int, "a whole number"),
        (float, "a number"),
        (list, "a list"),
        (dict, "a table"),
        ((datetime.date, datetime.time), "a date or time"),
    ):
        if isinstance(value, kinds):
            return name
    return "something else"


def whole(lowest: int = 0, highest: int = LARGEST) -> Callable[[object], int]:
    """Return a reader of whole numbers from *lowest* to *highest*; true and false are none."""
    expected = (
        f"a whole number, at least {lowest}" if highest == LARGEST else f"a whole number from {lowest} to {highest}"
    )

    def read(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
            raise Wrong(expected)
        return value

    return read


def rate(value: object) -> float:
    """Read a number per second, fractions included, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Wrong("a number, at least 0")
    if not (0 <= value <= LARGEST and math.isfinite(value)):
        raise Wrong("a number, at least 0")
    return value


def flag(value: object) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        raise Wrong("true or false")
    return value


def text(value: object, expected: str = "text") -> str:
    """Read any text that can be written as UTF-8 and holds no NUL."""
    if not isinstance(value, str):
        raise Wrong(expected)
    # What comes from the command line may hold stray bytes as lone surrogates.
    if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
        raise Wrong(expected, "it holds NUL or what is no UTF-8")
    return value


def secret(value: object) -> str:
    """Read a password or its hash."""
    if not text(value):
        raise Wrong("text that is not empty")
    return text(value)


def user_name(value: object) -> str:
    """Read the name of an MQTT user."""
    expected = f"1 to {NAME_LIMIT} printable characters"
    name = text(value, expected)
    if not 1 <= len(name) <= NAME_LIMIT or not name.isprintable():
        raise Wrong(expected)
    return name


def class_name(value: object) -> str:
    """Read the name of a Python class, with its module."""
    expected = "the name of a class with its module, such as amqtt.contrib.http.UserAuthHttpPlugin"
    name = text(value, expected)
    if "." not in name or not all(part.isidentifier() for part in name.split(".")):
        raise Wrong(expected)
    return name


def table(value: object) -> Mapping[str, object]:
    """Read a table of anything; what is in it is somebody else's to understand."""
    if not isinstance(value, dict):
        raise Wrong("a table")
    return value


def directory(value: object) -> Path:
    """Read the name of a directory; a relative one counts from where the program was started."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise Wrong("the name of a directory")
    return Path(value)


def file_name(value: object) -> str:
    """Read the name of a file, or nothing; a relative one counts from where the program was started."""
    return text(value, 'the name of a file, or ""')


def client_id(value: object) -> str:
    """Read an MQTT client id, or nothing (MQTT 3.1.1 section 3.1.3.1; servers need not take longer ones)."""
    expected = f'an MQTT client id of at most {NAME_LIMIT} printable characters, or ""'
    name = text(value, expected)
    if len(name) > NAME_LIMIT or not (name == "" or name.isprintable()):
        raise Wrong(expected)
    return name


def topic_prefix(value: object) -> str:
    """Read the beginning of MQTT topics: no wildcards, no control characters (MQTT 3.1.1 section 4.7.1)."""
    expected = f'the beginning of an MQTT topic, without "+" and "#", at most {PREFIX_LIMIT} bytes'
    prefix = text(value, expected)
    if "+" in prefix or "#" in prefix or len(prefix.encode()) > PREFIX_LIMIT or not prefix.isprintable():
        raise Wrong(expected)
    return prefix


def topic_filter(value: object) -> str:
    """Read an MQTT topic filter (MQTT 3.1.1 section 4.7.1)."""
    expected = "an MQTT topic filter"
    topics = text(value, expected)
    if not 1 <= len(topics.encode()) <= TOPIC_LIMIT:
        raise Wrong(expected, f"it has 1 to {TOPIC_LIMIT} bytes")
    levels = topics.split("/")
    if any("+" in level and level != "+" for level in levels):
        raise Wrong(expected, '"+" stands for a whole level')
    if any("#" in level and (level != "#" or at < len(levels) - 1) for at, level in enumerate(levels)):
        raise Wrong(expected, '"#" stands alone in the last level')
    return topics


@attrs.frozen
class ListenAddress:
    """Where to listen: an IP address, or ``localhost``, and a port.

    Args:
        host: canonical text of an IPv4 or IPv6 address (no brackets), or ``localhost``.
        port: 0 to 65535; 0 lets the operating system choose.
    """

    host: str
    port: int

    def __str__(self) -> str:
        """Return it as it is written in the configuration."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def listen_address(value: object) -> ListenAddress:
    """Read ``host:port`` or ``[v6]:port``."""
    expected = 'an address and port such as "127.0.0.1:5683" or "[::]:5683"'
    host, colon, digits = text(value, expected).rpartition(":")
    if not colon:
        raise Wrong(expected, "the port is missing")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5 and int(digits) <= 65535):
        raise Wrong(expected, "a port is a number from 0 to 65535")
    if host == "localhost":
        return ListenAddress(host, int(digits))
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        raise Wrong(expected, "the host is an IP address in figures, or localhost") from None
    if bracketed is not (address.version == 6):
        raise Wrong(expected, "an IPv6 address, and only one, stands in brackets")
    return ListenAddress(str(address), int(digits))


def network(value: object) -> Network:
    """Read an IP network, ``10.0.0.0/8``, or one address."""
    expected = 'a network such as "10.0.0.0/8" or "2001:db8::/32"'
    name = text(value, expected)
    try:
        return ipaddress.ip_network(name)
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_network(name, strict=False)
    except ValueError:
        raise Wrong(expected) from None
    raise Wrong(expected, f"this is an address in {meant}")


def public_url(value: object) -> str:
    """Read the third field of the bootstrap answer: nothing, or a ``coaps`` URL.

    The answer is one line of three fields parted by commas, and clients read it as such.
    """
    expected = 'a URL such as "coaps://gateway.example.net:5684", or ""'
    url = text(value, expected)
    if url:
        if not url.isascii() or not url.isprintable() or " " in url or "," in url:
            raise Wrong(expected, "it goes into a text of three fields: printable ASCII, no space, no comma")
        parts = _split(url, expected)
        if parts.scheme != "coaps" or parts.username is not None or parts.query or parts.fragment:
            raise Wrong(expected)
    return url


def bridge_url(value: object) -> str:
    """Read the URL of a broker, or nothing."""
    expected = 'mqtt://user:password@host:1883 or mqtts://…, or ""'
    url = text(value, expected)
    if url:
        parts = _split(url, expected)
        if parts.scheme not in ("mqtt", "mqtts"):
            raise Wrong(expected, "the scheme is mqtt or mqtts")
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise Wrong(expected, "nothing follows the port; in a user name or password, / ? # @ : are written as %XX")
        if parts.username is not None and not parts.username:
            raise Wrong(expected, "a password needs a user name")
    return url


def _split(url: str, expected: str) -> urllib.parse.SplitResult:
    """Part a URL that must have a host and, if any, a port that can be connected to; raise Wrong."""
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError:  # its text may show the URL: it goes no further
        raise Wrong(expected, "host or port is malformed; special characters before them are written as %XX") from None
    if not parts.hostname or port == 0 or re.search(r"[\s\x00-\x1f\x7f]", url):  # urlsplit drops some of these silently
        raise Wrong(expected, "it needs a host, no port 0, and no blanks")
    return parts


def database_url(value: object) -> str:
    """Read the URL of a database as SQLAlchemy takes it, or nothing; whether it is any good shows when it is opened."""
    expected = 'a database URL such as "postgresql+psycopg://user:password@host/name", or ""'
    url = text(value, expected)
    if url and not re.match(r"[A-Za-z][\w+.]*://", url):
        raise Wrong(expected)
    return url


Positive = Annotated[int, whole(1)]
NotNegative = Annotated[int, whole(0)]
Rate = Annotated[float, rate]
Flag = Annotated[bool, flag]
Listen = Annotated[ListenAddress, listen_address]
Filter = Annotated[str, topic_filter]
FileName = Annotated[str, file_name]
