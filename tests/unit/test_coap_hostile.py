"""What a packet generator may try: nothing grows without bound, nothing loops, and the others are served."""

from __future__ import annotations

import itertools
import random

import pytest

from coapgw.coap.blockwise import BlockwiseLimits, BlockwiseSite
from coapgw.coap.codec import CHANGED, CONTENT, GET, TOO_MANY_REQUESTS, encode_body
from coapgw.coap.exchange import Exchange
from coapgw.coap.messaging import MessageLayer
from coapgw.coap.outgoing import NoResponse, Response
from coapgw.coap.parameters import MessagingLimits, TransmissionParameters
from coapgw.coap.site import Branch, ResourceSite
from tests.unit.coap_wire import (
    ACK,
    CON,
    DEVICE,
    NON,
    OTHER,
    RST,
    STRANGER,
    Peers,
    RecordingSite,
    Rig,
    datagram,
    option,
)


def changed(exchange: Exchange, payload: bytes) -> None:
    exchange.respond(CHANGED)


# ---------------------------------------------------------------------- exhaustion


def test_an_endpoint_that_uses_every_message_id_costs_no_more_than_there_are() -> None:
    rig = Rig(changed)
    for number in range(70_000):
        rig.layer.receive_datagram(datagram(message_id=number & 0xFFFF, payload=b"x"), DEVICE, rig.now)
        if number % 1000 == 0:
            rig.sent()
    assert len(rig.site.requests) == 65_536
    assert rig.layer.remembered == 65_536
    rig.advance(248)
    assert rig.receive(datagram(message_id=7, payload=b"x"))  # and then they can be used again
    assert len(rig.site.requests) == 65_537


def test_one_host_with_every_port_there_is_takes_nobody_elses_place() -> None:
    rig = Rig(changed, MessagingLimits(endpoints=1000, endpoints_per_host=10))
    first = rig.receive(datagram(message_id=5, payload=b"x"), OTHER)
    for port in range(10_000):
        rig.layer.receive_datagram(datagram(message_id=1, payload=b"x"), (DEVICE[0], port), rig.now)
        if port % 1000 == 0:
            rig.sent()
    rig.sent()
    assert rig.layer.endpoints == 11
    assert rig.receive(datagram(message_id=5, payload=b"x"), OTHER) == first
    assert len(rig.layer._table._of_host) == 2
    rig.advance(600)
    assert rig.layer.endpoints == 0
    assert not rig.layer._table._of_host


def test_one_that_goes_on_talking_does_not_keep_idle_ones_from_being_forgotten() -> None:
    rig = Rig(changed)
    rig.receive(datagram(message_id=1, payload=b"x"), DEVICE)
    for port in range(20):
        rig.receive(datagram(message_id=1, payload=b"x"), (OTHER[0], port))
    for number in range(2, 12):
        rig.advance(60)
        rig.receive(datagram(message_id=number, payload=b"x"), DEVICE)
    assert rig.layer.endpoints == 1


def test_a_strangers_repeat_is_known_until_its_lifetime_is_over() -> None:
    rig = Rig(changed)
    first = rig.receive(datagram(message_id=5), STRANGER)
    for _ in range(4):
        rig.advance(60)
        assert rig.receive(datagram(message_id=5), STRANGER) == first
    assert len(rig.site.requests) == 1
    rig.advance(10)
    assert rig.receive(datagram(message_id=5), STRANGER)
    assert len(rig.site.requests) == 2


def test_endpoints_by_the_million_are_bounded() -> None:
    class Everybody:
        generation = 0

        def identify(self, address: object) -> object | None:
            return "device"

    limits = MessagingLimits(endpoints=500, exchanges=2000, stranger_exchanges=100)
    layer = MessageLayer(RecordingSite(changed), Everybody(), random.Random(1), limits=limits)
    request = datagram(payload=b"x")
    for number in range(15_000):
        layer.receive_datagram(request, (f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 1), number / 50_000)
        if number % 128 == 0:
            layer.datagrams_to_send(number / 50_000)
    assert layer.endpoints == 500
    assert len(layer._table._of_host) == 500
    assert layer.remembered <= 2000 + 15_000 / 4  # and those of the quarter of a second that is not closed yet


def test_strangers_by_the_million_are_bounded() -> None:
    rig = Rig(changed, MessagingLimits(stranger_exchanges=100))
    for number in range(15_000):
        rig.layer.receive_datagram(datagram(message_id=number & 0xFFFF), (STRANGER[0], number), rig.now)
        if number % 128 == 0:
            rig.sent()
    assert rig.layer.remembered <= 100
    assert rig.layer.endpoints == 0


def test_blocks_that_drip_in_are_pushed_out_by_those_that_flow() -> None:
    rig = Rig()
    site = BlockwiseSite(_Inner(rig.site), BlockwiseLimits(total_bytes=40_000, uploads_per_endpoint=4))
    layer = MessageLayer(site, Peers(DEVICE[0], OTHER[0]), random.Random(1))
    message_ids = iter(range(65_536))

    def block(number: int, more: bool, source: tuple[str, int], tag: bytes = b"") -> int:
        value = (number << 4 | more << 3 | 6).to_bytes(2, "big")
        options = option(11, b"data") + option(16, value) + (option(265, tag) if tag else b"")
        data = datagram(message_id=next(message_ids), options=options, payload=bytes(1024))
        layer.receive_datagram(data, source, rig.now)
        ((answer, _),) = layer.datagrams_to_send(rig.now)
        return answer[1]

    for drip in range(200):  # from many ports, each begun and kept alive as long as possible
        block(0, True, (OTHER[0], drip), b"%d" % (drip % 4))
    for number in range(8):
        rig.now += 100
        for drip in range(10):
            block(number + 1, True, (OTHER[0], drip))
        assert block(number, number < 7, DEVICE) == (CHANGED if number == 7 else 0x5F)
    assert site.uploads.held_bytes <= 40_000


class _Inner:
    """A site of whose answers none is large."""

    def __init__(self, site: RecordingSite) -> None:
        self.resolve = RecordingSite(changed).resolve
        self._site = site

    def may_be_large(self, options: object) -> bool:
        return False


# ---------------------------------------------------------------------- floods of strangers


def test_a_stranger_is_listened_to_so_many_times_a_second_and_devices_always_are() -> None:
    rig = Rig(changed, MessagingLimits(stranger_datagrams_per_host=10))
    for _ in range(2):
        answered = [rig.receive(datagram(message_id=number), STRANGER) for number in range(100)]
        assert [bool(answer) for answer in answered] == [True] * 10 + [False] * 90
        assert rig.receive(datagram(message_id=int(rig.now)))
        assert rig.receive(datagram(message_id=1), ("192.0.2.99", 5683))
        rig.advance(400)
    assert rig.layer.counters.dropped_of_strangers == 180


def test_all_strangers_together_are_listened_to_so_many_times_a_second() -> None:
    rig = Rig(changed, MessagingLimits(stranger_datagrams=50))
    spoofed = [(f"198.51.{number >> 8}.{number & 255}", 5683) for number in range(1000)]
    assert sum(bool(rig.receive(datagram(), address)) for address in spoofed) == 50
    assert rig.receive(datagram())


def test_who_becomes_a_device_is_listened_to_at_once() -> None:
    rig = Rig(changed, MessagingLimits(stranger_datagrams_per_host=1))
    assert rig.receive(datagram(message_id=1), STRANGER)
    assert not rig.receive(datagram(message_id=2), STRANGER)
    rig.peers.hosts.add(STRANGER[0])
    rig.peers.generation += 1
    assert rig.receive(datagram(message_id=2), STRANGER)


# ---------------------------------------------------------------------- floods of devices


def test_who_goes_on_after_many_refusals_is_not_heard_until_the_second_is_over() -> None:
    def refuse(exchange: Exchange, payload: bytes) -> None:
        exchange.respond(TOO_MANY_REQUESTS if payload == b"flood" else CHANGED)

    rig = Rig(refuse, MessagingLimits(refusals_per_endpoint=10))
    answers = [rig.receive(datagram(message_id=number, payload=b"flood")) for number in range(50)]
    assert [bool(answer) for answer in answers] == [True] * 10 + [False] * 40
    assert rig.layer.counters.dropped_over_rate == 40
    assert rig.receive(datagram(message_id=1, payload=b"x"), OTHER)
    rig.advance(2)
    assert rig.receive(datagram(message_id=40, payload=b"x")) == [b"\x60\x44\x00\x28"]  # it was no repeat


def test_when_more_arrives_than_can_be_served_who_floods_goes_short() -> None:
    rig = Rig(limits=MessagingLimits(pending_when_crowded=4, pending_per_endpoint=8))
    rig.layer.crowd(crowded=True)
    for number in range(20):
        rig.receive(datagram(message_id=number))
    rig.receive(datagram(message_id=1), OTHER)
    assert [exchange.endpoint.address for exchange, _ in rig.site.requests] == [DEVICE] * 4 + [OTHER]
    rig.layer.crowd(crowded=False)
    for number in range(20):
        rig.receive(datagram(message_id=number))
    assert len(rig.site.requests) == 9
    assert rig.layer.counters.refused_busy == 16 + 12


# ---------------------------------------------------------------------- what is not theirs


def test_a_token_that_is_used_again_while_it_is_in_use_gets_both_answers() -> None:
    rig = Rig()
    for number in (1, 2):
        rig.receive(datagram(message_id=number, token=b"same", payload=b"%d" % number))
    for number, (exchange, _) in enumerate(rig.site.requests, 1):
        exchange.respond(CONTENT, encode_body(payload=b"answer %d" % number))
    assert [data[2:] for data, _ in rig.sent()] == [
        b"\x00\x01same\xffanswer 1",
        b"\x00\x02same\xffanswer 2",
    ]


@pytest.mark.parametrize("kind", [ACK, RST])
def test_stray_acknowledgements_and_resets_end_nothing_of_others(kind: int) -> None:
    """Every eighth there is and the right one, from the wrong address and the wrong port."""
    rig = Rig(limits=MessagingLimits(stranger_datagrams=100_000, stranger_datagrams_per_host=100_000))
    rig.receive(datagram(token=b"tk", payload=b"x"))
    rig.advance(1.5)
    rig.site.requests[0][0].respond(CHANGED)
    ((separate, _),) = rig.sent()
    named = {*range(0, 65_536, 8), int.from_bytes(separate[2:4], "big")}
    for message_id in named:
        stray = datagram(kind, 0, message_id)
        for source in (OTHER, STRANGER, (DEVICE[0], DEVICE[1] + 1)):
            rig.layer.receive_datagram(stray, source, rig.now)
    assert rig.sent() == []
    assert rig.layer.counters.unmatched == 3 * len(named)
    assert len(rig.advance(100)) == 4


def test_a_reset_ends_a_request_of_ours_only_if_it_names_it() -> None:
    outcomes: list[Response | NoResponse] = []
    layer = MessageLayer(ResourceSite(Branch()), Peers(), random.Random(1))
    layer.request(("server", 1), GET, outcomes.append, 0.0, confirmable=False)
    ((sent, _),) = layer.datagrams_to_send(0.0)
    wrong = (int.from_bytes(sent[2:4], "big") + 1 & 0xFFFF).to_bytes(2, "big")
    layer.receive_datagram(b"\x70\x00" + wrong, ("server", 1), 0.0)
    layer.receive_datagram(b"\x70\x00" + sent[2:4], ("server", 2), 0.0)
    layer.receive_datagram(b"\x60\x00" + sent[2:4], ("server", 1), 0.0)  # nobody acknowledges a NON
    assert outcomes == []
    layer.receive_datagram(b"\x70\x00" + sent[2:4], ("server", 1), 0.0)
    assert outcomes == [NoResponse("reset")]


def test_a_notification_that_comes_without_an_acknowledgement_ends_the_repeats_of_the_request() -> None:
    """RFC 7252 section 5.3.2: the acknowledgement may be lost; a response says as much."""
    outcomes: list[Response | NoResponse] = []
    layer = MessageLayer(ResourceSite(Branch()), Peers(), random.Random(1))
    layer.observe(("server", 1), outcomes.append, 0.0)
    ((sent, _),) = layer.datagrams_to_send(0.0)
    layer.receive_datagram(b"\x58\x45\x11\x11" + sent[4:12] + b"\x61\x05", ("server", 1), 1.0)
    assert len(outcomes) == 1
    layer.handle_timer(60.0)
    assert layer.datagrams_to_send(60.0) == []
    assert layer.counters.retransmissions == 0


def test_answers_to_answers_die_out() -> None:
    """Two gateways whose addresses somebody forged towards each other fall silent by themselves."""
    chance = random.Random(11)
    layers = [
        MessageLayer(RecordingSite(lambda exchange, _: exchange.respond(CONTENT, b"\xffx")), Peers("a", "b"), chance)
        for _ in range(2)
    ]
    names = (("a", 1), ("b", 1))
    for _ in range(1000):
        first = bytes((chance.randrange(0x40, 0x80),)) + chance.randbytes(chance.choice((0, 3, 3, 3, 5, 12)))
        layers[1].receive_datagram(first, names[0], 0.0)
        turn, moved, rounds = 1, True, 0
        while moved and rounds < 10:
            moved = False
            for data, _ in layers[turn].datagrams_to_send(0.0):
                layers[1 - turn].receive_datagram(data, names[turn], 0.0)
                moved = True
            turn, rounds = 1 - turn, rounds + 1
        assert rounds <= 4, first


# ---------------------------------------------------------------------- NSTART, PROBING_RATE


def test_requests_that_nobody_answers_are_sent_at_the_probing_rate() -> None:
    outcomes: list[Response | NoResponse] = []
    layer = MessageLayer(ResourceSite(Branch()), Peers(), random.Random(1))
    for _ in range(20):
        layer.request(("server", 1), GET, outcomes.append, 0.0, payload=bytes(87), confirmable=False, timeout=2000)
    now, sent = 0.0, []
    while now <= 1000:
        sent += [(now, len(data)) for data, _ in layer.datagrams_to_send(now)]
        layer.handle_timer(now)
        due = layer.next_timer()
        assert due is not None
        now = max(now, due)
    assert 9 <= len(sent) <= 11
    assert sum(size for _, size in sent) <= 1000 * TransmissionParameters().probing_rate + 100
    assert layer.counters.retransmissions == layer.counters.given_up == 0


def test_a_server_that_answers_is_not_kept_waiting() -> None:
    outcomes: list[Response | NoResponse] = []
    layer = MessageLayer(ResourceSite(Branch()), Peers(), random.Random(1))
    for _ in range(20):
        layer.request(("server", 1), GET, outcomes.append, 0.0, confirmable=False)
    for _ in range(20):
        ((sent, _),) = layer.datagrams_to_send(0.0)
        layer.receive_datagram(b"\x58\x45\x11\x11" + sent[4:12], ("server", 1), 0.0)
    assert len(outcomes) == 20


def test_gaps_between_repetitions_are_random_within_the_factor_and_double() -> None:
    firsts = set()
    for seed in range(40):
        layer = MessageLayer(ResourceSite(Branch()), Peers(), random.Random(seed))
        layer.request(("server", 1), GET, lambda _: None, 0.0)
        layer.datagrams_to_send(0.0)
        times = [0.0]
        while len(times) < 5:
            due = layer.next_timer()
            assert due is not None
            layer.handle_timer(due)
            times += [due] * len(layer.datagrams_to_send(due))
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert 2.0 <= gaps[0] <= 3.0
        assert gaps == pytest.approx([gaps[0] * 2**n for n in range(4)])
        firsts.add(round(gaps[0], 3))
    assert len(firsts) > 30


# ---------------------------------------------------------------------- fairness


def test_a_device_with_too_much_pending_is_the_only_one_not_heard() -> None:
    rig = Rig(limits=MessagingLimits(pending_per_endpoint=8))
    for number in range(1000):
        rig.receive(datagram(message_id=number, payload=b"flood"))
    rig.receive(datagram(message_id=1, payload=b"other"), OTHER)
    assert [payload for _, payload in rig.site.requests] == [b"flood"] * 8 + [b"other"]
    for exchange, _ in rig.site.requests:
        exchange.respond(CHANGED)
    assert {to for _, to in rig.sent()} == {DEVICE, OTHER}


def test_a_device_that_never_acknowledges_delays_its_own_answers_only() -> None:
    rig = Rig()
    for number in range(200):
        rig.receive(datagram(message_id=number, payload=b"x"))
    rig.receive(datagram(message_id=1, payload=b"x"), OTHER)
    rig.advance(1.5)
    for exchange, _ in rig.site.requests:
        exchange.respond(CHANGED)
    sent = rig.sent()
    assert len(sent) == 2  # one each, NSTART
    assert {to for _, to in sent} == {DEVICE, OTHER}
    assert rig.layer.counters.given_up == 200 - 1 - rig.layer.limits.queued_per_endpoint


def test_the_options_of_one_device_do_not_change_what_those_of_another_mean() -> None:
    rig = Rig(changed, MessagingLimits(remembered_handlers=16))
    rig.receive(datagram(message_id=1, options=option(11, b"data"), payload=b"x"), OTHER)
    for number in range(1000):
        rig.receive(datagram(NON, message_id=number, options=option(15, b"t=%d" % number), payload=b"x"))
    rig.receive(datagram(message_id=2, options=option(11, b"data"), payload=b"x"), OTHER)
    assert sum(options == ((11, b"data"),) for _, options in rig.site.resolved) == 1
    assert rig.receive(datagram(CON, message_id=3, options=option(11, b"data"), payload=b"x"), OTHER)
