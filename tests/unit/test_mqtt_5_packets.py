"""MQTT 5 on the same codec: written and read as the table says, and nothing else is taken."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coapgw.mqtt.packet_types import PUBLISH
from coapgw.mqtt.packets import Connect, MqttFormatError, Packet, Publish, encode
from coapgw.mqtt.parser import Parser
from coapgw.mqtt.properties import NO_PROPERTIES, Properties, decode_properties, encode_properties
from coapgw.mqtt.version_5 import encode_5
from tests.unit.mqtt_5_wire_cases import BAD_5, BAD_CONNECTS, CONNECTS, GOOD_5, LONGER_5, PROTOCOL, Bad5
from tests.unit.mqtt_wire_cases import GOOD, Good


def read(*pieces: bytes, before_connect: bool = False) -> list[Packet]:
    parser = Parser(1 << 20, takes_5=True) if before_connect else Parser(1 << 20, level=5)
    return [packet for piece in pieces for packet in parser.packets(piece)]


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


@pytest.mark.parametrize("case", GOOD_5, ids=lambda case: case.name)
def test_a_good_packet_is_written_and_read(case: Good) -> None:
    assert encode_5(case.packet) == case.wire
    assert read(case.wire) == [case.packet]
    assert read(*bytewise(case.wire)) == [case.packet]


@pytest.mark.parametrize("case", CONNECTS, ids=lambda case: case.name)
def test_a_connect_is_written_and_read(case: Good) -> None:
    assert encode_5(case.packet) == case.wire
    assert read(case.wire, before_connect=True) == [case.packet]
    assert read(*bytewise(case.wire), before_connect=True) == [case.packet]


@pytest.mark.parametrize("case", LONGER_5, ids=lambda case: case.name)
def test_a_packet_may_be_longer_than_it_need_be(case: Good) -> None:
    assert read(case.wire) == [case.packet]


@pytest.mark.parametrize("case", BAD_5, ids=lambda case: case.name)
def test_a_bad_packet_is_refused_with_its_reason(case: Bad5) -> None:
    with pytest.raises(MqttFormatError) as refused:
        read(case.wire)
    assert refused.value.code == case.code


@pytest.mark.parametrize("case", BAD_CONNECTS, ids=lambda case: case.name)
def test_a_bad_connect_is_refused_with_its_reason(case: Bad5) -> None:
    with pytest.raises(MqttFormatError) as refused:
        read(case.wire, before_connect=True)
    assert refused.value.code == case.code


def test_a_connect_says_how_what_follows_it_is_read() -> None:
    message = Publish(b"a", b"p", properties=Properties(message_expiry=1))
    five, four = Connect("a", level=5), Connect("b")
    assert read(encode_5(five) + encode_5(message), before_connect=True) == [five, message]
    assert read(encode(four) + encode(Publish(b"a", b"p")), before_connect=True) == [four, Publish(b"a", b"p")]


def test_a_parser_that_takes_both_is_as_strict_with_3_1_1() -> None:
    for case in GOOD:
        if not isinstance(case.packet, Connect):
            continue
        assert read(case.wire, before_connect=True) == [case.packet]


def test_what_only_5_has_cannot_be_written_as_3_1_1() -> None:
    with pytest.raises(ValueError, match="only MQTT 5"):
        encode(Connect("a", level=5))


def _properties(given: dict[str, Any]) -> Properties:
    return Properties(**given)


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
texts = names.map(str.encode)
messages = st.fixed_dictionaries(
    {
        "payload_format": st.none() | st.integers(0, 1),
        "message_expiry": st.none() | st.integers(0, 0xFFFFFFFF),
        "content_type": st.none() | texts,
        "response_topic": st.none() | st.just(b"answers/here"),
        "correlation_data": st.none() | st.binary(max_size=20),
        "subscription_identifiers": st.lists(st.integers(1, 268_435_455), max_size=3).map(tuple),
        "topic_alias": st.none() | st.integers(1, 65_535),
        "user_properties": st.lists(st.tuples(texts, texts), max_size=3).map(tuple),
    }
).map(_properties)


@given(messages, st.binary(max_size=50))
def test_the_properties_of_a_message_survive_the_way(properties: Properties, payload: bytes) -> None:
    written = encode_properties(properties)
    assert decode_properties(written, 0, len(written), PUBLISH) == (properties, len(written))
    message = Publish(b"t", payload, 1, packet_id=1, properties=properties)
    assert read(encode_5(message)) == [message]


def test_no_properties_are_one_byte_and_cost_no_record() -> None:
    assert encode_properties(NO_PROPERTIES) == encode_properties(Properties()) == b"\0"
    assert decode_properties(b"\0", 0, 1, PUBLISH)[0] is NO_PROPERTIES


@settings(max_examples=300)
@given(st.sampled_from([case.wire for case in GOOD_5 + CONNECTS]), st.binary(max_size=4), st.data())
def test_any_bytes_are_read_or_refused(wire: bytes, noise: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(wire)))
    for before_connect in (False, True):
        try:
            read(wire[:at] + noise + wire[at + len(noise) :], before_connect=before_connect)
        except MqttFormatError as refused:
            assert refused.code in (0x81, PROTOCOL, 0x95)  # noqa: PT017 - anything else fails the test by itself
