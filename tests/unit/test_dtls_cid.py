"""Connection IDs: negotiated, carried, found wherever they come from, and refused to those that mean no good."""

from __future__ import annotations

import random
from collections.abc import Hashable

import pytest

from coapgw.dtls.association import AeadAssociation, CipherCache
from coapgw.dtls.cid import CidAssociation, ConnectionIds
from coapgw.dtls.openssl import AEAD_SUITES
from coapgw.dtls.records import ALERT, APPLICATION_DATA, CHANGE_CIPHER_SPEC, HANDSHAKE, TLS12_CID, sequence_of, split
from coapgw.dtls.table import AssociationLimits
from coapgw.model import Credential
from tests.unit.dtls_peers import ADDRESS, AEAD, CBC, ICCID, SECRET, CidClient, Client, Server, is_with_cid

ELSEWHERE: Hashable = ("198.51.100.7", 6000)
CID_BYTES = 6


def connected(**about: object) -> tuple[Server, CidClient]:
    server = Server(cid_bytes=CID_BYTES)
    client = CidClient(server, **about)  # type: ignore[arg-type]
    client.connect()
    assert client.is_connected()
    return server, client


@pytest.mark.parametrize("suite", AEAD_SUITES)
@pytest.mark.parametrize("cid", [b"", b"a", b"client id", bytes(255)])
def test_a_client_with_connection_ids_is_heard_and_answered(suite: str, cid: bytes) -> None:
    server, client = connected(suites=(suite,), cid=cid)
    client.send(b"one")
    client.send(b"two")
    assert server.texts == [b"one", b"two"]
    assert client.received == [b"echo one", b"echo two"]
    assert server.counters.with_cid == 2
    assert server.counters.refused == server.counters.unknown_cid == 0


def test_everything_protected_has_a_connection_id_the_finished_too() -> None:
    server = Server(cid_bytes=CID_BYTES)
    client = CidClient(server)
    sent: list[bytes] = []

    def watched(datagram: bytes) -> list[bytes]:
        sent.extend(split(datagram, 3))
        return [datagram]

    client.exchange(client.first_flight(), watched)
    client.exchange([client.sealed(b"data")], watched)
    protected = [record for record in sent if record[3:5] == b"\0\1"]
    assert [is_with_cid(record) for record in protected] == [True, True]
    assert {record[11:14] for record in protected} == {b"abc"}


def test_clients_without_the_extension_are_served_as_before() -> None:
    server = Server(cid_bytes=CID_BYTES)
    for suite in (AEAD, CBC):
        client = Client(server, suites=(suite,)).connect()
        client.send(b"plain")
        assert client.received == [b"echo plain"]
    assert server.counters.with_cid == 0
    assert not server.table.by_cid


def test_a_gateway_without_connection_ids_offers_none() -> None:
    server = Server(cid_bytes=0)
    client = CidClient(server)
    with pytest.raises(AssertionError):
        client.connect()  # it insists on them; ordinary clients go on without
    assert client.engine.peer_cid is None


def test_the_address_does_not_matter() -> None:
    server, client = connected()
    client.send(b"here")
    client.address = ELSEWHERE
    client.send(b"there")
    client.address = ADDRESS
    client.send(b"back")
    assert client.received == [b"echo here", b"echo there", b"echo back"]
    assert server.counters.moved == 2
    assert len({association for _, association in server.delivered}) == 1


def test_only_a_record_newer_than_any_moves_the_address() -> None:
    server, client = connected()
    older, newer = client.sealed(b"older"), client.sealed(b"newer")
    server.receive(newer, ELSEWHERE)
    ((_, address),) = server.receive(older, ("203.0.113.9", 1))
    assert address == ELSEWHERE
    assert server.texts == [b"newer", b"older"]
    assert server.counters.moved == 1


def test_forged_replayed_and_cut_records_move_nothing() -> None:
    server, client = connected()
    record = client.sealed(b"payload")
    server.receive(record)
    for at in range(len(record)):
        forged = record[:at] + bytes((record[at] ^ 1,)) + record[at + 1 :]
        assert server.receive(forged, ELSEWHERE) == []
        assert server.receive(record[:at], ELSEWHERE) == []
    assert server.receive(record, ELSEWHERE) == []
    assert server.texts == [b"payload"]
    assert server.counters.moved == 0
    (association,) = server.table.all()
    assert association.address == ADDRESS


def test_a_new_address_gets_no_more_than_three_times_what_came_from_it() -> None:
    server, client = connected()
    server.echo = False
    client.address = ELSEWHERE
    record = client.sealed(b"x")
    server.receive(record, ELSEWHERE)
    (association,) = server.table.all()
    server.front.seal([(bytes(3 * len(record)), association)])
    assert server.front.datagrams_to_send() == []
    assert server.counters.withheld == 1
    server.front.seal([(b"short", association)])
    assert len(server.front.datagrams_to_send()) == 1


def test_plain_records_of_an_association_with_connection_ids_are_refused() -> None:
    server, client = connected()
    plain = client.association_inward(client.sealed(b""), b"")  # sealed without, by the same keys
    assert server.receive(bytes((APPLICATION_DATA,)) + plain[1:]) == []
    assert server.texts == []


@pytest.mark.parametrize("padding", [0, 1, 100])
def test_padding_is_taken_off(padding: int) -> None:
    _, client = connected()
    inside = client.association
    peer = CidAssociation.resume(
        None, "", 0, inside.state()._replace(client=False, cid=inside.peer_cid, peer_cid=inside.cid), CipherCache(1)
    )
    padded = inside.seal(0, b"content" + bytes((APPLICATION_DATA,)) + bytes(padding))  # type 0: one more zero
    assert peer.open(padded) == b"content"
    assert peer.content_type == APPLICATION_DATA


def test_a_record_of_nothing_but_padding_is_dropped() -> None:
    server, client = connected()
    assert server.receive(client.association.seal(0, bytes(20))) == []
    assert server.texts == []
    client.send(b"fine")
    assert server.texts == [b"fine"]


def test_a_client_that_lost_our_last_flight_gets_it_again() -> None:
    server = Server(cid_bytes=CID_BYTES)
    client = CidClient(server)
    client.exchange(client.first_flight(), lambda datagram: [] if datagram[0] == CHANGE_CIPHER_SPEC else [datagram])
    assert not client.is_connected()
    client.association.write_sequence = 1
    ((answer, _),) = server.receive(client.association.seal(HANDSHAKE, b"\x14 Finished"))
    client.take(answer)
    assert client.is_connected()
    client.send(b"data")
    assert server.texts == [b"data"]


def test_data_that_overtakes_the_finished_is_not_lost() -> None:
    server = Server(cid_bytes=CID_BYTES)
    client = CidClient(server)
    ((request, _),) = server.receive(client.first_flight()[0])
    ((hello_done, _),) = server.receive(client.take(request)[0])
    key_exchange, change, finished = (record for d in client.take(hello_done) for record in split(d, CID_BYTES))
    assert finished[0] == TLS12_CID
    early = client.sealed(b"early")
    for record in (key_exchange, change, early):
        assert server.receive(record) == []
    server.receive(finished)
    assert server.texts == [b"early"]
    assert server.receive(early) == []  # once


def test_close_notify_and_a_changed_key_end_it() -> None:
    server, client = connected()
    ((answer, _),) = server.receive(client.association.seal(ALERT, b"\1\0"))
    client.take(answer)
    assert client.is_closed
    assert not server.table.by_cid
    assert len(server.table) == 0


def test_a_wrong_key_looks_like_without_connection_ids() -> None:
    server = Server(cid_bytes=CID_BYTES)
    client = CidClient(server, secret=b"wrong")
    client.connect()
    assert not client.is_connected()
    assert server.counters.established == 0
    assert server.front.half_open == 1


def test_a_device_that_rebooted_at_its_address_replaces_its_association() -> None:
    server, _ = connected()
    second = CidClient(server)
    second.connect()
    second.send(b"again")
    assert second.received == [b"echo again"]
    assert len(server.table) == len(server.table.by_cid) == 1


def test_a_planned_restart_goes_on_with_connection_ids() -> None:
    server, client = connected()
    client.send(b"before")
    (released,) = server.front.release()
    after = Server(cid_bytes=CID_BYTES)
    after.keys = server.keys
    after.front.restore(released)
    client.server, client.address = after, ELSEWHERE
    client.send(b"after")
    assert client.received == [b"echo before", b"echo after"]
    shorter = Server(cid_bytes=4)
    shorter.front.restore(released)
    assert len(shorter.table) == 0


def test_limits_hold_for_them_too() -> None:
    server = Server(AssociationLimits(per_device=2), cid_bytes=CID_BYTES)
    for port in range(5):
        client = CidClient(server, ("192.0.2.1", port))
        ((request, _),) = server.receive(client.first_flight()[0], client.address)
        ((hello_done, _),) = server.receive(client.take(request)[0], client.address)
        for datagram in client.take(hello_done):
            server.receive(datagram, client.address)
    assert len(server.table) == len(server.table.by_cid) == 2


def test_connection_ids_name_their_node_and_are_not_given_twice() -> None:
    ids = ConnectionIds(4, 9, random.Random(1).randbytes)
    made = [ids.make(()) for _ in range(100)]
    assert all(cid is not None and len(cid) == 4 and cid[0] == 9 for cid in made)
    assert len(set(made)) == 100
    tiny = ConnectionIds(1, 9, random.Random(1).randbytes)
    everything = {bytes((n,)) for n in range(256)}
    assert tiny.make(everything) is None
    assert tiny.make(()) is not None
    assert len({tiny.make(()) for _ in range(50)}) > 10  # not the node


def test_when_none_is_free_clients_go_on_without() -> None:
    server = Server(cid_bytes=1)
    server.table.by_cid.update({bytes((n,)): None for n in range(256)})  # type: ignore[misc]
    client = Client(server)
    client.engine = CidClient(server).engine
    client.connect()
    assert client.engine.peer_cid is None
    client.send(b"x")
    assert client.received == [b"echo x"]


def test_noise_with_connection_ids_is_counted_and_nothing_else() -> None:
    choose = random.Random(3)
    server, client = connected()
    cid = client.engine.peer_cid
    assert cid is not None
    for _ in range(2000):
        fragment = choose.randbytes(choose.randrange(60))
        shown = choose.choice((cid, b"\7abcde"))
        noise = b"\x19\xfe\xfd\0\1" + choose.randbytes(6) + shown + bytes((0, len(fragment))) + fragment
        assert server.receive(noise, ELSEWHERE) == []
    assert server.counters.unknown_cid > 500
    client.send(b"fine")
    assert client.received == [b"echo fine"]
    assert {one.iccid for one in server.table.all()} == {ICCID}


@pytest.mark.parametrize("with_cid", [True, False])
def test_a_forged_record_is_tried_once(with_cid: bool) -> None:
    server = Server(cid_bytes=CID_BYTES)
    client = (CidClient(server) if with_cid else Client(server)).connect()
    (association,) = server.table.all()
    assert isinstance(association, AeadAssociation)
    client.send(b"data")
    record = bytearray(client.sealed(b"more") if isinstance(client, CidClient) else client.engine.seal(b"more"))
    record[-1] ^= 1
    assert server.receive(bytes(record)) == []
    assert association.failures == server.counters.refused == server.counters.forged == 1
    again = client.sealed(b"again") if isinstance(client, CidClient) else client.engine.seal(b"again")
    server.receive(again)
    server.receive(again)
    assert (server.counters.refused, server.counters.forged, server.counters.replayed) == (2, 1, 1)
    assert server.counters.malformed == 0


@pytest.mark.parametrize("silence", [300.0, 3600.0, 86_400.0])
def test_a_device_that_was_silent_goes_on_from_another_address(silence: float) -> None:
    """Networks forget a mapping within minutes: nothing here does, up to ``coaps.idle_seconds``."""
    server, client = connected()
    client.send(b"before")
    server.now += silence
    server.front.handle_timer(server.now)
    client.address = ELSEWHERE
    client.send(b"after")
    assert client.received == [b"echo before", b"echo after"]
    assert server.counters.established == 1
    server.now += AssociationLimits().idle_seconds
    server.front.handle_timer(server.now)
    assert server.texts == [b"before", b"after"]
    assert client.engine.peer_cid not in server.table.by_cid


def test_a_record_from_elsewhere_during_a_handshake_changes_nothing() -> None:
    """The handshake belongs to its address: what comes with its CID from another one is nobody's."""
    server = Server(cid_bytes=CID_BYTES)
    client = CidClient(server)
    ((request, _),) = server.receive(client.first_flight()[0])
    ((hello_done, _),) = server.receive(client.take(request)[0])
    *before, finished = (record for d in client.take(hello_done) for record in split(d, CID_BYTES))
    for record in before:
        assert server.receive(record) == []
    assert server.receive(finished, ELSEWHERE) == []
    assert server.counters.unknown_cid == 1
    assert server.front.half_open == 1
    assert server.counters.established == 0
    ((last_flight, _),) = server.receive(finished)
    client.take(last_flight)
    client.send(b"data")
    assert client.received == [b"echo data"]


def test_what_an_eavesdropper_repeats_from_elsewhere_diverts_nothing() -> None:
    """An old record again moves nothing; one that it was quicker with does, until the device is heard: RFC 9146, 6."""
    server, client = connected()
    seen = [client.sealed(b"one"), client.sealed(b"two")]
    for record in seen:
        server.receive(record)
    for record in seen:
        assert server.receive(record, ELSEWHERE) == []
    held_back = client.sealed(b"three")
    ((answer, address),) = server.receive(held_back, ELSEWHERE)
    assert address == ELSEWHERE  # at most three times what came from there
    assert len(answer) <= 3 * len(held_back)
    assert server.receive(held_back) == []
    client.send(b"four")
    assert client.received == [b"echo four"]
    (association,) = server.table.all()
    assert association.address == ADDRESS


def test_no_number_is_sealed_with_two_contents_whatever_is_lost() -> None:
    """The last flight is repeated eight times: every record to the client has a number of its own."""
    server = Server(cid_bytes=CID_BYTES)
    client = CidClient(server)
    sealed: list[bytes] = []

    def lost(datagram: bytes) -> list[bytes]:
        records = split(datagram, len(client.cid))
        sealed.extend(record for record in records if is_with_cid(record))
        return [] if datagram[0] == CHANGE_CIPHER_SPEC else [datagram]

    client.exchange(client.first_flight(), lost)
    client.association.write_sequence = 1
    for _ in range(10):
        for answer, _ in server.receive(client.association.seal(HANDSHAKE, b"\x14 Finished")):
            lost(answer)
    server.front.seal([(b"data", one) for one in server.table.all()])
    for answer, _ in server.front.datagrams_to_send():
        lost(answer)
    numbers = [sequence_of(record) for record in sealed]
    assert len(numbers) == 10  # the flight, eight repeats, and data
    assert len(set(numbers)) == len(numbers)


def test_peers_that_are_half_open_have_different_connection_ids() -> None:
    """With one byte of them, two of seventy would almost surely get the same."""
    server = Server(cid_bytes=1)
    clients = []
    for number in range(70):
        iccid = f"89882806660002{number:05}"
        server.keys.known[iccid] = Credential(iccid, SECRET, 1)
        clients.append(CidClient(server, ("192.0.2.1", number), identity=iccid))
    flights = []
    for client in clients:
        ((request, _),) = server.receive(client.first_flight()[0], client.address)
        flights.append(server.receive(client.take(request)[0], client.address))
    for client, flight in zip(clients, flights, strict=True):
        for datagram, _ in flight:
            client.exchange(client.take(datagram))
    assert [client.is_connected() for client in clients] == [True] * 70
    again = CidClient(server, ("192.0.2.1", 0), identity="8988280666000200000")  # what was half-open is free again
    assert again.connect().is_connected()
    assert len(server.table) == 70
