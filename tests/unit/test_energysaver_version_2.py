"""Templates of version 2: what they read, what they refuse, and the way back."""

from __future__ import annotations

import json
import struct
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coapgw.energysaver.template import PayloadDoesNotFit, Template, TemplateInvalid, ValuesDoNotFit, parse_template

Value = dict[str, Any]


def template(*sense: Value, **more: object) -> Template:
    return parse_template(json.dumps({"version": "2", "sense": sense, **more}))


def asset(value: object, name: str = "x", **more: Any) -> Value:
    return {"asset": name, "value": value, **more}


def read(value: object, payload: str, **more: Any) -> Any:
    return json.loads(template(asset(value, **more)).translate(bytes.fromhex(payload)).document)["x"]


def mistakes(*sense: object, **more: object) -> list[str]:
    with pytest.raises(TemplateInvalid) as refused:
        parse_template(json.dumps({"version": "2", "sense": sense, **more}))
    return [str(mistake) for mistake in refused.value.mistakes]


# ---------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("value", "payload", "expected"),
    [
        ({"byte": 0, "type": "uint"}, "ff", 255),
        ({"byte": 0, "type": "int"}, "ff", -1),
        ({"byte": 0, "type": "int", "signed": False}, "ff", 255),
        ({"byte": 0, "type": "int", "signed": True}, "ff", -1),
        ({"byte": 0, "bytelength": 3, "type": "int"}, "fffffe", -2),
        ({"byte": 0, "bytelength": 3, "type": "uint", "byteorder": "little"}, "010000", 1),
        ({"byte": 0, "bytelength": 5, "type": "uint"}, "ffffffffff", 2**40 - 1),
        ({"byte": 0, "bytelength": 6, "type": "int"}, "800000000000", -(2**47)),
        ({"byte": 0, "bytelength": 7, "type": "uint"}, "ffffffffffffff", 2**56 - 1),
        ({"byte": 0, "bytelength": 8, "type": "uint"}, "fffffffffffffffd", 2**64 - 3),
        ({"byte": 0, "type": "boolean", "bit": 7}, "80", True),
        ({"byte": 0, "type": "boolean", "bit": 6}, "80", False),
        ({"byte": 0, "type": "uint", "bit": 4, "bitlength": 3}, "7f", 7),
        ({"byte": 0, "type": "int", "bit": 0, "bitlength": 4}, "f8", -8),
        ({"byte": 0, "bytelength": 2, "type": "uint", "bit": 6, "bitlength": 10}, "ffc0", 1023),
        ({"byte": 0, "bytelength": 2, "type": "uint", "bit": 0, "bitlength": 8, "byteorder": "little"}, "0102", 1),
        ({"byte": 0, "bytelength": 2, "type": "int", "calculation": "val / 10"}, "ff9c", -10),
        ({"byte": 0, "bytelength": 2, "type": "uint", "calculation": "val / 10"}, "00ff", 25.5),
        ({"byte": 0, "type": "uint", "bit": 0, "bitlength": 4, "calculation": "val * 2 + 1"}, "f3", 7),
        ({"byte": 0, "type": "float"}, "424bbcf9", 50.934544),
        ({"byte": 0, "bytelength": 2, "type": "float"}, "3e00", 1.5),
        ({"byte": 0, "bytelength": 8, "type": "float"}, struct.pack(">d", 0.1).hex(), 0.1),
        ({"byte": 0, "type": "float"}, "41d00000", 26),
        ({"byte": 0, "type": "time"}, "6393505d", "2022-12-09T15:12:29Z"),
        ({"byte": 0, "bytelength": 6, "type": "time", "unit": "ms"}, "0184f771eebb", "2022-12-09T15:12:29.883Z"),
        ({"byte": 0, "type": "time", "calculation": "val + 946684800"}, "00000000", "2000-01-01T00:00:00Z"),
        ({"byte": 0, "lengthbytes": 1, "type": "string"}, "03616263ff", "abc"),
        ({"byte": 0, "lengthbytes": 2, "type": "hex", "byteorder": "little"}, "0200abcdff", "abcd"),
        ({"byte": 0, "endbyte": 0, "type": "string"}, "6162", "ab"),
        ({"endbyte": -1, "type": "uint"}, "0102", 2),
        (5, "", 5),
        (True, "", True),
        (None, "", None),
        ("text", "", "text"),
    ],
)
def test_value_is_read(value: object, payload: str, expected: object) -> None:
    found = read(value, payload)
    assert (found, type(found)) == (expected, type(expected))


def test_version_1_knows_nothing_of_all_this() -> None:
    unknown = {"bit": 1, "signed": False, "calculation": 5}
    one = parse_template(json.dumps({"sense": [asset({"byte": 0, "type": "int", **unknown})]}))
    assert (one.version, one.translate(b"\xff").document) == ("1", b'{"x":-1}')
    for kind in ("time", "TIME"):
        with pytest.raises(TemplateInvalid):
            parse_template(json.dumps({"sense": [asset({"byte": 0, "type": kind})]}))


def test_next_is_behind_what_was_read_last() -> None:
    one = template(
        asset({"byte": 0, "lengthbytes": 1, "type": "string"}, "name"),
        asset({"byte": "next", "bytelength": 2, "type": "uint"}, "a"),
        asset({"byte": "next", "endbyte": -1, "type": "hex"}, "rest"),
        asset({"endbyte": -1, "type": "uint"}, "last"),
    )
    expected: Value = {"name": "ab", "a": 258, "rest": "aabb", "last": 9}
    assert json.loads(one.translate(bytes.fromhex("0261620102aabb09")).document) == expected
    assert one.encode(expected).hex() == "0261620102aabb09"


@pytest.mark.parametrize(
    ("value", "payload", "error"),
    [
        ({"byte": 0, "bytelength": 3, "type": "uint"}, "0102", "can't extract [0:3] from 2 bytes"),
        ({"byte": 1, "lengthbytes": 1, "type": "string"}, "ff0561", "can't extract [2:7] from 3 bytes"),
        ({"byte": 1, "lengthbytes": 2, "type": "string"}, "ff05", "can't extract [1:3] from 2 bytes"),
        ({"endbyte": -3, "type": "uint"}, "0102", "can't extract [-1:0] from 2 bytes"),
        ({"byte": 0, "type": "float"}, "7fc00000", "nan is no number that JSON has"),
        ({"byte": 0, "type": "uint", "calculation": "1 / val"}, "00", "division by zero, with val = 0"),
        (
            {"byte": 0, "bytelength": 8, "type": "time"},
            "ff" * 8,
            "18446744073709551615 is no time before the year 10000",
        ),
    ],
)
def test_what_does_not_fit_is_told_or_is_the_default(value: object, payload: str, error: str) -> None:
    with pytest.raises(PayloadDoesNotFit) as refused:
        read(value, payload)
    assert refused.value.description == f"Asset path:x, Error: {error}"
    assert read(value, payload, default=None) is None
    assert read(value, payload, default="none") == "none"


def test_location_may_be_any_numbers() -> None:
    degrees = {"bytelength": 4, "type": "int", "calculation": "val / 1e7"}
    one = template(
        asset({"byte": 0, **degrees}, "p.lat", custom_type="location_lat"),
        asset({"byte": 4, **degrees}, "p.long", custom_type="location_long", default=None),
    )
    assert one.translate(struct.pack(">ii", 501109000, -86821000)).location == ("-8.6821", "50.1109")
    assert one.translate(struct.pack(">i", 501109000)).location is None


def test_switch_compares_what_is_calculated_and_shown() -> None:
    one = template(
        {
            "switch": {"byte": 0, "type": "float"},
            "on": [{"case": 50.934544, "do": [asset(1)]}, {"default": True, "do": [asset(2)]}],
        },
        {
            "switch": {"byte": 4, "type": "uint", "calculation": "val / 2"},
            "on": [{"case": 1.5, "do": [asset(True, "y")]}],
        },
        {"switch": {"byte": 4, "type": "boolean", "bit": 0}, "on": [{"case": True, "do": [asset("odd", "z")]}]},
    )
    assert one.translate(bytes.fromhex("424bbcf903")).document == b'{"x":1,"y":true,"z":"odd"}'
    assert one.translate(bytes.fromhex("0000000004")).document == b'{"x":2}'


# ---------------------------------------------------------------------- repeats

GROUP = {"repeat": {"byte": 1, "count": {"byte": 0, "type": "uint"}, "bytelength": 3}}
PAIR = [asset({"byte": 0, "type": "uint"}, "k"), asset({"byte": 1, "bytelength": 2, "type": "int"}, "v.w")]


def test_groups_of_a_size_become_objects() -> None:
    one = template({"asset": "r", **GROUP, "do": PAIR})
    expected = {"r": [{"k": 1, "v": {"w": 2}}, {"k": 2, "v": {"w": -2}}]}
    assert json.loads(one.translate(bytes.fromhex("020100020 2fffeff".replace(" ", ""))).document) == expected
    assert one.translate(b"\0").document == b'{"r":[]}'
    with pytest.raises(PayloadDoesNotFit, match=r"can't extract \[4:7\] from 4 bytes"):
        one.translate(bytes.fromhex("02010002"))


def test_groups_go_on_until_the_end() -> None:
    number = {"byte": 0, "bytelength": 2, "type": "uint"}
    one = template({"asset": "r", "repeat": {"byte": 0, "bytelength": 2, "endbyte": -1}, "value": number})
    assert one.translate(bytes.fromhex("00010002ff")).document == b'{"r":[1,2]}'
    with pytest.raises(PayloadDoesNotFit):
        one.translate(bytes.fromhex("000100ff"))


def test_groups_may_have_sizes_of_their_own() -> None:
    texts = {"asset": "r", "repeat": {}, "value": {"byte": "next", "lengthbytes": 1, "type": "string"}}
    assert template(texts).translate(bytes.fromhex("01610362636400")).document == b'{"r":["a","bcd",""]}'
    kinds = [
        {"case": 1, "do": [asset({"byte": "next", "bytelength": 2, "type": "int", "calculation": "val / 100"}, "t")]},
        {"case": 2, "do": [asset({"byte": "next", "type": "uint"}, "h")]},
    ]
    fields = template({"asset": "f", "repeat": {}, "do": [{"switch": {"byte": "next", "type": "uint"}, "on": kinds}]})
    assert fields.translate(bytes.fromhex("010a5f0237")).document == b'{"f":[{"t":26.55},{"h":55}]}'
    assert fields.encode({"f": [{"h": 1}, {"t": -1}, {"h": 2}]}).hex() == "0201" + "01ff9c" + "0202"


def test_groups_nest() -> None:
    inner = {
        "asset": "i",
        "repeat": {"count": {"byte": "next", "type": "uint"}},
        "value": {"byte": "next", "type": "uint"},
    }
    one = template({"asset": "o", "repeat": {}, "do": [inner]})
    assert one.translate(bytes.fromhex("020102000103")).document == b'{"o":[{"i":[1,2]},{"i":[]},{"i":[3]}]}'
    assert one.encode({"o": [{"i": [1, 2]}, {"i": []}, {"i": [3]}]}).hex() == "020102000103"


@pytest.mark.parametrize(
    ("statement", "size", "error"),
    [
        ({"repeat": {"count": 3}, "do": [asset(1)]}, 2, "a group at byte 0 takes no bytes"),
        ({"repeat": {"bytelength": 1}, "value": {"byte": 0, "type": "uint"}}, 5001, "more than 5000"),
        ({"repeat": {"byte": 3}, "value": {"byte": "next", "type": "uint"}}, 2, "can't extract [3:2]"),
        (
            {"repeat": {"bytelength": 1}, "value": {"byte": 0, "bytelength": 2, "type": "uint"}},
            3,
            "can't extract [0:2]",
        ),
    ],
)
def test_repeats_are_bounded(statement: Value, size: int, error: str) -> None:
    with pytest.raises(PayloadDoesNotFit) as refused:
        template({"asset": "r", **statement}).translate(bytes(size))
    assert error in refused.value.description


def test_repeats_in_repeats_share_one_bound() -> None:
    inner = {"asset": "i", "repeat": {"byte": 0, "bytelength": 1}, "value": {"byte": 0, "type": "uint"}}
    back = asset({"byte": 0, "type": "uint"}, "again")
    one = template({"asset": "o", "repeat": {}, "do": [inner, back]})
    begun = time.process_time()
    with pytest.raises(PayloadDoesNotFit, match="more than 5000 values"):
        one.translate(bytes(2000))
    assert time.process_time() - begun < 1  # it is a matter of milliseconds; without the bound it would be minutes


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("statement", "places"),
    [
        (asset({"byte": 0, "type": "uint", "bite": 1}), ["/sense/0/value/bite"]),
        ({**asset(1), "vale": 1}, ["/sense/0/vale"]),
        (asset([1]), ["/sense/0/value"]),
        (asset(1, default=2), ["/sense/0/default"]),
        (asset({"byte": 0, "type": "uint"}, default={}), ["/sense/0/default"]),
        (asset({"byte": 0, "bytelength": 9, "type": "uint"}), ["/sense/0/value/bytelength"]),
        (asset({"byte": 0, "bytelength": 3, "type": "float"}), ["/sense/0/value/bytelength"]),
        (asset({"byte": 0, "endbyte": 0, "type": "uint"}), ["/sense/0/value/endbyte"]),
        (asset({"byte": "after", "type": "uint"}), ["/sense/0/value/byte"]),
        (asset({"byte": 0, "type": "uint", "bit": 8}), ["/sense/0/value/bit"]),
        (asset({"byte": 0, "type": "uint", "bit": 4, "bitlength": 5}), ["/sense/0/value/bitlength"]),
        (asset({"byte": 0, "type": "uint", "bitlength": 5}), ["/sense/0/value/bitlength"]),
        (asset({"byte": 0, "type": "string", "bit": 1}), ["/sense/0/value/bit"]),
        (asset({"byte": 0, "type": "uint", "signed": True}), ["/sense/0/value/signed"]),
        (asset({"byte": 0, "type": "int", "signed": 1}), ["/sense/0/value/signed"]),
        (asset({"byte": 0, "type": "hex", "calculation": "val"}), ["/sense/0/value/calculation"]),
        (asset({"byte": 0, "type": "uint", "calculation": "val +"}), ["/sense/0/value/calculation"]),
        (asset({"byte": 0, "type": "uint", "calculation": 5}), ["/sense/0/value/calculation"]),
        (asset({"byte": 0, "type": "uint", "lengthbytes": 1}), ["/sense/0/value/lengthbytes"]),
        (asset({"byte": 0, "type": "string", "lengthbytes": 5}), ["/sense/0/value/lengthbytes"]),
        (asset({"byte": 0, "type": "string", "lengthbytes": 1, "endbyte": 0}), ["/sense/0/value/lengthbytes"]),
        (asset({"byte": 0, "type": "uint", "unit": "s"}), ["/sense/0/value/unit"]),
        (asset({"byte": 0, "type": "time", "unit": "h"}), ["/sense/0/value/unit"]),
        (asset("x", custom_type="location_lat"), ["/sense/0/custom_type"]),
        ({"switch": {"byte": 0, "type": "time"}, "on": []}, ["/sense/0/switch/type"]),
        ({"switch": {"byte": 0, "type": "uint"}, "on": [{"case": 1, "do": [], "while": 1}]}, ["/sense/0/on/0/while"]),
        ({"asset": "r", "repeat": {}}, ["/sense/0"]),
        ({"asset": "r", "repeat": {}, "do": [], "value": {"byte": 0, "type": "uint"}}, ["/sense/0"]),
        ({"asset": "r", "repeat": [], "do": []}, ["/sense/0/repeat"]),
        ({"repeat": {}, "do": []}, ["/sense/0/asset"]),
        ({"asset": "r", "repeat": {"count": -1}, "do": []}, ["/sense/0/repeat/count"]),
        ({"asset": "r", "repeat": {"count": {"byte": 0, "type": "int"}}, "do": []}, ["/sense/0/repeat/count"]),
        ({"asset": "r", "repeat": {}, "do": [asset(1.5, custom_type="location_lat")]}, ["/sense/0/do/0/custom_type"]),
    ],
)  # fmt: skip
def test_mistake_is_told_at_its_place(statement: Value, places: list[str]) -> None:
    assert [mistake.split(": ")[0] for mistake in mistakes(statement)] == places


def test_unknown_names_are_mistakes_everywhere() -> None:
    assert mistakes(asset(1), senses=[])[0].startswith("/senses: is not known here")


def test_collisions_are_found_beside_repeats_and_in_them() -> None:
    group = {"asset": "a", "repeat": {"bytelength": 1}, "value": {"byte": 0, "type": "uint"}}
    assert mistakes(group, asset(1, "a.b"))
    inside = {"asset": "r", "repeat": {"bytelength": 1}, "do": [asset(1, "a"), asset(1, "a.b")]}
    assert mistakes(inside)
    template(asset(1, "a"), {"asset": "r", "repeat": {"bytelength": 1}, "do": [asset(1, "a.b")]})


def test_repeats_nest_eight_deep() -> None:
    nested: Value = {"asset": "r", "repeat": {"bytelength": 1}, "value": {"byte": 0, "type": "uint"}}
    for depth in range(12):
        if depth == 7:
            template(nested)
        nested = {"asset": "r", "repeat": {"bytelength": 1}, "do": [nested]}
    assert "nested more than 8 deep" in mistakes(nested)[0]


# ---------------------------------------------------------------------- the way back


_HALF = st.floats(-60000, 60000, width=16)
_SINGLE = st.floats(-60000, 60000, width=32)
_DOUBLE = st.floats(-60000, 60000, width=64)


@st.composite
def fields(draw: st.DrawFn) -> tuple[list[Value], bytes]:
    """Return statements that cover a payload without gaps, and such a payload."""
    statements: list[Value] = []
    payload = b""
    for number in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["int", "uint", "float", "bits", "hex", "string", "time", "list"]))
        name, order = f"a{number}", draw(st.sampled_from(["big", "little"]))
        size = draw(st.integers(1, 8))
        at: Value = {
            "byte": "next" if draw(st.booleans()) or any("repeat" in one for one in statements) else len(payload)
        }
        at["byteorder"] = order
        if kind in ("int", "uint"):
            more = {"calculation": "val / 10"} if draw(st.booleans()) and size <= 6 else {}
            statements.append(asset({**at, "bytelength": size, "type": kind, **more}, name))
            payload += draw(st.binary(min_size=size, max_size=size))
        elif kind == "float":
            size = draw(st.sampled_from([2, 4, 8]))
            number_ = draw({2: _HALF, 4: _SINGLE, 8: _DOUBLE}[size])
            statements.append(asset({**at, "bytelength": size, "type": kind}, name))
            payload += struct.pack((">" if order == "big" else "<") + {2: "e", 4: "f", 8: "d"}[size], number_ + 0.0)
        elif kind == "bits":
            cut = draw(st.integers(1, 7))
            first = {**at, "type": "uint", "bit": 0, "bitlength": cut}
            if at["byte"] == "next":
                continue  # two of them would be one behind the other
            statements.append(asset(first, name))
            statements.append(asset({**at, "type": "int", "bit": cut, "bitlength": 8 - cut}, f"{name}b"))
            payload += draw(st.binary(min_size=1, max_size=1))
        elif kind == "hex":
            statements.append(asset({**at, "bytelength": size, "type": kind}, name))
            payload += draw(st.binary(min_size=size, max_size=size))
        elif kind == "string":
            text = draw(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5)).encode()
            statements.append(asset({**at, "lengthbytes": 1, "type": kind}, name))
            payload += bytes((len(text),)) + text
        elif kind == "time":
            statements.append(asset({**at, "type": kind}, name))
            payload += draw(st.binary(min_size=4, max_size=4))
        else:
            items = draw(st.binary(max_size=4))
            count = {"byte": at["byte"], "type": "uint"}
            inside = {"byte": "next", "type": "uint"}
            statements.append({"asset": name, "repeat": {"count": count}, "value": inside})
            payload += bytes((len(items),)) + items
    return statements, payload


@given(fields())
@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_what_is_read_can_be_written_again(case: tuple[list[Value], bytes]) -> None:
    statements, payload = case
    if not statements:
        return
    one = template(*statements)
    try:
        values = json.loads(one.translate(payload).document)
    except PayloadDoesNotFit:  # a position that a text of another length has moved
        return
    again = one.encode(values)
    assert json.loads(one.translate(again).document) == values


@pytest.mark.parametrize(
    ("value", "wrong", "sentence"),
    [
        ({"byte": 0, "type": "uint"}, 256, "x: is 256 in the payload, which holds 0 to 255"),
        ({"byte": 0, "type": "uint"}, -1, "x: is -1 in the payload, which holds 0 to 255"),
        ({"byte": 0, "type": "uint"}, 1.5, "x: is not what a whole number becomes"),
        ({"byte": 0, "type": "uint"}, "5", "x: is a number"),
        ({"byte": 0, "type": "uint"}, True, "x: is a number"),
        ({"byte": 0, "type": "uint", "calculation": "val / 10"}, 0.15, "x: is not what a whole number becomes"),
        ({"byte": 0, "type": "uint", "calculation": "val * val"}, 4, "x: the calculation val * val cannot be undone"),
        ({"byte": 0, "type": "boolean"}, 1, "x: is true or false"),
        ({"byte": 0, "bytelength": 2, "type": "string"}, "abc", "x: has 3 bytes; there are 2"),
        ({"byte": 0, "bytelength": 2, "type": "hex"}, "ab", "x: has 1 bytes; there are 2"),
        ({"byte": 0, "bytelength": 2, "type": "hex"}, "zz", "x: is pairs of hexadecimal digits"),
        ({"byte": 0, "lengthbytes": 1, "type": "string"}, "a" * 256, "x: has 256 bytes: too many"),
        ({"byte": 0, "type": "time"}, "yesterday", "x: is a time such as 2022-12-09T15:12:29Z"),
        ({"byte": 0, "type": "time"}, "1960-01-01T00:00:00Z", "x: is -315619200 in the payload"),
        ({"byte": 0, "bytelength": 2, "type": "float"}, 1e9, "x: is no float of 2 bytes"),
        ("constant", "other", "x: is always the constant of the template"),
    ],
)  # fmt: skip
def test_value_that_cannot_be_written_is_told(value: object, wrong: object, sentence: str) -> None:
    with pytest.raises(ValuesDoNotFit) as refused:
        template(asset(value)).encode({"x": wrong})  # type: ignore[dict-item]
    assert str(refused.value).startswith(sentence)


def test_other_values_that_cannot_be_written_are_told() -> None:
    one = template(asset({"byte": 0, "type": "uint"}, "a.b"), asset({"byte": 0, "type": "uint"}, "c"))
    for values, sentence in (
        ({}, "a.b: is missing"),
        ({"a": {"b": 1}}, "c: is missing"),
        ({"a": {"b": 1}, "c": 2}, "c: is in the same bits as another value"),
        ({"a": {"b": 1}, "c": 1, "d": 1}, "these values do not come back"),
    ):
        with pytest.raises(ValuesDoNotFit, match=sentence):
            one.encode(values)  # type: ignore[arg-type]
    assert one.encode({"a": {"b": 1}, "c": 1}) == b"\1"


def test_default_is_written_as_nothing() -> None:
    one = template(
        asset({"byte": 0, "type": "uint"}), asset({"byte": 1, "bytelength": 2, "type": "int"}, "y", default=None)
    )
    assert one.encode({"x": 1, "y": None}).hex() == "01"
    assert one.encode({"x": 1, "y": -1}).hex() == "01ffff"


def test_switch_is_written_by_what_the_values_are() -> None:
    on = [
        {"case": 1, "do": [asset({"byte": 1, "type": "uint"}, "a"), asset("one", "kind")]},
        {"case": 2, "do": [asset({"byte": 1, "bytelength": 2, "type": "uint"}, "a"), asset("two", "kind")]},
        {"default": True, "do": [asset({"byte": 1, "endbyte": 0, "type": "hex"}, "raw")]},
    ]
    one = template({"switch": {"byte": 0, "type": "uint"}, "on": on})
    assert one.encode({"kind": "one", "a": 5}).hex() == "0105"
    assert one.encode({"kind": "two", "a": 5}).hex() == "020005"
    assert one.encode({"raw": "aabb"}).hex() == "00aabb"
    with pytest.raises(ValuesDoNotFit):
        one.encode({"kind": "two", "a": 70_000})


def test_hopeless_switches_do_not_take_for_ever() -> None:
    on = [{"case": number, "do": [asset({"byte": 1, "type": "uint"}, "a")]} for number in range(50)]
    one = template(*({"switch": {"byte": at, "type": "uint"}, "on": on} for at in range(2, 12)))
    begun = time.process_time()
    with pytest.raises(ValuesDoNotFit):
        one.encode({"a": 300})
    assert time.process_time() - begun < 5


# ---------------------------------------------------------------------- anything at all

_NAMES = ["asset", "value", "byte", "endbyte", "bytelength", "type", "byteorder", "bit", "bitlength", "signed"]
_NAMES += ["calculation", "lengthbytes", "unit", "repeat", "count", "do", "switch", "on", "case", "default", "comment"]
_NAMES += ["custom_type", "sense", "x"]
_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["next", "int", "uint", "float", "boolean", "string", "hex", "time", "ms", "val/2", "a.b", "big"])
    | st.text(max_size=4)
)
TREES = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(_NAMES), inner, max_size=6)
)


@given(st.lists(TREES, max_size=4), st.binary(max_size=20))
@settings(max_examples=80, deadline=None)
def test_any_template_is_one_or_refused(sense: list[object], payload: bytes) -> None:
    try:
        one = parse_template(json.dumps({"version": "2", "sense": sense}))
    except TemplateInvalid:
        return
    try:
        document = one.translate(payload).document
    except PayloadDoesNotFit:
        return
    json.loads(document)


@given(st.binary(max_size=30))
def test_any_payload_fits_or_not(payload: bytes) -> None:
    one = template(
        asset({"byte": 0, "lengthbytes": 1, "type": "string"}, "n", default=None),
        {
            "asset": "r",
            "repeat": {"byte": "next"},
            "do": [
                asset({"byte": "next", "type": "uint", "bit": 4, "bitlength": 4}, "k"),
                asset({"byte": "next", "bytelength": 2, "type": "float"}, "f", default=0),
            ],
        },
    )
    try:
        json.loads(one.translate(payload).document)
    except PayloadDoesNotFit:
        return


@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize("kind", ["hex", "string"])
def test_payload_does_not_become_many_times_as_much(version: str, kind: str) -> None:
    sense = [asset({"byte": 0, "endbyte": 0, "type": kind}, f"a{number}") for number in range(700)]
    one = parse_template(json.dumps({"version": version, "sense": sense}))
    assert len(one.translate(bytes(1000)).document) < 3_000_000
    with pytest.raises(PayloadDoesNotFit, match="1048576 bytes of texts"):
        one.translate(bytes(1500))
    sense = [asset({"byte": 0, "bytelength": 2000, "type": kind}, f"a{number}") for number in range(700)]
    one = parse_template(json.dumps({"version": version, "sense": sense}))
    with pytest.raises(PayloadDoesNotFit, match="1048576 bytes of texts"):
        one.translate(bytes(2000))


def test_groups_do_not_become_many_times_as_much_either() -> None:
    rest = asset({"byte": 0, "endbyte": 0, "type": "hex"}, "rest")
    one = template({"asset": "r", "repeat": {}, "do": [rest, asset({"byte": 0, "type": "uint"})]})
    with pytest.raises(PayloadDoesNotFit, match="1048576 bytes of texts"):
        one.translate(bytes(2000))
