"""mqtt/bridge.py: what is sent, sent again, refused and set aside, against a broker that a test speaks for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zope.interface import implementer
from zope.interface.verify import verifyObject

from coapgw.interfaces import IBrokerLink, IDelivery
from coapgw.model import Spooled
from coapgw.mqtt.bridge import (
    RETRIES,
    STRIKES,
    WAITING_LIMIT,
    BridgeLink,
    BridgeSettings,
    BridgeVersion,
)
from coapgw.mqtt.client import MqttClient
from coapgw.mqtt.packets import (
    LEVEL_3_1_1,
    LEVEL_5,
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PubAck,
    Publish,
    encode,
)
from coapgw.mqtt.parser import Parser
from coapgw.mqtt.properties import NO_PROPERTIES, Properties
from coapgw.mqtt.version_5 import encode_5
from tests.unit.mqtt_5_wire_cases import BAD_5, GOOD_5


@implementer(IDelivery)
class Feed:
    """What there is to deliver, and what became of it."""

    def __init__(self) -> None:
        self.link: BridgeLink | None = None
        self.waiting: list[Spooled] = []
        self.taken: list[int] = []
        self.settled_places: list[int] = []
        self.dead: list[tuple[int, str]] = []
        self._place = 0
        verifyObject(IDelivery, self)

    def add(self, count: int = 1, iccid: str = "1", payload: bytes = b"x") -> None:
        for _ in range(count):
            self._place += 1
            self.waiting.append(Spooled(self._place, 1000, iccid, f"id-{self._place}", b"t", payload))

    def accepted(self, place: int) -> None:
        self.taken.append(place)

    def settled(self, place: int) -> None:
        self.settled_places.append(place)

    def refused(self, message: Spooled, reason: str) -> None:
        self.dead.append((message.place, reason))

    def resume(self) -> None:
        assert self.link is not None
        while self.waiting and self.link.ready():
            self.link.deliver(self.waiting.pop(0))


class Rig:
    """A bridge whose broker does what the test says."""

    def __init__(self, version: BridgeVersion = BridgeVersion.V5, *, window: int = 10, expiry_seconds: int = 0) -> None:
        self.now = 0.0
        self.feed = Feed()
        wanted = BridgeSettings("gateway", version=version, window=window, expiry_seconds=expiry_seconds)
        self.link = BridgeLink(self.feed, wanted, self.clock)
        verifyObject(IBrokerLink, self.link)
        self.feed.link = self.link
        self.client: MqttClient
        self._broker: Parser

    def clock(self) -> float:
        return self.now

    def open(self) -> Connect:
        """Begin a connection; return its CONNECT."""
        self.client = MqttClient(self.link.connect_packet(None), self.link, lambda: None)
        self._broker = Parser(1 << 28, takes_5=True)
        self.link.connection_opened(self.client)
        self.client.start(self.now)
        (packet,) = self.sent()
        assert isinstance(packet, Connect)
        return packet

    def connect(self, present: bool = False, properties: Properties = NO_PROPERTIES) -> Rig:
        self.open()
        self.say(ConnAck(present, 0, properties))
        return self

    def say(self, *packets: Packet) -> None:
        """Have the broker send packets, in one batch."""
        write = encode_5 if self.client.settings.level == LEVEL_5 else encode
        self.client.receive_data(b"".join(write(packet) for packet in packets))
        self.link.refill()

    def sent(self) -> list[Packet]:
        return list(self._broker.packets(self.client.data_to_send(self.now)))

    def messages(self) -> list[Publish]:
        return [packet for packet in self.sent() if isinstance(packet, Publish)]

    def ids(self) -> list[int]:
        return [packet.packet_id for packet in self.messages()]

    def send(self, count: int = 1, iccid: str = "1") -> list[int]:
        """Deliver messages; return the packet identifiers of what was sent."""
        self.feed.add(count, iccid)
        self.feed.resume()
        return self.ids()

    def lose(self) -> None:
        self.link.connection_lost()

    def wait(self, seconds: float) -> list[Publish]:
        self.now += seconds
        self.link.handle_timer()
        return self.messages()


def refused(packet_id: int, reason: int) -> PubAck:
    return PubAck(packet_id, reason)


@pytest.fixture(params=[BridgeVersion.V5, BridgeVersion.V3_1_1], ids=lambda version: version.value)
def rig(request: pytest.FixtureRequest) -> Rig:
    """A bridge that speaks either version."""
    return Rig(request.param)


def test_nothing_is_taken_before_the_broker_has_answered(rig: Rig) -> None:
    assert not rig.link.ready()
    rig.open()
    assert not rig.link.ready()
    rig.say(ConnAck(False, 0))
    assert rig.link.ready()


def test_the_window_is_filled_again_with_every_batch(rig: Rig) -> None:
    rig.connect()
    assert rig.send(25) == list(range(1, 11))
    rig.say(PubAck(1), PubAck(2), PubAck(3))
    assert len(rig.messages()) == 3
    assert rig.feed.taken == rig.feed.settled_places == [1, 2, 3]


def test_what_is_in_flight_is_sent_again_in_order_before_anything_new(rig: Rig) -> None:
    rig.connect().send(5)
    rig.say(PubAck(2))
    rig.lose()
    rig.feed.add(2)
    rig.connect(present=True)
    again = rig.messages()
    assert [(one.packet_id, one.dup) for one in again[:4]] == [(1, True), (3, True), (4, True), (5, True)]
    assert [one.dup for one in again[4:]] == [False, False]
    assert len({one.packet_id for one in again}) == 6


def test_a_broker_that_has_forgotten_us_gets_no_repeats_but_the_messages(rig: Rig) -> None:
    rig.connect().send(3)
    rig.lose()
    rig.connect(present=False)
    assert [(one.packet_id, one.dup) for one in rig.messages()] == [(1, False), (2, False), (3, False)]


def test_an_acknowledgement_of_what_was_not_sent_is_nothing(rig: Rig) -> None:
    rig.connect()
    rig.say(PubAck(77))
    rig.send(2)
    rig.say(PubAck(1), PubAck(1), PubAck(3))
    assert rig.feed.taken == [1]


def test_a_message_at_which_the_broker_closes_is_set_aside_and_the_others_are_delivered(rig: Rig) -> None:
    poison = 3
    rig.feed.add(6)
    for _ in range(30):
        rig.connect()
        rig.feed.resume()
        for one in rig.messages():
            if rig.feed.dead == [] and _place(rig, one.packet_id) == poison:
                break
            rig.say(PubAck(one.packet_id))
        rig.lose()
    assert [place for place, _ in rig.feed.dead] == [poison]
    assert sorted(rig.feed.taken) == [1, 2, 4, 5, 6]
    assert f"closed the connection at it, {STRIKES} times" in rig.feed.dead[0][1]


def _place(rig: Rig, packet_id: int) -> int:
    message = rig.link._in_flight.get(packet_id)
    return message.place if message is not None else 0


def test_a_broker_that_says_nothing_does_not_make_a_message_suspicious(rig: Rig) -> None:
    rig.feed.add(3)
    for _ in range(30):
        rig.connect()
        rig.feed.resume()
        rig.messages()
        rig.now += 60
        rig.lose()
    assert rig.feed.dead == []


# ------------------------------------------------------------------ MQTT 5


def test_a_message_says_who_sent_it_and_when() -> None:
    rig = Rig(expiry_seconds=60)
    rig.connect().feed.add()
    rig.feed.resume()
    (message,) = rig.messages()
    wanted = ((b"iccid", b"1"), (b"id", b"id-1"), (b"received", b"1000"))
    assert message.properties == Properties(message_expiry=60, user_properties=wanted)


def test_the_brokers_receive_maximum_is_kept_also_when_more_is_sent_again() -> None:
    rig = Rig()
    rig.connect().send(10)
    rig.lose()
    rig.connect(True, Properties(receive_maximum=4))
    assert rig.ids() == [1, 2, 3, 4]
    rig.say(PubAck(1), PubAck(2))
    assert rig.ids() == [5, 6]
    rig.say(*(PubAck(number) for number in range(3, 11)))  # 7 to 10 were not sent to this broker yet
    assert rig.ids() == [7, 8, 9, 10]
    rig.say(*(PubAck(number) for number in range(7, 11)))
    assert len(rig.send(9)) == 4


def test_what_is_larger_than_the_broker_takes_is_set_aside_and_not_sent() -> None:
    rig = Rig()
    rig.connect(False, Properties(maximum_packet_size=200))
    rig.feed.add(payload=bytes(300))
    rig.feed.add()
    rig.feed.resume()
    assert [one.payload for one in rig.messages()] == [b"x"]
    assert [place for place, _ in rig.feed.dead] == [1]
    rig.lose()
    rig.connect(True, Properties(maximum_packet_size=20))
    assert rig.messages() == []
    assert [place for place, _ in rig.feed.dead] == [1, 2]


@pytest.mark.parametrize("room", range(10))
def test_the_size_that_is_compared_is_that_of_the_packet(room: int) -> None:
    rig = Rig()
    rig.connect().feed.add(payload=bytes(60 + room))
    rig.feed.resume()
    size = len(rig.client.data_to_send(0))
    for limit, sent in ((size, 1), (size - 1, 0)):
        rig.lose()
        rig.connect(True, Properties(maximum_packet_size=limit))
        assert len(rig.messages()) == sent


@pytest.mark.parametrize("reason", [0x87, 0x90, 0x99])
def test_a_message_refused_for_good_is_set_aside_at_once(reason: int) -> None:
    rig = Rig()
    rig.connect().send(3)
    rig.say(PubAck(1), refused(2, reason), PubAck(3))
    assert [place for place, _ in rig.feed.dead] == [2]
    assert rig.feed.taken == [1, 3]


@pytest.mark.parametrize("reason", [0x80, 0x83, 0x91, 0x97])
def test_a_refusal_that_may_pass_is_tried_again_and_then_believed(reason: int) -> None:
    rig = Rig()
    rig.connect().send(1)
    rig.say(refused(1, reason))
    pauses = []
    for _ in range(RETRIES):
        waited = 0.0
        while not (again := rig.wait(0.5)):
            waited += 0.5
        pauses.append(waited + 0.5)
        assert rig.feed.dead == []
        rig.say(refused(again[0].packet_id, reason))
    assert pauses == [1, 2, 4, 8]
    assert len(rig.feed.dead) == 1


def test_later_messages_of_the_device_wait_behind_a_refused_one_and_others_do_not() -> None:
    rig = Rig()
    rig.connect().send(1)
    rig.say(refused(1, 0x97))
    assert rig.send(3) == []
    assert len(rig.send(2, iccid="2")) == 2
    (again,) = rig.wait(1)
    rig.say(PubAck(again.packet_id))
    assert [_place(rig, packet_id) for packet_id in rig.ids()] == [2, 3, 4]
    assert rig.link.counters.refused == 1


def test_what_waits_behind_refused_messages_is_bounded() -> None:
    rig = Rig()
    rig.connect().send(1)
    rig.say(refused(1, 0x97))
    rig.feed.add(2 * WAITING_LIMIT)
    rig.feed.resume()
    assert len(rig.feed.waiting) == WAITING_LIMIT + 1
    (again,) = rig.wait(1)
    rig.say(PubAck(again.packet_id))
    assert len(rig.messages()) == 10


def test_a_disconnect_with_a_reason_is_told() -> None:
    rig = Rig()
    rig.connect()
    rig.say(Disconnect(0x8E))
    assert rig.client.closing
    assert rig.client.failure is not None
    assert "same client id" in rig.client.failure


def test_a_broker_without_qos_1_is_not_used() -> None:
    rig = Rig()
    rig.connect(False, Properties(maximum_qos=0))
    assert rig.client.closing
    assert not rig.send(1)


# ------------------------------------------------------------------ which version


def test_a_broker_that_does_not_know_5_is_spoken_to_in_3_1_1() -> None:
    for answer in (b"\x20\3\0\x84\0", b"\x20\2\0\1"):
        rig = Rig(BridgeVersion.AUTO)
        assert rig.open().level == LEVEL_5
        rig.client.receive_data(answer)
        rig.lose()
        assert rig.link.falls_back
        for _ in range(3):
            assert rig.open().level == LEVEL_3_1_1
            rig.say(ConnAck(False, 0))
            rig.lose()


def test_a_broker_that_closes_without_a_word_is_tried_with_both() -> None:
    rig = Rig(BridgeVersion.AUTO)
    levels = []
    for _ in range(4):
        levels.append(rig.open().level)
        rig.lose()
    assert levels == [LEVEL_5, LEVEL_3_1_1, LEVEL_5, LEVEL_3_1_1]


def test_a_refused_password_is_no_reason_to_fall_back() -> None:
    rig = Rig(BridgeVersion.AUTO)
    rig.open()
    rig.say(ConnAck(False, 0x86))
    assert rig.client.failure is not None
    assert "password" in rig.client.failure
    rig.lose()
    assert rig.open().level == LEVEL_5


def test_a_version_that_was_chosen_is_kept() -> None:
    rig = Rig(BridgeVersion.V5)
    rig.open()
    rig.lose()
    assert rig.open().level == LEVEL_5


# ------------------------------------------------------------------ whatever happens

happenings = st.lists(
    st.sampled_from(["deliver", "ack", "ack", "refuse", "busy", "lose", "forget", "tick"]), min_size=5, max_size=60
)


@settings(max_examples=100)
@given(happenings, st.sampled_from([BridgeVersion.V5, BridgeVersion.V3_1_1]))
def test_every_message_is_accepted_or_set_aside_once_and_in_order(events: list[str], version: BridgeVersion) -> None:
    rig = Rig(version, window=3)
    rig.connect()
    owed: list[int] = []
    is_5 = version is BridgeVersion.V5
    for number, event in enumerate(events):
        owed += rig.ids()
        if event == "deliver":
            rig.feed.add(1, iccid=str(number % 2))
            rig.feed.resume()
        elif event == "ack" and owed:
            rig.say(PubAck(owed.pop(0)))
        elif event in ("refuse", "busy") and owed and is_5:
            rig.say(refused(owed.pop(0), 0x99 if event == "refuse" else 0x97))
        elif event in ("lose", "forget"):
            rig.lose()
            owed.clear()
            rig.connect(present=event == "lose")
        elif event == "tick":
            rig.now += 10
            rig.link.handle_timer()
    for _ in range(300):
        owed += rig.ids()
        if owed:
            rig.say(PubAck(owed.pop(0)))
        else:
            rig.now += 10
            rig.link.handle_timer()
    done = sorted(rig.feed.taken + [place for place, _ in rig.feed.dead])
    assert done == list(range(1, len(done) + 1))
    assert rig.link.in_flight == 0
    assert not rig.feed.waiting
    if "busy" not in events:
        assert rig.feed.taken == sorted(rig.feed.taken)


@settings(max_examples=200)
@given(
    st.lists(
        st.sampled_from([case.wire for case in GOOD_5] + [case.wire for case in BAD_5]) | st.binary(max_size=12),
        max_size=8,
    ),
    st.sampled_from([BridgeVersion.V5, BridgeVersion.V3_1_1]),
    st.booleans(),
)
def test_whatever_a_broker_sends_raises_nothing(pieces: list[bytes], version: BridgeVersion, connected: bool) -> None:
    rig = Rig(version)
    rig.open()
    if connected:
        rig.say(ConnAck(False, 0))
        rig.send(3)
    for piece in pieces:
        if rig.client.closing:
            assert rig.client.failure
            break
        rig.client.receive_data(piece)
        rig.link.refill()
    rig.lose()
    rig.connect(present=True)
    assert rig.link.in_flight <= 10
