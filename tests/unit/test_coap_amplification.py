"""Nobody can have us send to a forged address more than three times what they sent there.

Counted in IP packets, with the 28 bytes of IPv4 and UDP headers, for strangers and for registered devices whose address
somebody forges: every resource, every method, every error, in blocks and not, CON and NON, and repeats.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import os
import random
from collections.abc import Hashable, Iterable

import pytest
from twisted.internet.defer import Deferred, maybeDeferred
from txthings import coap, resource

from coapgw.coap.blockwise import BlockwiseLimits, BlockwiseSite
from coapgw.coap.codec import (
    ACCEPT,
    BLOCK1,
    BLOCK2,
    ECHO,
    ETAG,
    HOP_LIMIT,
    IF_MATCH,
    IF_NONE_MATCH,
    OBSERVE,
    PROXY_URI,
    SIZE1,
    URI_PATH,
    URI_QUERY,
    encode_options,
    option_value,
    parse_options,
)
from coapgw.coap.echo import FRESH_SECONDS, PACKET_BYTES, PROVEN_SECONDS
from coapgw.coap.front import FrontSite
from coapgw.coap.messaging import MessageLayer
from coapgw.coap.observing import ObserveSite
from coapgw.coap.site import ResourceSite
from coapgw.errors import SpoolFailing
from coapgw.gateway.authorise import DevicesByAddress
from coapgw.gateway.bootstrap import CALLS_AT_ONCE, Bootstrap, BootstrapSettings
from coapgw.gateway.envelope import MessageIds
from coapgw.gateway.rate import DeviceRates, NetworkRates
from coapgw.gateway.resources import make_root
from coapgw.gateway.sources import RatedSite, TrustedNetworks
from coapgw.gateway.uplink import Uplink, UplinkSettings
from coapgw.model import Device, DeviceKey, KeyFormat
from tests.fakes import LostKeys, MemoryDirectory
from tests.unit.coap_wire import CON, DEVICE, NON, STRANGER, datagram
from tests.unit.spool_stub import SpoolStub

ICCID = "8988280666000000017"
GET, POST, PUT, DELETE, FETCH = 1, 2, 3, 4, 5
PATHS = (
    "",
    "data",
    "bootstrap",
    ".well-known/core",
    ".well-known",
    "nowhere",
    "large",
    "large/deeper",
    "error",
    "fails",
)
METHODS = range(1, 9)
OPTIONS: tuple[list[tuple[int, bytes]], ...] = (
    [],
    [(URI_QUERY, b"t=x")],
    [(URI_QUERY, b"t=-")],
    [(URI_QUERY, b"t"), (URI_QUERY, b"t")],
    [(BLOCK2, b"\x06")],
    [(BLOCK2, b"\x16")],
    [(BLOCK2, b"")],
    [(BLOCK2, b"\x07")],
    [(BLOCK1, b"\x08")],
    [(BLOCK1, b"\x10")],
    [(BLOCK1, b"\x0e"), (SIZE1, b"\x7f\xff\xff")],
    [(OBSERVE, b"")],
    [(OBSERVE, b"\x01")],
    [(ETAG, b"12345678")],
    [(IF_MATCH, b"")],
    [(IF_NONE_MATCH, b"")],
    [(ACCEPT, b"\x3c")],
    [(HOP_LIMIT, b"")],
    [(PROXY_URI, b"coap://x")],
    [(ECHO, b"forged value")],
    [(2049, b"")],
)


class Large(resource.CoAPResource):  # type: ignore[misc]
    """Gives more than it gets, by every method."""

    observable = True
    isLeaf = True

    def __init__(self, code: int) -> None:
        super().__init__()
        self.visible = True
        self.addParam(resource.LinkParam("title", "x" * 500))
        self._code = code

    def render(self, request: coap.Message) -> coap.Message:
        response = coap.Message(code=self._code, payload=bytes(3000))
        response.opt.content_format = 0
        return response

    render_FETCH = render_PATCH = render_iPATCH = render


class Fails(resource.CoAPResource):  # type: ignore[misc]
    """Raises."""

    def render(self, request: coap.Message) -> coap.Message:
        raise ValueError("x" * 1000)


class LongKey(LostKeys):
    """The longest key there is, hence the longest answer of /bootstrap."""

    is_lost = False

    def bootstrap(self, iccid: str, rotate_after_seconds: int) -> DeviceKey:
        if self.is_lost:
            return self.get(iccid)
        return DeviceKey(iccid, b"k" * 256, KeyFormat.STRING, True, 1, 1, 1)


class Gateway:
    """Everything behind a socket on which addresses may be forged."""

    def __init__(self, *, terms: bool = True, device_rate: float = 0, network_rate: float = 0) -> None:
        self.now = 1000.0
        self.spool = SpoolStub()
        rates = DeviceRates(device_rate, 0, lambda: self.now) if device_rate else None
        uplink = Uplink(self.spool, MessageIds(os.urandom), lambda: self.now, UplinkSettings(), rates=rates)
        settings = BootstrapSettings(terms_accepted=terms, public_url="coaps://" + "x" * 200)
        self.keys = LongKey()
        self.keys.is_lost = not terms
        bootstrap = Bootstrap(self.keys, maybeDeferred, settings, lambda: 5684, lambda: self.now)
        root = make_root(uplink, bootstrap)
        root.putChild(b"large", Large(coap.CONTENT))
        root.putChild(b"error", Large(coap.BAD_REQUEST))
        root.putChild(b"fails", Fails())
        tree = ResourceSite(root)
        limits = BlockwiseLimits(body_bytes=65_536)
        site: RatedSite | FrontSite = FrontSite(ObserveSite(BlockwiseSite(tree, limits), tree))
        if network_rate:
            site = RatedSite(site, NetworkRates(network_rate, 0, lambda: self.now))
        directory = MemoryDirectory([Device(ICCID, ip=DEVICE[0])])
        trusted = TrustedNetworks([ipaddress.IPv4Network("172.16.0.0/12")])
        self.layer = MessageLayer(site, DevicesByAddress(directory), random.Random(1), is_proven=trusted.contains)
        self.message_id = 0

    def send(self, data: bytes, source: Hashable = DEVICE) -> list[bytes]:
        self.layer.receive_datagram(data, source, self.now)
        self.spool.commit()
        return [sent for sent, _ in self.layer.datagrams_to_send(self.now)]

    def ask(
        self, code: int, path: str, options: Iterable[tuple[int, bytes]] = (), *, kind: int = CON, payload: bytes = b""
    ) -> bytes:
        """Make a request of a device's."""
        self.message_id += 1
        segments = [(URI_PATH, segment.encode()) for segment in path.split("/") if segment]
        return datagram(kind, code, self.message_id, b"t", encode_options([*segments, *options]), payload)


def packets(datagrams: Iterable[bytes]) -> int:
    return sum(len(data) + PACKET_BYTES for data in datagrams)


def requests(gateway: Gateway) -> Iterable[bytes]:
    payloads = (b"", bytes(16), bytes(64))
    for path, code, options in itertools.product(PATHS, METHODS, OPTIONS):
        for number, (payload, kind) in enumerate(itertools.product(payloads, (CON, NON))):
            if number == code % 6 or not options or (number == 0 and code in (GET, POST)):
                yield gateway.ask(code, path, options, kind=kind, payload=payload)
    yield from (b"", b"\x40", b"\x40\x00\x00\x01", b"\x40\x01\x00\x01\xff", b"\x60\x45\x00\x01", b"\x50\x45\x00\x02")


@pytest.mark.parametrize("source", [DEVICE, STRANGER], ids=["device", "stranger"])
@pytest.mark.parametrize("trouble", ["none", "terms", "device rate", "network rate", "disk"])
def test_no_request_gets_more_than_three_times_its_bytes(source: tuple[str, int], trouble: str) -> None:
    gateway = Gateway(
        terms=trouble != "terms",
        device_rate=0.001 if trouble == "device rate" else 0,
        network_rate=0.001 if trouble == "network rate" else 0,
    )
    if trouble == "disk":
        gateway.spool.refuse = SpoolFailing("the disk is away")
    seen = set()
    for number, data in enumerate(requests(gateway)):
        first = gateway.send(data, (source[0], source[1] + number // 60_000))
        if any(b",coaps://" in answer for answer in first):
            continue  # a device's key, see below
        assert packets(first) <= 3 * packets([data]), (data, first)
        again = gateway.send(data, source)
        assert packets(again) <= 3 * packets([data]), (data, again)
        seen |= {answer[1] for answer in first if len(answer) > 1}
    assert not gateway.layer.notifications
    expected = {0x81, 0x84} if source is STRANGER else {0x81, 0x84, 0x85, 0x80, 0xA5, 0xA0, 0x88, 0x8D, 0x8C, 0x86}
    assert trouble == "network rate" or seen >= expected, {hex(code) for code in seen ^ expected}


def test_a_repeat_that_is_shorter_than_the_request_is_no_lever() -> None:
    gateway = Gateway()
    data = gateway.ask(GET, ".well-known", payload=bytes(300))
    gateway.send(gateway.ask(GET, "nowhere"))
    (answer,) = gateway.send(data)
    short = data[:1] + data[1:4]
    assert packets(gateway.send(short)) <= 3 * packets([short])
    assert len(answer) < len(data)


@pytest.mark.parametrize("request_bytes", [4, 13, 40, 100])
def test_an_answer_that_comes_late_is_not_repeated_beyond_that(request_bytes: int) -> None:
    """Whose address was forged acknowledges nothing: acknowledgement and all repeats count."""
    gateway = Gateway()
    data = datagram(CON, POST, 7, payload=bytes(request_bytes - 5)) if request_bytes > 4 else datagram(CON, POST, 7)
    gateway.layer.receive_datagram(data, DEVICE, gateway.now)
    sent: list[bytes] = []
    for second in range(300):
        gateway.layer.handle_timer(gateway.now)
        sent += [answer for answer, _ in gateway.layer.datagrams_to_send(gateway.now)]
        if second == 3:
            gateway.spool.commit()
        gateway.now += 1
    assert {answer[1] for answer in sent} == {0, 0x44}
    assert packets(sent) <= 3 * packets([data])
    assert len(sent) == min(6, 3 * packets([data]) // packets([bytes(4)]))


# ---------------------------------------------------------------------- the way to more


def echo_of(answer: bytes) -> bytes:
    assert answer[1] == 0x81
    value = option_value(parse_options(answer, 4 + (answer[0] & 15))[0], ECHO)
    assert value is not None
    return value


def test_key_is_told_whole_to_devices_where_they_may_ask_and_not_often() -> None:
    """The one exception: firmware that bootstraps knows no Echo.  ``bootstrap.networks`` and a rate are its bounds."""
    gateway = Gateway()
    answers = [gateway.send(gateway.ask(GET, "bootstrap"))[0] for _ in range(CALLS_AT_ONCE)]
    assert {answer[1] for answer in answers} == {0x45}
    assert {len(answer) for answer in answers} == {len(answers[0])}
    assert len(answers[0]) < 600
    data = gateway.ask(GET, "bootstrap")
    (refused,) = gateway.send(data)
    assert refused[1] == 0x9D
    assert packets([refused]) <= 3 * packets([data])


@pytest.mark.parametrize("path", ["large", ".well-known/core"])
def test_who_comes_again_with_echo_gets_all_of_it(path: str) -> None:
    gateway = Gateway()
    (refused,) = gateway.send(gateway.ask(GET, path))
    (answer,) = gateway.send(gateway.ask(GET, path, [(ECHO, echo_of(refused))]))
    assert answer[1] == 0x45
    assert len(answer) > 400
    gateway.now += PROVEN_SECONDS - 1
    (answer,) = gateway.send(gateway.ask(GET, path))  # believed for a while
    assert answer[1] == 0x45
    gateway.now += 2
    (refused,) = gateway.send(gateway.ask(GET, path))
    echo_of(refused)


@pytest.mark.parametrize(("terms", "code"), [(True, 0xA0), (False, 0x81)])
def test_the_shortest_bootstrap_request_is_told_why_not(terms: bool, code: int) -> None:
    gateway = Gateway(terms=terms)
    if terms:
        gateway.keys.is_lost = True
    (answer,) = gateway.send(datagram(CON, GET, 1, b"", encode_options([(URI_PATH, b"bootstrap")])))
    assert answer[1] == code
    assert json.loads(answer[5:])["errors"]
    assert gateway.layer.counters.shortened == 0


def test_an_echo_of_another_address_or_of_long_ago_is_worth_nothing() -> None:
    gateway = Gateway()
    echo = echo_of(gateway.send(gateway.ask(GET, "large"))[0])
    other = (DEVICE[0], DEVICE[1] + 1)
    assert gateway.send(gateway.ask(GET, "large", [(ECHO, echo)]), other)[0][1] == 0x81
    gateway.now += FRESH_SECONDS + 1
    fresh = echo_of(gateway.send(gateway.ask(GET, "large", [(ECHO, echo)]))[0])
    assert fresh != echo
    for wrong in (b"x", fresh[:-1], fresh + b"x", bytes(40)):
        assert gateway.send(gateway.ask(GET, "large", [(ECHO, wrong)]))[0][1] == 0x81


def test_a_method_that_changes_something_is_carried_out_once_and_answered_in_small_blocks() -> None:
    gateway = Gateway()
    body, number, exponent = b"", 0, 6
    while True:
        block = [(BLOCK2, (number << 4 | exponent).to_bytes(2, "big"))] if number else []
        data = gateway.ask(POST, "large", block, payload=b"x")
        (answer,) = gateway.send(data)
        assert packets([answer]) <= 3 * packets([data])
        assert answer[1] == 0x45
        options, at = parse_options(answer, 5)
        given = int.from_bytes(option_value(options, BLOCK2) or b"", "big")
        assert given >> 4 == number
        body, exponent = body + answer[at:], given & 7
        number += 1
        if not given & 8:
            break
    assert body == bytes(3000)


def test_to_observe_takes_a_proven_address() -> None:
    gateway = Gateway()
    echo = echo_of(gateway.send(gateway.ask(GET, "large", [(OBSERVE, b"")]))[0])
    assert not gateway.layer.notifications
    (answer,) = gateway.send(gateway.ask(GET, "large", [(OBSERVE, b""), (ECHO, echo)]))
    assert option_value(parse_options(answer, 5)[0], OBSERVE) is not None
    assert len(gateway.layer.notifications) == 1


def test_where_nobody_can_forge_addresses_nobody_is_asked() -> None:
    trusted = TrustedNetworks([ipaddress.IPv4Network("10.0.0.0/8"), ipaddress.IPv6Network("fd00::/8")])
    assert trusted.contains(DEVICE)
    assert trusted.contains(("fd00::1%eth0", 5683, 0, 2))
    assert not trusted.contains(("192.0.2.1", 5683))
    assert not trusted.contains(object())
    assert not TrustedNetworks([]).contains(DEVICE)


def test_a_resource_that_needs_freshness_is_asked_with_echo_only() -> None:
    done: list[bytes] = []

    class Door(resource.CoAPResource):  # type: ignore[misc]
        needs_freshness = True

        def render_PUT(self, request: coap.Message) -> Deferred[coap.Message]:
            done.append(request.payload)
            return maybeDeferred(lambda: coap.Message(code=coap.CHANGED))

    root = resource.CoAPResource()
    root.putChild(b"door", Door())
    directory = MemoryDirectory([Device(ICCID, ip=DEVICE[0])])
    layer = MessageLayer(FrontSite(ResourceSite(root)), DevicesByAddress(directory), random.Random(1))

    def put(message_id: int, *echo: tuple[int, bytes], source: tuple[str, int] = DEVICE) -> bytes:
        block = encode_options([(URI_PATH, b"door"), *echo])
        layer.receive_datagram(datagram(CON, PUT, message_id, b"t", block, b"open"), source, 5.0)
        ((answer, _),) = layer.datagrams_to_send(5.0)
        return answer

    echo = echo_of(put(1))
    assert done == []
    assert put(2, (ECHO, echo))[1] == 0x44
    assert put(3)[1] == 0x81
    assert done == [b"open"]
    assert put(4, source=STRANGER) == b"\x61\x81\x00\x04t"


# ---------------------------------------------------------------------- source networks


def test_a_network_that_sends_too_much_is_told_and_the_others_are_served() -> None:
    gateway = Gateway(network_rate=5)

    def code(source: tuple[str, int]) -> int:
        (answer,) = gateway.send(gateway.ask(GET, "nowhere"), source)
        return answer[1]

    flood = [code((f"192.0.2.{number}", 1)) for number in range(20)]
    assert flood == [0x84] * 5 + [0x9D] * 15
    assert code(DEVICE) == 0x84
    (answer,) = gateway.send(gateway.ask(GET, "nowhere"), ("192.0.2.200", 1))
    assert option_value(parse_options(answer, 5)[0], 14) == b"\x01"
    gateway.now += 1
    assert code(("192.0.2.200", 1)) == 0x84


def test_the_network_of_an_association_is_where_it_is_now() -> None:
    class Association:
        address: Hashable = ("198.51.100.7", 1)

    class Anybody:
        generation = 0

        def identify(self, address: Hashable) -> object | None:
            return "device"

    rates = NetworkRates(1, 0, lambda: 0.0, known_limit=10)
    layer = MessageLayer(RatedSite(ResourceSite(resource.CoAPResource()), rates), Anybody(), random.Random(1))
    one = Association()
    codes = []
    for number in range(3):
        layer.receive_datagram(datagram(CON, GET, number), one, 0.0)
        codes += [sent[1] for sent, _ in layer.datagrams_to_send(0.0)]
        if number == 1:
            one.address = ("198.51.101.7", 1)
    assert codes == [0x85, 0x9D, 0x85]
    for number in range(1000):
        rates.take(f"10.0.{number}.0/24")
    assert len(rates) <= 10
