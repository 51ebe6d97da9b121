"""The MQTT codec: values to bytes and back, strictness, and parsing that does not care how bytes are cut."""

from __future__ import annotations

import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coapgw.mqtt.packets import (
    REMAINING_LENGTH_LIMIT,
    Connect,
    MqttFormatError,
    Packet,
    PubAck,
    Publish,
    encode,
    encode_puback,
    encode_publish,
)
from coapgw.mqtt.parser import REMEMBERED_TOPICS, Parser, ValidTopics
from tests.unit.mqtt_wire_cases import BAD, GOOD, Bad, Good

MAX_PACKET = 262_144


def read(*pieces: bytes, max_packet: int = MAX_PACKET) -> tuple[list[Packet], bool]:
    """Parse *pieces* one after the other; return the packets and whether it ended in an error."""
    parser = Parser(max_packet)
    packets: list[Packet] = []
    try:
        for piece in pieces:
            for packet in parser.packets(piece):
                packets.append(packet)  # noqa: PERF402 - an error must leave what came before
    except MqttFormatError:
        return packets, True
    return packets, False


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
def test_a_good_packet_is_written_and_read(case: Good) -> None:
    assert encode(case.packet) == case.wire
    assert read(case.wire) == ([case.packet], False)
    assert read(*bytewise(case.wire)) == ([case.packet], False)


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
def test_a_packet_that_is_not_complete_is_waited_for(case: Good) -> None:
    assert read(case.wire[:-1]) == ([], False)


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.name)
def test_a_bad_packet_is_refused_and_what_came_before_it_is_not(case: Bad) -> None:
    before = encode(PubAck(9))
    assert read(before + case.wire + before) == ([PubAck(9)], True)
    assert read(*bytewise(before + case.wire)) == ([PubAck(9)], True)


def test_many_packets_in_one_read_come_out_in_order() -> None:
    assert read(b"".join(case.wire for case in GOOD) * 30) == ([case.packet for case in GOOD] * 30, False)


def test_a_packet_may_be_as_long_as_the_limit_and_no_longer() -> None:
    wire = encode_publish(b"t", b"x" * 200)
    assert read(wire, max_packet=len(wire)) == ([Publish(b"t", b"x" * 200)], False)
    assert read(wire, max_packet=len(wire) - 1) == ([], True)
    assert read(wire[:3], max_packet=len(wire) - 1) == ([], True)


def test_a_claim_of_256_megabytes_is_refused_before_anything_is_kept() -> None:
    assert read(b"\x30\xff\xff\xff\x7f") == ([], True)
    assert read(*bytewise(b"\x30\xff\xff\xff\x7f")) == ([], True)


def test_a_failed_parser_stays_failed() -> None:
    parser = Parser(MAX_PACKET)
    with pytest.raises(MqttFormatError):
        list(parser.packets(b"\xf0\0"))
    with pytest.raises(MqttFormatError):
        list(parser.packets(b"\xc0\0"))


def test_the_limit_may_be_raised_between_packets() -> None:
    parser = Parser(20)
    packets = parser.packets(encode(Connect("a")) + encode_publish(b"t", b"x" * 100))
    assert next(packets) == Connect("a")
    parser.max_packet = 200
    assert next(packets) == Publish(b"t", b"x" * 100)


def test_a_large_packet_in_tiny_pieces_costs_linear_time() -> None:
    def seconds(size: int) -> float:
        pieces = bytewise(encode_publish(b"t", b"x" * size))
        began = time.process_time()
        assert read(*pieces)[0] == [Publish(b"t", b"x" * size)]
        return time.process_time() - began

    small = min(seconds(20_000) for _ in range(3))
    assert seconds(200_000) < 40 * small  # a copy per piece would make it 100 times


def test_a_thousand_packets_in_one_read_are_not_copied_a_thousand_times() -> None:
    wire = encode_publish(b"t", b"x" * 1000) * 1000
    parser = Parser(MAX_PACKET)
    tracemalloc.start()
    for _ in parser.packets(wire):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000


def test_remembered_topics_are_bounded() -> None:
    topics = ValidTopics()
    for number in range(REMEMBERED_TOPICS + 10):
        topics.check(b"t/%d" % number)
    topics.check(b"x" * 1000)
    assert len(topics.topics) <= REMEMBERED_TOPICS
    assert b"x" * 1000 not in topics.topics


def test_what_cannot_be_written_is_our_own_error() -> None:
    with pytest.raises(ValueError, match="topic of 65536"):
        encode_publish(b"x" * 65_536, b"")
    with pytest.raises(ValueError, match="text of 65536"):
        encode(Connect("x" * 65_536))
    assert encode_publish(b"x" * 65_535, b"")[:3] == b"\x30\x81\x80"


def test_the_password_is_in_no_repr() -> None:
    assert "secret" not in repr(Connect("a", user="u", password=b"secret"))


def test_the_longest_remaining_length_is_read() -> None:
    parser = Parser(REMAINING_LENGTH_LIMIT + 5)
    assert list(parser.packets(b"\x30\xff\xff\xff\x7f\0\1a")) == []


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_are_packets_or_a_format_error(data: bytes) -> None:
    packets, _ = read(data, max_packet=1000)
    assert all(encode(packet) for packet in packets)


@st.composite
def cut_streams(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """Good packets, some bad or mutated ones, cut anywhere."""
    some = st.sampled_from([case.wire for case in GOOD] * 3 + [case.wire for case in BAD]) | st.binary(max_size=8)
    data = b"".join(draw(st.lists(some, max_size=8)))
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=10)))
    return data, [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@settings(max_examples=500)
@given(cut_streams())
def test_where_bytes_are_cut_makes_no_difference(stream: tuple[bytes, list[bytes]]) -> None:
    data, pieces = stream
    whole = read(data)
    assert read(*pieces) == whole
    assert read(*bytewise(data)) == whole


@given(
    topic=st.text(min_size=1).filter(lambda text: not set(text) & set("+#\0")),
    payload=st.binary(max_size=300),
    qos=st.integers(0, 2),
    retain=st.booleans(),
    packet_id=st.integers(1, 65_535),
)
def test_publish_survives_the_way(topic: str, payload: bytes, qos: int, retain: bool, packet_id: int) -> None:
    packet = Publish(topic.encode(), payload, qos, retain, False, packet_id if qos else 0)
    assert read(encode(packet)) == ([packet], False)


@given(st.integers(1, 65_535))
def test_puback_survives_the_way(packet_id: int) -> None:
    assert read(encode_puback(packet_id)) == ([PubAck(packet_id)], False)
