"""coap/url.py: the decomposition of RFC 7252 section 6.4, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coapgw.coap.url import Target, UrlRefused, parse_url, resolve_url

HOST, PATH, QUERY = 3, 11, 15

DECOMPOSED = {
    "coap://192.0.2.1": ("coap", "192.0.2.1", 5683, ()),
    "coap://192.0.2.1/": ("coap", "192.0.2.1", 5683, ()),
    "coaps://192.0.2.1": ("coaps", "192.0.2.1", 5684, ()),
    "COAP://192.0.2.1:61616/": ("coap", "192.0.2.1", 61616, ()),
    "coap://192.0.2.1:/": ("coap", "192.0.2.1", 5683, ()),
    "coap://127.0.0.1/?t=greetings": ("coap", "127.0.0.1", 5683, ((QUERY, b"t=greetings"),)),
    "coap://127.0.0.1?t=a&x": ("coap", "127.0.0.1", 5683, ((QUERY, b"t=a"), (QUERY, b"x"))),
    "coap://127.0.0.1/?": ("coap", "127.0.0.1", 5683, ()),
    "coap://127.0.0.1/?a&": ("coap", "127.0.0.1", 5683, ((QUERY, b"a"), (QUERY, b""))),
    "coap://127.0.0.1/?t=a/b?c": ("coap", "127.0.0.1", 5683, ((QUERY, b"t=a/b?c"),)),
    "coap://127.0.0.1/a//b/": ("coap", "127.0.0.1", 5683, ((PATH, b"a"), (PATH, b""), (PATH, b"b"), (PATH, b""))),
    "coap://127.0.0.1//": ("coap", "127.0.0.1", 5683, ((PATH, b""), (PATH, b""))),
    "coap://127.0.0.1/a/./b/../c": ("coap", "127.0.0.1", 5683, ((PATH, b"a"), (PATH, b"c"))),
    "coap://127.0.0.1/../..": ("coap", "127.0.0.1", 5683, ()),
    "coap://127.0.0.1/a/..": ("coap", "127.0.0.1", 5683, ()),
    "coap://[2001:db8::2:1]/": ("coap", "2001:db8::2:1", 5683, ()),
    "coaps://[::1]:7/x": ("coaps", "::1", 7, ((PATH, b"x"),)),
    "coap://[fe80::1%25eth0]/": ("coap", "fe80::1%eth0", 5683, ()),
    # names: Uri-Host, lower case first, then percent-decoded
    "coap://Example.NET/.well-known/core": (
        *("coap", "example.net", 5683),
        ((HOST, b"example.net"), (PATH, b".well-known"), (PATH, b"core")),
    ),
    "coap://ex%61mple.net": ("coap", "example.net", 5683, ((HOST, b"example.net"),)),
    "coap://127.1/": ("coap", "127.1", 5683, ((HOST, b"127.1"),)),
    # RFC 7252 section 6.3: these three are equivalent
    "coap://example.com:5683/~sensors/temp.xml": (
        *("coap", "example.com", 5683),
        ((HOST, b"example.com"), (PATH, b"~sensors"), (PATH, b"temp.xml")),
    ),
    "coap://EXAMPLE.com/%7Esensors/temp.xml": (
        *("coap", "example.com", 5683),
        ((HOST, b"example.com"), (PATH, b"~sensors"), (PATH, b"temp.xml")),
    ),
    "coap://EXAMPLE.com:/%7esensors/temp.xml": (
        *("coap", "example.com", 5683),
        ((HOST, b"example.com"), (PATH, b"~sensors"), (PATH, b"temp.xml")),
    ),
    # RFC 7252 appendix B: the URI part of its examples, addressed by name here
    "coap://xn--18j4d.example/%E3%81%93%E3%82%93%E3%81%AB%E3%81%A1%E3%81%AF": (
        *("coap", "xn--18j4d.example", 5683),
        ((HOST, b"xn--18j4d.example"), (PATH, bytes.fromhex("e38193e38293e381abe381a1e381af"))),
    ),
    "coap://198.51.100.1:61616//%2F//?%2F%2F&?%26": (
        *("coap", "198.51.100.1", 61616),
        ((PATH, b""), (PATH, b"/"), (PATH, b""), (PATH, b""), (QUERY, b"//"), (QUERY, b"?&")),
    ),
    # percent-encodings are bytes, not characters, and split nothing
    "coap://127.0.0.1/%00%ff?a%26b=%25&c%3Dd": (
        *("coap", "127.0.0.1", 5683),
        ((PATH, b"\x00\xff"), (QUERY, b"a&b=%"), (QUERY, b"c=d")),
    ),
    "coap://127.0.0.1/ü": ("coap", "127.0.0.1", 5683, ((PATH, "ü".encode()),)),
}

REFUSED = {
    "": "begins with coap://",
    "127.0.0.1/": "begins with coap://",
    "/?t=x": "begins with coap://",
    "http://127.0.0.1/": "http is neither coap nor coaps",
    "coap+tcp://127.0.0.1/": "coap+tcp is neither",
    "coap:127.0.0.1": "the host is missing",
    "coap://": "the host is missing",
    "coap:///path": "the host is missing",
    "coap://:5683/": "the host is missing",
    "coap://127.0.0.1/#part": "no fragment",
    "coap://me@127.0.0.1/": "no user",
    "coap://127.0.0.1:0/": "port 0",
    "coap://127.0.0.1:65536/": "port 65536",
    "coap://127.0.0.1:x/": "no host and port",
    "coap://::1/": "in brackets",
    "coap://[::1/": "no host and port",
    "coap://[localhost]/": "no IPv6 address",
    "coap://[v1.x]/": "no IPv6 address",
    "coap://127.0.0.1/a b": "write ' ' as %20",
    "coap://127.0.0.1/\n": "as %0A",
    "coap://127.0.0.1/%4": "two hexadecimal digits",
    "coap://127.0.0.1/%zz": "two hexadecimal digits",
    "coap://127.0.0.1/%2e%2e/x": "may not be .",
    "coap://%ff/": "not UTF-8",
    "coap://127.0.0.1/" + "x" * 256: "a part of 256 bytes",
    "coap://127.0.0.1/?" + "%ff" * 256: "a part of 256 bytes",
    "coap://" + "x" * 256: "the host is longer",
}


@pytest.mark.parametrize("url", DECOMPOSED)
def test_a_url_becomes_options(url: str) -> None:
    assert parse_url(url) == Target(*DECOMPOSED[url])


@pytest.mark.parametrize("url", REFUSED)
def test_what_is_no_coap_url_is_refused_with_a_reason(url: str) -> None:
    with pytest.raises(UrlRefused) as refused:
        parse_url(url)
    assert REFUSED[url] in str(refused.value)


@given(st.text())
def test_any_text_is_a_target_or_refused(text: str) -> None:
    for url in (text, "coap://" + text, "coap://127.0.0.1/" + text):
        try:
            target = parse_url(url)
        except UrlRefused:
            continue
        assert target.host
        assert all(len(value) <= 255 for _, value in target.options)


def test_a_path_alone_is_asked_for_at_the_base() -> None:
    base = parse_url("coaps://gateway.example:5684/ignored?too")
    assert resolve_url("/data?t=x", base) == parse_url("coaps://gateway.example:5684/data?t=x")
    assert resolve_url("?t=x", base) == parse_url("coaps://gateway.example:5684/?t=x")
    assert resolve_url("coap://127.0.0.1/a", base) == parse_url("coap://127.0.0.1/a")
    with pytest.raises(UrlRefused, match="begins with a slash"):
        resolve_url("data", base)


def test_a_target_shows_where_it_is() -> None:
    assert str(parse_url("coaps://[::1]/x")) == "coaps://[::1]:5684"
