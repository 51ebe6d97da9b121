"""Connection IDs: negotiated, carried, found wherever they come from, and refused to those that mean no good."""

from __future__ import annotations

import random
from collections.abc import Hashable

import pytest

from coapgw.dtls.association import CipherCache
from coapgw.dtls.cid import CidAssociation, ConnectionIds
from coapgw.dtls.openssl import AEAD_SUITES
from coapgw.dtls.records import ALERT, APPLICATION_DATA, CHANGE_CIPHER_SPEC, HANDSHAKE, TLS12_CID, split
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
