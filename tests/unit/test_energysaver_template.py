"""Templates, version 1: the published cases, what the grammar leaves open, and every mistake with its place."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coapgw.energysaver.template import PayloadDoesNotFit, Template, TemplateInvalid, parse_template

CASES: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "data" / "energysaver.json").read_text())


def template(*sense: object, **more: object) -> Template:
    return parse_template(json.dumps({"sense": list(sense), **more}))


def value(selector: object, payload: str, asset: str = "x") -> object:
    """Return what a template with this one value makes of a payload (hexadecimal)."""
    document = template({"asset": asset, "value": selector}).translate(bytes.fromhex(payload)).document
    return json.loads(document)[asset]


def error(selector: object, payload: str, asset: str = "x") -> str:
    with pytest.raises(PayloadDoesNotFit) as caught:
        value(selector, payload, asset)
    return caught.value.description


def mistakes(*sense: object, **more: object) -> dict[str, str]:
    with pytest.raises(TemplateInvalid) as caught:
        template(*sense, **more)
    return {mistake.path: mistake.sentence for mistake in caught.value.mistakes}


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["name"]))
def test_published_case(case: dict[str, Any]) -> None:
    compiled = parse_template(json.dumps(case["template"]))
    payload = bytes.fromhex(case["payload_hex"])
    if "error" in case:
        with pytest.raises(PayloadDoesNotFit) as caught:
            compiled.translate(payload)
        assert caught.value.description == case["error"]
    else:
        document = compiled.translate(payload).document
        assert json.loads(document) == case["expected"]
        assert b" " not in document.replace(b"unknown payload", b"").replace(b"Unsupported type", b"")


@pytest.mark.parametrize(
    ("selector", "payload", "expected"),
    [
        ({"byte": 0, "type": "uint"}, "ff", 255),
        ({"byte": 0, "type": "int"}, "ff", -1),
        ({"byte": 1, "bytelength": 2, "type": "uint"}, "00ff01", 0xFF01),
        ({"byte": 0, "bytelength": 2, "byteorder": "little", "type": "uint"}, "ff01", 0x01FF),
        ({"byte": 0, "bytelength": 8, "type": "uint"}, "ffffffffffffffff", 2**64 - 1),
        ({"byte": 0, "bytelength": 8, "byteorder": "little", "type": "int"}, "0000000000000080", -(2**63)),
        ({"byte": 1, "endbyte": 0, "type": "uint"}, "0000ff", 255),
        ({"byte": 1, "endbyte": -1, "type": "int"}, "00feff", -2),
        ({"endbyte": -2, "bytelength": 2, "type": "uint"}, "00000102", 258),
        ({"endbyte": -3, "type": "uint"}, "00070809", 7),
        ({"byte": 0, "bytelength": 4, "type": "float"}, "3f800000", 1),
        ({"byte": 0, "bytelength": 4, "type": "float"}, "3dcccccd", 0.1),
        ({"byte": 0, "bytelength": 8, "type": "float"}, "3fb999999999999a", 0.1),
        ({"byte": 0, "endbyte": 0, "byteorder": "little", "type": "float"}, "0000803f", 1),
        ({"byte": 0, "type": "boolean"}, "02", True),
        ({"byte": 0, "bytelength": 2, "type": "boolean"}, "0000", False),
        ({"byte": 0, "bytelength": 2, "type": "boolean"}, "0001", True),
        ({"byte": 0, "endbyte": 0, "type": "string"}, "6f6c6567", "oleg"),
        ({"byte": 0, "endbyte": 0, "type": "string"}, "", ""),
        ({"byte": 0, "bytelength": 6, "type": "string"}, "6f6c65670000", "oleg"),
        ({"byte": 0, "bytelength": 3, "type": "string"}, "004100", "\0A"),
        ({"byte": 0, "bytelength": 3, "type": "string"}, "ff41c3", "\ufffdA\ufffd"),
        ({"byte": 0, "bytelength": 3, "type": "string"}, "225c0a", '"\\\n'),
        ({"byte": 0, "bytelength": 2, "type": "hex"}, "0AfF", "0aff"),
        ({"byte": 0, "endbyte": 0, "type": "hex"}, "", ""),
    ],
)
def test_bytes_become_values(selector: object, payload: str, expected: object) -> None:
    found = value(selector, payload)
    assert found == expected
    assert isinstance(found, bool) == isinstance(expected, bool)


@pytest.mark.parametrize(
    ("selector", "payload", "text"),
    [
        ({"byte": 2, "type": "int"}, "0000", "can't extract [2:3] from 2 bytes"),
        ({"byte": 1, "bytelength": 2, "type": "int"}, "0000", "can't extract [1:3] from 2 bytes"),
        ({"byte": 3, "endbyte": -1, "type": "hex"}, "000000", "can't extract [3:2] from 3 bytes"),
        ({"endbyte": -4, "type": "hex"}, "000000", "can't extract [-1:0] from 3 bytes"),
        ({"endbyte": 0, "type": "hex"}, "000000", "can't extract [3:4] from 3 bytes"),
        ({"endbyte": -1, "bytelength": 2, "type": "hex"}, "000000", "can't extract [2:4] from 3 bytes"),
        ({"byte": 0, "endbyte": 0, "type": "int"}, "000000", "can't read int from 3 bytes"),
        ({"byte": 0, "endbyte": 0, "type": "float"}, "00", "can't read float from 1 bytes"),
        ({"byte": 0, "bytelength": 4, "type": "float"}, "7fc00000", "nan is no number that JSON has"),
        ({"byte": 0, "bytelength": 8, "type": "float"}, "fff0000000000000", "-inf is no number that JSON has"),
    ],
)
def test_what_does_not_fit_is_said_of_the_asset(selector: object, payload: str, text: str) -> None:
    assert error(selector, payload, "some.asset") == f"Asset path:some.asset, Error: {text}"


def test_a_switch_that_cannot_be_read_is_said_too() -> None:
    compiled = template({"switch": {"byte": 9, "type": "int"}, "on": []})
    with pytest.raises(PayloadDoesNotFit, match=r"Asset path:switch, Error: can't extract \[9:10\] from 0 bytes"):
        compiled.translate(b"")


def test_statements_run_in_order_and_the_first_that_does_not_fit_is_named() -> None:
    compiled = template(
        {"asset": "a", "value": {"byte": 0, "type": "int"}},
        {"asset": "b", "value": {"byte": 9, "type": "int"}},
        {"asset": "c", "value": {"byte": 8, "type": "int"}},
    )
    with pytest.raises(PayloadDoesNotFit, match="Asset path:b,"):
        compiled.translate(b"1")


def test_blocks_comments_and_unknown_fields_do_nothing() -> None:
    compiled = template([], {}, {"comment": "x"}, [[{"asset": "a", "value": "b", "unit": "m"}], []], extra=1)
    assert compiled.translate(b"").document == b'{"a":"b"}'
    assert template().translate(b"xyz").document == b"{}"


def test_an_asset_given_twice_has_its_last_value_at_its_first_place() -> None:
    compiled = template(
        {"asset": "a", "value": {"byte": 0, "type": "uint"}},
        {"asset": "b", "value": "x"},
        {"asset": "a", "value": {"byte": 1, "type": "uint"}},
    )
    assert compiled.translate(b"\1\2").document == b'{"a":2,"b":"x"}'


def test_nothing_a_template_says_is_taken_for_anything_else() -> None:
    nasty = "%s%%{}\"\\\n'); import os #"
    compiled = template(
        {"asset": nasty, "value": nasty}, {"asset": "n", "value": {"byte": 0, "type": "uint"}}, name=nasty
    )
    assert json.loads(compiled.translate(b"\7").document) == {nasty: nasty, "n": 7}
    assert compiled.name == nasty


SWITCH = {"byte": 0, "type": "uint"}


def switch(*on: object, selector: object = SWITCH) -> Template:
    return template({"switch": selector, "on": list(on)}, {"asset": "end", "value": "."})


def says(text: str) -> list[object]:
    return [{"asset": "x", "value": text}]


def test_the_first_case_that_equals_is_taken_else_the_default_else_nothing() -> None:
    compiled = switch(
        {"case": 1, "do": says("one")}, {"default": True, "do": says("other")}, {"case": 1, "do": says("again")}
    )
    assert compiled.translate(b"\1").document == b'{"x":"one","end":"."}'
    assert compiled.translate(b"\2").document == b'{"x":"other","end":"."}'
    assert switch({"case": 1, "do": []}).translate(b"\2").document == b'{"end":"."}'


@pytest.mark.parametrize(
    ("selector", "case", "payload"),
    [
        ({"byte": 0, "type": "uint"}, 1.0, "01"),
        ({"byte": 0, "type": "uint"}, "1", "01"),
        ({"byte": 0, "type": "int"}, -1, "ff"),
        ({"byte": 0, "type": "boolean"}, 1, "07"),
        ({"byte": 0, "type": "boolean"}, "true", "07"),
        ({"byte": 0, "type": "boolean"}, "false", "00"),
        ({"byte": 0, "type": "hex"}, "AB", "ab"),
        ({"byte": 0, "type": "hex"}, 10, "10"),
        ({"byte": 0, "bytelength": 2, "type": "string"}, "12", "3132"),
        ({"byte": 0, "bytelength": 2, "type": "string"}, 12, "3132"),
        ({"byte": 0, "bytelength": 4, "type": "float"}, 0.5, "3f000000"),
    ],
)
def test_cases_mean_what_the_switch_is(selector: object, case: object, payload: str) -> None:
    compiled = switch({"case": case, "do": says("taken")}, selector=selector)
    assert json.loads(compiled.translate(bytes.fromhex(payload)).document) == {"x": "taken", "end": "."}


def test_a_location_has_both_and_is_told_as_it_is_written() -> None:
    lat = {"asset": "lat", "value": {"byte": 0, "bytelength": 8, "type": "float"}, "custom_type": "location_lat"}
    long = {"asset": "long", "value": {"byte": 8, "bytelength": 8, "type": "float"}, "custom_type": "location_long"}
    payload = struct.pack(">dd", 50.5, -6.25)
    translation = template(lat, long).translate(payload)
    assert translation.location == ("-6.25", "50.5")
    assert json.loads(translation.document) == {"lat": 50.5, "long": -6.25}
    assert template(lat).translate(payload).location is None


def test_every_mistake_is_told_with_its_place() -> None:
    found = mistakes(
        "text",
        {"asset": "", "value": {"byte": -1, "type": "int"}},
        {"asset": "a..b", "value": 7},
        {"asset": "c", "value": {"byte": 0, "endbyte": 0, "bytelength": 2, "type": "int", "byteorder": "middle"}},
        {"asset": "d", "value": {"byte": 0, "bytelength": 3, "type": "int"}},
        {"asset": "e", "value": {"type": "byte"}},
        {"asset": "f", "value": "x", "custom_type": "location_lat"},
        {"asset": "g"},
        {
            "switch": {"byte": 0, "type": "int"},
            "on": [{"case": True, "do": []}, {"case": "x", "do": []}, {"case": 1}, 5],
        },
        {"switch": {"byte": 0, "type": "boolean"}, "on": [{"case": 2, "do": []}, {"default": False, "do": []}]},
        {"switch": {"byte": 0, "type": "hex"}},
        {"unit": "m"},
        {"asset": "h", "switch": {}},
        name=5,
    )
    assert found.keys() == {
        "/name",
        "/sense/0",
        "/sense/1/asset",
        "/sense/1/value/byte",
        "/sense/2/asset",
        "/sense/2/value",
        "/sense/3/value/bytelength",
        "/sense/3/value/byteorder",
        "/sense/4/value/bytelength",
        "/sense/5/value",
        "/sense/5/value/type",
        "/sense/6/custom_type",
        "/sense/7/value",
        "/sense/8/on/0/case",
        "/sense/8/on/1/case",
        "/sense/8/on/2/do",
        "/sense/8/on/3",
        "/sense/9/on/0/case",
        "/sense/9/on/1/default",
        "/sense/10/on",
        "/sense/11",
        "/sense/12",
    }
    assert found["/sense/4/value/bytelength"] == "is 3, and an int has 1, 2, 4, 8 bytes"
    assert found["/sense/0"] == 'is the text "text", not a statement'


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"sense":1}', '{"sense":[],"sense":[]}', '{"sense":[NaN]}', "\ud800", "{"]
)
def test_what_is_no_template_is_refused(text: str) -> None:
    with pytest.raises(TemplateInvalid):
        parse_template(text)


def test_a_value_and_an_object_of_one_name_cannot_meet() -> None:
    one, two = {"asset": "a", "value": "x"}, {"asset": "a.b", "value": "y"}
    for pair in ([one, two], [two, one]):
        assert "would have to be inside it" in mistakes(*pair)["/sense"]
    apart = {"switch": SWITCH, "on": [{"case": 1, "do": [one]}, {"case": 2, "do": [two]}]}
    assert template(apart).translate(b"\2").document == b'{"a":{"b":"y"}}'
    assert mistakes(apart, two)
    assert mistakes(one, apart)


@pytest.mark.parametrize("depth", [32, 33])
def test_blocks_are_nested_so_deep_at_most(depth: int) -> None:
    text = '{"sense":' + "[" * depth + "]" * depth + "}"
    if depth == 32:
        parse_template(text)
    else:
        with pytest.raises(TemplateInvalid, match="nested more than 32 deep"):
            parse_template(text)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 65_000,
        '{"sense":' + "[" * 30_000 + "]" * 30_000 + "}",
        '{"sense":[' + "9" * 10_000 + "]}",
        '{"sense":[{"asset":"x","value":{"byte":' + "9" * 10_000 + ',"type":"int"}}]}',
        '{"sense":[1e999]}',
        '{"sense":[' + "{}," * 20_000 + "{}]}",
        '{"sense":[' + "1," * 30_000 + "1]}",
        " " * 70_000,
    ],
)
def test_absurd_texts_are_refused_or_taken_in_no_time(text: str) -> None:
    found: list[object] = []
    try:
        parse_template(text)
    except TemplateInvalid as invalid:
        found += invalid.mistakes
    assert len(found) <= 100


def test_thousands_of_cases_are_taken() -> None:
    cases = [{"case": number, "do": [{"asset": "x", "value": "y"}]} for number in range(1200)]
    compiled = switch(*cases, selector={"byte": 0, "bytelength": 2, "type": "uint"})
    assert compiled.translate(b"\4\0").document == b'{"x":"y","end":"."}'


def test_a_case_of_a_short_float_is_rounded_as_the_payload_is() -> None:
    compiled = switch({"case": 0.1, "do": says("taken")}, selector={"byte": 0, "bytelength": 4, "type": "float"})
    assert b"taken" in compiled.translate(struct.pack(">f", 0.1)).document
    assert mistakes({"switch": {"byte": 0, "bytelength": 4, "type": "float"}, "on": [{"case": 1e300, "do": []}]})


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-300, 300)
    | st.floats(allow_nan=False)
    | st.text(max_size=6)
    | st.sampled_from(["int", "uint", "float", "hex", "string", "boolean", "big", "little", "location_lat"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "asset",
                    "value",
                    "switch",
                    "on",
                    "case",
                    "do",
                    "default",
                    "byte",
                    "endbyte",
                    "bytelength",
                    "type",
                    "byteorder",
                    "custom_type",
                    "comment",
                    "sense",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)


@settings(max_examples=300, deadline=None)
@given(sense=JSON, payload=st.binary(max_size=20))
def test_any_template_and_payload_is_a_document_or_a_named_error(sense: object, payload: bytes) -> None:
    try:
        document = parse_template(json.dumps({"sense": sense})).translate(payload).document
    except (TemplateInvalid, PayloadDoesNotFit):
        return
    assert isinstance(json.loads(document), dict)


@settings(max_examples=300, deadline=None)
@given(bits=st.integers(0, 2**32 - 1))
def test_a_short_float_reads_back_and_no_fewer_digits_do(bits: int) -> None:
    packed = bits.to_bytes(4, "big")
    (exact,) = struct.unpack(">f", packed)
    compiled = template({"asset": "x", "value": {"byte": 0, "bytelength": 4, "type": "float"}})
    try:
        text = compiled.translate(packed).document.decode()[5:-1]
    except PayloadDoesNotFit:
        assert exact != exact or exact in (float("inf"), float("-inf"))
        return
    assert struct.pack(">f", float(text)) == packed
    digits = len(text.partition("e")[0].replace(".", "").replace("-", "").strip("0"))
    assert digits <= 9
