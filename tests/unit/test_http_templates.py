"""Templates over the management API."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.api_client import Api, api_in
from tests.unit.registries import START_MS, iccid

TEMPLATES = "/v1/optimize/templates"
TEXT = '{"sense":[{"asset":"t","value":{"byte":0,"bytelength":2,"type":"int"}}]}'
NEW = {"name": "meter", "template": TEXT, "protocolFilter": ["COAP"], "status": "ACTIVE"}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with api_in(tmp_path / "data") as opened:
        yield opened


def test_template_is_kept_shown_changed_and_forgotten(api: Api) -> None:
    added = api.ask("POST", TEMPLATES, NEW)
    assert added.status == 201
    one = f"{TEMPLATES}/{added.json['id']}"
    assert added.headers["location"] == one
    assert NEW.items() <= added.json.items()
    assert api.ask("GET", one).json == added.json
    assert api.ask("GET", TEMPLATES).json == {"items": [added.json]}
    changed = api.ask("PATCH", one, {"status": "INACTIVE", "name": "other"})
    assert (changed.status, changed.body) == (204, b"")
    shown = api.ask("GET", one).json
    assert (shown["status"], shown["name"], shown["template"]) == ("INACTIVE", "other", TEXT)
    assert api.ask("DELETE", one).status == 204
    for method in ("GET", "DELETE"):
        assert api.ask(method, one).status == 404
    assert api.ask("PATCH", one, {}).status == 404


def test_what_is_not_said_is_inactive_and_for_coap(api: Api) -> None:
    added = api.ask("POST", TEMPLATES, {"name": "meter", "template": TEXT}).json
    assert (added["status"], added["protocolFilter"]) == ("INACTIVE", ["COAP"])


def test_second_active_template_is_409(api: Api) -> None:
    assert api.ask("POST", TEMPLATES, NEW).status == 201
    refused = api.ask("POST", TEMPLATES, NEW)
    assert (refused.status, refused.json["statusText"]) == (409, "Conflict")
    assert refused.json["errors"] == [
        {"message": "template 'meter' is active; one can be at a time", "field": "status"}
    ]
    idle = api.ask("POST", TEMPLATES, NEW | {"status": "INACTIVE"}).json["id"]
    assert api.ask("PATCH", f"{TEMPLATES}/{idle}", {"status": "ACTIVE"}).status == 409
    assert [one["status"] for one in api.ask("GET", TEMPLATES).json["items"]] == ["ACTIVE", "INACTIVE"]


def test_what_is_no_template_is_422_with_every_place(api: Api) -> None:
    wrong = json.dumps({"sense": [{"asset": "a", "value": {"type": "int"}}, {"asset": 5}]})
    refused = api.ask("POST", TEMPLATES, NEW | {"template": wrong})
    assert refused.status == 422
    places = {error["field"] for error in refused.json["errors"]}
    assert "template#/sense/0/value" in places
    assert any(place.startswith("template#/sense/1") for place in places)
    kept = api.ask("POST", TEMPLATES, NEW).json["id"]
    assert api.ask("PATCH", f"{TEMPLATES}/{kept}", {"template": "{"}).status == 422
    assert api.ask("GET", f"{TEMPLATES}/{kept}").json["template"] == TEXT


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"name": "x" * 65},
        {"name": "a\nb"},
        {"protocolFilter": []},
        {"protocolFilter": ["UDP"]},
        {"protocolFilter": ["COAP", "COAP"]},
        {"status": "active"},
        {"template": {"sense": []}},
        {"unknown": 1},
    ],
)
def test_other_mistakes_are_400(api: Api, change: dict[str, object]) -> None:
    assert api.ask("POST", TEMPLATES, NEW | change).status == 400
    assert api.ask("GET", TEMPLATES).json == {"items": []}


def test_body_over_64_kib_is_413(api: Api) -> None:
    assert api.ask("POST", TEMPLATES, NEW | {"template": " " * 65_536}).status == 413


def trial(api: Api, template: str, payload: bytes | str) -> tuple[int, dict[str, object]]:
    encoded = payload if isinstance(payload, str) else base64.b64encode(payload).decode()
    answer = api.ask("POST", "/v1/optimize/messages/test", {"template": template, "payload": encoded})
    return answer.status, answer.json


def test_trial_shows_the_translation_and_what_it_saves(api: Api) -> None:
    expected = {"translatedPayload": '{"t":26}', "reducedBytes": 6, "energyUsageReduction": 0.08}
    assert trial(api, TEXT, bytes.fromhex("001a")) == (200, expected)


def test_trial_of_what_does_not_fit_is_400_with_the_text_of_the_event(api: Api) -> None:
    status, body = trial(api, TEXT, b"\x00")
    assert (status, body["errors"]) == (
        400,
        [{"message": "Asset path:t, Error: can't extract [0:2] from 1 bytes", "field": "payload"}],
    )


@pytest.mark.parametrize("payload", ["ABC", "A===", "\u00e9", "AA==\n", "*"])
def test_trial_of_what_is_no_base64_is_400(api: Api, payload: str) -> None:
    status, body = trial(api, TEXT, payload)
    assert (status, body["errors"]) == (
        400,
        [{"message": "is no base64 (RFC 4648 section 4)", "field": "payload"}],
    )


def test_trial_with_what_is_no_template_is_422(api: Api) -> None:
    assert trial(api, "{}", b"\x00")[0] == 422


def test_savings_are_told_with_what_changed(api: Api) -> None:
    none = {"value": 0, "delta": 0}
    names = ("messagesTranslated", "averageBytesReducedPerMessage", "bytesSaved")
    assert api.ask("GET", "/v1/optimize/savings").json == dict.fromkeys(names, none)
    count = api.kept.savings.count
    for document in (25, 20, 20):
        count(iccid(1), START_MS, 5, document)
    count(iccid(2), START_MS - 86_400_000, 5, 15)
    assert api.ask("GET", "/v1/optimize/savings?range=1").json == {
        "messagesTranslated": {"value": 3, "delta": 2},
        "averageBytesReducedPerMessage": {"value": 16.67, "delta": 6.67},
        "bytesSaved": {"value": 50, "delta": 40},
    }
    assert api.ask("GET", "/v1/optimize/savings?range=30").json["bytesSaved"] == {"value": 60, "delta": 60}
    one = api.ask("GET", f"/v1/optimize/savings?range=7&iccid={iccid(2)}").json
    assert one["messagesTranslated"] == {"value": 1, "delta": 1}
    days = api.ask("GET", "/v1/optimize/savings/days?range=7").json["items"]
    saved = {day["day"]: day["bytesSaved"] for day in days}
    assert list(saved)[:2] == ["2023-11-14", "2023-11-13"]
    assert list(saved.values()) == [50, 10, 0, 0, 0, 0, 0]
    devices = api.ask("GET", "/v1/optimize/savings/devices?range=7&limit=1").json["items"]
    assert devices == [
        {"iccid": iccid(1), "messagesTranslated": 3, "averageBytesReducedPerMessage": 16.67, "bytesSaved": 50}
    ]


@pytest.mark.parametrize("query", ["range=2", "range=x", "range=", "range=-1", "days=7"])
def test_other_ranges_are_400(api: Api, query: str) -> None:
    assert api.ask("GET", f"/v1/optimize/savings?{query}").status == 400
