"""Energy Saver in a gateway that runs: templates come and go by the tool and the API, devices notice nothing."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.gateway_process import Device, GatewayProcess, Subscriber, coapgw, until
from tests.integration.http_client import Client

ICCID, ADDRESS = "8988280666000000001", "127.0.1.1"
VECTORS = Path(__file__).parents[1] / "data" / "energysaver.json"
FIVE_BYTES = bytes.fromhex("001a003700")
LOCATED = {
    "sense": [
        {"asset": name, "value": {"byte": at, "bytelength": 8, "type": "float"}, "custom_type": f"location_{name}"}
        for name, at in (("lat", 0), ("long", 8))
    ]
}


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[GatewayProcess]:
    coapgw(tmp_path / "data", "device", "add", ICCID, "--ip", ADDRESS)
    process = GatewayProcess(tmp_path / "data").start()
    yield process
    process.stop()
    assert "Traceback" not in process.log.read_text()


@pytest.fixture
def subscriber(gateway: GatewayProcess) -> Iterator[Subscriber]:
    client = Subscriber(gateway.mqtt)
    yield client
    client.close()


@pytest.fixture
def device(gateway: GatewayProcess) -> Iterator[Device]:
    with Device(ADDRESS, gateway.coap) as opened:
        yield opened


@pytest.fixture
def file(tmp_path: Path) -> Callable[[object], str]:
    def write(template: object) -> str:
        (tmp_path / "template.json").write_text(json.dumps(template))
        return str(tmp_path / "template.json")

    return write


def published() -> dict[str, Any]:
    """Return the published template for five bytes, and what it makes of them."""
    (case,) = (case for case in json.loads(VECTORS.read_text()) if case["name"].startswith("P1 "))
    return dict(case)


def last(subscriber: Subscriber, kind: str) -> tuple[str, dict[str, Any]] | None:
    of_kind = [(topic, json.loads(data)) for topic, data in subscriber.received if f'"type":"{kind}"'.encode() in data]
    return of_kind[-1] if of_kind else None


def post(device: Device, payload: bytes) -> None:
    answer = device.post(payload)
    assert answer is not None
    assert answer[1] == 0x44


def is_translated(device: Device, subscriber: Subscriber, payload: bytes, value: object) -> bool:
    """Send a payload; return whether the next message is what it shall become."""
    count = len(subscriber.documents())
    post(device, payload)
    until(lambda: len(subscriber.documents()) > count)
    return bool(subscriber.documents()[-1]["payload"].get("value") == value)


def test_activation_takes_effect_within_a_second(
    gateway: GatewayProcess, subscriber: Subscriber, device: Device, file: Callable[[object], str]
) -> None:
    case = published()
    assert is_translated(device, subscriber, FIVE_BYTES, "ABoANwA=")
    coapgw(gateway.data, "template", "activate", file(case["template"]))
    activated = time.monotonic()
    value = json.loads(coapgw(gateway.data, "template", "test", file(case["template"]), FIVE_BYTES.hex()))
    until(lambda: is_translated(device, subscriber, FIVE_BYTES, value), 10)
    assert time.monotonic() - activated < 5  # a second, on a machine with nothing else to do
    coapgw(gateway.data, "template", "deactivate")
    until(lambda: is_translated(device, subscriber, FIVE_BYTES, "ABoANwA="), 10)


def test_events_of_a_template(
    gateway: GatewayProcess, subscriber: Subscriber, device: Device, file: Callable[[object], str]
) -> None:
    coapgw(gateway.data, "template", "activate", file(LOCATED))
    gateway.stop()
    gateway.start()  # the template is there from the first message on
    post(device, b"short")
    until(lambda: last(subscriber, "ERROR"))
    topic, event = last(subscriber, "ERROR") or ("", {})
    assert topic == "error"
    assert event["error"]["description"] == "Asset path:lat, Error: can't extract [0:8] from 5 bytes"
    assert event["error"]["payload"] == "c2hvcnQ="
    assert subscriber.documents() == []
    post(device, struct.pack(">dd", 50.1109, 8.6821))
    until(lambda: last(subscriber, "LOCATION"))
    topic, event = last(subscriber, "LOCATION") or ("", {})
    assert (topic, event["location"]) == ("location", {"source": "GPS", "coordinates": ["8.6821", "50.1109"]})
    assert subscriber.documents()[-1]["payload"]["value"] == {"lat": 50.1109, "long": 8.6821}


def test_templates_over_http_and_savings_over_a_restart(
    gateway: GatewayProcess, subscriber: Subscriber, device: Device
) -> None:
    text = json.dumps(published()["template"])
    with Client(gateway, gateway.token) as client:
        body = {"name": "p1", "template": text, "protocolFilter": ["COAP"], "status": "ACTIVE"}
        assert client.ask("POST", "/v1/optimize/templates", body).status == 201
        assert client.ask("POST", "/v1/optimize/templates", body).status == 409
        until(lambda: not is_translated(device, subscriber, FIVE_BYTES, "ABoANwA="), 10)
        before = client.ask("GET", "/v1/optimize/savings?range=1").json
        assert before["messagesTranslated"]["value"] >= 1
    gateway.stop()
    gateway.start()
    with Client(gateway, gateway.token) as client:
        assert client.ask("GET", "/v1/optimize/savings?range=1").json == before
