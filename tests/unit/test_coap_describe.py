"""coap/describe.py and dtls/describe.py: what people see, and the options they write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coapgw.coap.describe import (
    OptionTextRefused,
    code_text,
    describe_datagram,
    dotted,
    option_name,
    option_value,
    parse_option,
    printable_text,
)
from coapgw.dtls.describe import describe_records
from coapgw.dtls.records import plain_record
from tests.unit.coap_wire import datagram, option


@pytest.mark.parametrize(
    ("code", "text"),
    [(0x44, "2.04 Changed"), (0x45, "2.05 Content"), (0x81, "4.01 Unauthorized"), (0x9D, "4.29 Too Many Requests"),
     (2, "POST"), (0, "0.00 Empty"), (0x1F, "0.31"), (0x7F, "3.31")],
)  # fmt: skip
def test_a_code_has_a_name(code: int, text: str) -> None:
    assert code_text(code) == text
    assert dotted(0x44) == "2.04"


@pytest.mark.parametrize(
    ("number", "value", "name", "text"),
    [
        (12, b"", "Content-Format", "0 (text/plain)"),
        (12, b"\x28", "Content-Format", "40 (application/link-format)"),
        (12, b"\x27\x10", "Content-Format", "10000"),
        (14, b"\x1e", "Max-Age", "30"),
        (11, "ü".encode(), "Uri-Path", "ü"),
        (11, b"\x1b[2J", "Uri-Path", "0x1b5b324a"),
        (15, b"a\nb", "Uri-Query", "0x610a62"),
        (4, b"\x01\x02", "ETag", "0x0102"),
        (4, b"", "ETag", "empty"),
        (23, b"\x0e", "Block2", "0/more/1024"),
        (27, b"\x16", "Block1", "1/last/1024"),
        (65000, b"\xff", "Option 65000", "0xff"),
        (15, b"x" * 255, "Uri-Query", "x" * 80 + "…"),
    ],
)
def test_an_option_is_shown(number: int, value: bytes, name: str, text: str) -> None:
    assert (option_name(number), option_value(number, value)) == (name, text)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("12,50", (12, b"\x32")),
        ("12,0", (12, b"")),
        ("Content-Format,0x0032", (12, b"\x00\x32")),
        ("uri-query,?t=hello-world", (15, b"?t=hello-world")),
        ("15,a,b", (15, b"a,b")),
        ("15,50", (15, b"50")),
        ("5", (5, b"")),
        ("5,", (5, b"")),
        ("65535,0x", (65535, b"")),
        ("23,6", (23, b"\x06")),
        ("17,text", (17, b"text")),
    ],
)
def test_an_option_is_read(text: str, parsed: tuple[int, bytes]) -> None:
    assert parse_option(text) == parsed


@pytest.mark.parametrize("text", ["", ",x", "nothing,1", "65536,x", "-1,x", "12,0x1", "12,0xzz"])
def test_what_is_no_option_is_refused(text: str) -> None:
    with pytest.raises(OptionTextRefused):
        parse_option(text)


def test_only_text_that_does_no_harm_to_a_terminal_is_text() -> None:
    assert printable_text(b"two\r\nlines\tand \xc3\xbc") == "two\nlines\tand ü"
    assert printable_text(b"\x1b]0;title\x07") is None
    assert printable_text(b"over\rwritten") is None
    assert printable_text(b"\xff") is None
    assert printable_text("a\u202eb".encode()) is None


def test_a_datagram_is_shown_without_its_payload() -> None:
    sent = datagram(message_id=7, token=b"tk", options=option(15, b"t=x"), payload=b"secret")
    assert describe_datagram(sent) == "CON POST id 7, token 746b, Uri-Query t=x, 6 bytes"
    assert describe_datagram(b"\x70\x00\x00\x07") == "RST 0.00 Empty id 7"
    assert describe_datagram(b"\x40") == "no CoAP message, 1 bytes"
    assert describe_datagram(b"\x49\x01\x00\x07" + bytes(9)) == "CON GET id 7, malformed"
    assert describe_datagram(b"\x40\x01\x00\x07\xff") == "CON GET id 7, malformed: payload marker without a payload"


def test_records_are_shown() -> None:
    def message(kind: int, sequence: int, body: bytes = b"abc", length: int = 3) -> bytes:
        return bytes((kind,)) + length.to_bytes(3, "big") + bytes((0, sequence, 0, 0, 0, 0, 0, len(body))) + body

    def sealed(kind: int) -> bytes:
        return bytes((kind, 0xFE, 0xFD, 0, 1)) + bytes(6) + b"\x00\x10" + bytes(16)

    assert describe_records(plain_record(22, 0, message(1, 0))) == "ClientHello"
    assert describe_records(plain_record(22, 0, message(1, 1))) == "ClientHello with the cookie"
    assert describe_records(plain_record(22, 0, message(2, 1, length=9))) == "ServerHello (a fragment)"
    assert describe_records(plain_record(22, 0, message(99, 0))) == "handshake message 99"
    assert describe_records(plain_record(22, 0, b"x")) == "handshake message"
    assert describe_records(plain_record(21, 0, b"\x02\x33")) == "alert decrypt_error"
    flight = plain_record(20, 0, b"\x01") + sealed(22)
    assert describe_records(flight) == "ChangeCipherSpec, Finished (sealed)"
    assert describe_records(sealed(23)) == "application data, 16 bytes sealed"
    assert describe_records(sealed(21)) == "alert (sealed)"
    assert describe_records(b"\x40\x01") == "no DTLS record"


@given(st.binary(max_size=60))
def test_any_bytes_can_be_shown(data: bytes) -> None:
    assert describe_datagram(data).isprintable()
    assert describe_records(data).isprintable()
    assert option_value(11, data)
