"""HTTP as it arrives: whole, slow, huge, wrong, much at once."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.logger import LogEvent, capturedLogs

from coapgw.http.operations import Reply
from coapgw.http.protocol import (
    CONNECTIONS,
    DRAIN_BYTES,
    HEADER_BYTES,
    HEADER_FIELDS,
    IDLE_SECONDS,
    LINGER_SECONDS,
    REQUEST_SECONDS,
)
from tests.unit.api_client import TOKEN, Api, answers_in, api_in, request
from tests.unit.registries import iccid

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
POST = "POST /v1/devices HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + TOKEN


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with api_in(tmp_path_factory.mktemp("api")) as opened:
        yield opened


@pytest.fixture
def api(shared: Api) -> Api:
    """An API of the test's own; the registry is everybody's."""
    return Api(shared.kept)


@pytest.fixture
def logged() -> Iterator[Sequence[LogEvent]]:
    with capturedLogs() as events:
        yield events


class Held:
    """Threads that do nothing until they are told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Deferred[Any], Any]] = []

    def __call__(self, function: Any) -> Deferred[Reply]:
        done: Deferred[Reply] = Deferred()
        self.calls.append((done, function))
        return done

    def go_on(self) -> None:
        for done, function in self.calls:
            done.callback(function())


def test_requests_of_a_pipeline_are_answered_in_order_and_none_at_once(api: Api) -> None:
    connection = api.connect()
    connection.channel.dataReceived(HEALTH * 300 + request("GET", "/v1/devices") + HEALTH)
    assert connection.answers() == []
    api.clock.advance(0)
    bodies = [answer.body[:9] for answer in connection.answers()]
    assert bodies == [b'{"status"'] * 300 + [b'{"items":'] + [b'{"status"']


def test_request_may_come_byte_by_byte(api: Api) -> None:
    connection = api.connect()
    answers = []
    for byte in request("POST", "/v1/devices", b'{"iccid":"x"}'):
        answers += connection.send(bytes([byte]))
    assert [answer.status for answer in answers] == [400]


def test_body_may_come_in_chunks(api: Api) -> None:
    (answer,) = api.connect().send(
        f'{POST}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{{"icc\r\n8\r\nid":"x"}}\r\n0\r\n\r\n'.encode()
    )
    assert answer.messages == ["an ICCID has 18 to 20 digits"]


def test_second_request_waits_for_the_first(shared: Api) -> None:
    held = Held()
    api = Api(shared.kept, call_in_thread=held)
    connection = api.connect()
    assert connection.send(request("GET", "/v1/devices") + HEALTH) == []
    held.go_on()
    api.clock.advance(0)
    assert len(connection.answers()) == 2


def test_client_that_went_away_is_not_answered(shared: Api, logged: Sequence[LogEvent]) -> None:
    held = Held()
    api = Api(shared.kept, call_in_thread=held)
    connection = api.connect()
    connection.send(request("GET", "/v1/devices"))
    connection.channel.connectionLost(connectionDone)
    held.go_on()
    assert (connection.answers(), len(api.factory), logged) == ([], 0, [])


# ---------------------------------------------------------------------- too much


def test_body_that_is_too_large_is_refused_and_dropped_as_it_comes(api: Api) -> None:
    connection = api.connect()
    size = 5_000_000
    connection.send(f"{POST}\r\nContent-Length: {size}\r\n\r\n".encode())
    piece = b"x" * 50_000
    tracemalloc.start()
    answers = [answer for _ in range(size // len(piece)) for answer in connection.send(piece)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [answer.status for answer in answers] == [413]
    assert peak < 500_000
    assert not connection.is_closed
    assert connection.send(HEALTH)[0].status == 200, "the connection goes on"


def test_body_in_chunks_is_dropped_from_the_limit_on_and_cut_off_in_the_end(api: Api) -> None:
    connection = api.connect()
    connection.send(f"{POST}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    answers = []
    tracemalloc.start()
    for _ in range(DRAIN_BYTES // 0x10000 + 2):
        answers += connection.send(piece)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [answer.status for answer in answers] == [413]
    assert answers[0].headers["connection"] == "close"
    assert connection.is_closed
    assert peak < 1_000_000


def test_endless_body_that_comes_in_one_read_is_cut_off_too(api: Api) -> None:
    connection = api.connect()
    piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    head = f"{POST}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    (answer,) = connection.send(head + piece * (DRAIN_BYTES // 0x10000 + 5) + b"0\r\n\r\n" + HEALTH)
    assert answer.status == 413
    assert connection.is_closed
    assert api.factory.counters.pump_errors == 0


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (f"{POST}\r\nContent-Length: 100000\r\nExpect: 100-continue\r\n\r\n", 413),
        (f"{POST}\r\nContent-Length: {DRAIN_BYTES + 1}\r\n\r\n", 413),
        ("POST /v1/devices HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n", 401),
        ("POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n", 404),
    ],
)
def test_refusal_comes_before_the_body_if_the_client_waits_or_the_body_is_endless(
    api: Api, head: str, status: int
) -> None:
    connection = api.connect()
    (answer,) = connection.send(head.encode() + b"some of it")
    assert (answer.status, answer.headers["connection"]) == (status, "close")
    assert connection.is_closed
    assert connection.send(b"more of it") == []


def test_who_expects_to_continue_is_told_to(api: Api) -> None:
    connection = api.connect()
    connection.channel.dataReceived(f"{POST}\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n".encode())
    assert connection.transport.value() == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.transport.clear()
    assert connection.send(b"{}")[0].status == 400


@pytest.mark.parametrize(
    "data",
    [
        b"GET /healthz HTTP/1.1\r\nX: " + b"x" * HEADER_BYTES + b"\r\n\r\n",
        b"GET /" + b"x" * HEADER_BYTES + b" HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n" + b"A: b\r\n" * (HEADER_FIELDS + 1) + b"\r\n",
        b"GET /healthz HTTP/1.1\r\n" + b"A: " + b"x" * 1000 + b"\r\n" + b" more\r\n" * 5000,
        b"x" * 100_000,
        b"\r\n" * 10 + b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nno field\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /v1/devices HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/devices HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 5000,
        b"GET /healthz HTTP/3\r\n\r\n",
        b"\xff\xfe\r\n\r\n",
    ],
    ids=range(15),
)
def test_what_is_no_http_is_refused_once_and_the_connection_ends(
    api: Api, data: bytes, logged: Sequence[LogEvent]
) -> None:
    connection = api.connect()
    answers = connection.send(data)
    assert [answer.status for answer in answers] == [400]
    assert answers[0].json["statusCode"] == 400
    assert connection.is_closed
    assert connection.send(b"x" * 100_000) == []
    assert (logged, api.factory.counters.malformed, api.factory.counters.pump_errors) == ([], 1, 0)
    api.clock.advance(LINGER_SECONDS)
    assert connection.transport.disconnected
    assert api.clock.getDelayedCalls() == []


# ---------------------------------------------------------------------- too slow, too many


def test_request_that_trickles_is_ended_in_time(api: Api, logged: Sequence[LogEvent]) -> None:
    connection = api.connect()
    answers = []
    for seconds in range(int(REQUEST_SECONDS)):
        assert not connection.is_closed, seconds
        answers += connection.send(b"GET" if not seconds else b" ")
        api.clock.advance(1)
    answers += connection.answers()
    assert [answer.status for answer in answers] == [408]
    assert connection.is_closed
    assert logged == []


def test_body_that_trickles_is_ended_in_time(api: Api) -> None:
    connection = api.connect()
    connection.send(f"{POST}\r\nContent-Length: 1000\r\n\r\n".encode())
    for _ in range(int(REQUEST_SECONDS) - 1):
        api.clock.advance(1)
        assert connection.send(b" ") == []
    api.clock.advance(1)
    assert [answer.status for answer in connection.answers()] == [408]
    assert connection.is_closed
    api.clock.advance(LINGER_SECONDS)
    assert connection.transport.disconnected


def test_idle_connection_is_ended_and_not_before(api: Api, logged: Sequence[LogEvent]) -> None:
    connection = api.connect()
    for _ in range(3):
        api.clock.advance(IDLE_SECONDS - 1)
        assert connection.send(HEALTH)[0].status == 200
    api.clock.advance(IDLE_SECONDS)
    assert connection.is_closed
    assert connection.answers() == []
    assert logged == []


def test_time_does_not_count_while_we_work(shared: Api) -> None:
    held = Held()
    api = Api(shared.kept, call_in_thread=held)
    connection = api.connect()
    connection.send(request("GET", "/v1/devices"))
    api.clock.advance(10 * REQUEST_SECONDS)
    held.go_on()
    assert [answer.status for answer in connection.answers()] == [200]


def test_one_connection_too_many_ends_the_one_that_was_quiet_for_longest(shared: Api) -> None:
    held = Held()
    api = Api(shared.kept, call_in_thread=held)
    connections = [api.connect() for _ in range(CONNECTIONS)]
    connections[0].send(request("GET", "/v1/devices"))
    connections[1].send(HEALTH)
    newest = api.connect()
    assert newest.send(HEALTH)[0].status == 200
    assert [number for number, one in enumerate(connections) if one.transport.disconnected] == [2]
    assert api.factory.counters.evicted_connections == 1


def test_connections_that_come_at_once_are_bounded(api: Api) -> None:
    connections = [api.connect() for _ in range(3 * CONNECTIONS)]
    assert len(api.factory) == CONNECTIONS
    assert [one.transport.disconnected for one in connections] == [True] * 2 * CONNECTIONS + [False] * CONNECTIONS


def test_connection_that_finds_everybody_at_work_is_ended(shared: Api) -> None:
    api = Api(shared.kept, call_in_thread=Held())
    for _ in range(CONNECTIONS):
        api.connect().send(request("GET", "/v1/devices"))
    newest = api.connect()
    assert newest.transport.disconnected
    assert len(api.factory) == CONNECTIONS


# ---------------------------------------------------------------------- the rest


def test_http_1_0_is_answered_and_closed(api: Api) -> None:
    connection = api.connect()
    assert connection.send(b"GET /healthz HTTP/1.0\r\n\r\n")[0].status == 200
    assert connection.is_closed
    api.clock.advance(LINGER_SECONDS)
    assert connection.transport.disconnected, "its answer was not read in time"
    assert api.factory.counters.timeouts == 0


def test_target_may_be_absolute(api: Api) -> None:
    assert api.ask("GET", "http://gateway:8080/healthz").status == 200


def test_answers_are_counted_by_their_kind(api: Api) -> None:
    connection = api.connect()
    for data in (HEALTH, request("GET", "/v1/devices", token=None), request("GET", "/x"), request("PUT", "/")):
        connection.send(data)
    api.obstacles.append("the spool is full")
    connection.send(b"GET /readyz HTTP/1.1\r\n\r\n")
    counters = api.factory.counters
    counted = (counters.connections, counters.requests, counters.unauthorised, counters.refused, counters.failed)
    assert counted == (1, 5, 1, 2, 1)


def test_nothing_is_logged_of_requests(api: Api, logged: Sequence[LogEvent]) -> None:
    connection = api.connect()
    for number in range(50):
        connection.send(request("POST", "/v1/devices", f'{{"iccid":"{iccid(number)}"}}'.encode()))
        connection.send(request("GET", "/v1/devices", token="wrong"))
    assert logged == []


PIECES = st.sampled_from(
    [
        *(b"GET ", b"POST ", b"/v1/devices", b"/healthz", b" HTTP/1.1", b"\r\n", b"\r\n\r\n", b"\n", b": ", b" "),
        *(b"Content-Length: 5", b"Transfer-Encoding: chunked", b"Authorization: Bearer " + TOKEN.encode(), b"{}"),
        *(b"Expect: 100-continue", b"5\r\nhello\r\n", b"0\r\n\r\n", b"Connection: close", b"%zz", b"?limit=1", HEALTH),
    ]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.one_of(PIECES, PIECES, st.binary(max_size=20)), max_size=25))
def test_no_bytes_raise(shared: Api, parts: list[bytes]) -> None:
    api = Api(shared.kept)
    connection = api.connect()
    sent = b""
    for part in parts:
        connection.channel.dataReceived(part)
        api.clock.advance(0)
        sent += connection.transport.value()
        connection.transport.clear()
    api.clock.advance(REQUEST_SECONDS + IDLE_SECONDS)
    api.clock.advance(LINGER_SECONDS)
    assert connection.transport.disconnected
    assert api.factory.counters.pump_errors == 0
    assert all(answer.status >= 100 for answer in answers_in(sent))


def test_the_log_is_spared_when_the_fault_is_ours(shared: Api, logged: Sequence[LogEvent], tmp_path: Path) -> None:
    api = Api(shared.kept)
    for _ in range(50):
        connection = api.connect()
        connection.channel.headerReceived = None  # type: ignore[method-assign,assignment]  # any mistake of ours
        connection.channel.dataReceived(HEALTH)
        assert connection.transport.disconnected
    assert api.factory.counters.pump_errors == 50
    assert len(logged) == 10
