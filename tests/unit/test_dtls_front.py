"""The front against OpenSSL clients: cookies, associations, reboots, limits, and peers that mean no good."""

from __future__ import annotations

import random

import pytest

from coapgw.dtls.admission import HandshakeLimits
from coapgw.dtls.association import AeadAssociation, CipherCache
from coapgw.dtls.connection import ConnectionAssociation
from coapgw.dtls.handshake import LARGEST_SHIFT, REPEAT_SECONDS, Handshake, Stage
from coapgw.dtls.hello import parse_client_hello
from coapgw.dtls.openssl import AEAD_SUITES, SUITES, EngineFailed
from coapgw.dtls.records import APPLICATION_DATA, CHANGE_CIPHER_SPEC, HANDSHAKE, plain_record, sequence_of, split
from coapgw.dtls.suites import derive_keys, suite_of
from coapgw.dtls.table import AssociationLimits
from coapgw.model import Credential
from tests.unit.dtls_peers import ADDRESS, AEAD, CBC, ICCID, MTU, SECRET, Client, Server

OTHER = ("192.0.2.1", 40001)


def twin_of(client: Client) -> AeadAssociation:
    """Return an association of ours with the keys of an OpenSSL client whose Finished was record 0."""
    suite = suite_of(client.engine.suite)
    assert suite is not None
    keys = derive_keys(suite, *client.engine.secrets())
    return AeadAssociation(None, "", 0, suite, keys, 1, CipherCache(1), client=True)


def several(server: Server, count: int) -> list[Client]:
    """Return so many clients, each a device at an address of its own."""
    clients = []
    for number in range(count):
        iccid = f"89882806660001{number:05}"
        server.keys.known[iccid] = Credential(iccid, SECRET, 1)
        clients.append(Client(server, (f"198.51.{number >> 8}.{number & 255}", 5683), identity=iccid))
    return clients


@pytest.mark.parametrize("suite", SUITES)
def test_a_client_is_heard_and_answered(suite: str) -> None:
    server = Server()
    client = Client(server, suites=(suite,)).connect()
    client.send(b"one")
    client.send(b"two")
    assert server.texts == [b"one", b"two"]
    assert client.received == [b"echo one", b"echo two"]
    assert {association.iccid for _, association in server.delivered} == {ICCID}
    assert server.front.half_open == 0
    assert server.counters.established == 1
    assert server.counters.refused == 0


@pytest.mark.parametrize("suite", [AEAD, CBC])
def test_every_record_of_a_datagram_is_heard_at_once(suite: str) -> None:
    server = Server()
    client = Client(server, suites=(suite,)).connect()
    server.receive(client.engine.seal(b"one") + client.engine.seal(b"two"))
    assert server.texts == [b"one", b"two"]
    server.receive(client.engine.seal(b"three"))
    assert server.texts[2:] == [b"three"]
    server.receive(client.engine.seal(b"four") + client.engine.close())
    assert server.texts[3:] == [b"four"]
    assert server.counters.closed == 1
    assert len(server.table) == 0


@pytest.mark.parametrize("suite", [AEAD, CBC])
def test_no_association_keeps_the_devices_key(suite: str) -> None:
    server = Server()
    Client(server, suites=(suite,)).connect()
    (association,) = server.table.all()
    engine = getattr(association, "_engine", None)
    assert (engine is not None) == (suite == CBC)
    assert engine is None or engine.credential is None


def test_a_first_hello_costs_nothing_and_is_answered_with_less() -> None:
    server = Server()
    (hello,) = Client(server).first_flight()
    ((answer, address),) = server.receive(hello)
    assert address == ADDRESS
    assert len(answer) < len(hello)
    assert server.front.half_open == 0
    assert server.counters.handshakes == 0


@pytest.mark.parametrize(("age", "good"), [(0.0, True), (59.0, True), (100.0, True), (121.0, False), (1000.0, False)])
def test_a_cookie_is_for_one_address_and_some_time(age: float, good: bool) -> None:
    server = Server()
    client = Client(server)
    ((request, _),) = server.receive(client.first_flight()[0])
    (with_cookie,) = client.take(request)
    server.receive(with_cookie, OTHER)
    assert server.counters.handshakes == 0
    server.now += age / 2
    Client(server, ("192.0.2.9", 1)).exchange(Client(server).first_flight())  # others' hellos renew the secret
    server.now += age / 2
    server.receive(with_cookie)
    assert server.counters.handshakes == good


def test_a_hello_with_a_cookie_that_comes_twice_is_one_handshake() -> None:
    server = Server()
    client = Client(server)
    ((request, _),) = server.receive(client.first_flight()[0])
    (with_cookie,) = client.take(request)
    flight = server.receive(with_cookie)
    assert server.receive(with_cookie) == []
    assert server.counters.handshakes == 1
    for datagram, _ in flight:
        client.exchange(client.take(datagram))
    client.send(b"x")
    assert server.texts == [b"x"]


def test_a_client_that_lost_our_first_flight_gets_it_again_when_it_repeats_its_hello() -> None:
    server = Server()
    client = Client(server)
    ((request, _),) = server.receive(client.first_flight()[0])
    (with_cookie,) = client.take(request)
    lost = server.receive(with_cookie)
    server.now += REPEAT_SECONDS
    again = server.receive(with_cookie)
    assert again == lost
    assert server.receive(with_cookie) == []  # a duplicate that the network made
    assert server.counters.repeated_flights == 1
    assert server.counters.handshakes == 1
    for datagram, _ in again:
        client.exchange(client.take(datagram))
    client.send(b"x")
    assert server.texts == [b"x"]


def test_another_attempt_from_the_same_address_takes_the_place_of_the_first() -> None:
    server = Server()
    first = Client(server)
    ((request, _),) = server.receive(first.first_flight()[0])
    server.receive(first.take(request)[0])
    assert server.front.half_open == 1
    second = Client(server).connect()
    second.send(b"second")
    assert server.texts == [b"second"]
    assert server.counters.displaced == 1
    assert server.front.half_open == 0


def test_an_association_is_usable_until_the_handshake_of_its_rebooted_device_is_complete() -> None:
    server = Server()
    before = Client(server).connect()
    after = Client(server)
    ((request, _),) = server.receive(after.first_flight()[0])
    flight = server.receive(after.take(request)[0])
    before.send(b"still here")
    assert before.received == [b"echo still here"]
    for datagram, _ in flight:
        after.exchange(after.take(datagram))
    after.send(b"rebooted")
    assert after.received == [b"echo rebooted"]
    assert [one.iccid for one in server.forgotten] == [ICCID]
    assert len(server.table) == 1
    before.send(b"too late")
    assert server.texts == [b"still here", b"rebooted"]
    assert server.counters.refused == 1


@pytest.mark.parametrize("suite", AEAD_SUITES)
def test_a_client_that_lost_our_last_flight_gets_it_again(suite: str) -> None:
    """OpenSSL's timer is real: the record that it would make is made here, with its keys and the next number."""
    server = Server()
    client = Client(server, suites=(suite,))
    lost: list[bytes] = []

    def lose_the_last_flight(datagram: bytes) -> list[bytes]:
        if split(datagram)[0][0] == CHANGE_CIPHER_SPEC:
            lost.append(datagram)
            return []
        return [datagram]

    client.exchange(client.first_flight(), lose_the_last_flight)
    assert lost
    assert not client.is_connected()
    repeating = twin_of(client)
    finished = repeating.seal(HANDSHAKE, b"\x14 what it says does not matter any more")
    ((answer, _),) = server.receive(finished)
    assert answer != lost[0]
    assert server.receive(finished) == []  # a replay
    client.take(answer)
    assert client.is_connected()
    assert server.counters.repeated_flights == 1
    server.receive(repeating.seal(APPLICATION_DATA, b"data"))
    assert server.texts == [b"data"]
    assert server.receive(repeating.seal(HANDSHAKE, b"\x14")) == []  # it has spoken: it has our Finished


def test_what_openssl_repeats_on_a_connection_of_its_own_is_sent() -> None:
    """Its timer is real, so the engine is made up: it has our last flight to say to whatever handshake record comes."""

    class Repeating:
        def __init__(self) -> None:
            self.flight: list[bytes] = []

        def open(self, record: bytes) -> None:
            self.flight = [b"change", b"finished"]

        def take_records(self) -> list[bytes]:
            flight, self.flight = self.flight, []
            return flight

    server = Server()
    server.front.restore(ConnectionAssociation(Repeating(), ADDRESS, ICCID, 1))  # type: ignore[arg-type]
    finished = bytes((HANDSHAKE,)) + b"\xfe\xfd\0\1\0\0\0\0\0\1\0\x01x"
    assert server.receive(finished) == [(b"changefinished", ADDRESS)]


def test_our_last_flight_is_not_repeated_for_ever() -> None:
    server = Server()
    repeating = twin_of(Client(server).connect())
    answers = [server.receive(repeating.seal(HANDSHAKE, b"\x14")) for _ in range(100)]
    assert 3 < sum(answer != [] for answer in answers) < 20


def test_renegotiation_is_declined() -> None:
    server = Server()
    client = Client(server).connect()
    ((answer, _),) = server.receive(twin_of(client).seal(HANDSHAKE, b"\x01 a ClientHello"))
    assert twin_of(client).open(answer) == b"\x01\x64"


def test_data_that_overtakes_the_finished_is_not_lost() -> None:
    server = Server()
    client = Client(server)
    ((request, _),) = server.receive(client.first_flight()[0])
    ((hello_done, _),) = server.receive(client.take(request)[0])
    key_exchange, change, finished = (record for datagram in client.take(hello_done) for record in split(datagram))
    data = twin_of(client).seal(APPLICATION_DATA, b"early")
    for record in (key_exchange, change, data):
        assert server.receive(record) == []
    assert server.texts == []
    server.receive(finished)
    assert server.texts == [b"early"]


def test_close_notify_is_answered_and_ends_the_association() -> None:
    for suite in (AEAD, CBC):
        server = Server()
        client = Client(server, suites=(suite,)).connect()
        ((answer, _),) = server.receive(client.engine.close()) or ((b"", None),)
        assert len(server.table) == 0
        assert len(server.forgotten) == 1
        assert server.counters.closed == 1
        client.take(answer)
        assert client.is_closed or suite == CBC


def test_nobody_without_the_right_key_gets_in() -> None:
    for identity, secret in ((ICCID, b"wrong"), ("8988280666000000099", SECRET)):
        server = Server()
        client = Client(server, identity=identity, secret=secret).connect()
        assert not client.is_connected()
        assert server.counters.established == 0
        assert server.front.half_open == 1
        server.now += 61
        server.front.handle_timer(server.now)
        assert server.front.half_open == 0
        assert server.counters.timeouts == 1


def test_a_key_that_changed_closes_the_associations_made_with_it() -> None:
    server = Server()
    client = Client(server).connect()
    server.table.devices_changed([ICCID])
    assert len(server.table) == 1
    server.keys.known[ICCID] = Credential(ICCID, b"another", 2)
    server.table.devices_changed([ICCID, "8988280666000000099"])
    assert len(server.table) == 0
    ((notice, _),) = server.front.datagrams_to_send()
    client.take(notice)
    assert client.is_closed
    assert server.texts == []


def test_the_longest_idle_goes_when_there_are_too_many() -> None:
    server = Server(AssociationLimits(associations=3))
    clients = several(server, 4)
    for client in clients[:3]:
        server.now += 1
        client.connect()
    clients[0].send(b"still alive")
    server.front.datagrams_to_send()
    server.now += 1
    flight = clients[3].first_flight()
    ((request, _),) = server.receive(flight[0], clients[3].address)
    ((hello_done, _),) = server.receive(clients[3].take(request)[0], clients[3].address)
    sent = []
    for datagram in clients[3].take(hello_done):
        sent += server.receive(datagram, clients[3].address)
    notices = [data for data, address in sent if address == clients[1].address]
    assert len(notices) == 1
    clients[1].take(notices[0])
    assert clients[1].is_closed
    assert [one.address for one in server.forgotten] == [clients[1].address]
    assert len(server.table) == 3


def test_associations_that_stay_with_openssl_are_limited_by_themselves() -> None:
    server = Server(AssociationLimits(connections=2))
    clients = several(server, 4)
    kept = [Client(server, client.address, identity=client.identity, suites=(CBC,)) for client in clients[:2]]
    for client in (*kept, clients[2]):
        server.now += 1
        client.connect()
    kept[0].send(b"still alive")
    server.now += 1
    third = Client(server, clients[3].address, identity=clients[3].identity, suites=(CBC,))
    ((request, _),) = server.receive(third.first_flight()[0], third.address)
    ((hello_done, _),) = server.receive(third.take(request)[0], third.address)
    for datagram in third.take(hello_done):
        server.receive(datagram, third.address)
    assert [one.address for one in server.forgotten] == [kept[1].address]
    assert len(server.table) == 3


def test_those_that_ended_are_not_counted_or_kept_among_them() -> None:
    server = Server(AssociationLimits(connections=2))
    staying, leaving, coming = [
        Client(server, client.address, identity=client.identity, suites=(CBC,)) for client in several(server, 3)
    ]
    staying.connect()
    leaving.connect()
    server.now += 1
    server.table.close(next(one for one in server.table.all() if one.address == leaving.address), notify=False)
    coming.connect()
    assert [one.address for one in server.table.all()] == [staying.address, coming.address]
    assert server.counters.evicted == 0


def test_a_device_has_so_many_associations_at_most() -> None:
    server = Server(AssociationLimits(per_device=2))
    clients = [Client(server, ("192.0.2.1", port)) for port in (1, 2, 3)]
    for client in clients[:2]:
        server.now += 1
        client.connect()
    server.now += 1
    clients[0].send(b"the first is the last that was heard")
    server.now += 1
    third = clients[2]
    ((request, _),) = server.receive(third.first_flight()[0], third.address)
    ((hello_done, _),) = server.receive(third.take(request)[0], third.address)
    for datagram in third.take(hello_done):
        server.receive(datagram, third.address)
    assert [one.address for one in server.forgotten] == [clients[1].address]
    assert server.counters.superseded == 1


def test_an_idle_association_is_closed_in_time() -> None:
    server = Server(AssociationLimits(idle_seconds=100))
    client = Client(server).connect()
    assert server.front.next_timer() == server.now + 100
    server.now += 60
    client.send(b"x")
    server.now += 60
    server.front.handle_timer(server.now)
    assert len(server.table) == 1
    server.now += 40
    server.front.handle_timer(server.now)
    assert len(server.table) == 0
    assert server.counters.idle == 1
    assert server.front.next_timer() is None


def test_a_planned_restart_goes_on_with_aead_associations_and_takes_leave_of_others() -> None:
    server = Server()
    clients = several(server, 2)
    aead = clients[0].connect()
    cbc = Client(server, clients[1].address, identity=clients[1].identity, suites=(CBC,)).connect()
    released = server.front.release()
    assert [one.address for one in released] == [aead.address]
    assert len(server.table) == 0
    ((farewell, address),) = server.front.datagrams_to_send()
    assert address == cbc.address
    cbc.take(farewell)
    assert cbc.is_closed
    after = Server()
    after.keys = server.keys
    after.front.restore(released[0])
    aead.server = after
    aead.send(b"as if nothing had happened")
    assert aead.received == [b"echo as if nothing had happened"]
    assert after.counters.restored == 1


def test_a_handshake_that_sends_too_much_ends() -> None:
    server = Server()
    client = Client(server)
    ((request, _),) = server.receive(client.first_flight()[0])
    server.receive(client.take(request)[0])
    assert server.front.half_open == 1
    # a fragment of a message that is far from due
    message = b"\x10" + (9000).to_bytes(3, "big") + b"\0\x05" + bytes(3) + (1000).to_bytes(3, "big") + bytes(1000)
    for sequence in range(17):
        server.receive(
            b"\x16\xfe\xfd\0\0" + (50 + sequence).to_bytes(6, "big") + len(message).to_bytes(2, "big") + message
        )
    assert server.front.half_open == 0
    assert server.counters.failed == 1


def test_an_association_with_worn_keys_ends() -> None:
    server = Server()
    client = Client(server).connect()
    (association,) = server.table.all()
    assert isinstance(association, AeadAssociation)
    association.failures = association.suite.forgery_limit
    record = client.engine.seal(b"x")
    ((notice, _),) = server.receive(record[:-1] + bytes((record[-1] ^ 1,)))
    client.take(notice)
    assert client.is_closed
    assert server.counters.worn == 1
    assert len(server.table) == 0


def test_half_open_peers_are_limited_and_silent_ones_make_room() -> None:
    server = Server(handshakes=HandshakeLimits(half_open=4, per_second=0))
    clients = several(server, 6)
    networks = 0

    def half_open(client: Client, third_octet: int) -> bool:
        client.address = (f"203.0.{third_octet}.1", 5683)
        ((request, _),) = server.receive(client.first_flight()[0], client.address)
        return server.receive(client.take(request)[0], client.address) != []

    assert [half_open(client, networks + number) for number, client in enumerate(clients[:5])] == [True] * 4 + [False]
    assert server.counters.refused_full == 1
    server.now += 2
    assert half_open(clients[5], 77)
    assert server.counters.displaced == 1
    assert server.front.half_open == 4


def test_one_network_does_not_get_all_handshakes() -> None:
    server = Server(handshakes=HandshakeLimits(half_open=8, per_second=0))
    clients = several(server, 9)
    begun = 0
    for number, client in enumerate(clients):
        client.address = (f"203.0.113.{number}", 5683) if number < 8 else ("198.51.100.1", 5683)
        ((request, _),) = server.receive(client.first_flight()[0], client.address)
        begun += server.receive(client.take(request)[0], client.address) != []
    assert server.front.half_open == begun == 5  # half of eight, and the one from elsewhere
    assert clients[8].address in server.front._handshakes


def test_handshakes_a_second_are_limited() -> None:
    server = Server(handshakes=HandshakeLimits(half_open=0, per_second=2))
    begun = []
    for client in several(server, 4):
        ((request, _),) = server.receive(client.first_flight()[0], client.address)
        begun.append(server.receive(client.take(request)[0], client.address) != [])
    assert begun == [True, True, False, False]
    assert server.counters.refused_rate == 2
    server.now += 0.5
    (another,) = several(server, 1)
    another.address = ("192.0.2.200", 1)
    assert another.connect().is_connected()


def test_a_flight_that_was_lost_is_repeated_by_the_timer() -> None:
    server = Server()
    client = Client(server)
    ((request, _),) = server.receive(client.first_flight()[0])
    server.receive(client.take(request)[0])
    due = server.front.next_timer()
    assert due is not None
    assert 0.9 < due - server.now <= 1.0


def test_the_timer_has_the_engine_repeat_its_flight() -> None:
    class Patient:
        is_complete = False
        credential = cid = peer_cid = None
        repeats = 0

        def begin_as_server(self, hello: bytes) -> None:
            """Say nothing yet."""

        def take_records(self) -> list[bytes]:
            return [plain_record(HANDSHAKE, self.repeats, b"flight")] if self.repeats else []

        def timeout(self) -> float:
            return 2.0 ** (1 + self.repeats)

        def handle_timeout(self) -> None:
            self.repeats += 1
            if self.repeats > 1:
                raise EngineFailed("too often")

    record = Client(Server()).first_flight()[0]
    handshake = Handshake(Patient(), parse_client_hello(record), ADDRESS, network="", mtu=MTU, now=10.0)  # type: ignore[arg-type]
    assert handshake.due == 12.0
    handshake.handle_timer(12.0)
    assert [datagram[13:] for datagram in handshake.take_datagrams()] == [b"flight"]
    assert (handshake.stage, handshake.due) == (Stage.UNDER_WAY, 16.0)
    handshake.handle_timer(16.0)
    assert handshake.stage is Stage.TIMED_OUT


@pytest.mark.parametrize("suite", [AEAD, CBC])
def test_records_that_were_changed_repeated_or_cut_change_nothing(suite: str) -> None:
    server = Server(echo=False)
    client = Client(server, suites=(suite,)).connect()
    record = client.engine.seal(b"payload")
    for at in range(len(record)):
        for bit in (1, 128):
            server.receive(record[:at] + bytes((record[at] ^ bit,)) + record[at + 1 :])
        server.receive(record[:at])
    assert server.texts == []
    server.receive(record)
    server.receive(record)
    assert server.texts == [b"payload"]
    assert len(server.table) == 1


def test_any_byte_of_a_handshake_may_be_wrong() -> None:
    """Whatever becomes of it, nothing raises, and an association beside it goes on."""
    choose = random.Random(7)
    server = Server(handshakes=HandshakeLimits(0, 0))
    good = Client(server, OTHER).connect()
    for _ in range(300):
        client = Client(server, suites=(choose.choice(SUITES),))
        waiting = client.first_flight()
        victim = choose.randrange(6)
        for step in range(40):
            if not waiting:
                break
            datagram = bytearray(waiting.pop(0))
            if step == victim:
                datagram[choose.randrange(len(datagram))] ^= 1 << choose.randrange(8)
            for answer, _ in server.receive(bytes(datagram)):
                try:
                    waiting += client.take(answer)
                except Exception:  # noqa: BLE001 - the client's trouble
                    break
    good.send(b"fine")
    assert good.received[-1] == b"echo fine"


def test_noise_is_counted_and_nothing_else() -> None:
    choose = random.Random(3)
    server = Server()
    for _ in range(2000):
        noise = choose.randbytes(choose.randrange(80))
        if choose.random() < 0.7:
            noise = bytes((choose.choice((20, 21, 22, 23)),)) + b"\xfe\xfd\0" + noise
        for answer, _ in server.receive(noise):
            assert len(answer) <= len(noise)
    assert server.counters.malformed
    assert server.front.half_open == 0
    assert server.front.next_timer() is None


@pytest.mark.parametrize("hello", [1, 7, 2**48 - 1])
def test_our_flights_are_numbered_from_the_hello_on(hello: int) -> None:
    """RFC 6347 section 4.2.1: what a HelloVerifyRequest had is not had again, however often a hello was repeated."""
    server = Server()
    client = Client(server)
    ((request, _),) = server.receive(client.first_flight()[0])
    (second,) = client.take(request)
    ((flight, _),) = server.receive(second[:5] + hello.to_bytes(6, "big") + second[11:])
    numbers = [sequence_of(record) for record in split(flight)]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert numbers[0] == min(hello, LARGEST_SHIFT)
    if hello > LARGEST_SHIFT:
        return  # nothing newer can come from such a client
    client.exchange(client.take(flight))
    client.send(b"data")
    assert client.received == [b"echo data"]


@pytest.mark.parametrize("suite", [AEAD, CBC])
@pytest.mark.parametrize("now_known", [None, Credential(ICCID, b"another key", 2)])
def test_key_that_changed_in_the_middle_of_a_handshake_makes_no_association(
    suite: str, now_known: Credential | None
) -> None:
    server = Server()
    client = Client(server, suites=(suite,))

    def change_it_before_the_finished(datagram: bytes) -> list[bytes]:
        if split(datagram)[0][0] == HANDSHAKE and server.counters.handshakes:
            flight = client.take(datagram)
            records = split(b"".join(flight))
            server.receive(b"".join(records[:-1]))  # all but the Finished: OpenSSL has asked for the key
            if now_known is None:
                del server.keys.known[ICCID]
            else:
                server.keys.known[ICCID] = now_known
            server.table.devices_changed([ICCID])
            server.receive(records[-1])
            return []
        return [datagram]

    client.exchange(client.first_flight(), change_it_before_the_finished)
    assert server.counters.handshakes == 1
    assert len(server.table) == 0
    assert server.front.half_open == 0
    assert (server.counters.established, server.counters.revoked) == (0, 1)
    assert server.texts == []
