"""The templates in etc/, the schema that editors complete them by, and what both are worth."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from coapgw.energysaver.template import TemplateInvalid, parse_template
from tests.unit.test_energysaver_version_2 import TREES

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "etc" / "templates").glob("*.json"))
SENSORS: list[dict[str, Any]] = json.loads((ROOT / "tests" / "data" / "sensors.json").read_text())
PUBLISHED: list[dict[str, Any]] = json.loads((ROOT / "tests" / "data" / "energysaver.json").read_text())
SCHEMA = json.loads(files("coapgw.energysaver").joinpath("schema.json").read_text())
VALID = Draft202012Validator(SCHEMA)


@pytest.mark.parametrize("case", SENSORS, ids=lambda case: f"{case['template']}-{case['payload_hex']}")
def test_sensor_is_read_and_its_payload_written_again(case: dict[str, Any]) -> None:
    template = parse_template((ROOT / "etc" / "templates" / f"{case['template']}.json").read_text())
    for payload in (bytes.fromhex(case["payload_hex"]), template.encode(case["expected"])):
        assert json.loads(template.translate(payload).document) == case["expected"]


def test_every_example_has_a_payload() -> None:
    assert {path.stem for path in EXAMPLES} == {case["template"] for case in SENSORS}


def test_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_what_the_schema_says(path: Path) -> None:
    VALID.validate(json.loads(path.read_text()))


@pytest.mark.parametrize("case", PUBLISHED, ids=lambda case: case["name"])
def test_published_templates_are_what_the_schema_says(case: dict[str, Any]) -> None:
    VALID.validate(case["template"])


@given(TREES)
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("version", ["1", "2"])
def test_what_the_schema_refuses_is_no_template(version: str, tree: object) -> None:
    template = {"version": version, "sense": [tree]}
    if VALID.is_valid(template):
        return
    with pytest.raises(TemplateInvalid):
        parse_template(json.dumps(template))


def _broken() -> list[tuple[str, dict[str, Any]]]:
    """Return every example with one of its names or values made another."""
    found = []
    for path in EXAMPLES:
        text = path.read_text()
        for before, after in (
            ('"asset"', '"aset"'),
            ('"type": "uint"', '"type": "unit"'),
            ('"byte": "next"', '"byte": "nxt"'),
            ('"bytelength": 2', '"bytelength": 0'),
            ('"calculation": "', '"calculations": "'),
            ('"case": ', '"cases": '),
            ('"do": [', '"does": ['),
            ('"repeat": {}', '"repeat": []'),
            ('"sense"', '"senses"'),
        ):
            if before in text and '"version": "2"' in text:
                found.append((f"{path.stem}: {after}", json.loads(text.replace(before, after, 1))))
    return found


@pytest.mark.parametrize(("what", "template"), _broken())
def test_mistake_is_found_by_schema_and_gateway(what: str, template: dict[str, Any]) -> None:
    assert not VALID.is_valid(template), what
    with pytest.raises(TemplateInvalid):
        parse_template(json.dumps(template))
