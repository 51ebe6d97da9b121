"""CBOR and SenML payloads: what JSON has for them, and what strangers send."""

from __future__ import annotations

import json
import time

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coapgw.energysaver.cbor import decode_cbor, decode_senml_cbor
from coapgw.errors import Untranslatable


@pytest.mark.parametrize(
    ("payload", "document"),
    [  # RFC 8949 appendix A, and a few of what JSON has not
        ("00", "0"),
        ("1bffffffffffffffff", "18446744073709551615"),
        ("c249010000000000000000", "18446744073709551616"),
        ("c349010000000000000000", "-18446744073709551617"),
        ("3bffffffffffffffff", "-18446744073709551616"),
        ("f90000", "0.0"),
        ("fb3ff199999999999a", "1.1"),
        ("f97e00", "null"),
        ("f97c00", "null"),
        ("f4", "false"),
        ("f6", "null"),
        ("f7", "null"),
        ("f0", "null"),
        ("c074323031332d30332d32315432303a30343a30305a", '"2013-03-21T20:04:00Z"'),
        ("c11a514b67b0", "1363896240"),
        ("4401020304", '"AQIDBA"'),
        ("d74401020304", '"01020304"'),
        ("d64401020304", '"AQIDBA=="'),
        ("d818456449455446", '"ZElFVEY"'),
        ("62c3bc", '"ü"'),
        ("83010203", "[1,2,3]"),
        ("a201020304", '{"1":2,"3":4}'),
        ("a26161016162820203", '{"a":1,"b":[2,3]}'),
        ("9f018202039f0405ffff", "[1,[2,3],[4,5]]"),
        ("c48221196ab3", "273.15"),
        ("c5822003", "1.5"),
        ("d9010282 0102", "[1,2]"),
        ("d9d9f7 01", "1"),
        ("a1410103", '{"AQ":3}'),
        ("d8 63 05", "5"),
    ],
)
def test_item_as_json(payload: str, document: str) -> None:
    assert decode_cbor(bytes.fromhex(payload)).decode() == document


@pytest.mark.parametrize(
    "payload",
    [
        *("", "ff", "1c", "0102", "62ffff", "a10102 00", "a201010102", "a20101613102", "a18001", "a1f601", "a1f501"),
        *("a1f93e0001", "d81c81d81d00", "d81d00", "d9010081", "c2 5841" + "ff" * 65, "c482 1a7fffffff 01", "c48161 61"),
        *("c5821901f5 01", "a1c2410105", "5b7fffffffffffffff", "9bffffffffffffffff", "bb7fffffffffffffff", "7f"),
        *("81" * 33 + "00", "c1" * 100 + "00", "c401", "c4820161 61"),
    ],
)
def test_what_is_none_or_what_json_has_not_is_told(payload: str) -> None:
    with pytest.raises(Untranslatable, match=r"^Error: no CBOR"):
        decode_cbor(bytes.fromhex(payload))


def test_senml_keeps_its_base_values() -> None:
    pack = [{-2: "urn:dev:ow:1", -3: 1.276020076e9, 0: "voltage", 1: "V", 2: 120.1}, {0: "d", 8: b"\1", "x": 1, 99: 2}]
    expected = [
        {"bn": "urn:dev:ow:1", "bt": 1276020076.0, "n": "voltage", "u": "V", "v": 120.1},
        {"n": "d", "vd": "AQ", "x": 1, "99": 2},
    ]
    assert json.loads(decode_senml_cbor(cbor2.dumps(pack))) == expected
    wrong: object
    for wrong in ({}, [1], 5):
        with pytest.raises(Untranslatable, match="SenML"):
            decode_senml_cbor(cbor2.dumps(wrong))
    with pytest.raises(Untranslatable, match="twice"):
        decode_senml_cbor(cbor2.dumps([{0: "a", "n": "b"}]))


@given(st.binary(max_size=60))
def test_any_bytes_are_a_document_or_refused(payload: bytes) -> None:
    for decode in (decode_cbor, decode_senml_cbor):
        try:
            json.loads(decode(payload))
        except Untranslatable as refused:
            assert len(refused.description) < 400  # noqa: PT017 - most are refused


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(_JSON)
def test_what_json_has_comes_through(value: object) -> None:
    assert json.loads(decode_cbor(cbor2.dumps(value))) == value


def test_keys_that_collide_do_not_take_long() -> None:
    prime = 2**61 - 1
    keys = [(number * prime).to_bytes(12, "big") for number in range(1, 4000)]
    payload = b"\xb9" + len(keys).to_bytes(2, "big") + b"".join(b"\xc2\x4c" + key + b"\0" for key in keys)
    begun = time.process_time()
    with pytest.raises(Untranslatable):
        decode_cbor(payload)
    assert time.process_time() - begun < 0.1  # instead of seconds
