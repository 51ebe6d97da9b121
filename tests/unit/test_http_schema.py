"""What is checked is what is published: the schemas mean to us what they mean to ``jsonschema``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coapgw.http import schemas
from coapgw.http.openapi import openapi, statuses_refused
from coapgw.http.refusals import RequestInvalid
from coapgw.http.schema import SHOWN_MISTAKES, Schema, expect, mistakes_in, unchecked_words
from tests.unit.api_client import api_in
from tests.unit.registries import iccid

BODIES: list[Schema] = [schemas.NEW_DEVICE, schemas.DEVICE_CHANGES, schemas.NEW_KEY, schemas.NEW_KEY_JOB]
SHOWN: list[Schema] = [schemas.DEVICE, schemas.KEY, schemas.KEY_JOB, schemas.ERROR]

TEXTS = st.sampled_from(
    [
        *(
            iccid(1),
            iccid(1) + "\n",
            "1" * 17,
            "1" * 20,
            "1" * 21,
            "9" * 15,
            "ACTIVE",
            "active",
            "COAP",
            "HEX",
            "STRING",
        ),
        *(
            "",
            "x" * 7,
            "x" * 8,
            "x" * 64,
            "x" * 65,
            "x" * 256,
            "x" * 257,
            "10.0.0.1",
            "٣" * 19,
            "\N{GRINNING FACE}" * 64,
        ),
    ]
)
SCALARS = st.one_of(TEXTS, TEXTS, st.none(), st.booleans(), st.integers(-2, 2), st.floats(-2, 2), st.just(1.0))
NAMES = st.sampled_from(
    [
        *("iccid", "imsi", "ip", "name", "status", "createdAt", "deviceId", "secretKey", "protocol", "format", "keys"),
        *("message", "errors", "total", "other", ""),
    ]
)
OBJECTS = st.dictionaries(NAMES, SCALARS, max_size=6)
VALUES = st.one_of(SCALARS, OBJECTS, st.dictionaries(NAMES, st.one_of(SCALARS, st.lists(OBJECTS, max_size=3))))


@settings(max_examples=300, deadline=None)
@given(schema=st.sampled_from(BODIES + SHOWN), value=VALUES)
def test_we_refuse_what_jsonschema_refuses(schema: Schema, value: Any) -> None:
    ours = not list(mistakes_in(schema, value))
    # Python's $ also matches before a line feed at the end, which ECMA 262's and ours does not
    theirs = jsonschema.Draft202012Validator(schema).is_valid(value) and "\n" not in str(value)
    assert ours == theirs


@pytest.mark.parametrize("schema", BODIES + SHOWN, ids=lambda schema: schema["title"])
def test_schemas_are_schemas_and_every_word_is_checked(schema: Schema) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    assert unchecked_words(schema) == set()


def test_mistakes_name_their_place_and_never_the_value() -> None:
    keys = [{"deviceId": iccid(1), "secretKey": "secret!", "protocol": "COAP"}, {"deviceId": 1}, "secret!"]
    with pytest.raises(RequestInvalid) as refused:
        expect(schemas.NEW_KEY_JOB, {"keys": keys})  # type: ignore[dict-item]
    assert [mistake.field for mistake in refused.value.mistakes] == [
        *("keys[0].secretKey", "keys[1].secretKey", "keys[1].protocol", "keys[1].deviceId", "keys[2]"),
    ]
    assert "secret!" not in repr(refused.value.mistakes)


def test_five_thousand_mistakes_are_not_all_told() -> None:
    with pytest.raises(RequestInvalid) as refused:
        expect(schemas.NEW_KEY_JOB, {"keys": [1] * 5000})
    assert len(refused.value.mistakes) == SHOWN_MISTAKES


def test_document_holds_the_whole_table(tmp_path: Path) -> None:
    with api_in(tmp_path) as api:
        document = openapi(api.table)
        shown = {
            (method.upper(), path): described
            for path, methods in document["paths"].items()
            for method, described in methods.items()
        }
        for operation in api.table.operations:
            for path in (operation.path, *operation.aliases):
                described = shown.pop((operation.method, path))
                statuses = {str(status) for status in statuses_refused(operation) | operation.answered.keys()}
                assert described["responses"].keys() == statuses
                assert ("requestBody" in described) == (operation.body is not None)
                assert len(described.get("parameters", ())) == len(operation.path_parameters) + len(operation.query)
        assert shown == {}
    names = [described["operationId"] for methods in document["paths"].values() for described in methods.values()]
    assert len(set(names)) == len(names)


def test_every_reference_in_the_document_leads_somewhere(tmp_path: Path) -> None:
    with api_in(tmp_path) as api:
        document = openapi(api.table)
    found = []

    def look(part: Any) -> None:
        if isinstance(part, dict):
            found.extend([part["$ref"]] if "$ref" in part else [])
            for inner in part.values():
                look(inner)
        elif isinstance(part, list):
            for inner in part:
                look(inner)

    look(document)
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(found) == known
