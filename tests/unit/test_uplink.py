"""The way in, from the datagram to the spool: uplink.py and resources.py of gateway/ behind a real message layer."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Hashable
from typing import Any

import pytest
from twisted.internet.defer import maybeDeferred
from zope.interface import implementer

from coapgw.coap.blockwise import BlockwiseSite
from coapgw.coap.messaging import MessageLayer
from coapgw.coap.site import ResourceSite
from coapgw.energysaver.template import parse_template
from coapgw.errors import SpoolFailing, SpoolFull
from coapgw.gateway.authorise import DevicesByAddress
from coapgw.gateway.bootstrap import Bootstrap, BootstrapSettings
from coapgw.gateway.envelope import MessageIds
from coapgw.gateway.rate import DeviceRates
from coapgw.gateway.resources import answer_to, make_root
from coapgw.gateway.uplink import PUBLISH_SECONDS, Uplink, UplinkSettings
from coapgw.interfaces import IDeviceDirectory
from coapgw.model import Acknowledge, Device, DeviceStatus
from coapgw.service import DECODERS
from tests.fakes import LostKeys
from tests.unit.coap_wire import CON, DEVICE, NON, STRANGER, datagram, option
from tests.unit.spool_stub import SpoolStub

ICCID = "8988280666000000017"
GET, PUT, DELETE = 1, 3, 4
PATH, QUERY = 11, 15


@implementer(IDeviceDirectory)
class Directory:
    """One device."""

    def __init__(self) -> None:
        self.generation = 0
        self.device = Device(ICCID, imsi="901405100000017", ip=DEVICE[0], created_at=5)

    def by_address(self, ip: str) -> Device | None:
        return self.device if ip == self.device.ip else None

    def by_iccid(self, iccid: str) -> Device | None:
        return self.device if iccid == ICCID else None


class Gateway:
    """Everything between the socket and the disk."""

    def __init__(self, rates: DeviceRates | None = None, **settings: object) -> None:
        self.now = 1670598749.915
        self.uptime = 5.0
        self.spool = SpoolStub()
        self.directory = Directory()
        self.heard: dict[str, int] = {}
        uplink_settings = UplinkSettings(**settings)  # type: ignore[arg-type]
        self.uplink = Uplink(
            *(self.spool, MessageIds(os.urandom), lambda: self.now, uplink_settings),
            monotonic=lambda: self.uptime,
            rates=rates,
            heard=self.heard,
        )
        bootstrap = Bootstrap(LostKeys(), maybeDeferred, BootstrapSettings(), lambda: 5684, lambda: 0.0)
        self.layer = MessageLayer(
            BlockwiseSite(ResourceSite(make_root(self.uplink, bootstrap, DECODERS))),
            *(DevicesByAddress(self.directory), random.Random(1)),
        )
        self._message_id = 0

    def send(
        self, *options: bytes, payload: bytes = b"hello", code: int = 2, kind: int = CON, source: Hashable = DEVICE
    ) -> list[bytes]:
        """Send a request, commit; return the answers."""
        self._message_id += 1
        data = datagram(kind, code, self._message_id, b"tk", b"".join(options), payload)
        self.layer.receive_datagram(data, source, self.now)
        self.spool.commit()
        return self.answers()

    def answers(self) -> list[bytes]:
        return [answer for answer, _ in self.layer.datagrams_to_send(self.now)]

    @property
    def telemetry(self) -> list[tuple[str, dict[str, object]]]:
        """Topic and document of every message but the first event."""
        return [(row.topic.decode(), json.loads(row.payload)) for row in self.spool.rows if row.topic != b"lifecycle"]


def _code(answers: list[bytes]) -> int:
    (answer,) = answers
    return answer[1]


@pytest.mark.parametrize(
    ("options", "topic"),
    [
        ((), ICCID),
        ((option(PATH, b""),), ICCID),  # node-coap-client
        ((option(PATH, b"data"),), ICCID),
        ((option(QUERY, b"t=greetings"),), f"{ICCID}/greetings"),
        ((option(3, b"other.example"), option(8, b"data"), option(4, b"t=/a/b")), f"{ICCID}/a/b"),
        ((option(12, b"\x00\x32"), option(3, b"?t=hello-world")), ICCID),  # microcoapy
        ((option(7, b"\x16\x33"), option(8, b"t=x")), f"{ICCID}/x"),  # libcoap's Uri-Port
    ],
)
def test_a_post_becomes_a_message(options: tuple[bytes, ...], topic: str) -> None:
    gateway = Gateway()
    assert gateway.send(*options) == [b"\x62\x44\x00\x01tk"]
    ((published, document),) = gateway.telemetry
    assert published == topic
    assert document["payload"]["value"] == "aGVsbG8="  # type: ignore[index]
    assert document["received"] == "1670598749915"


def test_an_empty_payload_is_a_message_too() -> None:
    gateway = Gateway()
    assert _code(gateway.send(payload=b"")) == 0x44
    assert gateway.telemetry[0][1]["payload"] == {"type": "STRING", "encoding": "base64", "value": ""}


def test_the_answer_waits_for_the_commit() -> None:
    gateway = Gateway()
    gateway.layer.receive_datagram(datagram(payload=b"x"), DEVICE, gateway.now)
    assert gateway.answers() == []
    gateway.spool.commit()
    assert _code(gateway.answers()) == 0x44


def test_received_answers_at_once_and_published_waits_for_the_broker() -> None:
    gateway = Gateway(acknowledge=Acknowledge.RECEIVED)
    gateway.layer.receive_datagram(datagram(payload=b"x"), DEVICE, gateway.now)
    assert _code(gateway.answers()) == 0x44
    gateway = Gateway(acknowledge=Acknowledge.PUBLISHED)
    assert gateway.send() == []
    gateway.uplink.published(gateway.spool.last_place())
    assert _code(gateway.answers()) == 0x44


def test_published_is_5_04_when_the_broker_does_not_take_it_in_time() -> None:
    gateway = Gateway(acknowledge=Acknowledge.PUBLISHED)
    gateway.send()
    gateway.uptime += PUBLISH_SECONDS - 1
    gateway.now += 3600  # the clock was wrong, and is set
    gateway.uplink.handle_timer()
    assert gateway.answers() == []
    gateway.uptime += 2
    gateway.now -= 7200
    gateway.uplink.handle_timer()
    assert _code(gateway.answers()) == 0xA4
    gateway.uplink.published(gateway.spool.last_place())
    assert gateway.answers() == []


@pytest.mark.parametrize("acknowledge", [Acknowledge.STORED, Acknowledge.PUBLISHED])
def test_a_commit_that_fails_is_5_03_with_max_age_and_the_repeat_gets_the_same(acknowledge: Acknowledge) -> None:
    gateway = Gateway(acknowledge=acknowledge)
    data = datagram(payload=b"x")
    gateway.layer.receive_datagram(data, DEVICE, gateway.now)
    gateway.spool.commit(SpoolFailing("disk"))
    (answer,) = gateway.answers()
    assert answer == b"\x60\xa3\x00\x01\xd1\x01\x1e"  # Max-Age: 30
    gateway.layer.receive_datagram(data, DEVICE, gateway.now)
    assert gateway.answers() == [answer]
    assert gateway.spool.rows == []


def test_a_full_spool_is_5_03_at_once() -> None:
    gateway = Gateway()
    gateway.spool.refuse = SpoolFull("full")
    assert gateway.send() == [b"\x62\xa3\x00\x01tk\xd1\x01\x1e"]
    gateway.spool.refuse = None
    assert _code(gateway.send()) == 0x44


def test_a_payload_over_the_limit_is_4_13_with_size1() -> None:
    gateway = Gateway(max_payload=100)
    assert gateway.send(payload=b"x" * 101) == [b"\x62\x8d\x00\x01tk\xd1\x2f\x64"]
    assert _code(gateway.send(payload=b"x" * 100)) == 0x44


@pytest.mark.parametrize("query", [b"t", b"t=", b"t=a//b", b"t=a-b", b"t=" + b"a" * 254, b"x" * 300])
def test_a_bad_topic_is_4_00_with_a_reason(query: bytes) -> None:
    gateway = Gateway()
    (answer,) = gateway.send(option(QUERY, query))
    assert answer[1] == 0x80
    assert len(answer.partition(b"\xff")[2]) > 10
    assert gateway.spool.rows == []


def test_a_block_that_is_the_only_one_is_a_message() -> None:
    gateway = Gateway()
    assert gateway.send(option(27, b"\x06")) == [b"\x62\x44\x00\x01tk" + option(27, b"\x06")]
    assert len(gateway.spool.rows) == 2


def test_an_upload_in_blocks_is_one_message_and_half_of_one_is_none() -> None:
    gateway = Gateway()
    body = bytes(range(40))
    assert _code(gateway.send(option(27, b"\x08"), payload=body[:16])) == 0x5F
    assert _code(gateway.send(option(27, b"\x18"), payload=body[16:32])) == 0x5F
    assert gateway.spool.rows == []
    assert _code(gateway.send(option(27, b"\x20"), payload=body[32:])) == 0x44
    assert len(gateway.spool.rows) == 2  # with the lifecycle event
    assert _code(gateway.send(option(27, b"\x16"), payload=b"from nowhere")) == 0x88
    assert _code(gateway.send(option(27, b"\x08"), payload=body[:16], source=STRANGER)) == 0x81


@pytest.mark.parametrize(
    ("code", "options", "answer"),
    [
        (GET, (), 0x84),
        (GET, (option(PATH, b""),), 0x84),
        (PUT, (), 0x85),
        (DELETE, (), 0x85),
        (GET, (option(PATH, b"data"),), 0x85),
        (2, (option(PATH, b"nowhere"),), 0x84),
        (GET, (option(PATH, b"data"), option(0, b"x")), 0x84),
        (2, (option(PATH, b".well-known"), option(0, b"core")), 0x85),
        (5, (), 0x85),
        (31, (), 0x85),
    ],
)
def test_everything_else_has_its_code(code: int, options: tuple[bytes, ...], answer: int) -> None:
    gateway = Gateway()
    assert _code(gateway.send(*options, code=code)) == answer
    assert gateway.spool.rows == []


def test_get_of_the_root_says_not_found() -> None:
    assert Gateway().send(code=GET, payload=b"") == [b"\x62\x84\x00\x01tk\xffNot Found"]


def test_the_resources_are_described() -> None:
    (answer,) = Gateway().send(option(PATH, b".well-known"), option(0, b"core"), code=GET, payload=b"")
    assert (
        answer
        == b'\x62\x45\x00\x01tk\xc1\x28\xff</>;title="uplink",</bootstrap>;title="bootstrap",</data>;title="uplink"'
    )


@pytest.mark.parametrize("kind", [CON, NON])
def test_an_unknown_or_inactive_device_is_4_01_and_nothing_else_happens(kind: int) -> None:
    gateway = Gateway()
    assert _code(gateway.send(kind=kind, source=STRANGER)) == 0x81
    gateway.directory.device = Device(ICCID, ip=DEVICE[0], status=DeviceStatus.INACTIVE)
    gateway.directory.generation += 1
    assert _code(gateway.send(kind=kind)) == 0x81
    assert _code(gateway.send(option(QUERY, b"t=a//b"), kind=kind)) == 0x81
    assert _code(gateway.send(option(PATH, b".well-known"), option(0, b"core"), code=GET, kind=kind)) == 0x81
    assert gateway.spool.rows == []
    assert gateway.uplink.counters.unauthorised == 3


def test_a_device_that_is_deactivated_after_its_first_message_is_4_01() -> None:
    gateway = Gateway()
    assert _code(gateway.send()) == 0x44
    gateway.directory.device = Device(ICCID, ip=DEVICE[0], status=DeviceStatus.INACTIVE)
    gateway.directory.generation += 1
    assert _code(gateway.send()) == 0x81


def test_no_answer_to_a_stranger_is_much_larger_than_its_request() -> None:
    gateway = Gateway()
    for code in range(1, 32):
        for options in (
            (),
            (option(PATH, b"data"),),
            (option(PATH, b".well-known"), option(0, b"core")),
            (option(9, b""),),
        ):
            (answer,) = gateway.send(*options, code=code, source=STRANGER, payload=b"")
            assert len(answer) <= 6 + len(b"".join(options)) + 48


def test_the_first_message_of_a_life_publishes_an_event_before_it_once() -> None:
    gateway = Gateway()
    gateway.send()
    gateway.send()
    assert [row.topic for row in gateway.spool.rows] == [b"lifecycle", ICCID.encode(), ICCID.encode()]
    gateway.directory.device = Device(ICCID, ip=DEVICE[0], created_at=6)  # removed and added again
    gateway.directory.generation += 1
    gateway.send()
    assert [row.topic for row in gateway.spool.rows].count(b"lifecycle") == 2


def test_prefix_and_raw_payloads_are_as_configured() -> None:
    gateway = Gateway(topic_prefix=b"iot/", raw=True)
    gateway.send(option(QUERY, b"t=a"), payload=b"\x00\x01")
    assert [(row.topic, row.payload) for row in gateway.spool.rows[1:]] == [
        (b"iot/" + ICCID.encode() + b"/a", b"\x00\x01")
    ]
    assert gateway.spool.rows[0].topic == b"iot/lifecycle"
    assert gateway.spool.rows[1].message_id.startswith("1-6393505d-")


def test_an_error_nobody_thought_of_is_5_00() -> None:
    assert answer_to(RuntimeError("secret"))[0] == 0xA0
    assert answer_to(RuntimeError("secret"))[1] == b""


def test_device_is_heard_whatever_becomes_of_its_message() -> None:
    gateway = Gateway()
    gateway.spool.refuse = SpoolFull("no room")
    gateway.send()
    assert gateway.heard == {ICCID: 1670598749915}
    gateway.now += 1
    gateway.send()
    assert gateway.heard == {ICCID: 1670598750915}


def test_stranger_is_not_heard() -> None:
    gateway = Gateway()
    gateway.send(source=STRANGER)
    assert gateway.heard == {}


def test_over_the_device_s_rate_is_4_29_with_max_age_and_nothing_is_stored() -> None:
    now = 50.0
    gateway = Gateway(DeviceRates(0.1, 0, lambda: now))
    assert _code(gateway.send()) == 0x44
    assert gateway.send() == [b"\x62\x9d\x00\x02tk\xd1\x01\x0a"]  # Max-Age: 10
    assert len(gateway.telemetry) == 1
    assert gateway.uplink.counters.over_rate == 1
    now += 10
    assert _code(gateway.send()) == 0x44


# ---------------------------------------------------------------------- Energy Saver

BYTE = '{"asset":"a.b","value":{"byte":0,"type":"uint"}}'
LATITUDE = '{"asset":"lat","value":{"byte":8,"bytelength":8,"type":"float"},"custom_type":"location_lat"}'
LONGITUDE = '{"asset":"long","value":{"byte":0,"bytelength":8,"type":"float"},"custom_type":"location_long"}'


def _translating(*statements: str, **settings: object) -> tuple[Gateway, list[tuple[object, ...]]]:
    gateway = Gateway(**settings)  # type: ignore[arg-type]
    counted: list[tuple[object, ...]] = []
    gateway.uplink.translator = parse_template(f'{{"sense":[{",".join(statements)}]}}')
    gateway.uplink.count = lambda *figures: counted.append(figures)
    return gateway, counted


def _payload(document: dict[str, object]) -> Any:
    return document["payload"]


def test_payload_becomes_json() -> None:
    gateway, counted = _translating(BYTE)
    assert _code(gateway.send(option(QUERY, b"t=x"), payload=b"\x07")) == 0x44
    ((topic, document),) = gateway.telemetry
    assert topic == f"{ICCID}/x"
    assert _payload(document) == {"type": "JSON", "value": {"a": {"b": 7}}, "topic": "x"}
    assert counted == [(ICCID, 1670598749915, 1, len('{"a":{"b":7}}'))]
    assert gateway.uplink.counters.translated == 1


def test_raw_messages_are_the_json_alone() -> None:
    gateway, _ = _translating(BYTE, raw=True)
    gateway.send(payload=b"\x07")
    assert gateway.spool.rows[-1].payload == b'{"a":{"b":7}}'


@pytest.mark.parametrize("raw", [False, True])
def test_payload_that_does_not_fit_is_an_error_event_and_2_04(raw: bool) -> None:
    gateway, counted = _translating(BYTE, raw=raw)
    assert _code(gateway.send(option(QUERY, b"t=x"), payload=b"")) == 0x44
    ((topic, event),) = gateway.telemetry
    assert (topic, event["type"]) == ("error", "ERROR")
    assert event["error"] == {
        "id": event["id"],
        "type": "DEVICE",
        "message": "Translator[UserPayloadError]",
        "description": "Asset path:a.b, Error: can't extract [0:1] from 0 bytes",
        "payloadExists": True,
        "payload": "",
    }
    assert counted == []
    assert gateway.uplink.counters.untranslatable == 1


def test_event_keeps_the_payload() -> None:
    gateway, _ = _translating(LATITUDE)
    gateway.send(payload=b"hello")
    error: Any = gateway.telemetry[0][1]["error"]
    assert error["payload"] == "aGVsbG8="


def test_location_is_an_event_beside_the_message() -> None:
    gateway, _ = _translating(LATITUDE, LONGITUDE)
    assert _code(gateway.send(payload=struct.pack(">dd", 8.6821, 50.1109))) == 0x44
    (topic, document), (second, event) = gateway.telemetry
    assert (topic, second) == (ICCID, "location")
    assert _payload(document)["value"] == {"lat": 50.1109, "long": 8.6821}
    assert event["location"] == {"source": "GPS", "coordinates": ["8.6821", "50.1109"]}
    assert event["id"] != document["id"]


def test_device_waits_for_the_message_and_not_for_its_event() -> None:
    gateway, _ = _translating(LATITUDE, LONGITUDE, acknowledge=Acknowledge.PUBLISHED)
    assert gateway.send(payload=struct.pack(">dd", 8.6821, 50.1109)) == []
    gateway.uplink.published(gateway.spool.last_place())
    assert gateway.answers() == []
    gateway.uplink.published(gateway.spool.last_place() - 1)
    assert _code(gateway.answers()) == 0x44


CBOR, SENML = option(12, b"\x3c"), option(12, b"\x70")


def test_cbor_becomes_json_without_a_template() -> None:
    gateway, counted = _translating(BYTE)
    gateway.uplink.translator = None
    assert _code(gateway.send(CBOR, payload=b"\xa1\x61a\x01")) == 0x44
    assert _code(gateway.send(SENML, payload=b"\x81\xa1\x00\x61t")) == 0x44
    assert _code(gateway.send(payload=b"\xa1\x61a\x01")) == 0x44
    payloads = [document["payload"] for _, document in gateway.telemetry]
    assert payloads == [
        {"type": "JSON", "value": {"a": 1}},
        {"type": "JSON", "value": [{"n": "t"}]},
        {"type": "STRING", "encoding": "base64", "value": "oWFhAQ=="},
    ]
    assert [figures[2:] for figures in counted] == [(4, 7), (5, 11)]


def test_what_is_no_cbor_is_an_error_event() -> None:
    gateway = Gateway()
    assert _code(gateway.send(CBOR, payload=b"\xff")) == 0x44
    ((topic, event),) = gateway.telemetry
    assert topic == "error"
    assert str(event["error"]["description"]).startswith("Error: no CBOR")  # type: ignore[index]


def test_active_template_is_for_every_payload() -> None:
    gateway, _ = _translating(BYTE)
    gateway.send(CBOR, payload=b"\x07")
    assert _payload(gateway.telemetry[0][1])["value"] == {"a": {"b": 7}}
