"""Datagrams that no honest client sends: the gateway lives, others are served, and nobody gets more than was sent."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import attrs
import pytest

from tests.interop.coaps_server import CoapsServer, running_gateway
from tests.interop.dtls_peer import GET, LINKS, DtlsPeer, connected_socket
from tests.interop.dtls_wire import (
    ALERT,
    APPLICATION_DATA,
    CHANGE_CIPHER_SPEC,
    HANDSHAKE,
    HELLO_VERIFY_REQUEST,
    Fragment,
    Record,
    fragments,
    records,
)

LARGEST_DATAGRAM = 65_535
MEGABYTE = 1 << 20
AT_A_TIME = 100  # datagrams that wait in the gateway's socket
FLOOD = 10_000
HALF_OPEN = 200
CONNECTION_BYTES = 150_000  # of OpenSSL and ours, each
LOG_LINES = 100  # of a whole module of this: nothing is logged for a datagram


@attrs.frozen
class Victims:
    """Two honest associations, AEAD and CBC, that have to go on."""

    peers: Sequence[DtlsPeer]

    def are_served(self) -> None:
        """Fail unless they are; twice, so that the gateway has also sent all that it answers to what came before."""
        for _ in range(2):
            for peer in self.peers:
                peer.serves()


@pytest.fixture(scope="module")
def coaps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CoapsServer]:
    """A gateway that lets two thousand peers stop half way within a few seconds."""
    settings = ("coaps.max_handshakes=5000", "coaps.handshakes_per_second=0")
    with running_gateway(tmp_path_factory.mktemp("hostile") / "data", *settings) as server:
        yield server


@pytest.fixture(scope="module")
def victims(coaps: CoapsServer) -> Iterator[Victims]:
    """Two that have been served all the time."""
    with DtlsPeer(coaps) as aead, DtlsPeer(coaps.device(1), suite="PSK-AES128-CBC-SHA256") as cbc:
        yield Victims([aead.handshake(), cbc.handshake()])
    assert len(coaps.log.read_text().splitlines()) < LOG_LINES


@pytest.fixture(autouse=True)
def _others_go_on(victims: Victims) -> Iterator[None]:
    yield
    victims.are_served()


def addresses() -> Iterator[str]:
    """Return addresses of this machine, each in a /24 of its own, as a share of handshakes is a network's."""
    for number in range(1 << 15):
        yield f"127.{1 + (number >> 8)}.{number & 0xFF}.{1 + number % 250}"


def damaged(datagram: bytes) -> Iterator[bytes]:
    """Return it with every byte changed in turn, cut at every length, and with more behind it."""
    chances = random.Random(len(datagram))
    for at, byte in enumerate(datagram):
        yield datagram[:at] + bytes([byte ^ chances.randrange(1, 256)]) + datagram[at + 1 :]
        yield datagram[:at] + bytes([byte ^ 0x80]) + datagram[at + 1 :]
    for length in range(len(datagram)):
        yield datagram[:length]
    yield datagram + b"\0"
    yield datagram + datagram


def send_from_strangers(coaps: CoapsServer, victims: Victims, datagrams: Iterable[bytes]) -> list[bytes]:
    """Send each datagram from another address; return the answers, none larger than what it answers."""
    answers: list[bytes] = []
    waiting = list(datagrams)
    somewhere = addresses()
    for begin in range(0, len(waiting), AT_A_TIME):
        with ExitStack() as open_sockets:
            sockets = []
            for datagram in waiting[begin : begin + AT_A_TIME]:
                one = open_sockets.enter_context(connected_socket(next(somewhere), coaps.address))
                one.send(datagram)
                sockets.append((one, datagram))
            victims.are_served()
            for one, datagram in sockets:
                got = received(one)
                assert sum(map(len, got)) <= len(datagram), (datagram.hex(), [answer.hex() for answer in got])
                answers += got
    return answers


def received(one: socket.socket) -> list[bytes]:
    """Return what has come."""
    found = []
    while True:
        try:
            found.append(one.recv(LARGEST_DATAGRAM))
        except (BlockingIOError, ConnectionRefusedError):
            return found


def peer_at_flight(
    coaps: CoapsServer, number: int, address: str, suite: str = "PSK-AES128-CCM8"
) -> tuple[DtlsPeer, bytes]:
    """Return a peer that has said everything before its flight of that number, and that flight in one datagram."""
    peer = DtlsPeer(coaps.device(2), suite=suite, address=address)
    return peer, b"".join(peer.flights(number))


def test_a_damaged_client_hello_gets_a_cookie_or_nothing(coaps: CoapsServer, victims: Victims) -> None:
    with DtlsPeer(coaps) as peer:
        [hello] = peer.flights(1)
    answers = send_from_strangers(coaps, victims, [hello, *damaged(hello)])
    assert answers
    assert {next(fragments(answer)).type for answer in answers} == {HELLO_VERIFY_REQUEST}


@pytest.mark.parametrize("suite", ["PSK-AES128-CCM8", "ECDHE-PSK-AES128-CBC-SHA256"])
@pytest.mark.parametrize("number", [2, 3], ids=["hello with cookie", "finished"])
def test_a_damaged_flight_hurts_nobody_else(coaps: CoapsServer, victims: Victims, number: int, suite: str) -> None:
    """Each from a peer of its own, which lives where it says: still, no answer is larger."""
    somewhere = addresses()
    sample, flight = peer_at_flight(coaps, number, next(somewhere), suite)
    sample.close()
    kinds = sum(1 for _ in damaged(flight))
    for begin in range(0, kinds, AT_A_TIME):
        with ExitStack() as open_peers:
            sent = []
            for kind in range(begin, min(begin + AT_A_TIME, kinds)):
                peer, flight = peer_at_flight(coaps, number, next(somewhere), suite)
                open_peers.enter_context(peer)
                broken = next(islice(damaged(flight), kind, None))
                peer.send([broken])
                sent.append((peer, len(flight) + len(broken)))
            victims.are_served()
            for peer, size in sent:
                assert sum(map(len, peer.drain())) <= size


def test_forged_finished_messages_do_not_spoil_a_handshake(coaps: CoapsServer) -> None:
    """A record that is not authentic is dropped (RFC 6347 section 4.1.2.7): the true one is still taken.

    Only two of them: at the third the gateway takes the key to be wrong, and says so.
    """
    with DtlsPeer(coaps.device(3)) as peer:
        *before, finished = peer.flights(3)
        peer.send(before)
        peer.send([finished[:at] + bytes([finished[at] ^ 1]) + finished[at + 1 :] for at in (13, len(finished) - 1)])
        peer.send([finished])
        peer.handshake().serves()


def test_a_replayed_talk_says_nothing_new(coaps: CoapsServer, victims: Victims) -> None:
    """All that a peer has sent, again from its own address, then from others."""
    with DtlsPeer(coaps.device(4), address="127.99.1.1") as peer:
        peer.handshake()
        for _ in range(5):
            peer.serves()
        talk = list(peer.sent)
        peer.send(talk)
        peer.send(talk[::-1])
        victims.are_served()
        assert not [answer for answer in peer.drain() for record in records(answer) if record.type == APPLICATION_DATA]
        peer.serves()  # a replayed hello begins a handshake beside, and ends nothing
        answers = send_from_strangers(coaps, victims, talk)
        assert {next(fragments(answer)).type for answer in answers} == {HELLO_VERIFY_REQUEST}


def test_fragments_that_overlap_and_agree_are_put_together(coaps: CoapsServer) -> None:
    with DtlsPeer(coaps.device(5)) as peer:
        exchange, *rest = peer.flights(3)
        [whole] = fragments(exchange)
        size = whole.length
        pieces = [(size // 2, size), (3, size // 2 + 4), (0, 5), (0, size), (2, 2)]
        peer.send(in_records(cut(whole, begin, end) for begin, end in pieces))
        peer.send(rest)
        peer.handshake().serves()


def cut(whole: Fragment, begin: int, end: int) -> Fragment:
    """Return a piece of a message."""
    return attrs.evolve(whole, offset=begin, body=whole.body[begin:end])


def in_records(pieces: Iterable[Fragment]) -> list[bytes]:
    """Return each in a record of its own, numbered from 10: the window keeps room for what was numbered before."""
    return [Record(HANDSHAKE, 0, 10 + at, piece.encode()).encode() for at, piece in enumerate(pieces)]


CONTRADICTIONS: dict[str, Callable[[Fragment], list[Fragment]]] = {
    "other bytes": lambda whole: [
        cut(whole, 0, 5),
        attrs.evolve(cut(whole, 2, 9), body=b"\xff" * 7),
        cut(whole, 9, 99),
    ],
    "other length": lambda whole: [cut(whole, 0, 5), attrs.evolve(cut(whole, 5, 99), length=whole.length + 1)],
    "other type": lambda whole: [cut(whole, 0, 5), attrs.evolve(cut(whole, 5, 99), type=20)],
    "beyond the end": lambda whole: [attrs.evolve(whole, offset=whole.length)],
    "far beyond the end": lambda whole: [attrs.evolve(whole, offset=0xFFFFFF)],
    "largest length": lambda whole: [attrs.evolve(whole, length=0xFFFFFF, offset=at * 40) for at in range(50)],
    "messages to come": lambda whole: [attrs.evolve(whole, sequence=at, length=0xFFFF) for at in range(3, 200)],
    "nothing, often": lambda whole: [attrs.evolve(whole, body=b"")] * 200,
    "no length": lambda whole: [attrs.evolve(whole, length=0, body=b"")],
    "every byte alone": lambda whole: [cut(whole, at, at + 1) for at in range(whole.length - 1)] * 3,
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_fragments_that_contradict_each_other_cost_little(coaps: CoapsServer, victims: Victims, name: str) -> None:
    before = coaps.memory()
    for _, address in zip(range(20), addresses(), strict=False):
        with DtlsPeer(coaps.device(6), address=address) as peer:
            exchange, *rest = peer.flights(3)
            [whole] = fragments(exchange)
            pieces = in_records(CONTRADICTIONS[name](whole))
            for begin in range(0, len(pieces), AT_A_TIME):
                peer.send(pieces[begin : begin + AT_A_TIME])
                victims.are_served()
            peer.send(rest)
    assert coaps.memory() - before < 8 * MEGABYTE  # twenty Connections and what they may keep


def test_messages_to_come_do_not_make_a_peer_dear(coaps: CoapsServer, victims: Victims) -> None:
    """A byte in every page of long messages that are announced: a peer stays as cheap as an honest one, nearly."""
    peers, before = 20, coaps.memory()
    for _, address in zip(range(peers), addresses(), strict=False):
        with DtlsPeer(coaps.device(6), address=address) as peer:
            [whole] = fragments(peer.flights(3)[0])
            touched = [
                attrs.evolve(whole, sequence=sequence, length=100_000, offset=offset, body=b"x")
                for sequence in range(2, 14)
                for offset in range(0, 100_000, 4096)
            ]
            pieces = in_records(touched)
            for begin in range(0, len(pieces), AT_A_TIME):
                peer.send(pieces[begin : begin + AT_A_TIME])
                victims.are_served()
    assert coaps.memory() - before < peers * CONNECTION_BYTES


def test_a_client_hello_in_pieces_gets_nothing(coaps: CoapsServer, victims: Victims) -> None:
    """A server that keeps pieces before it has seen a cookie is no longer stateless."""
    with DtlsPeer(coaps) as peer:
        [hello] = peer.flights(1)
    [whole] = fragments(hello)
    pieces = in_records([cut(whole, 0, 30), cut(whole, 20, 60), cut(whole, 60, 500)])
    assert send_from_strangers(coaps, victims, pieces) == []


@pytest.mark.parametrize("cookie", [b"", b"\x10" + bytes(range(16))], ids=["no cookie", "a wrong cookie"])
def test_ten_thousand_client_hellos_cost_nothing(coaps: CoapsServer, victims: Victims, cookie: bytes) -> None:
    with DtlsPeer(coaps) as peer:
        [hello] = peer.flights(1)
    if cookie:
        hello = with_cookie(hello, cookie)
    send_from_strangers(coaps, victims, [hello] * 500)  # what it costs to begin with
    before = coaps.memory()
    answers = send_from_strangers(coaps, victims, [hello] * FLOOD)
    assert len(answers) == FLOOD
    assert {next(fragments(answer)).type for answer in answers} == {HELLO_VERIFY_REQUEST}
    assert coaps.memory() - before < MEGABYTE


def with_cookie(hello: bytes, cookie: bytes) -> bytes:
    """Return a ClientHello that has no cookie with one, length byte included."""
    [record], [whole] = records(hello), fragments(hello)
    cookie_at = 35 + whole.body[34]
    body = whole.body[:cookie_at] + cookie + whole.body[cookie_at + 1 :]
    return attrs.evolve(record, body=attrs.evolve(whole, length=len(body), body=body).encode()).encode()


def junk(chances: random.Random) -> bytes:
    """Return a datagram that is a record, nearly one, or none at all."""
    body = chances.randbytes(chances.choice([0, 1, 2, 12, 13, 25, 40, 100, 1200]))
    if chances.random() < 0.2:
        return body
    kind = chances.choice([CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION_DATA, 24, 25, 26, 0x2F, 0xFF])
    version = chances.choice([b"\xfe\xfd", b"\xfe\xff", b"\xfe\xfc", b"\x03\x03", b"\0\0"])
    record = Record(kind, chances.choice([0, 0, 1, 1, 2, 65_535]), chances.randrange(1 << 48), body, version).encode()
    if chances.random() < 0.2:
        wrong = chances.randrange(1 << 16).to_bytes(2, "big")
        record = record[:11] + wrong + record[13:]
    return record * chances.choice([1, 1, 1, 3])


def test_junk_from_strangers_gets_nothing_larger(coaps: CoapsServer, victims: Victims) -> None:
    chances = random.Random(1)
    send_from_strangers(coaps, victims, [junk(chances) for _ in range(3000)])


def test_junk_in_the_name_of_others_ends_nothing(coaps: CoapsServer, victims: Victims) -> None:
    """Alerts, hellos, records and junk from a victim's own address, forged: its association goes on."""
    chances = random.Random(2)
    with DtlsPeer(coaps) as stranger:
        [hello] = stranger.flights(1)
    forged = [Record(ALERT, epoch, at, bytes(alert)).encode() for epoch in (0, 1) for at in (0, 9) for alert in ALERTS]
    forged += [hello, with_cookie(hello, b"\x10" + bytes(16))]
    for peer in victims.peers:
        for begin in range(0, 2000, AT_A_TIME):
            peer.send(forged if begin == 0 else [junk(chances) for _ in range(AT_A_TIME)])
            victims.are_served()


def test_damaged_records_do_not_use_up_the_true_one(victims: Victims) -> None:
    """What is not authentic does not move the replay window."""
    for peer in victims.peers:
        request = peer.request(GET, LINKS)
        sealed = peer.seal(request)
        damage = [broken for broken in damaged(sealed) if sealed not in broken]
        for begin in range(0, len(damage), AT_A_TIME):
            peer.send(damage[begin : begin + AT_A_TIME])
            victims.are_served()
        assert peer.exchange(sealed, request)[1] == 0x45


def test_peers_that_stop_half_way_make_room(tmp_path: Path) -> None:
    """A thousand with a good cookie: no more than the limit are kept, and an honest client still gets in."""
    with running_gateway(tmp_path / "data", f"coaps.max_handshakes={HALF_OPEN}") as coaps, DtlsPeer(coaps) as victim:
        victim.handshake()
        before = coaps.memory()
        for _, address in zip(range(1000), addresses(), strict=False):
            peer, flight = peer_at_flight(coaps, 2, address)
            with peer:
                peer.send([flight])
        victim.serves()
        assert coaps.memory() - before < HALF_OPEN * CONNECTION_BYTES, (coaps.memory() - before) // HALF_OPEN
        with DtlsPeer(coaps.device(1)) as late:
            late.handshake(10).serves()


ALERTS = [(1, 0), (2, 0), (2, 10), (2, 20), (2, 40), (2, 51), (1, 90), (1, 100), (3, 255), (2,), ()]
