"""dtls/client.py: over a scripted engine, with loss and a clock; and over OpenSSL's, against the gateway's front."""

from __future__ import annotations

import random
from collections.abc import Hashable

import pytest

from coapgw.coap.codec import CHANGED, POST
from coapgw.coap.messaging import MessageLayer
from coapgw.coap.outgoing import NoResponse, Response
from coapgw.dtls.alerts import NAMES
from coapgw.dtls.client import AssociationEnded, DtlsClient, HandshakeFailed, Stage
from coapgw.dtls.openssl import SUITES, ClientContext, EngineFailed
from coapgw.dtls.records import ALERT, APPLICATION_DATA, HANDSHAKE, plain_record, split
from tests.unit.coap_wire import Peers, RecordingSite
from tests.unit.dtls_peers import ADDRESS, ICCID, SECRET, Server

PEER = ("192.0.2.10", 5684)
HELLO, HELLO_AGAIN, VERIFY, DONE, FINISHED = b"hello", b"hello again", b"verify", b"done", b"finished"


def record(body: bytes, kind: int = HANDSHAKE, epoch: int = 0) -> bytes:
    return bytes((kind, 0xFE, 0xFD, 0, epoch)) + bytes(6) + len(body).to_bytes(2, "big") + body


class Clock:
    now = 100.0


class ScriptedEngine:
    """A handshake of two round trips in words, with OpenSSL's timer on a clock of ours."""

    suite = "NONE"

    def __init__(self, clock: Clock) -> None:
        self.is_complete = False
        self.closed = False
        self._clock = clock
        self._flight: list[bytes] = []
        self._outbox: list[bytes] = []
        self._due = 0.0
        self._interval = 1.0
        self._repeats = 0

    def begin_as_client(self) -> None:
        self._send(record(HELLO))

    def _send(self, *records: bytes) -> None:
        self._flight = list(records)
        self._outbox += records
        self._repeats = 0
        self._interval = 1.0
        self._due = self._clock.now + self._interval

    def receive(self, record_: bytes) -> None:
        body = record_[13:]
        if body == b"nonsense":
            raise EngineFailed("unexpected message")
        if body == VERIFY and self._flight == [record(HELLO)]:
            self._send(record(HELLO_AGAIN))
        elif body == DONE and self._flight == [record(HELLO_AGAIN)]:
            self._send(record(b"key exchange"), record(FINISHED, epoch=1))
        elif body == FINISHED and record_[4] == 1 and len(self._flight) == 2:
            self.is_complete = True

    def take_records(self) -> list[bytes]:
        outbox, self._outbox = self._outbox, []
        return outbox

    def timeout(self) -> float | None:
        return None if self.is_complete else max(0.0, self._due - self._clock.now)

    def handle_timeout(self) -> None:
        if self._clock.now < self._due:
            return
        self._repeats += 1
        if self._repeats > 12:
            raise EngineFailed("read timeout expired")
        self._interval *= 2
        self._due = self._clock.now + self._interval
        self._outbox += self._flight

    def open(self, record_: bytes) -> bytes | None:
        if record_[0] == ALERT:
            raise EngineFailed("close notify")
        return record_[13:] if record_[0] == APPLICATION_DATA else None

    def seal(self, plaintext: bytes) -> bytes:
        if len(plaintext) > 1000:
            raise EngineFailed("message too big")
        return record(plaintext, APPLICATION_DATA, 1)

    def close(self) -> bytes:
        self.closed = True
        return record(b"\x01\x00", ALERT, 1)


class Upper:
    """Keeps what is said to it, and says what the test wants."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.to_send: list[bytes] = []
        self.due: float | None = None
        self.timers = 0

    def receive_datagram(self, data: bytes, address: Hashable, now: float, /) -> None:
        assert address == PEER
        self.received.append(data)

    def datagrams_to_send(self, now: float, /) -> list[tuple[bytes, Hashable]]:
        out, self.to_send = self.to_send, []
        return [(data, PEER) for data in out]

    def next_timer(self) -> float | None:
        return self.due

    def handle_timer(self, now: float, /) -> None:
        self.timers += 1
        self.due = None


class Rig:
    """A client, a server of a few lines, and a wire that loses datagrams."""

    def __init__(self, loss: float = 0.0, seed: int = 1, handshake_seconds: float = 30.0) -> None:
        self.clock = Clock()
        self.engine = ScriptedEngine(self.clock)
        self.upper = Upper()
        self.events: list[object] = []
        self.woken = 0
        self.answers = {HELLO: [record(VERIFY)], HELLO_AGAIN: [record(DONE)], FINISHED: [record(FINISHED, epoch=1)]}
        self.client = DtlsClient(
            self.engine,
            self.upper,
            PEER,
            handshake_seconds=handshake_seconds,
            wake=self._wake,
            established=lambda: self.events.append("established"),
            ended=self.events.append,
        )
        self._loss = loss
        self._random = random.Random(seed)

    def _wake(self) -> None:
        self.woken += 1

    def _arrives(self) -> bool:
        return self._random.random() >= self._loss

    def carry(self) -> list[bytes]:
        """Move datagrams until none is under way; return all that the client sent."""
        sent: list[bytes] = []
        while out := self.client.datagrams_to_send(self.clock.now):
            for datagram, address in out:
                assert address == PEER
                sent.append(datagram)
                if not self._arrives():
                    continue
                for one in split(datagram):
                    back = [one] if one[0] == APPLICATION_DATA else self.answers.get(one[13:], [])
                    for answer in back:
                        if self._arrives():
                            self.client.receive_datagram(answer, PEER, self.clock.now)
        return sent

    def run(self, seconds: float) -> list[bytes]:
        end = self.clock.now + seconds
        sent = self.carry()
        while (due := self.client.next_timer()) is not None and due <= end:
            self.clock.now = max(self.clock.now, due)
            self.client.handle_timer(self.clock.now)
            sent += self.carry()
        self.clock.now = end
        return sent

    def connect(self) -> Rig:
        self.client.begin(self.clock.now)
        self.run(29)
        assert self.events == ["established"]
        return self


def reason(rig: Rig) -> str:
    (event,) = rig.events
    assert isinstance(event, (HandshakeFailed, AssociationEnded))
    return str(event)


def test_what_waits_above_travels_once_the_handshake_is_complete() -> None:
    rig = Rig()
    rig.upper.to_send = [b"early"]
    rig.client.begin(rig.clock.now)
    assert rig.woken == 1
    assert rig.carry()[-1] == record(b"early", APPLICATION_DATA, 1)
    assert rig.events == ["established"]
    assert rig.upper.received == [b"early"]
    assert rig.client.suite == "NONE"


@pytest.mark.parametrize("loss", [0.1, 0.3])
@pytest.mark.parametrize("seed", range(10))
def test_lost_flights_are_repeated(loss: float, seed: int) -> None:
    rig = Rig(loss, seed, handshake_seconds=1e9)
    rig.client.begin(rig.clock.now)
    rig.run(10_000)
    assert rig.events == ["established"]


def test_the_timer_is_the_engines_until_the_handshake_is_complete_then_the_upper_machines() -> None:
    rig = Rig(loss=1.0)
    rig.upper.due = 100.5
    rig.client.begin(rig.clock.now)
    assert rig.client.next_timer() == 101.0
    rig.clock.now = 100.9
    rig.client.handle_timer(rig.clock.now)  # early: the clocks of a pump and of OpenSSL are not one
    assert rig.client.next_timer() == 101.0
    assert rig.upper.timers == 0
    rig = Rig().connect()
    rig.upper.due = 500.0
    assert rig.client.next_timer() == 500.0
    rig.client.handle_timer(500.0)
    assert rig.upper.timers == 1
    assert rig.client.next_timer() is None


def test_silence_is_said_to_be_silence() -> None:
    rig = Rig(loss=1.0)
    rig.client.begin(rig.clock.now)
    sent = rig.run(40)
    assert "no answer to our ClientHello" in reason(rig)
    assert len(sent) == 5  # at 0, 1, 3, 7 and 15 s
    assert rig.client.next_timer() is None


def test_an_engine_that_gives_up_first_is_believed() -> None:
    rig = Rig(loss=1.0, handshake_seconds=1e9)
    rig.client.begin(rig.clock.now)
    rig.run(1e6)
    assert "no answer to our ClientHello" in reason(rig)


def test_a_finished_without_an_answer_points_at_the_key() -> None:
    rig = Rig()
    del rig.answers[FINISHED]
    rig.client.begin(rig.clock.now)
    rig.run(40)
    assert reason(rig) == "no answer to our Finished: wrong key, unknown identity or inactive device"


def test_an_answer_in_between_that_never_comes_is_called_lost() -> None:
    rig = Rig()
    del rig.answers[HELLO_AGAIN]
    rig.client.begin(rig.clock.now)
    rig.run(40)
    assert "began and then stopped" in reason(rig)


@pytest.mark.parametrize("description", NAMES)
@pytest.mark.parametrize("after", [HELLO_AGAIN, FINISHED])
def test_a_fatal_alert_ends_the_handshake_by_name(description: int, after: bytes) -> None:
    rig = Rig()
    rig.answers[after] = [plain_record(ALERT, 1, bytes((2, description)))]
    rig.client.begin(rig.clock.now)
    rig.run(1)
    assert f"with the alert {NAMES[description]}" in reason(rig)
    assert ("wrong key" in reason(rig)) == (after == FINISHED or description in (20, 21, 51, 115))


def test_an_alert_that_has_no_name_is_a_number_and_a_warning_is_none() -> None:
    rig = Rig()
    rig.answers[HELLO] = [plain_record(ALERT, 1, b"\x02\xc8")]
    rig.client.begin(rig.clock.now)
    rig.run(1)
    assert "alert 200" in reason(rig)
    rig = Rig()
    rig.answers[HELLO] = [plain_record(ALERT, 1, b"\x01\x5a"), record(VERIFY)]
    rig.connect()


def test_an_engine_that_fails_ends_the_handshake_with_its_words() -> None:
    rig = Rig()
    rig.answers[HELLO] = [record(b"nonsense")]
    rig.client.begin(rig.clock.now)
    rig.run(1)
    assert reason(rig) == "the DTLS handshake failed: unexpected message"


@pytest.mark.parametrize("data", [b"", b"x", b"\x16\xfe\xfd", bytes(100), record(b"")[:-1], b"\x40\x01\x00\x01"])
def test_what_is_no_record_changes_nothing(data: bytes) -> None:
    rig = Rig()
    rig.client.begin(rig.clock.now)
    rig.client.receive_datagram(data, PEER, rig.clock.now)
    assert rig.client.stage is Stage.UNANSWERED
    rig.run(1)
    assert rig.events == ["established"]


def test_the_servers_goodbye_ends_the_association_once() -> None:
    rig = Rig().connect()
    rig.upper.to_send = [b"more"]
    for _ in range(2):
        rig.client.receive_datagram(record(b"\x01\x00", ALERT, 1), PEER, rig.clock.now)
    assert rig.client.datagrams_to_send(rig.clock.now) == []
    assert [str(event) for event in rig.events[1:]] == ["the server ended the DTLS association: close notify"]


def test_a_message_that_cannot_be_sealed_ends_the_association() -> None:
    rig = Rig().connect()
    rig.upper.to_send = [b"x" * 2000]
    assert rig.carry() == []
    assert "message too big" in str(rig.events[1])


def test_close_says_goodbye_and_is_not_a_failure() -> None:
    rig = Rig().connect()
    rig.client.close()
    rig.client.close()
    assert rig.engine.closed
    assert rig.carry() == [record(b"\x01\x00", ALERT, 1)]
    rig.client.receive_datagram(record(b"late", APPLICATION_DATA, 1), PEER, rig.clock.now)
    assert rig.upper.received == []
    assert rig.events == ["established"]


def test_close_in_the_middle_of_a_handshake_says_nothing() -> None:
    rig = Rig()
    rig.client.begin(rig.clock.now)
    rig.client.close()
    assert rig.engine.closed is False
    rig.client.handle_timer(rig.clock.now + 100)
    assert rig.events == []


# ---------------------------------------------------------------------- over OpenSSL


class OpenSslRig:
    """A message layer in client role inside DTLS, against the gateway's front with a message layer behind it."""

    def __init__(self, suites: tuple[str, ...] = SUITES, identity: str = ICCID, secret: bytes = SECRET) -> None:
        self.server = Server(echo=False)
        self.site = RecordingSite(lambda exchange, payload: exchange.respond(CHANGED))
        self.messages = MessageLayer(self.site, Peers(), random.Random(1))
        self.layer = MessageLayer(RecordingSite(), Peers(), random.Random(2))
        self.events: list[object] = []
        self.client = DtlsClient(
            ClientContext(identity.encode(), secret, suites).engine(),
            self.layer,
            PEER,
            established=lambda: self.events.append("established"),
            ended=self.events.append,
        )
        self.client.begin(self.server.now)

    def carry(self) -> None:
        now = self.server.now
        while out := self.client.datagrams_to_send(now):
            for datagram, _ in out:
                for answer, _ in self.server.receive(datagram, ADDRESS):
                    self.client.receive_datagram(answer, PEER, now)
            for plaintext, association in self.server.delivered:
                self.messages.receive_datagram(plaintext, association, now)
            self.server.delivered.clear()
            self.server.front.seal(self.messages.datagrams_to_send(now))
            for answer, _ in self.server.front.datagrams_to_send():
                self.client.receive_datagram(answer, PEER, now)


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("size", [5, 5000])
def test_a_request_is_answered_over_every_suite(suite: str, size: int) -> None:
    rig = OpenSslRig((suite,))
    rig.carry()
    assert rig.events == ["established"]
    assert rig.client.suite == suite
    outcomes: list[Response | NoResponse] = []
    rig.layer.request(PEER, POST, outcomes.append, rig.server.now, payload=b"x" * size)
    rig.carry()
    assert outcomes == [Response(CHANGED, (), b"")]
    assert [len(payload) for _, payload in rig.site.requests] == [size]
    rig.client.close()
    rig.carry()
    assert rig.server.counters.closed == 1


def test_ccm8_is_preferred() -> None:
    rig = OpenSslRig()
    rig.carry()
    assert rig.client.suite == "PSK-AES128-CCM8"


@pytest.mark.parametrize(("identity", "secret"), [(ICCID, b"another"), ("8988280666000000018", SECRET)])
def test_a_wrong_key_and_an_unknown_identity_read_the_same(identity: str, secret: bytes) -> None:
    rig = OpenSslRig(identity=identity, secret=secret)
    rig.carry()
    assert rig.events == []
    rig.client.handle_timer(rig.server.now + 30)
    assert [str(event) for event in rig.events] == [
        "no answer to our Finished: wrong key, unknown identity or inactive device"
    ]
