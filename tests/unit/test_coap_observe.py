"""Observing resources, RFC 7641: who is told what, when, and until when; and being told."""

from __future__ import annotations

import random
from collections.abc import Hashable

import pytest
from twisted.internet.defer import Deferred
from txthings import coap, resource

from coapgw.coap.blockwise import BlockwiseSite
from coapgw.coap.codec import BLOCK2, MAX_AGE, OBSERVE, URI_PATH, decode_uint, encode_options, parse_options
from coapgw.coap.front import FrontSite
from coapgw.coap.messaging import MessageLayer
from coapgw.coap.observing import ObserveSite
from coapgw.coap.outgoing import NoResponse, Response, is_fresher
from coapgw.coap.parameters import MessagingLimits
from coapgw.coap.site import Branch, ResourceSite
from tests.unit.coap_wire import ACK, CON, DEVICE, NON, OTHER, RST, STRANGER, Peers, datagram

GET, FETCH, CONTENT = 1, 5, 0x45
REGISTER, DEREGISTER = (OBSERVE, b""), (OBSERVE, b"\x01")


class Sensor(resource.CoAPResource):  # type: ignore[misc]
    """txThings' own kind of observable resource."""

    observable = True

    def __init__(self) -> None:
        super().__init__()
        self.visible = True
        self.value = b"0"
        self.max_age: int | None = None
        self.content_format: int | None = None
        self.renderings = 0
        self.later: list[Deferred[coap.Message]] | None = None
        self.code = coap.CONTENT

    def render_GET(self, request: coap.Message) -> object:
        self.renderings += 1
        if self.later is not None:
            self.later.append(Deferred())
            return self.later[-1]
        return self.message()

    def render_FETCH(self, request: coap.Message) -> coap.Message:
        return coap.Message(code=self.code, payload=request.payload + self.value)

    def message(self) -> coap.Message:
        response = coap.Message(code=self.code, payload=self.value)
        if self.content_format is not None:
            response.opt.content_format = self.content_format
        if self.max_age is not None:
            response.opt.addOption(coap.UintOption(number=MAX_AGE, value=self.max_age))
        return response

    def change(self, value: bytes) -> None:
        self.value = value
        self.updatedState()


class Told:
    """A message from the server, taken apart."""

    def __init__(self, data: bytes) -> None:
        self.kind, self.code, self.message_id = data[0] >> 4 & 3, data[1], data[2:4]
        self.token = data[4 : 4 + (data[0] & 15)]
        self.options, at = parse_options(data, 4 + (data[0] & 15))
        self.payload = data[at:]
        numbers = [decode_uint(value) for number, value in self.options if number == OBSERVE]
        self.number = numbers[0] if numbers else None


class Server:
    """A layer with everything in front of a tree with sensors."""

    def __init__(self, limits: MessagingLimits | None = None, siblings: list[MessageLayer] | None = None) -> None:
        self.now = 1000.0
        self.woken = 0
        self.root = Branch()
        self.sensor, self.other = Sensor(), Sensor()
        self.root.putChild(b"s", self.sensor)
        self.root.putChild(b"o", self.other)
        still = Sensor()
        still.observable = False
        self.root.putChild(b"still", still)
        tree = ResourceSite(self.root)
        site = FrontSite(ObserveSite(BlockwiseSite(tree), tree))
        self.peers = Peers(DEVICE[0], OTHER[0])
        self.layer = MessageLayer(
            *(site, self.peers, random.Random(3)),
            limits=limits,
            wake=self._wake,
            siblings=() if siblings is None else siblings,
        )
        self.message_id = 0

    def _wake(self) -> None:
        self.woken += 1

    def ask(
        self,
        *options: tuple[int, bytes],
        path: bytes = b"s",
        token: bytes = b"t",
        kind: int = CON,
        source: Hashable = DEVICE,
        code: int = GET,
        payload: bytes = b"",
    ) -> list[Told]:
        self.message_id += 1
        block = encode_options([(URI_PATH, path), *options])
        return self.give(datagram(kind, code, self.message_id, token, block, payload), source)

    def give(self, data: bytes, source: Hashable = DEVICE) -> list[Told]:
        self.layer.receive_datagram(data, source, self.now)
        return self.sent()

    def sent(self) -> list[Told]:
        return [Told(data) for data, _ in self.layer.datagrams_to_send(self.now)]

    def acknowledge(self, told: Told, source: Hashable = DEVICE) -> list[Told]:
        return self.give(b"\x60\x00" + told.message_id, source)

    def reset(self, told: Told, source: Hashable = DEVICE) -> list[Told]:
        return self.give(b"\x70\x00" + told.message_id, source)

    def advance(self, seconds: float) -> list[tuple[float, Told]]:
        """Let time pass, timers included; return (seconds since the call, what was sent)."""
        start, end = self.now, self.now + seconds
        out: list[tuple[float, Told]] = [(0.0, told) for told in self.sent()]
        while (due := self.layer.next_timer()) is not None and due <= end:
            self.now = max(self.now, due)
            self.layer.handle_timer(self.now)
            out += [(self.now - start, told) for told in self.sent()]
        self.now = end
        return out


def observing(kind: int = CON, **limits: int) -> Server:
    server = Server(MessagingLimits(**limits) if limits else None)
    (told,) = server.ask(REGISTER, kind=kind)
    assert told.number is not None
    return server


# ---------------------------------------------------------------------- being told


def test_a_change_is_told_in_a_confirmable_with_the_token_and_a_higher_number() -> None:
    server = Server()
    (first,) = server.ask(REGISTER)
    assert (first.kind, first.code, first.payload, first.token) == (ACK, CONTENT, b"0", b"t")
    server.sensor.change(b"1")
    assert server.woken
    (told,) = server.sent()
    assert (told.kind, told.code, told.payload, told.token) == (CON, CONTENT, b"1", b"t")
    assert first.number is not None
    assert told.number is not None
    assert is_fresher((told.number, 0), (first.number, 0))
    assert server.acknowledge(told) == []
    server.now += 5
    server.sensor.change(b"2")
    (again,) = server.sent()
    assert again.number is not None
    assert is_fresher((again.number, 0), (told.number, 0))
    assert again.message_id != told.message_id


def test_who_does_not_observe_is_told_nothing() -> None:
    server = Server()
    for options in ([], [(OBSERVE, b"\x02")], [DEREGISTER], [REGISTER, (BLOCK2, b"\x10")]):
        (told,) = server.ask(*options)
        assert told.number is None
    for told in server.ask(REGISTER, path=b"still") + server.ask(REGISTER, source=STRANGER):
        assert told.number is None
    (told,) = server.ask(REGISTER, path=b"nowhere")
    assert (told.code, told.number) == (0x84, None)
    server.sensor.change(b"1")
    assert server.sent() == []
    assert not server.sensor.observers


def test_a_request_that_fails_begins_nothing() -> None:
    server = Server()
    server.sensor.code = coap.SERVICE_UNAVAILABLE
    (told,) = server.ask(REGISTER)
    assert told.number is None
    assert not server.sensor.observers
    assert len(server.layer.notifications) == 0


def test_changes_while_a_notification_is_under_way_are_told_as_one_the_latest() -> None:
    server = observing()
    server.sensor.change(b"1")
    (one,) = server.sent()
    for value in (b"2", b"3", b"4"):
        server.sensor.change(value)
        assert server.sent() == []
    (latest,) = server.acknowledge(one)
    assert latest.payload == b"4"
    assert server.acknowledge(latest) == []
    assert server.sensor.renderings == 3


def test_a_repetition_carries_the_latest_state_under_a_new_message_id() -> None:
    server = observing()
    server.sensor.change(b"1")
    (one,) = server.sent()
    server.sensor.change(b"2")
    ((after, repeated),) = server.advance(3.1)
    assert 2 <= after <= 3
    assert (repeated.payload, repeated.token) == (b"2", b"t")
    assert repeated.message_id != one.message_id
    assert repeated.number is not None
    assert one.number is not None
    assert is_fresher((repeated.number, 0), (one.number, 0))
    server.acknowledge(one)  # late, and of what is not under way any more
    assert server.layer.counters.unmatched == 1
    server.acknowledge(repeated)
    assert server.advance(100) == []
    assert len(server.layer.notifications) == 1


def test_one_confirmable_at_a_time_towards_a_client_with_many_observations() -> None:
    server = Server()
    for number in range(5):
        server.ask(REGISTER, token=b"%d" % number)
    server.ask(REGISTER, token=b"other", source=OTHER)
    server.sensor.change(b"1")
    told = server.sent()
    assert [one.token for one in told] == [b"0", b"other"]
    server.sensor.change(b"2")
    order = []
    current = told[0]
    for _ in range(5):
        (current,) = server.acknowledge(current)
        order.append((current.token, current.payload))
    assert sorted(order) == [(b"%d" % number, b"2") for number in range(5)]
    assert server.acknowledge(current) == []


def test_a_client_that_acknowledges_nothing_is_forgotten() -> None:
    server = observing()
    server.sensor.change(b"1")
    sent = server.advance(100)
    assert len(sent) == 5
    assert len(server.layer.notifications) == 0
    assert not server.sensor.observers
    server.sensor.change(b"2")
    assert server.advance(100) == []
    assert server.layer.counters.observers_lost == 1


def test_an_application_that_answers_later_is_waited_for_and_asked_again_if_it_changed() -> None:
    server = Server()
    server.sensor.later = []
    server.ask(REGISTER)
    server.sensor.change(b"1")
    assert server.sent() == []  # not before the first answer
    server.sensor.later[0].callback(server.sensor.message())
    (first,) = server.sent()
    assert first.kind == ACK
    server.sent()
    assert len(server.sensor.later) == 2  # the change came before the answer
    server.sensor.change(b"2")
    server.sent()
    assert len(server.sensor.later) == 2
    server.sensor.later[1].callback(server.sensor.message())
    told = server.sent()
    assert [one.payload for one in told] == [b"2"]


def test_an_application_whose_answer_is_lost_harms_nobody() -> None:
    server = Server()
    (_,) = server.ask(REGISTER)
    server.sensor.later = []
    server.sensor.change(b"1")
    server.sent()
    server.ask(DEREGISTER)
    server.sensor.later[0].callback(server.sensor.message())  # of an observation that is over
    assert [told.kind for told in server.sent()] == []


def test_a_fetch_can_be_observed_with_its_payload() -> None:
    server = Server()
    (first,) = server.ask(REGISTER, code=FETCH, payload=b"unit=")
    assert (first.payload, first.number is not None) == (b"unit=0", True)
    server.sensor.change(b"1")
    assert [told.payload for told in server.sent()] == [b"unit=1"]


def test_a_large_state_is_told_by_its_first_block() -> None:
    server = observing()
    server.sensor.change(bytes(3000))
    (told,) = server.sent()
    assert dict(told.options)[BLOCK2] == b"\x0e"
    assert len(told.payload) == 1024
    (rest,) = server.ask((BLOCK2, b"\x16"))
    assert (rest.number, len(rest.payload)) == (None, 1024)


# ---------------------------------------------------------------------- non-confirmable


def test_non_confirmable_notifications_keep_three_seconds_apart_and_every_sixteenth_is_confirmable() -> None:
    server = observing(NON)
    server.sensor.change(b"1")
    (told,) = server.sent()
    assert told.kind == NON
    server.sensor.change(b"2")
    server.sensor.change(b"3")
    ((after, told),) = server.advance(60)
    assert (told.kind, told.payload) == (NON, b"3")
    assert after == pytest.approx(3)
    kinds = []
    for _ in range(14):
        server.sensor.change(b"x")
        (told,) = server.sent()
        kinds.append(told.kind)
        server.advance(1 if told.kind == CON else 4)
        if told.kind == CON:
            server.acknowledge(told)
    assert kinds == [NON] * 13 + [CON]


def test_an_rst_to_a_non_confirmable_ends_it() -> None:
    server = observing(NON)
    server.sensor.change(b"1")
    (told,) = server.sent()
    server.reset(told, OTHER)
    assert len(server.layer.notifications) == 1  # somebody else's
    server.reset(told)
    assert len(server.layer.notifications) == 0
    assert server.layer.counters.unmatched == 1


# ---------------------------------------------------------------------- the end


def test_an_rst_to_a_confirmable_ends_it() -> None:
    server = observing()
    server.sensor.change(b"1")
    (told,) = server.sent()
    server.reset(told)
    assert server.advance(100) == []
    assert not server.sensor.observers


@pytest.mark.parametrize("is_under_way", [False, True])
def test_a_get_that_says_so_ends_it(is_under_way: bool) -> None:
    server = observing()
    if is_under_way:
        server.sensor.change(b"1")
        server.sent()
    (told,) = server.ask(DEREGISTER)
    assert (told.kind, told.number) == (ACK, None)
    server.sensor.change(b"2")
    assert server.advance(100) == []
    assert not server.sensor.observers


def test_a_deregistration_with_another_token_or_by_another_endpoint_ends_nothing() -> None:
    server = observing()
    server.ask(DEREGISTER, token=b"u")
    server.ask(DEREGISTER, source=OTHER)
    assert len(server.layer.notifications) == 1


def test_registering_again_with_the_same_token_replaces_even_for_another_resource() -> None:
    server = observing()
    (again,) = server.ask(REGISTER)
    assert again.number is not None
    assert len(server.layer.notifications) == 1
    server.ask(REGISTER, path=b"o")
    assert (len(server.sensor.observers), len(server.other.observers)) == (0, 1)
    server.sensor.change(b"1")
    assert server.sent() == []
    server.other.change(b"2")
    assert [told.payload for told in server.sent()] == [b"2"]


def test_a_resource_that_fails_is_told_and_ends_it() -> None:
    server = observing()
    server.sensor.code = coap.NOT_FOUND
    server.sensor.change(b"gone")
    (told,) = server.sent()
    assert (told.kind, told.code, told.number) == (CON, 0x84, None)
    server.acknowledge(told)
    assert not server.sensor.observers
    assert len(server.layer.notifications) == 0


def test_another_content_format_is_4_06_and_ends_it() -> None:
    server = observing()
    server.sensor.content_format = 50
    server.sensor.change(b"{}")
    (told,) = server.sent()
    assert (told.code, told.number, told.payload) == (0x86, None, b"")
    server.acknowledge(told)
    assert not server.sensor.observers


def test_a_device_that_may_no_longer_hears_so_and_no_more() -> None:
    server = observing()
    server.peers.hosts.discard(DEVICE[0])
    server.peers.generation += 1
    server.sensor.change(b"secret")
    (told,) = server.sent()
    assert (told.code, told.payload) == (0x81, b"")
    server.acknowledge(told)
    server.sensor.change(b"secret")
    assert server.sent() == []


def test_an_endpoint_that_is_forgotten_takes_its_observations_along() -> None:
    server = observing()
    server.sensor.change(b"1")
    server.sent()
    server.layer.forget(DEVICE)
    assert not server.sensor.observers
    assert server.advance(100) == []


def test_an_endpoint_that_observes_stays_known_though_silent() -> None:
    server = observing()
    server.advance(2000)
    assert server.layer.endpoints == 1
    server.sensor.change(b"1")
    assert len(server.sent()) == 1


# ---------------------------------------------------------------------- time and bounds


def test_a_day_without_a_change_is_followed_by_a_confirmable() -> None:
    server = observing(NON)
    sent = server.advance(90_000)
    assert sent[0][0] == pytest.approx(86_400)
    assert sent[0][1].kind == CON
    assert len(server.layer.notifications) == 0  # nobody acknowledged


def test_a_state_is_told_again_when_its_max_age_is_over() -> None:
    server = Server()
    server.sensor.max_age = 30
    server.ask(REGISTER)
    times = []
    for _ in range(3):
        ((after, told),) = server.advance(30)
        times.append(after)
        server.acknowledge(told)
    assert times == [pytest.approx(30)] * 3
    server.sensor.max_age = 0
    server.sensor.change(b"x")
    (told,) = server.sent()
    server.acknowledge(told)
    ((after, _),) = server.advance(6)
    assert after == pytest.approx(5)


def test_observations_are_bounded_in_total_and_of_one_endpoint() -> None:
    server = Server(MessagingLimits(observations=5, observations_per_endpoint=3))
    for source, begun in ((DEVICE, 3), (OTHER, 2)):
        told = [one for n in range(6) for one in server.ask(REGISTER, token=b"%d" % n, source=source)]
        assert sum(one.number is not None for one in told) == begun
        assert all(one.code == CONTENT for one in told)
    assert len(server.sensor.observers) == len(server.layer.notifications) == 5
    assert server.layer.counters.observations_refused == 7


def test_a_thousand_changes_cost_one_message_and_no_memory() -> None:
    server = observing()
    for number in range(1000):
        server.sensor.change(b"%d" % number)
        server.sent()
    assert server.layer.counters.notifications == 1
    notifications = server.layer.notifications
    for _ in range(2000):
        server.ask(REGISTER)
        server.ask(DEREGISTER)
    assert len(notifications._alarms) < 100
    assert len(notifications.pending) < 100


def test_what_is_observed_follows_a_peer_to_another_socket() -> None:
    layers: list[MessageLayer] = []
    first, second = Server(siblings=layers), Server(siblings=layers)
    layers += [first.layer, second.layer]
    first.ask(REGISTER)
    first.sensor.change(b"1")
    first.sent()
    told = next(one for one in second.ask(path=b"o") if one.number is not None)  # the same peer, on the other socket
    assert len(first.layer.notifications) == 0
    assert first.layer.endpoints == 0
    assert (told.payload, told.token) == (b"1", b"t")
    second.acknowledge(told)
    first.sensor.change(b"2")
    assert first.sent() == []
    assert [told.payload for told in second.sent()] == [b"2"]


# ---------------------------------------------------------------------- client


def test_numbers_go_round_and_mean_nothing_after_128_seconds() -> None:
    assert is_fresher((1, 0), (0, 0))
    assert is_fresher((0, 0), (0xFFFFFF, 0))
    assert not is_fresher((0, 0), (0, 0))
    assert not is_fresher((0xFFFFFF, 0), (0, 0))
    assert not is_fresher((1 << 23, 0), (0, 0))
    assert is_fresher((0, 129), (5, 0))
    assert not is_fresher((0, 127), (5, 0))


class Observer:
    """A layer in client role, against a server's, both in memory."""

    SERVER = ("10.9.9.9", 5683)

    def __init__(self) -> None:
        self.server = Server()
        self.layer = MessageLayer(ResourceSite(Branch()), Peers(), random.Random(4))
        self.outcomes: list[Response | NoResponse] = []
        self.held: list[bytes] = []

    def observe(self) -> bytes:
        return self.layer.observe(self.SERVER, self.outcomes.append, self.server.now, options=((URI_PATH, b"s"),))

    def exchange(self, hold: bool = False) -> None:
        """Carry datagrams both ways until nothing moves."""
        now = self.server.now
        while True:
            up = self.layer.datagrams_to_send(now)
            for data, _ in up:
                self.server.layer.receive_datagram(data, DEVICE, now)
            down = self.server.layer.datagrams_to_send(now)
            if hold:
                self.held += [data for data, _ in down]
                return
            for data, _ in down:
                self.layer.receive_datagram(data, self.SERVER, now)
            if not up and not down:
                return

    @property
    def values(self) -> list[bytes]:
        return [one.payload for one in self.outcomes if isinstance(one, Response)]


def test_a_client_is_told_of_each_change_until_it_says_so() -> None:
    observer = Observer()
    token = observer.observe()
    observer.exchange()
    for value in (b"1", b"2"):
        observer.server.sensor.change(value)
        observer.exchange()
    assert observer.values == [b"0", b"1", b"2"]
    answers: list[Response | NoResponse] = []
    observer.layer.stop_observing(
        observer.SERVER, token, answers.append, observer.server.now, options=((URI_PATH, b"s"),)
    )
    observer.exchange()
    assert isinstance(answers[0], Response)
    assert not observer.server.sensor.observers
    assert len(observer.outcomes) == 3


def test_a_client_drops_what_is_older_or_a_repeat_and_resets_what_it_forgot() -> None:
    observer = Observer()
    observer.observe()
    observer.exchange()
    observer.server.sensor.change(b"1")
    observer.exchange(hold=True)
    observer.server.advance(3.1)  # repeated and lost
    observer.server.sensor.change(b"2")
    late = observer.held
    observer.server.now += 7
    observer.server.layer.handle_timer(observer.server.now)
    observer.exchange()
    assert observer.values == [b"0", b"2"]
    observer.layer.receive_datagram(late[-1], observer.SERVER, observer.server.now)
    assert observer.values == [b"0", b"2"]
    observer.layer.forget(observer.SERVER)
    assert isinstance(observer.outcomes[-1], NoResponse)
    observer.server.sensor.change(b"3")
    observer.exchange()
    assert not observer.server.sensor.observers  # by RST


def test_an_observation_of_ours_does_not_expire_and_ends_with_an_error() -> None:
    observer = Observer()
    observer.observe()
    observer.exchange()
    observer.layer.handle_timer(observer.server.now + 500)
    assert observer.values == [b"0"]
    observer.server.sensor.code = coap.NOT_FOUND
    observer.server.sensor.change(b"")
    observer.exchange()
    last = observer.outcomes[-1]
    assert isinstance(last, Response)
    assert last.code == 0x84
    observer.server.sensor.change(b"x")
    observer.exchange()
    assert len(observer.outcomes) == 2


def test_a_server_that_does_not_offer_it_answers_once() -> None:
    observer = Observer()
    observer.server.sensor.observable = False
    observer.observe()
    observer.exchange()
    assert observer.values == [b"0"]
    observer.layer.handle_timer(observer.server.now + 500)
    assert len(observer.outcomes) == 1


def test_an_rst_names_nothing_of_another_endpoint() -> None:
    server = observing()
    server.sensor.change(b"1")
    (told,) = server.sent()
    server.reset(told, OTHER)
    server.give(bytes((0x40 | RST << 4, 0)) + told.message_id, (DEVICE[0], 1))
    assert len(server.layer.notifications) == 1
