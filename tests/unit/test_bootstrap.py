"""GET /bootstrap, from the datagram to the registry: bootstrap.py and its resource behind a real message layer."""

from __future__ import annotations

import ipaddress
import json
import os
import random
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from pathlib import Path

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs

from coapgw.coap.codec import encode_body
from coapgw.coap.messaging import MessageLayer
from coapgw.coap.site import ResourceSite
from coapgw.errors import CoapgwError, KeyNotFound, StorageError
from coapgw.gateway.authorise import DevicesByAddress, DevicesByAssociation
from coapgw.gateway.bootstrap import (
    ASKING_LIMIT,
    CALLS_AT_ONCE,
    FAILURES_LOGGED,
    JOINED_LIMIT,
    PATIENCE_SECONDS,
    Bootstrap,
    BootstrapSettings,
)
from coapgw.gateway.envelope import MessageIds
from coapgw.gateway.rate import OverRate
from coapgw.gateway.resources import bootstrap_answer_to, make_root
from coapgw.gateway.uplink import Uplink, UplinkSettings
from coapgw.model import Device, DeviceKey, DeviceStatus, KeyFormat
from coapgw.storage.keys import DeviceKeys
from coapgw.storage.sealing import open_seal
from coapgw.threads import NotCalled
from tests.fakes import LostKeys, MemoryDirectory
from tests.unit.coap_wire import CON, DEVICE, NON, OTHER, STRANGER, datagram, option
from tests.unit.registries import START_MS, iccid, registry_in
from tests.unit.spool_stub import SpoolStub

GET = 1
ICCID = iccid(1)
PATH = option(11, b"bootstrap")
Call = Callable[[], DeviceKey]


class OneThread:
    """A thread that a test moves on; *failing* is what its next calls raise."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Call, Deferred[DeviceKey]]] = []
        self.failing: Exception | None = None

    def call(self, function: Call) -> Deferred[DeviceKey]:
        ended: Deferred[DeviceKey] = Deferred()
        self.waiting.append((function, ended))
        return ended

    def finish(self) -> None:
        waiting, self.waiting = self.waiting, []
        for function, ended in waiting:
            if self.failing is not None:
                ended.errback(self.failing)
                continue
            try:
                key = function()
            except CoapgwError as error:
                ended.errback(error)
            else:
                ended.callback(key)


@attrs.frozen
class Association:
    """What a DTLS front gives the message layer for an address."""

    iccid: str


class Gateway:
    """Everything between the socket and the registry."""

    def __init__(self, keys: DeviceKeys, settings: BootstrapSettings, local_host: str = "192.0.2.10") -> None:
        self.now = 1000.0
        self.thread = OneThread()
        self.keys = keys
        self.directory = MemoryDirectory([Device(ICCID, ip=DEVICE[0]), Device(iccid(2), ip=OTHER[0])])
        self.bootstrap = Bootstrap(keys, self.thread.call, settings, lambda: 5684, lambda: self.now)
        uplink = Uplink(SpoolStub(), MessageIds(os.urandom), lambda: 0.0, UplinkSettings())
        site = ResourceSite(make_root(uplink, self.bootstrap))
        self.plain = MessageLayer(
            site, DevicesByAddress(self.directory), random.Random(1), local_host=lambda _: local_host
        )
        self.secure = MessageLayer(
            site, DevicesByAssociation(self.directory), random.Random(2), local_host=lambda _: local_host
        )
        self._message_id = 0

    def send(self, *, code: int = GET, kind: int = CON, source: Hashable = DEVICE, token: bytes = b"") -> list[bytes]:
        """Ask; return what is sent at once."""
        self._message_id += 1
        layer = self.secure if isinstance(source, Association) else self.plain
        layer.receive_datagram(datagram(kind, code, self._message_id, token, PATH), source, 1000.0)
        return self.answers(layer)

    def answers(self, layer: MessageLayer | None = None) -> list[bytes]:
        return [answer for answer, _ in (layer or self.plain).datagrams_to_send(1000.0)]

    def ask(self, **about: object) -> bytes:
        """Ask, let the thread do what it is to do, and return the answer."""
        at_once = self.send(**about)  # type: ignore[arg-type]
        self.thread.finish()
        (answer,) = at_once + self.answers(self.secure if isinstance(about.get("source"), Association) else None)
        return answer


Make = Callable[..., Gateway]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Make a gateway; its registry has two devices."""
    with registry_in(tmp_path) as opened:
        opened.devices.add(Device(ICCID, ip=DEVICE[0]))
        opened.devices.add(Device(iccid(2), ip=OTHER[0]))
        keys = DeviceKeys(opened.database, open_seal(tmp_path, opened.database), lambda: START_MS)

        def gateway(local_host: str = "192.0.2.10", **settings: object) -> Gateway:
            return Gateway(keys, BootstrapSettings(**settings), local_host)  # type: ignore[arg-type]

        yield gateway


def payload_of(answer: bytes) -> bytes:
    """What comes after the marker; these answers have no options, so that it is the first after the token."""
    token_end = 4 + (answer[0] & 15)
    assert answer[token_end : token_end + 1] == b"\xff"
    return answer[token_end + 1 :]


# ---------------------------------------------------------------------- the answer


def test_device_gets_its_key_and_where_to_go_once_that_is_stored(make: Make) -> None:
    gateway = make()
    assert gateway.send() == []
    gateway.thread.finish()
    (answer,) = gateway.answers()
    key = gateway.keys.get(ICCID)
    assert answer == b"\x60\x45\x00\x01\xff" + f"{ICCID},{key.written},coaps://192.0.2.10:5684".encode()
    assert gateway.send() == []
    gateway.thread.finish()
    assert gateway.answers()[0][4:] == answer[4:]
    assert gateway.bootstrap.counters.answered == 2


def test_non_confirmable_answer_has_no_zero_byte_before_its_payload(make: Make) -> None:
    gateway = make()
    for _ in range(280):  # the lower byte of Message IDs goes round once
        gateway.now += 1  # no faster than a device may call
        answer = gateway.ask(kind=NON)
        assert answer[:2] == b"\x50\x45"
        assert b"\0" not in answer
        assert answer[2:4] != b"\x38\x39"
        assert answer.find(b"89") == 5  # where a shipped client finds its ICCID


def test_token_comes_back(make: Make) -> None:
    assert make().ask(token=b"tk")[:6] == b"\x62\x45\x00\x01tk"


def test_hexadecimal_key_is_told_as_digits(make: Make) -> None:
    gateway = make()
    gateway.keys.set(ICCID, "00C0FFEE00", KeyFormat.HEX)
    assert payload_of(gateway.ask()).split(b",")[1] == b"00c0ffee00"


@pytest.mark.parametrize(
    ("local_host", "url"),
    [
        ("192.0.2.10", b"coaps://192.0.2.10:5684"),
        ("2001:db8::1", b"coaps://[2001:db8::1]:5684"),
    ],
)
def test_url_is_derived_from_the_address_that_was_asked(make: Make, local_host: str, url: bytes) -> None:
    assert payload_of(make(local_host).ask()).split(b",")[2] == url


@pytest.mark.parametrize("local_host", ["192.0.2.10", ""])
def test_url_that_is_configured_is_told_as_it_is(make: Make, local_host: str) -> None:
    gateway = make(local_host, public_url="coaps://gateway.example.net")
    assert payload_of(gateway.ask()).endswith(b",coaps://gateway.example.net")


def test_no_key_is_made_when_there_is_no_url_to_tell(make: Make) -> None:
    gateway = make(local_host="")
    assert gateway.ask()[1] == 0xA0
    assert gateway.thread.waiting == []


# ---------------------------------------------------------------------- who may know


def test_stranger_gets_4_01_with_a_body_that_is_small_enough(make: Make) -> None:
    gateway = make()
    for kind in (CON, NON):
        answer = gateway.ask(source=STRANGER, kind=kind)
        assert answer[1] == 0x81
        assert json.loads(payload_of(answer)) == {"statusText": "Unauthorized", "errors": [{"code": 401}]}
        assert len(answer) <= len(datagram(options=PATH)) + 48
    assert gateway.thread.waiting == []
    assert gateway.bootstrap.counters.unauthorised == 2


def test_inactive_device_is_a_stranger(make: Make) -> None:
    gateway = make()
    unknown = gateway.ask(source=STRANGER)
    gateway.directory.put(Device(ICCID, ip=DEVICE[0], status=DeviceStatus.INACTIVE))
    assert gateway.ask()[4:] == unknown[4:]


def test_device_that_was_removed_a_moment_ago_is_4_01(make: Make, tmp_path: Path) -> None:
    gateway = make()
    gateway.send()
    with registry_in(tmp_path) as other:
        other.devices.remove(ICCID)
    gateway.thread.finish()
    assert [answer[1] for answer in gateway.answers()] == [0x81]


def test_nobody_gets_a_key_before_the_terms_are_accepted(make: Make) -> None:
    gateway = make(terms_accepted=False)
    answer = gateway.ask()
    assert answer[1] == 0x81
    body = json.loads(payload_of(answer))
    assert body["statusText"] == "Unauthorized"
    assert "terms" in body["errors"][0]["message"]


@pytest.mark.parametrize(
    ("networks", "source", "code"),
    [
        (["10.0.0.0/8"], DEVICE, 0x45),
        (["192.0.2.0/24", "10.0.0.1/32"], DEVICE, 0x45),
        (["10.0.0.0/8"], ("::ffff:10.0.0.1", 5000, 0, 0, b""), 0x45),
        (["10.0.0.2/32"], DEVICE, 0x83),
        (["::/0"], DEVICE, 0x83),
        ([], DEVICE, 0x83),
        (["10.0.0.0/8"], STRANGER, 0x83),
        (["fe80::/10"], ("fe80::1%eth0", 5000, 0, 2, b""), 0x81),
    ],
)
def test_only_trusted_networks_bootstrap(make: Make, networks: list[str], source: Hashable, code: int) -> None:
    gateway = make(networks=[ipaddress.ip_network(network) for network in networks])
    assert gateway.ask(source=source)[1] == code


def test_association_is_trusted_wherever_it_comes_from(make: Make) -> None:
    gateway = make(networks=[])
    assert payload_of(gateway.ask(source=Association(ICCID))).startswith(ICCID.encode() + b",")
    assert gateway.ask(source=Association(iccid(9)))[1] == 0x81


@pytest.mark.parametrize("code", [2, 3, 4, 5, 31])
@pytest.mark.parametrize("source", [DEVICE, STRANGER])
def test_other_methods_are_4_05(make: Make, code: int, source: Hashable) -> None:
    assert make().ask(code=code, source=source) == b"\x60\x85\x00\x01"


# ---------------------------------------------------------------------- one at a time, and not too many


def test_calls_of_one_device_that_meet_get_one_answer(make: Make) -> None:
    gateway = make(rotate_after_seconds=0)
    for _ in range(3):
        gateway.send()
    assert len(gateway.thread.waiting) == 1
    gateway.thread.finish()
    assert len({payload_of(answer) for answer in gateway.answers()}) == 1
    gateway.send()
    assert len(gateway.thread.waiting) == 1


def test_more_calls_of_one_device_than_may_meet_are_5_03(make: Make) -> None:
    gateway = make()
    at_once = [answer for _ in range(JOINED_LIMIT + 2) for answer in gateway.send()]
    assert [answer[1] for answer in at_once] == [0xA3, 0xA3]
    assert at_once[0][4:] == b"\xd1\x01\x1e"  # Max-Age 30
    gateway.thread.finish()
    assert [answer[1] for answer in gateway.answers()] == [0x45] * JOINED_LIMIT


def test_more_devices_than_may_wait_are_5_03(make: Make) -> None:
    gateway = make()
    for number in range(100, 100 + ASKING_LIMIT):
        gateway.send(source=Association(iccid(number)))
        gateway.directory.put(Device(iccid(number)))
    gateway.thread.finish()
    told: list[object] = []
    for number in range(ASKING_LIMIT + 3):
        gateway.bootstrap.ask(Device(iccid(number + 100)), None, "192.0.2.10", told.append)
    assert len(told) == 3
    assert gateway.bootstrap.counters.refused_busy == 3
    assert gateway.send()[0][1] == 0xA3


# ---------------------------------------------------------------------- what fails


@pytest.mark.parametrize("error", [StorageError("the disk is full"), ZeroDivisionError("a mistake of ours")])
def test_failing_storage_is_5_00_and_said_once(make: Make, error: Exception) -> None:
    gateway = make()
    gateway.thread.failing = error
    with capturedLogs() as events:
        answers = [gateway.ask() for _ in range(3)]
    assert {answer[1] for answer in answers} == {0xA0}
    assert json.loads(payload_of(answers[0]))["statusText"] == "Internal Server Error"
    assert [event["log_level"].name for event in events] in (["error"], ["critical"])
    gateway.thread.failing = None
    with capturedLogs() as events:
        assert [gateway.ask()[1] for _ in range(2)] == [0x45] * 2
    assert [event["log_level"].name for event in events] == ["info"]


def test_call_that_the_end_of_the_gateway_overtook_is_no_failure_to_log(make: Make) -> None:
    gateway = make()
    gateway.thread.failing = NotCalled("the gateway is stopping")
    with capturedLogs() as events:
        assert gateway.ask()[1] == 0xA0
    assert events == []


class SameKeyForAll(LostKeys):
    """Keys that are there."""

    def bootstrap(self, iccid: str, rotate_after_seconds: int) -> DeviceKey:
        return DeviceKey(iccid, b"12345678", KeyFormat.STRING, False, 1, 0, 0)


@settings(deadline=None)
@given(st.lists(st.sampled_from([1, 2, "finish", "fail"]), max_size=30))
def test_every_call_is_told_once(steps: list[int | str]) -> None:
    """Whatever comes in which order, nothing waits for ever and nothing is told twice."""
    thread = OneThread()
    told: list[int] = []
    asked = 0
    bootstrap = Bootstrap(SameKeyForAll(), thread.call, BootstrapSettings(), lambda: 5684, lambda: 0.0)
    for step in [*steps, "finish"]:
        if isinstance(step, int):
            asked += 1
            bootstrap.ask(
                Device(iccid(step)), "10.0.0.1", "10.0.0.9", partial(lambda number, _: told.append(number), asked)
            )
        else:
            thread.failing = StorageError("x") if step == "fail" else None
            thread.finish()
    assert sorted(told) == list(range(1, asked + 1))


def test_key_is_learned_after_it_was_told(make: Make) -> None:
    gateway = make()
    happened: list[object] = []
    bootstrap = Bootstrap(
        gateway.keys,
        gateway.thread.call,
        BootstrapSettings(),
        lambda: 5684,
        lambda: 0.0,
        learn=lambda key: happened.append(key.iccid),
    )
    bootstrap.ask(Device(ICCID), DEVICE[0], "10.0.0.9", lambda told: happened.append(type(told)))
    gateway.thread.finish()
    assert happened == [bytes, ICCID]
    gateway.thread.failing = StorageError("x")
    bootstrap.ask(Device(ICCID), DEVICE[0], "10.0.0.9", happened.append)
    gateway.thread.finish()
    assert happened[2:] == [gateway.thread.failing]


def test_call_that_has_waited_too_long_is_not_made(make: Make) -> None:
    gateway = make()
    gateway.send()
    gateway.now += PATIENCE_SECONDS
    gateway.send(source=OTHER)
    gateway.now += 0.001
    gateway.thread.finish()
    assert [answer[1] for answer in gateway.answers()] == [0xA0, 0x45]
    with pytest.raises(KeyNotFound):
        gateway.keys.get(ICCID)


def test_failures_among_successes_fill_no_log(make: Make) -> None:
    gateway = make()
    with capturedLogs() as events:
        for number in range(FAILURES_LOGGED * 3):
            gateway.thread.failing = StorageError("x") if number % 2 else None
            gateway.ask()
    assert len(events) <= FAILURES_LOGGED * 2


def test_device_that_calls_all_the_time_is_slowed_down_and_no_other() -> None:
    thread, now, told = OneThread(), [1000.0], list[bytes | Exception]()
    bootstrap = Bootstrap(SameKeyForAll(), thread.call, BootstrapSettings(), lambda: 5684, lambda: now[0])

    def asked(number: int) -> bytes | Exception:
        bootstrap.ask(Device(iccid(number)), "10.0.0.1", "10.0.0.9", told.append)
        thread.finish()
        return told[-1]

    assert all(isinstance(asked(1), bytes) for _ in range(CALLS_AT_ONCE))
    assert isinstance(asked(1), OverRate)
    assert bootstrap.counters.over_rate == 1
    assert isinstance(asked(2), bytes)
    now[0] += 1
    assert isinstance(asked(1), bytes)


def test_device_over_its_rate_gets_4_29() -> None:
    assert bootstrap_answer_to(OverRate(1.5)) == (0x9D, encode_body([(14, b"\2")]))
