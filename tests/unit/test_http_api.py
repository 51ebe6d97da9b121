"""The operations of the management API, asked over HTTP in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from twisted.internet.defer import Deferred, fail
from twisted.logger import capturedLogs
from zope.interface.verify import verifyObject

from coapgw.http.operations import OperationTable, Reply
from coapgw.http.schemas import KEYS_AT_ONCE
from coapgw.interfaces import ILastSeen
from coapgw.model import Device, WrittenKey
from tests.fakes import LostKeys
from tests.unit.api_client import TOKEN, Api, KnownTimes, api_in, request
from tests.unit.registries import START_MS, iccid

ONE = iccid(1)
SECRET = "correct horse battery"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with api_in(tmp_path / "data") as opened:
        yield opened


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API without devices, for requests that change nothing."""
    with api_in(tmp_path_factory.mktemp("api") / "data") as opened:
        yield opened
        assert opened.registry.list(1) == []


def test_fake_is_what_it_stands_for() -> None:
    assert verifyObject(ILastSeen, KnownTimes())


# ---------------------------------------------------------------------- devices


def test_device_is_registered_shown_changed_and_forgotten(api: Api) -> None:
    wanted = {"iccid": ONE, "imsi": "901405100000001", "ip": "10.0.0.1", "name": "Zähler"}
    added = api.ask("POST", "/v1/devices", wanted)
    assert (added.status, added.headers["location"]) == (201, f"/v1/devices/{ONE}")
    times = {"createdAt": "2023-11-14T22:13:20.000Z", "updatedAt": "2023-11-14T22:13:20.000Z"}
    assert added.json == {**wanted, "status": "ACTIVE", **times}
    assert api.ask("GET", f"/v1/devices/{ONE}").json == added.json
    changed = api.ask("PATCH", f"/v1/devices/{ONE}", {"name": None, "status": "INACTIVE", "ip": "::FFFF:10.0.0.2"})
    assert changed.status == 200
    assert changed.json == {
        "iccid": ONE,
        "imsi": "901405100000001",
        "ip": "10.0.0.2",
        "status": "INACTIVE",
        "createdAt": "2023-11-14T22:13:20.000Z",
        "updatedAt": "2023-11-14T22:13:21.000Z",
    }
    gone = api.ask("DELETE", f"/v1/devices/{ONE}")
    assert (gone.status, gone.body) == (204, b"")
    assert api.ask("GET", f"/v1/devices/{ONE}").status == 404


def test_absent_and_null_are_the_same_for_a_new_device(api: Api) -> None:
    assert api.ask("POST", "/v1/devices", {"iccid": ONE, "imsi": None, "ip": None, "name": None}).status == 201
    assert api.ask("GET", f"/v1/devices/{ONE}").json.keys() == {"iccid", "status", "createdAt", "updatedAt"}


def test_empty_change_changes_nothing(api: Api) -> None:
    before = api.ask("POST", "/v1/devices", {"iccid": ONE}).json
    assert api.ask("PATCH", f"/v1/devices/{ONE}", {}).json == before


def test_device_shows_when_it_was_last_heard(api: Api) -> None:
    api.ask("POST", "/v1/devices", {"iccid": ONE})
    api.last_seen.times[ONE] = START_MS + 1
    assert api.ask("GET", f"/v1/devices/{ONE}").json["lastSeenAt"] == "2023-11-14T22:13:20.001Z"
    assert api.ask("GET", "/v1/devices").json["items"][0]["lastSeenAt"] == "2023-11-14T22:13:20.001Z"


def test_a_device_is_shown_with_what_it_sent_and_was_sent(api: Api) -> None:
    api.ask("POST", "/v1/devices", {"iccid": ONE})
    assert "wireBytes" not in api.ask("GET", f"/v1/devices/{ONE}").json
    api.traffic.took(ONE, 720)
    assert api.ask("GET", f"/v1/devices/{ONE}").json["wireBytes"] == {"received": 720, "sent": 0}


def test_list_goes_on_page_by_page(api: Api) -> None:
    api.registry.import_all([Device(iccid(number), name=f"n{number}") for number in range(1, 8)])
    found, query = [], "limit=3"
    for _ in range(3):
        page = api.ask("GET", f"/v1/devices?{query}").json
        found.append([device["iccid"] for device in page["items"]])
        query = f"limit=3&cursor={page.get('next')}"
    assert found == [[iccid(n) for n in (1, 2, 3)], [iccid(n) for n in (4, 5, 6)], [iccid(7)]]
    assert "next" not in page
    assert len(api.ask("GET", "/v1/devices?limit=7").json) == 1, "a page that is full to the last has no next"


def test_list_is_narrowed_by_status_and_text(api: Api) -> None:
    api.ask("POST", "/v1/devices", {"iccid": ONE, "name": "Zähler 100%"})
    api.ask("POST", "/v1/devices", {"iccid": iccid(2), "name": "boiler", "status": "INACTIVE"})
    shown = [
        [device["iccid"] for device in api.ask("GET", f"/v1/devices?{query}").json["items"]]
        for query in ("status=INACTIVE", "q=BOIL", "q=Z%C3%A4hler+100%25", "q=", "q=%00")
    ]
    assert shown == [[iccid(2)], [iccid(2)], [ONE], [ONE, iccid(2)], []]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        *(
            ("limit=0", "limit"),
            ("limit=1001", "limit"),
            ("limit=x", "limit"),
            ("limit=", "limit"),
            ("limit=+1", "limit"),
        ),
        *(("limit=1&limit=2", "limit"), ("status=active", "status"), ("cursor=x", "cursor"), ("cursor=MQ", "cursor")),
        *(("cursor=", "cursor"), ("stauts=ACTIVE", "stauts"), (f"q={'x' * 65}", "q"), ("q=%ff", ""), ("q", "")),
        *(("limit=" + "9" * 5000, "limit"), ("limit=%D9%A1", "limit"), ("cursor=c1", "cursor")),
    ],
)
def test_wrong_query_is_refused_with_its_name(untouched: Api, query: str, field: str) -> None:
    answer = untouched.ask("GET", f"/v1/devices?{query}")
    assert answer.status == 400
    assert answer.json["errors"][0].get("field", "") == field


@pytest.mark.parametrize(
    ("body", "field"),
    [
        *(({}, "iccid"), ({"iccid": "1"}, "iccid"), ({"iccid": 8988280666000000001}, "iccid"), ([], ""), (None, "")),
        *(({"iccid": ONE, "imsi": "1"}, "imsi"), ({"iccid": ONE, "ip": "10.0.0.256"}, "ip")),
        *(({"iccid": ONE, "name": "x" * 65}, "name"), ({"iccid": ONE, "name": ""}, "name")),
        *(({"iccid": ONE, "name": "a\nb"}, "name"), ({"iccid": ONE, "status": "active"}, "status")),
        *(({"iccid": ONE, "status": None}, "status"), ({"iccid": ONE, "createdAt": "now"}, "createdAt")),
        *(({"iccid": ONE + "\n"}, "iccid"), ({"iccid": ONE, "ip": "fe80::1%eth0"}, "ip")),
        *(({"iccid": "٨" * 19}, "iccid"), ({"iccid": ONE, "x" * 5000: 1}, "x" * 64)),
    ],
)
def test_wrong_device_is_refused_with_its_field(untouched: Api, body: object, field: str) -> None:
    answer = (
        untouched.ask("POST", "/v1/devices", raw=b"null")
        if body is None
        else untouched.ask("POST", "/v1/devices", body)
    )
    assert answer.status == 400
    assert answer.json["errors"][0].get("field", "") == field
    assert untouched.registry.list(1) == []


def test_every_mistake_is_told_at_once(untouched: Api) -> None:
    answer = untouched.ask("POST", "/v1/devices", {"iccid": "1", "imsi": 2, "colour": "red"})
    assert answer.json == {
        "statusCode": 400,
        "statusText": "Bad Request",
        "errors": [
            {"message": "an ICCID has 18 to 20 digits", "field": "iccid"},
            {"message": "shall be a text or null", "field": "imsi"},
            {"message": "is no field here", "field": "colour"},
        ],
    }


def test_what_is_taken_is_a_conflict(api: Api) -> None:
    api.ask("POST", "/v1/devices", {"iccid": ONE, "ip": "10.0.0.1"})
    api.ask("POST", "/v1/devices", {"iccid": iccid(2)})
    twice = api.ask("POST", "/v1/devices", {"iccid": ONE})
    assert (twice.status, twice.json["errors"][0]["field"]) == (409, "iccid")
    same = api.ask("PATCH", f"/v1/devices/{iccid(2)}", {"ip": "10.0.0.1"})
    assert (same.status, same.messages) == (409, [f"device {ONE} has this address"])


@pytest.mark.parametrize("method", ["GET", "DELETE", "PATCH"])
@pytest.mark.parametrize("name", [ONE, "1", "x" * 300, "%00", "%E2%82%AC", ".."])
def test_what_is_not_there_is_404(untouched: Api, method: str, name: str) -> None:
    answer = untouched.ask(method, f"/v1/devices/{name}", {} if method == "PATCH" else None)
    assert (answer.status, answer.json["statusText"]) == (404, "Not Found")


# ---------------------------------------------------------------------- keys


def test_key_is_set_and_shown_under_both_names(api: Api) -> None:
    api.ask("POST", "/v1/devices", {"iccid": ONE})
    base = f"/v1/integrate/devices/{ONE}"
    absent = api.ask("GET", f"{base}/psk/COAP")
    assert (absent.status, absent.messages) == (404, [f"device {ONE} has no key yet"])
    answer = api.ask("POST", f"{base}/psk", {"secretKey": SECRET, "protocol": "COAP"})
    assert answer.status == 200
    assert answer.json == {
        "deviceId": ONE,
        "identity": ONE,
        "secretKey": SECRET,
        "protocol": "COAP",
        "format": "STRING",
        "createdAt": "2023-11-14T22:13:20.000Z",
        "updatedAt": "2023-11-14T22:13:20.000Z",
    }
    assert api.ask("GET", f"{base}/presharedkey/COAP").json == answer.json
    again = api.ask("POST", f"{base}/presharedkey", {"secretKey": "00FF" * 4, "protocol": "COAP", "format": "HEX"})
    assert (again.json["secretKey"], again.json["format"]) == ("00ff" * 4, "HEX")
    assert api.ask("GET", f"{base}/psk/COAP").json == again.json
    assert again.json["createdAt"] < again.json["updatedAt"]
    assert api.keys.get(ONE).by_user


@pytest.mark.parametrize(
    ("body", "field"),
    [
        *(({"secretKey": "short12", "protocol": "COAP"}, "secretKey"), ({"protocol": "COAP"}, "secretKey")),
        *(({"secretKey": "x" * 257, "protocol": "COAP"}, "secretKey"), ({"secretKey": SECRET}, "protocol")),
        ({"secretKey": "nothexadecimal", "protocol": "COAP", "format": "HEX"}, "secretKey"),
        ({"secretKey": "with,comma,", "protocol": "COAP"}, "secretKey"),
        ({"secretKey": SECRET, "protocol": "LWM2M"}, "protocol"),
        ({"secretKey": SECRET, "protocol": "COAP", "format": None}, "format"),
    ],
)
def test_wrong_key_is_refused_and_not_repeated(api: Api, body: dict[str, object], field: str) -> None:
    api.ask("POST", "/v1/devices", {"iccid": ONE})
    answer = api.ask("POST", f"/v1/integrate/devices/{ONE}/psk", body)
    assert answer.status == 400
    assert answer.json["errors"][0]["field"] == field
    assert str(body.get("secretKey")).encode() not in answer.body


def test_key_of_nobody_is_404(untouched: Api) -> None:
    answer = untouched.ask("POST", f"/v1/integrate/devices/{ONE}/psk", {"secretKey": SECRET, "protocol": "COAP"})
    assert answer.status == 404


def test_job_sets_what_it_can_and_says_what_it_could_not(api: Api) -> None:
    api.registry.import_all([Device(iccid(number)) for number in (1, 2)])
    keys = [
        {"deviceId": iccid(1), "secretKey": SECRET, "protocol": "COAP"},
        {"deviceId": iccid(2), "secretKey": "ab" * 8, "protocol": "COAP", "format": "HEX"},
        {"deviceId": iccid(3), "secretKey": SECRET, "protocol": "COAP"},
        {"deviceId": iccid(4), "secretKey": "x,y,z,x,y", "protocol": "COAP"},
    ]
    jobs = "/v1/integrate/devices/psk/jobs"
    posted = api.ask("POST", jobs, {"keys": keys})
    assert posted.status == 202
    place = posted.headers["location"]
    state = {"id": posted.json["id"], "status": "SCHEDULED", "total": 4, "succeeded": 0, "failed": 0, "errors": []}
    assert posted.json.items() >= state.items()
    assert place == f"{jobs}/{state['id']}"
    api.jobs.run_once()
    done = api.ask("GET", place).json
    assert (done["status"], done["succeeded"], done["failed"]) == ("FAILED", 2, 2)
    assert [error["deviceId"] for error in done["errors"]] == [iccid(3), iccid(4)]
    assert SECRET not in str(done)
    assert [job["id"] for job in api.ask("GET", jobs).json["items"]] == [done["id"]]
    assert api.keys.get(iccid(1)).secret == SECRET.encode()
    assert api.keys.get(iccid(2)).secret == b"\xab" * 8


def test_job_takes_five_thousand_keys_and_not_one_more(api: Api) -> None:
    keys = [{"deviceId": iccid(n), "secretKey": "k" * 256, "protocol": "COAP"} for n in range(KEYS_AT_ONCE)]
    assert api.ask("POST", "/v1/integrate/devices/psk/jobs", {"keys": keys}).status == 202
    keys.append({"deviceId": iccid(KEYS_AT_ONCE), "secretKey": "k" * 8, "protocol": "COAP"})
    refused = api.ask("POST", "/v1/integrate/devices/psk/jobs", {"keys": keys})
    assert (refused.status, refused.json["errors"][0]["field"]) == (400, "keys")


def test_job_names_a_device_once(untouched: Api) -> None:
    keys = [{"deviceId": ONE, "secretKey": SECRET, "protocol": "COAP"}] * 2
    answer = untouched.ask("POST", "/v1/integrate/devices/psk/jobs", {"keys": keys})
    assert answer.status == 400
    assert answer.json["errors"] == [{"message": "is the device of keys[0]", "field": "keys[1].deviceId"}]


def test_too_many_waiting_keys_are_put_off(api: Api) -> None:
    keys = [{"deviceId": iccid(n), "secretKey": SECRET, "protocol": "COAP"} for n in range(KEYS_AT_ONCE)]
    for _ in range(10):
        api.jobs.submit([WrittenKey(key["deviceId"], SECRET) for key in keys])
    answer = api.ask("POST", "/v1/integrate/devices/psk/jobs", {"keys": keys})
    assert (answer.status, answer.headers["retry-after"]) == (503, "10")


def test_unknown_job_is_404(untouched: Api) -> None:
    assert untouched.ask("GET", "/v1/integrate/devices/psk/jobs/abc").status == 404


def test_failing_database_is_500_with_its_sentence(untouched: Api) -> None:
    failing = Api(attrs.evolve(untouched.kept, keys=LostKeys()))
    answer = failing.ask("GET", f"/v1/integrate/devices/{ONE}/psk/COAP")
    assert (answer.status, answer.messages) == (500, ["the device registry is gone"])


def test_mistake_of_ours_is_500_without_a_word_of_it_and_logged_a_few_times(untouched: Api) -> None:
    def wrong(call: object) -> Deferred[Reply]:
        return fail(RuntimeError("of ours"))

    broken = Api(untouched.kept, call_in_thread=wrong)
    with capturedLogs() as logged:
        answers = [broken.ask("GET", "/v1/devices") for _ in range(20)]
    assert {(answer.status, *answer.messages) for answer in answers} == {(500, "an error of the gateway's own")}
    assert len(logged) == 10
    assert broken.factory.counters.pump_errors == 20


# ---------------------------------------------------------------------- what watches


def test_health_readiness_metrics_and_welcome_need_no_token(untouched: Api) -> None:
    assert untouched.ask("GET", "/healthz", token=None).json == {"status": "ok"}
    assert untouched.ask("GET", "/readyz", token=None).json == {"status": "ready"}
    metrics = untouched.ask("GET", "/metrics", token=None)
    assert (metrics.body, metrics.headers["content-type"]) == (
        b"metrics 1\n",
        "text/plain; version=0.0.4; charset=utf-8",
    )
    assert b"/v1/openapi.json" in untouched.ask("GET", "/", token=None).body
    assert untouched.ask("GET", "/v1/openapi.json", token=None).json["openapi"] == "3.1.0"


def test_readiness_says_what_is_in_the_way(api: Api) -> None:
    api.obstacles += ["the spool is full", "the device registry cannot be read"]
    answer = api.ask("GET", "/readyz", token=None)
    assert (answer.status, answer.json["statusText"], answer.messages) == (503, "Service Unavailable", api.obstacles)
    assert api.ask("GET", "/healthz", token=None).status == 200


# ---------------------------------------------------------------------- access and routing


@pytest.mark.parametrize(
    "token", [None, "", "x", TOKEN[:-1], TOKEN + "0", TOKEN.upper(), "0" * 64, "ä" * 64], ids=range(8)
)
def test_without_the_token_everything_else_is_401(untouched: Api, token: str | None) -> None:
    for operation in untouched.table.operations:
        if operation.access.value == "token":
            answer = untouched.ask(operation.method, operation.path.replace("{", "").replace("}", ""), token=token)
            assert answer.status == 401, operation.name
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert TOKEN not in answer.body.decode()


def test_scheme_is_bearer_in_any_case(untouched: Api) -> None:
    for fields, status in [
        ([f"Authorization: bearer  {TOKEN} "], 200),
        ([f"Authorization: Basic {TOKEN}"], 401),
        ([f"Authorization: {TOKEN}"], 401),
        ([f"Authorization: Bearer {TOKEN}", f"Authorization: Bearer {TOKEN}"], 401),
    ]:
        head = "\r\n".join(["GET /v1/devices HTTP/1.1", "Host: x", *fields, "", ""])
        (answer,) = untouched.connect().send(head.encode())
        assert answer.status == status, fields


def test_other_method_is_405_and_says_which(untouched: Api) -> None:
    answer = untouched.ask("PUT", "/v1/devices")
    assert (answer.status, answer.headers["allow"]) == (405, "GET, POST")
    answer = untouched.ask("TRACE", f"/v1/devices/{ONE}")
    assert (answer.status, answer.headers["allow"]) == (405, "DELETE, GET, PATCH")


@pytest.mark.parametrize("path", ["/v1", "/v1/devices/", "//", "/v1//devices", "/v2/devices", "/%ff", "*", "x"])
def test_unknown_path_is_404(untouched: Api, path: str) -> None:
    assert untouched.ask("GET", path).status == 404


def test_head_is_get_without_a_body(untouched: Api) -> None:
    connection = untouched.connect()
    connection.channel.dataReceived(b"HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    untouched.clock.advance(0)
    sent = connection.transport.value()
    assert sent.startswith(b"HTTP/1.1 200 OK\r\n")
    assert sent.endswith(b"\r\n\r\n")
    assert b"Content-Length: 15" in sent


def test_body_where_none_belongs_is_refused(untouched: Api) -> None:
    assert untouched.ask("GET", "/v1/devices", {}).status == 400


# ---------------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"\xff", b'{"iccid":"\xff"}', b'{"iccid":NaN}', b'{"iccid":-Infinity}', b"{}{}", b"\x00"),
        *(b"[" * 10_000, b'{"a":' * 10_000, b"[" * 10_000 + b"]" * 10_000, b"1" * 5000, b"1e999", b"-1e999"),
        *(b'{"iccid":"\\ud800"}', b'{"\\udc00":1}', b"\xef\xbb\xbf{}", '{"iccid":"1"}'.encode("utf-16"), b"'x'"),
        *(b'{"iccid":"\xed\xa0\x80"}', b'{"a":1,"a":1}', b'{"iccid":"\x01"}'),
    ],
    ids=lambda body: repr(body[:12]),
)
def test_what_is_no_json_is_400(untouched: Api, body: bytes) -> None:
    answer = untouched.ask("POST", "/v1/devices", raw=body)
    assert answer.status == 400
    assert answer.json["errors"][0]["message"]


def test_name_that_is_there_twice_is_refused(untouched: Api) -> None:
    raw = f'{{"iccid":"{ONE}","status":"ACTIVE","status":"INACTIVE"}}'.encode()
    answer = untouched.ask("POST", "/v1/devices", raw=raw)
    assert (answer.status, answer.messages) == (400, ["a name is there twice in one object"])


def test_pair_of_surrogates_is_one_character(api: Api) -> None:
    raw = f'{{"iccid":"{ONE}","name":"\\ud83d\\ude00"}}'.encode()
    assert api.ask("POST", "/v1/devices", raw=raw).json["name"] == "\N{GRINNING FACE}"


def test_content_type_does_not_matter(api: Api) -> None:
    body = f'{{"iccid":"{ONE}"}}'.encode()
    form = "Content-Type: application/x-www-form-urlencoded"
    (answer,) = api.connect().send(request("POST", "/v1/devices", body, form))
    assert answer.status == 201


def test_table_refuses_a_schema_word_that_nobody_checks(untouched: Api) -> None:
    first = untouched.table.operations[0]
    with pytest.raises(ValueError, match="multipleOf"):
        OperationTable([attrs.evolve(first, body={"type": "object", "properties": {"a": {"multipleOf": 2}}})])
    with pytest.raises(ValueError, match="twice"):
        OperationTable([first, first])
