"""gateway/envelope.py against PRODUCT section 6."""

from __future__ import annotations

import base64
import json
import os
import re

from hypothesis import given
from hypothesis import strategies as st

from coapgw.gateway.envelope import EnvelopeWriter, MessageIds
from coapgw.model import Device

DEVICE = Device("8988280666000002864", imsi="901405100002864", ip="100.91.200.24")


def test_the_published_example_comes_out_byte_for_byte() -> None:
    written = EnvelopeWriter().telemetry(
        DEVICE, "1-6393505d-67fa8489fb9c791fcddd43f0", 1670598749915, b"testdata", b"sometesttopic"
    )
    assert written == (
        b'{"type":"TELEMETRY_DATA","version":"1.0.0","id":"1-6393505d-67fa8489fb9c791fcddd43f0","received":"1670598749915",'
        b'"source":"COAP","device":{"iccid":"8988280666000002864","ip":"100.91.200.24","imsi":"901405100002864"},'
        b'"payload":{"type":"STRING","encoding":"base64","value":"dGVzdGRhdGE=","topic":"sometesttopic"}}'
    )


@given(st.binary(max_size=200), st.none() | st.from_regex(rb"[A-Za-z0-9_/]{1,20}", fullmatch=True))
def test_any_payload_is_json_that_gives_it_back(payload: bytes, topic: bytes | None) -> None:
    document = json.loads(EnvelopeWriter().telemetry(DEVICE, "1-0-0", 5, payload, topic))
    assert base64.b64decode(document["payload"]["value"]) == payload
    assert document["payload"].get("topic") == (topic.decode() if topic is not None else None)
    assert ("topic" in document["payload"]) == (topic is not None)


def test_what_is_unknown_of_a_device_is_absent() -> None:
    document = json.loads(EnvelopeWriter().telemetry(Device("8988280666000002864"), "1-0-0", 5, b"", None))
    assert document["device"] == {"iccid": "8988280666000002864"}
    assert document["payload"] == {"type": "STRING", "encoding": "base64", "value": ""}


def test_a_change_of_the_device_shows_in_its_next_envelope() -> None:
    writer = EnvelopeWriter()
    writer.telemetry(DEVICE, "1-0-0", 5, b"", None)
    changed = Device(DEVICE.iccid, ip="10.0.0.1")
    assert json.loads(writer.telemetry(changed, "1-0-0", 5, b"", None))["device"]["ip"] == "10.0.0.1"


def test_a_translated_payload_is_json_in_json() -> None:
    document = json.loads(EnvelopeWriter().translated(DEVICE, "1-0-0", 5, b'{"a":[1,2]}', b"t"))
    assert document["payload"] == {"type": "JSON", "value": {"a": [1, 2]}, "topic": "t"}


def test_the_first_message_of_a_device_is_an_event() -> None:
    document = json.loads(EnvelopeWriter().lifecycle(DEVICE, "1-0-0", 5))
    assert document["type"] == "LIFECYCLE"
    assert document["device"]["iccid"] == DEVICE.iccid
    assert document["lifecycle"] == {
        "type": "DEVICE_FIRST_TIME_REGISTERED",
        "message": "New Device successfully registered for the first time - 8988280666000002864",
    }


def test_ids_carry_the_second_and_never_repeat() -> None:
    ids = MessageIds(os.urandom)
    drawn = [ids.next(1670598749915 + number) for number in range(5000)]
    assert len(set(drawn)) == 5000
    assert all(re.fullmatch(r"1-[0-9a-f]{8}-[0-9a-f]{24}", drawn_id) for drawn_id in drawn)
    assert drawn[0].startswith("1-6393505d-")
    assert drawn[-1].startswith("1-63935062-")
