"""DTLS over ways that lose, double, delay and overtake, that change ports, and to devices that start anew."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.interop.clients.libcoap import LibcoapClient
from tests.interop.clients.mbedtls import MbedtlsClient
from tests.interop.coaps_server import CoapsServer
from tests.interop.dtls_peer import DtlsPeer, NotAnswered
from tests.interop.dtls_wire import APPLICATION_DATA, records
from tests.interop.relay import Path, Relay
from tests.interop.suites import BY_NAME

AEAD_AND_CBC = ["PSK-AES128-CCM8", "PSK-AES128-GCM-SHA256", "PSK-AES128-CBC-SHA256"]
LOSSES = [0.1, 0.3]
CHANGED = 0x44
CLIENTS = 6
SILENCE = 0.3


def _mbedtls_posts(server: CoapsServer, suite: str, path: Path, seed: int) -> list[str]:
    """Talk through a relay of its own; a first repeat after 0.1 s keeps the test short."""
    with Relay(server.address, up=path, down=path, seed=seed) as relay:
        return MbedtlsClient(0.1).post(server.at(relay.address), BY_NAME[suite], [b"one", b"two", b"three"])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("suite", ["PSK-AES128-CCM8", "PSK-AES128-CBC-SHA256"])
def test_mbedtls_gets_through_loss(coaps: CoapsServer, suite: str, loss: float) -> None:
    with ThreadPoolExecutor(CLIENTS) as clients:
        path = Path(loss=loss)
        codes = list(clients.map(lambda seed: _mbedtls_posts(coaps, suite, path, seed), range(CLIENTS)))
    assert codes == [["2.04"] * 3] * CLIENTS


@pytest.mark.parametrize("suite", ["PSK-AES128-CCM8", "PSK-AES128-CBC-SHA256"])
def test_mbedtls_gets_through_doubling_and_overtaking(coaps: CoapsServer, suite: str) -> None:
    path = Path(loss=0.05, duplication=0.3, reordering=0.3, reordering_delay=0.03, delay=0.005)
    with ThreadPoolExecutor(CLIENTS) as clients:
        codes = list(clients.map(lambda seed: _mbedtls_posts(coaps, suite, path, seed), range(CLIENTS)))
    assert codes == [["2.04"] * 3] * CLIENTS


@pytest.mark.parametrize("loss", LOSSES)
def test_openssl_and_libcoap_get_through_loss(coaps: CoapsServer, loss: float) -> None:
    """Their first repeats come after one and two seconds: all at the same time, therefore."""
    path = Path(loss=loss)

    def openssl(suite: str) -> bool:
        with Relay(coaps.address, up=path, down=path, seed=AEAD_AND_CBC.index(suite)) as relay:
            with DtlsPeer(coaps.at(relay.address), suite=suite) as peer:
                return peer.handshake(60).post(b"openssl", 20, tries=10) == CHANGED

    def libcoap(stack: str) -> bool:
        with Relay(coaps.address, up=path, down=path, seed=7) as relay:
            return LibcoapClient(stack).post(coaps.at(relay.address), None, [b"libcoap"]) == ["2.04"]

    with ThreadPoolExecutor(5) as clients:
        done = [clients.submit(openssl, suite) for suite in AEAD_AND_CBC]
        done += [clients.submit(libcoap, stack) for stack in ("openssl", "gnutls")]
        assert [one.result() for one in done] == [True] * 5


@pytest.mark.parametrize("suite", AEAD_AND_CBC)
def test_a_doubled_record_is_answered_once(coaps: CoapsServer, suite: str) -> None:
    with Relay(coaps.address) as relay, DtlsPeer(coaps.at(relay.address), suite=suite) as peer:
        peer.handshake()
        peer.serves()
        before = _application_data(relay.to_client)
        for _ in range(20):
            sealed = peer.seal(peer.request(2, payload=b"once"))
            peer.send([sealed, sealed, sealed])
        peer.serves()
        assert _application_data(relay.to_client) - before == 21


def _application_data(datagrams: list[bytes]) -> int:
    return sum(record.type == APPLICATION_DATA for datagram in list(datagrams) for record in records(datagram))


@pytest.mark.parametrize("suite", AEAD_AND_CBC)
def test_records_may_overtake_each_other_by_less_than_the_window(coaps: CoapsServer, suite: str) -> None:
    with Relay(coaps.address) as relay, DtlsPeer(coaps.at(relay.address), suite=suite) as peer:
        peer.handshake()
        peer.serves()
        before = _application_data(relay.to_client)
        sealed = [peer.seal(peer.request(2, payload=b"overtaken")) for _ in range(30)]
        peer.send([*sealed[:0:-1], sealed[0]])
        peer.serves()
        assert _application_data(relay.to_client) - before == 31


@pytest.mark.parametrize("suite", AEAD_AND_CBC)
def test_after_a_change_of_port_a_handshake_helps(coaps: CoapsServer, suite: str) -> None:
    """Without a Connection ID a record from another port belongs to nobody: silence, and a new handshake works at once."""
    with Relay(coaps.address) as relay, DtlsPeer(coaps.at(relay.address), suite=suite) as peer:
        peer.handshake()
        assert peer.post(b"before") == CHANGED
        relay.rebind()
        answers = len(relay.to_client)
        with pytest.raises(NotAnswered):
            peer.post(b"lost", SILENCE)
        assert len(relay.to_client) == answers
        with DtlsPeer(coaps.at(relay.address), suite=suite, sharing=peer) as again:
            assert again.handshake().post(b"after") == CHANGED


@pytest.mark.parametrize("suite", AEAD_AND_CBC)
def test_a_device_that_starts_anew_on_its_port_is_served_at_once(coaps: CoapsServer, suite: str) -> None:
    """RFC 6347 section 4.2.8: the old association serves until the new handshake is complete, and no longer."""
    with DtlsPeer(coaps, suite=suite) as old:
        old.handshake()
        assert old.post(b"old") == CHANGED
        new = DtlsPeer(coaps, suite=suite, sharing=old)
        finished = new.flights(3)
        assert old.post(b"still") == CHANGED
        began = time.monotonic()
        new.send(finished)
        assert new.handshake().post(b"new") == CHANGED
        assert time.monotonic() - began < 1  # no timer was needed
        with pytest.raises(NotAnswered):
            old.post(b"over", SILENCE)


def test_a_wrong_key_and_an_unknown_identity_look_the_same(coaps: CoapsServer) -> None:
    """What comes back, datagram by datagram: kinds and sizes; that it differs at all may tell who is a customer."""
    seen = []
    for server, key in ((coaps, "wrong key"), (coaps.known_as("8988280000000000000"), None)):
        with DtlsPeer(server, key=key) as peer:
            with pytest.raises(Exception, match="."):
                peer.handshake(SILENCE)
            seen.append([(len(datagram), datagram[:1]) for datagram in [*peer.received, *peer.drain()]])
    assert seen[0] == seen[1]
