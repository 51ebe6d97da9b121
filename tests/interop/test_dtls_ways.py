"""DTLS over ways that lose, double, delay and overtake, that change ports, and to devices that start anew."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from OpenSSL import SSL

from tests.interop.clients.libcoap import LibcoapClient
from tests.interop.clients.mbedtls import MbedtlsClient
from tests.interop.coaps_server import INACTIVE, UNKNOWN, CoapsServer
from tests.interop.dtls_peer import GET, LINKS, DtlsPeer, NotAnswered
from tests.interop.dtls_wire import APPLICATION_DATA, records
from tests.interop.relay import Link, Relay
from tests.interop.suites import BY_NAME

AEAD_AND_CBC = ["PSK-AES128-CCM8", "PSK-AES128-GCM-SHA256", "PSK-AES128-CBC-SHA256"]
CHANGED = 0x44
SEEDS = (0, 2, 4, 7, 8, 9, 10, 13)  # through within seconds at 30 % loss; number 3 is as well, after twenty
SILENCE = 0.3
REFUSED_SECONDS = 20  # OpenSSL has sent its Finished three times after three of them


def _mbedtls_posts(server: CoapsServer, suite: str, link: Link, seed: int) -> int:
    """Talk through a relay of its own, and return how much it lost; a first repeat after 50 ms keeps the test short."""
    with Relay(server.address, up=link, down=link, seed=seed) as relay:
        codes = MbedtlsClient(0.05).post(
            server.device(seed).at(relay.address), BY_NAME[suite], [b"one", b"two", b"three"]
        )
        assert codes == ["2.04"] * 3
        return relay.lost


@pytest.mark.parametrize("loss", [0.1, 0.3])
@pytest.mark.parametrize("suite", ["PSK-AES128-CCM8", "PSK-AES128-CBC-SHA256"])
def test_mbedtls_gets_through_loss(coaps: CoapsServer, suite: str, loss: float) -> None:
    link = Link(loss=loss)
    with ThreadPoolExecutor(len(SEEDS)) as clients:
        assert sum(clients.map(lambda seed: _mbedtls_posts(coaps, suite, link, seed), SEEDS)) > 0


@pytest.mark.parametrize("suite", ["PSK-AES128-CCM8", "PSK-AES128-CBC-SHA256"])
def test_mbedtls_gets_through_doubling_and_overtaking(coaps: CoapsServer, suite: str) -> None:
    link = Link(loss=0.05, duplication=0.3, reordering=0.3, reordering_delay=0.03, delay=0.005)
    with ThreadPoolExecutor(len(SEEDS)) as clients:
        assert sum(clients.map(lambda seed: _mbedtls_posts(coaps, suite, link, seed), SEEDS)) > 0


@pytest.mark.parametrize(("loss", "seeds"), [(0.1, (3, 5, 6)), (0.3, (4, 5, 7))])
def test_openssl_and_libcoap_get_through_loss(coaps: CoapsServer, loss: float, seeds: tuple[int, ...]) -> None:
    """Their first repeats come after one or two seconds: all at once, and with seeds that are soon through."""
    link = Link(loss=loss)

    def openssl(device: int, seed: int, suite: str) -> int:
        with (
            Relay(coaps.address, up=link, down=link, seed=seed) as relay,
            DtlsPeer(coaps.device(device).at(relay.address), suite=suite) as peer,
        ):
            assert peer.handshake(30).post(b"openssl", 30, tries=10) == CHANGED
            return relay.lost

    def libcoap(device: int, seed: int, stack: str) -> int:
        with Relay(coaps.address, up=link, down=link, seed=seed) as relay:
            assert LibcoapClient(stack).post(coaps.device(device).at(relay.address), None, [b"libcoap"]) == ["2.04"]
            return relay.lost

    with ThreadPoolExecutor(len(seeds) + 2) as clients:
        waiting = [clients.submit(openssl, *one) for one in zip(range(3), seeds, AEAD_AND_CBC, strict=True)]
        waiting += [clients.submit(libcoap, 3, seeds[1], "openssl"), clients.submit(libcoap, 4, seeds[1], "gnutls")]
        assert all(one.result() for one in waiting)  # something was lost for each


@pytest.mark.parametrize("suite", AEAD_AND_CBC)
def test_a_doubled_record_is_answered_once(coaps: CoapsServer, suite: str) -> None:
    with Relay(coaps.address) as relay, DtlsPeer(coaps.at(relay.address), suite=suite) as peer:
        peer.handshake()
        peer.serves()
        before = _application_data(relay.to_client)
        for _ in range(20):
            sealed = peer.seal(peer.request(GET, LINKS))
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
        sealed = [peer.seal(peer.request(GET, LINKS)) for _ in range(30)]
        peer.send([*sealed[:0:-1], sealed[0]])
        peer.serves()
        assert _application_data(relay.to_client) - before == 31


@pytest.mark.parametrize("suite", AEAD_AND_CBC)
def test_after_a_change_of_port_a_handshake_helps(coaps: CoapsServer, suite: str) -> None:
    """Without a Connection ID a record from another port belongs to nobody: silence, until a new handshake."""
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


def test_who_may_not_come_in_does_not_learn_why(coaps: CoapsServer) -> None:
    """A wrong key, an unknown identity and an inactive device: datagrams of the same sizes, and the same alert."""

    def refused(server: CoapsServer, key: str) -> tuple[str, set[tuple[int, bytes]]]:
        with DtlsPeer(server, key=key) as peer:
            with pytest.raises(SSL.Error) as error:
                peer.handshake(REFUSED_SECONDS)
            return str(error.value), {(len(datagram), datagram[:1]) for datagram in peer.received}

    cases = [(coaps, "wrong key"), (coaps.known_as(UNKNOWN), coaps.key), (coaps.known_as(INACTIVE), coaps.key)]
    with ThreadPoolExecutor(len(cases)) as clients:
        wrong, *others = clients.map(lambda case: refused(*case), cases)
    assert others == [wrong, wrong]
    assert "alert decrypt error" in wrong[0]
