"""coap/messaging.py, server role: once, the same bytes, in time, within bounds."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from coapgw.coap.codec import CHANGED, CONTENT, encode_body
from coapgw.coap.exchange import Exchange
from coapgw.coap.exchanges import ExchangeMemory
from coapgw.coap.messaging import MessageLayer
from coapgw.coap.parameters import MessagingLimits, TransmissionParameters
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

PING = b"\x40\x00\x12\x34"
RESET = b"\x70\x00\x12\x34"


def changed(exchange: Exchange, payload: bytes) -> None:
    """Answer 2.04 at once."""
    exchange.respond(CHANGED)


def test_the_derived_times_are_those_of_the_rfc() -> None:
    parameters = TransmissionParameters()
    assert parameters.max_transmit_span == 45
    assert parameters.max_transmit_wait == 93
    assert parameters.max_rtt == 202
    assert parameters.exchange_lifetime == 247
    assert parameters.non_lifetime == 145


# ---------------------------------------------------------------------- a request and its answer


def test_a_confirmable_gets_its_answer_in_the_acknowledgement() -> None:
    rig = Rig(changed)
    assert rig.receive(datagram(message_id=0x0102, token=b"abc", payload=b"x")) == [b"\x63\x44\x01\x02abc"]


def test_an_answer_may_carry_options_and_a_payload() -> None:
    rig = Rig(lambda exchange, payload: exchange.respond(CONTENT, encode_body([(12, b"")], payload[::-1])))
    assert rig.receive(datagram(payload=b"abc")) == [b"\x60\x45\x00\x01\xc0\xffcba"]


def test_a_non_confirmable_is_answered_by_one_with_its_token() -> None:
    rig = Rig(changed)
    (answer,) = rig.receive(datagram(NON, message_id=9, token=b"t", payload=b"x"))
    assert answer[:2] == b"\x51\x44"
    assert answer[4:] == b"t"


def test_message_ids_of_ours_have_no_zero_byte_and_are_never_0x3839() -> None:
    rig = Rig(changed)
    seen = []
    for number in range(70_000):
        (answer,) = rig.receive(datagram(NON, message_id=number & 0xFFFF, payload=b"x"), (DEVICE[0], number >> 16))
        seen.append(answer[2:4])
    assert len(set(seen[:65_000])) == 65_000  # and they come round late
    assert not any(0 in message_id for message_id in seen)
    assert b"89" not in seen


def test_the_handler_gets_the_payload_and_the_device() -> None:
    rig = Rig()
    rig.receive(datagram(options=option(11, b"data"), payload=b"hello"))
    exchange, payload = rig.site.requests[0]
    assert payload == b"hello"
    assert exchange.principal == DEVICE[0]
    assert rig.site.resolved == [(2, ((11, b"data"),))]


def test_requests_without_payload_and_with_are_told_apart() -> None:
    rig = Rig(changed)
    options = option(11, b"data")
    for number, payload in enumerate((b"a", b"", b"\xff", b"\xff\xff", b"b")):
        rig.receive(datagram(message_id=number, options=options, payload=payload))
    assert [payload for _, payload in rig.site.requests] == [b"a", b"", b"\xff", b"\xff\xff", b"b"]


def test_a_payload_marker_without_a_payload_is_an_error_however_well_known_its_options_are() -> None:
    rig = Rig(changed)
    rig.receive(datagram(message_id=1, options=option(11, b"data"), payload=b"x"))
    marked = datagram(message_id=2, options=option(11, b"data")) + b"\xff"
    assert rig.receive(marked) == [b"\x70\x00\x00\x02"]
    assert len(rig.site.requests) == 1


def test_the_meaning_of_an_option_block_is_asked_for_once() -> None:
    rig = Rig(changed)
    message_ids = iter(range(100))
    for _ in range(10):
        for topic in (b"t=a", b"t=b", b"t=aa"):
            rig.receive(datagram(message_id=next(message_ids), options=option(15, topic), payload=b"x"))
    assert len(rig.site.resolved) == 3
    for number in range(10):
        rig.receive(datagram(message_id=1000 + number, options=option(15, b"t=b"), payload=b"x"), OTHER)
    assert len(rig.site.resolved) == 3


def test_a_method_is_part_of_the_meaning() -> None:
    rig = Rig(changed)
    rig.receive(datagram(code=2, message_id=1, payload=b"x"))
    rig.receive(datagram(code=3, message_id=2, payload=b"x"))
    assert [code for code, _ in rig.site.resolved] == [2, 3]


def test_the_memory_of_option_blocks_is_bounded() -> None:
    rig = Rig(changed, MessagingLimits(remembered_handlers=10))
    for number in range(200):
        rig.receive(datagram(message_id=number, options=option(15, b"t=%d" % number), payload=b"x"))
    assert len(rig.layer._handlers) <= 10


# ---------------------------------------------------------------------- repeats


@pytest.mark.parametrize("payload", [b"", b"x"])
def test_a_repeated_confirmable_gets_the_same_bytes_and_is_processed_once(payload: bytes) -> None:
    rig = Rig(
        lambda exchange, payload: exchange.respond(CONTENT, encode_body((), b"number %d" % len(rig.site.requests)))
    )
    first = rig.receive(datagram(message_id=7, payload=payload))
    rig.advance(246)
    assert rig.receive(datagram(message_id=7, payload=payload)) == first
    assert len(rig.site.requests) == 1


def test_a_message_id_is_free_again_after_its_lifetime() -> None:
    for kind, lifetime in ((CON, 247), (NON, 145)):
        rig = Rig(changed)
        rig.receive(datagram(kind, message_id=7, payload=b"x"))
        rig.advance(lifetime - 0.1)
        rig.receive(datagram(kind, message_id=7, payload=b"x"))
        assert len(rig.site.requests) == 1
        rig.advance(1)
        rig.receive(datagram(kind, message_id=7, payload=b"y"))
        assert len(rig.site.requests) == 2


def test_a_repeated_non_confirmable_gets_silence() -> None:
    rig = Rig(changed)
    assert len(rig.receive(datagram(NON, payload=b"x"))) == 1
    assert rig.receive(datagram(NON, payload=b"x")) == []
    assert len(rig.site.requests) == 1


def test_a_repeat_of_what_is_not_answered_yet_gets_silence() -> None:
    rig = Rig()
    assert rig.receive(datagram(payload=b"x")) == []
    assert rig.receive(datagram(payload=b"x")) == []
    rig.site.requests[0][0].respond(CHANGED)
    assert [data for data, _ in rig.sent()] == [b"\x60\x44\x00\x01"]
    assert rig.receive(datagram(payload=b"x")) == [b"\x60\x44\x00\x01"]
    assert len(rig.site.requests) == 1


def test_the_same_message_id_of_another_endpoint_is_another_message() -> None:
    rig = Rig(changed)
    for address in (DEVICE, (DEVICE[0], 5001), OTHER):
        assert len(rig.receive(datagram(payload=b"x"), address)) == 1
    assert len(rig.site.requests) == 3


def test_only_the_first_answer_counts() -> None:
    rig = Rig()
    rig.receive(datagram(payload=b"x"))
    exchange, _ = rig.site.requests[0]
    exchange.respond(CHANGED)
    exchange.respond(CONTENT)
    assert len(rig.sent()) == 1


def test_nothing_is_remembered_after_everything_expired() -> None:
    rig = Rig(changed)
    for number in range(1000):
        rig.receive(datagram(number & 1, message_id=number, payload=b"x"))
    assert rig.layer.remembered == 1000
    rig.advance(500)
    assert rig.layer.remembered == 0
    assert rig.layer.endpoints == 0
    assert rig.layer.next_timer() is None


# ---------------------------------------------------------------------- answers that take time


def test_a_late_answer_travels_in_a_confirmable_of_its_own() -> None:
    rig = Rig()
    rig.receive(datagram(message_id=0x0505, token=b"tk", payload=b"x"))
    assert [data for _, data in rig.advance(1.5)] == [b"\x60\x00\x05\x05"]
    rig.site.requests[0][0].respond(CHANGED)
    ((separate, _),) = rig.sent()
    assert separate[:2] == b"\x42\x44"
    assert separate[4:] == b"tk"
    assert rig.receive(datagram(message_id=0x0505, token=b"tk", payload=b"x")) == [b"\x60\x00\x05\x05"]
    rig.receive(b"\x60\x00" + separate[2:4])
    assert rig.advance(100) == []
    assert rig.layer.counters.retransmissions == 0


def test_an_unacknowledged_answer_is_sent_five_times_with_doubled_gaps() -> None:
    rig = Rig()
    rig.receive(datagram(token=b"tk", payload=b"x"))
    rig.advance(1.5)
    rig.site.requests[0][0].respond(CHANGED)
    sent = rig.advance(120)
    assert len(sent) == 5
    assert len({data for _, data in sent}) == 1
    gaps = [later - earlier for (earlier, _), (later, _) in pairwise(sent)]
    assert 2 <= gaps[0] <= 3
    assert gaps == pytest.approx([gaps[0] * factor for factor in (1, 2, 4, 8)])
    assert rig.layer.counters.given_up == 1


@pytest.mark.parametrize("kind", [ACK, RST])
def test_acknowledgement_and_reset_end_the_retransmission(kind: int) -> None:
    rig = Rig()
    rig.receive(datagram(payload=b"x"))
    rig.advance(1.5)
    rig.site.requests[0][0].respond(CHANGED)
    ((separate, _),) = rig.sent()
    rig.receive(bytes([0x40 | kind << 4, 0]) + separate[2:4])
    assert rig.advance(120) == []


@pytest.mark.parametrize("kind", [ACK, RST])
def test_another_peer_cannot_end_a_retransmission(kind: int) -> None:
    rig = Rig()
    rig.receive(datagram(payload=b"x"))
    rig.advance(1.5)
    rig.site.requests[0][0].respond(CHANGED)
    ((separate, _),) = rig.sent()
    for address in (OTHER, STRANGER, (DEVICE[0], 5001)):
        rig.receive(bytes([0x40 | kind << 4, 0]) + separate[2:4], address)
    assert len(rig.advance(120)) == 4
    assert rig.layer.counters.unmatched == 3


def test_one_confirmable_at_a_time_is_under_way_to_an_endpoint() -> None:
    rig = Rig()
    for number in range(3):
        rig.receive(datagram(message_id=number, token=bytes([number]), payload=b"x"))
    rig.advance(1.5)
    for exchange, _ in rig.site.requests:
        exchange.respond(CHANGED)
    tokens = []
    for _ in range(3):
        ((separate, _),) = rig.sent()
        tokens.append(separate[4:5])
        rig.layer.receive_datagram(b"\x60\x00" + separate[2:4], DEVICE, rig.now)
    assert tokens == [b"\0", b"\1", b"\2"]
    assert rig.sent() == []


def test_the_pump_is_woken_once_until_it_drains() -> None:
    rig = Rig()
    for number in range(3):
        rig.receive(datagram(message_id=number, payload=b"x"))
    for exchange, _ in rig.site.requests:
        exchange.respond(CHANGED)
    assert rig.woken == 1
    assert len(rig.sent()) == 3


# ---------------------------------------------------------------------- everything that is not a request


def test_a_ping_gets_a_reset() -> None:
    for address in (DEVICE, STRANGER):
        assert Rig().receive(PING, address) == [RESET]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x40",
        b"\x40\x01\x12",
        b"\x00\x01\x12\x34",  # version 0
        b"\x80\x01\x12\x34",
        b"\xc0\x00\x12\x34",
        b"\x50\x00\x12\x34",  # an empty NON
        b"\x60\x00\x12\x34",  # an ACK of nothing
        b"\x70\x00\x12\x34",
        b"\x59\x01\x12\x34" + b"t" * 9,  # NON with a token length that is reserved
        b"\x51\x01\x12\x34",  # NON whose token is cut off
        b"\x50\x01\x12\x34\xff",
        b"\x60\x01\x12\x34",  # a request in an ACK
        b"\x70\x01\x12\x34",
        b"\x70\x45\x12\x34",
        b"\x50\x45\x12\x34",  # a response nobody asked for
        b"\x60\x45\x12\x34",
        b"\x50\x20\x12\x34",  # class 1 is reserved
    ],
)
def test_silence_is_the_answer(data: bytes) -> None:
    for address in (DEVICE, STRANGER):
        rig = Rig(changed)
        assert rig.receive(data, address) == []
        assert rig.site.requests == []


@pytest.mark.parametrize(
    "data",
    [
        b"\x49\x01\x12\x34" + b"t" * 9,
        b"\x41\x01\x12\x34",
        b"\x40\x01\x12\x34\xff",
        b"\x40\x01\x12\x34\xb4dat",
        b"\x40\x00\x12\x34\x00",  # empty, with something in it
        b"\x41\x00\x12\x34t",
        b"\x40\x20\x12\x34",
        b"\x40\xe0\x12\x34",
        b"\x40\x45\x12\x34",  # a response nobody asked for
    ],
)
def test_a_confirmable_that_makes_no_sense_gets_a_reset(data: bytes) -> None:
    for address in (DEVICE, STRANGER):
        rig = Rig(changed)
        assert rig.receive(data, address) == [RESET]
        assert rig.site.requests == []


def test_an_unknown_critical_option_is_4_02_for_con_and_silence_for_non() -> None:
    rig = Rig(changed)
    assert rig.receive(datagram(CON, token=b"a", options=option(9, b"x"), payload=b"y")) == [b"\x61\x82\x00\x01a"]
    assert rig.receive(datagram(NON, message_id=2, options=option(9, b"x"), payload=b"y")) == []
    assert rig.site.requests == []


# ---------------------------------------------------------------------- strangers


def test_a_stranger_is_answered_once_and_not_remembered_as_an_endpoint() -> None:
    rig = Rig(lambda exchange, payload: exchange.respond(0x81))
    assert rig.receive(datagram(payload=b"x"), STRANGER) == [b"\x60\x81\x00\x01"]
    assert rig.receive(datagram(payload=b"x"), STRANGER) == [b"\x60\x81\x00\x01"]
    assert len(rig.receive(datagram(NON, message_id=2, payload=b"x"), STRANGER)) == 1
    assert rig.receive(datagram(NON, message_id=2, payload=b"x"), STRANGER) == []
    assert len(rig.site.requests) == 2
    assert rig.layer.endpoints == 0


def test_a_stranger_never_gets_much_more_than_it_sent() -> None:
    rig = Rig(lambda exchange, payload: exchange.respond(CONTENT, encode_body((), b"x" * 44)))
    request = datagram(payload=b"x")
    (answer,) = rig.receive(request, STRANGER)
    assert len(answer) == len(request) + 43
    rig = Rig(lambda exchange, payload: exchange.respond(CONTENT, encode_body((), b"x" * 60)))
    assert rig.receive(request, STRANGER) == [b"\x60\x45\x00\x01"]


def test_a_flood_of_strangers_costs_a_bounded_table_and_no_device_its_entry() -> None:
    rig = Rig(changed, MessagingLimits(stranger_exchanges=100))
    first = rig.receive(datagram(payload=b"x"))
    for number in range(5000):
        rig.layer.receive_datagram(datagram(payload=b"x"), (f"192.0.2.{number}", 1), rig.now)
        rig.sent()
    assert rig.layer.endpoints == 1
    assert len(rig.layer._strangers) == 100
    requests = len(rig.site.requests)
    assert rig.receive(datagram(payload=b"x")) == first
    assert len(rig.site.requests) == requests


def test_a_device_that_is_deactivated_becomes_a_stranger_with_its_next_datagram() -> None:
    rig = Rig(lambda exchange, payload: exchange.respond(CHANGED if exchange.principal else 0x81))
    assert rig.receive(datagram(message_id=1, payload=b"x"))[0][1] == CHANGED
    rig.peers.hosts.clear()
    rig.peers.generation += 1
    assert rig.receive(datagram(message_id=2, payload=b"x"))[0][1] == 0x81
    rig.peers.hosts.add(DEVICE[0])
    rig.peers.generation += 1
    assert rig.receive(datagram(message_id=3, payload=b"x"))[0][1] == CHANGED


# ---------------------------------------------------------------------- bounds


def test_an_endpoint_with_too_many_unanswered_requests_is_not_heard() -> None:
    rig = Rig(limits=MessagingLimits(pending_per_endpoint=5))
    for number in range(20):
        rig.receive(datagram(message_id=number, payload=b"x"))
    rig.receive(datagram(message_id=100, payload=b"x"), OTHER)
    assert len(rig.site.requests) == 6
    assert rig.layer.counters.refused_busy == 15
    for exchange, _ in rig.site.requests:
        exchange.respond(CHANGED)
    rig.sent()
    rig.receive(datagram(message_id=10, payload=b"x"))
    assert len(rig.site.requests) == 7


def test_endpoints_are_bounded_and_the_idlest_go() -> None:
    rig = Rig(changed, MessagingLimits(endpoints=100, endpoints_per_host=1000))
    for port in range(1000):
        rig.receive(datagram(payload=b"x"), (DEVICE[0], port))
    assert rig.layer.endpoints == 100
    assert rig.layer._table.evicted == 900


def test_no_call_forgets_more_exchanges_than_it_may() -> None:
    memory = ExchangeMemory(1000, 10.0, 5.0)
    for second in range(4):
        memory.expire(float(second), 1000)
        for number in range(10):
            key = 1 << 16 | second << 8 | number
            memory.shard(1)[key] = b"x"
            memory.confirmable.bucket.append(key)
    memory.expire(5.0, 1000)
    assert len(memory) == 40
    for left in (25, 10, 0):
        memory.expire(50.0, 15)
        assert len(memory) == left


def test_remembered_exchanges_are_bounded_and_the_oldest_go() -> None:
    rig = Rig(changed, MessagingLimits(exchanges=1000))
    for number in range(5000):
        rig.receive(datagram(message_id=number, payload=b"x"))
        if not number % 50:
            rig.advance(0.3)
    assert rig.layer.remembered <= 1100
    requests = len(rig.site.requests)
    rig.receive(datagram(message_id=4999, payload=b"x"))
    assert len(rig.site.requests) == requests
    rig.receive(datagram(message_id=0, payload=b"x"))
    assert len(rig.site.requests) == requests + 1


# ---------------------------------------------------------------------- any bytes


def _mutated(source: random.Random) -> bytes:
    """A datagram that was a good one before somebody hit it."""
    data = bytearray(
        datagram(
            source.randrange(4),
            source.choice((0, 1, 2, 2, 2, 3, 4, 5, 0x44, 0x45, 0x84, 0xFF, 0x20)),
            source.randrange(65536),
            source.randbytes(source.randrange(9)),
            b"".join(
                option(source.choice((0, 1, 3, 4, 8, 11, 12, 245)), source.randbytes(source.randrange(5)))
                for _ in range(3)
            ),
            source.randbytes(source.randrange(20)),
        )
    )
    for _ in range(source.randrange(4)):
        data[source.randrange(len(data))] = source.randrange(256)
    return bytes(data[: source.randrange(len(data) + 1)] if source.random() < 0.2 else data)


def test_200_000_datagrams_raise_nothing_and_get_at_most_one_small_answer() -> None:
    source = random.Random(20261123)
    site = RecordingSite(changed)
    layer = MessageLayer(site, Peers(DEVICE[0]), random.Random(1))
    now = 0.0
    for number in range(200_000):
        data = source.randbytes(source.randrange(24)) if number & 1 else _mutated(source)
        layer.receive_datagram(data, DEVICE if number & 2 else STRANGER, now)
        sent = layer.datagrams_to_send(now)
        assert len(sent) <= 1
        for answer, _ in sent:
            assert len(data) >= 4
            assert data[0] >> 6 == 1
            kind, answered = data[0] >> 4 & 3, answer[0] >> 4 & 3
            assert answered == {CON: (ACK if answer[1] else RST), NON: NON}[kind]  # never an answer to an ACK or RST
            if kind == CON:
                assert answer[2:4] == data[2:4]
        site.requests.clear()
        if not number % 64:
            now += 0.05
    assert sum(layer.malformed.values()) > 10_000
    assert layer.counters.requests > 5_000
