"""coap/codec.py: RFC 7252 section 3, byte for byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from txthings import coap

from coapgw.coap import codec
from tests.unit.coap_wire import datagram, option

LONGEST = 269 + 0xFFFF


@pytest.mark.parametrize(
    ("block", "options", "payload_at"),
    [
        (b"", (), 0),
        (b"\xb4data", ((11, b"data"),), 5),
        (b"\xb4data\xffx", ((11, b"data"),), 6),
        (b"\xb0", ((11, b""),), 1),  # node-coap-client: one empty Uri-Path
        (option(12, b"\x00\x32") + option(3, b"?t=hi"), ((12, b"\x002"), (15, b"?t=hi")), 9),  # microcoapy
        (option(60, b"\x10"), ((60, b"\x10"),), 3),
        (option(300, b"v"), ((300, b"v"),), 4),
        (option(11, b"a" * 300), ((11, b"a" * 300),), 303),
        (option(11, b"a") + option(0, b"b"), ((11, b"a"), (11, b"b")), 4),
    ],
)
def test_options_are_read_as_they_stand(block: bytes, options: codec.Options, payload_at: int) -> None:
    assert codec.parse_options(block, 0) == (options, payload_at)


@pytest.mark.parametrize(
    "block",
    [
        b"\xff",  # a marker without a payload
        b"\xb4dat",  # a value cut off
        b"\xd0",  # an extended delta cut off
        b"\xe0\x01",
        b"\x0d",
        b"\x0e\x00",
        b"\xf0",  # a reserved nibble that is no marker
        b"\x0f",
        b"\xe0\xff\xff\x10",  # past 65535
    ],
)
def test_a_block_that_breaks_the_format_is_refused(block: bytes) -> None:
    with pytest.raises(codec.MessageFormatError):
        codec.parse_options(block, 0)


@given(st.binary(max_size=80))
def test_any_bytes_are_options_or_a_format_error(block: bytes) -> None:
    try:
        options, payload_at = codec.parse_options(block, 0)
    except codec.MessageFormatError:
        return
    assert payload_at <= len(block)
    numbers = [number for number, _ in options]
    assert numbers == sorted(numbers)


@given(st.lists(st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=300)), max_size=8), st.binary(max_size=20))
def test_what_is_encoded_is_read_back(options: list[tuple[int, bytes]], payload: bytes) -> None:
    body = codec.encode_body(options, payload)
    read, payload_at = codec.parse_options(body, 0)
    assert list(read) == sorted(options, key=lambda pair: pair[0])
    assert body[payload_at:] == payload


def test_the_longest_value_and_the_highest_number_fit() -> None:
    options = ((0xFFFF, b"x" * (LONGEST - 1)),)
    assert codec.parse_options(codec.encode_options(options), 0)[0] == options


def test_encoding_agrees_with_bytes_written_by_hand() -> None:
    written = option(11, b"data") + option(4, b"t=a") + option(45, b"\x05") + option(240, b"abc")
    assert codec.encode_options([(300, b"abc"), (11, b"data"), (60, b"\x05"), (15, b"t=a")]) == written


@pytest.mark.parametrize("number", [9, 13, 19, 65535])
def test_an_unknown_critical_option_is_refused(number: int) -> None:
    with pytest.raises(codec.OptionRefused) as refused:
        codec.known_options(((11, b"data"), (number, b"")))
    assert refused.value.number == number


@pytest.mark.parametrize("number", [2, 10, 2048, 65000])
def test_an_unknown_elective_option_is_ignored(number: int) -> None:
    assert codec.known_options(((11, b"data"), (number, b"x"))) == ((11, b"data"),)


def test_a_wrong_length_makes_an_option_unknown() -> None:
    assert codec.known_options(((12, b"abc"),)) == ()  # elective: RFC 7252 section 5.4.3
    with pytest.raises(codec.OptionRefused):
        codec.known_options(((11, b"a" * 256),))


def test_a_repeat_of_what_does_not_repeat_is_unknown() -> None:
    assert codec.known_options(((12, b"\x00"), (12, b"\x32"))) == ((12, b"\x00"),)  # section 5.4.5
    with pytest.raises(codec.OptionRefused):
        codec.known_options(((3, b"a"), (3, b"b")))


@given(st.integers(0, 0xFFFFFFFF))
def test_uints_are_shortest_and_read_back(value: int) -> None:
    encoded = codec.encode_uint(value)
    assert codec.decode_uint(encoded) == value
    assert not encoded.startswith(b"\0")
    assert codec.decode_uint(b"\0" + encoded) == value  # non-minimal forms are accepted


def test_a_request_becomes_a_txthings_message() -> None:
    data = datagram(message_id=0x1234, token=b"tok", options=option(11, b"a") + option(1, b"\x32") + option(5, b"\x28"))
    options, payload_at = codec.parse_options(data, 7)
    message = codec.to_message(data[:7], options, data[payload_at:])
    assert (message.mtype, message.code, message.mid, message.token) == (coap.CON, coap.POST, 0x1234, b"tok")
    assert message.payload == b""
    assert message.opt.uri_path == [b"a"]
    assert message.opt.content_format == 0x32
    assert message.opt.accept == 40  # txThings itself would leave bytes


def test_a_txthings_answer_is_encoded_rightly() -> None:
    message = coap.Message(code=coap.CONTENT, payload=b"hi")
    message.opt.content_format = 0
    message.opt.observe = 5
    message.opt.block2 = (0, False, 0)
    message.opt.block1 = (300, True, 6)
    message.opt.etag = b"\x01\x02"
    assert codec.message_options(message) == [
        (4, b"\x01\x02"),
        (6, b"\x05"),
        (12, b""),  # txThings writes a zero byte
        (23, b""),
        (27, (300 << 4 | 8 | 6).to_bytes(2, "big")),
    ]
