"""Connection IDs (RFC 9146) with other implementations: a device whose port changes goes on without a handshake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop.clients.all import CID_CLIENTS
from tests.interop.clients.client import SILENCE, CidClient, ClientAbsent
from tests.interop.coaps_server import CoapsServer, as_clients_see, gateway_process
from tests.interop.dtls_wire import chosen_suites, records
from tests.interop.interop_table import CONNECTION_IDS, InteropTable
from tests.interop.relay import Link, Relay
from tests.interop.suites import BY_NUMBER, Suite

TLS12_CID = 25
PAYLOADS = [b"one", b"two", b"three"]
CHANGED = "2.04"
SIZES = {0: "wants none", 1: "one byte", 8: "eight bytes"}
SUITES = [(client, suite) for client in CID_CLIENTS for suite in (None, *client.suites) if not suite or suite.is_aead]
CBC = [(client, suite) for client in CID_CLIENTS for suite in client.suites if suite.name == "PSK-AES128-CBC-SHA256"]
SEEDS = (2, 5, 7)  # no request is lost five times
BAD = Link(loss=0.15, duplication=0.1, reordering=0.2, delay=0.002)


def is_there(client: CidClient) -> str:
    """Return its version; says so where a machine is without it."""
    try:
        return client.version()
    except ClientAbsent as absent:
        pytest.skip(f"NOT TESTED: {absent}")


def name(case: object) -> str:
    """Return what a parameter is called."""
    return str(getattr(case, "name", None) or SIZES.get(case, "own"))  # type: ignore[call-overload]


def kinds(datagrams: list[bytes]) -> set[int]:
    """Return the types of the first records of protected datagrams; what follows a CID cannot be split."""
    return {datagram[0] for datagram in datagrams if datagram[3:5] != b"\0\0"}


def handshakes(relay: Relay) -> int:
    """Return how many handshakes were begun through a relay."""
    return len(chosen_suites(relay.to_client))


@pytest.mark.parametrize("size", SIZES, ids=name)
@pytest.mark.parametrize(("client", "suite"), SUITES, ids=name)
def test_an_association_follows_its_device(
    coaps: CoapsServer, client: CidClient, suite: Suite | None, size: int
) -> None:
    """The port changes between the messages; only where the client wants a CID do the gateway's records bear one."""
    is_there(client)
    with Relay(coaps.address) as relay:
        codes = client.with_cid(size).post_between(coaps.at(relay.address), suite, PAYLOADS, relay.rebind)
        assert codes == [CHANGED] * len(PAYLOADS)
        [chosen] = chosen_suites(relay.to_client)
        assert BY_NUMBER[chosen].is_aead
        assert kinds(relay.to_server) == {TLS12_CID}
        assert (TLS12_CID in kinds(relay.to_client)) == (size > 0)


@pytest.mark.parametrize(("client", "suite"), CBC, ids=name)
def test_without_an_aead_suite_no_connection_id_is_agreed(coaps: CoapsServer, client: CidClient, suite: Suite) -> None:
    is_there(client)
    with Relay(coaps.address) as relay:
        assert client.with_cid(8).post(coaps.at(relay.address), suite, PAYLOADS) == [CHANGED] * len(PAYLOADS)
        assert all(record.type != TLS12_CID for datagram in relay.to_server for record in records(datagram))


@pytest.mark.parametrize("client", CID_CLIENTS, ids=name)
def test_a_device_through_everything_that_happens_to_one(
    client: CidClient, tmp_path: Path, interop_table: InteropTable
) -> None:
    """One association over changing ports, lossy ways and a planned restart; after a crash a new one."""
    version = is_there(client)
    with (
        interop_table.row(client.name, version, CONNECTION_IDS) as words,
        gateway_process(tmp_path / "data") as gateway,
    ):
        server = as_clients_see(gateway)

        def post(relay: Relay, device: int, *between: Callable[[], None]) -> list[str]:
            steps = iter(between)
            payloads = [f"message {number}".encode() for number in range(len(between) + 1)]
            seen = server.device(device).at(relay.address)

            def step() -> None:
                next(steps)()

            codes = client.with_cid(6).post_between(seen, None, payloads, step)
            assert next(steps, None) is None
            return codes

        def restart() -> None:
            gateway.stop()
            gateway.start()

        def crash() -> None:
            gateway.kill()
            gateway.start()

        with Relay(server.address) as relay:
            assert post(relay, 1, relay.rebind, relay.change_back) == [CHANGED] * 3
            assert handshakes(relay) == 1
            [[first, second, third]] = relay.ports_of_clients()
            assert first == third != second
        words.append("a change of port and back")

        lost = 0
        for seed in SEEDS:
            with Relay(server.address, seed=seed) as relay:
                began = [lambda relay=relay: relay.become(BAD)]
                assert post(relay, 1 + seed, *began, *[relay.rebind] * 5) == [CHANGED] * 7
                assert handshakes(relay) == 1
                lost += relay.lost
        assert lost > 0
        words.append("the same over ways that lose 15 %, double and overtake")

        with Relay(server.address) as relay:
            assert post(relay, 10, restart, relay.rebind) == [CHANGED] * 3
            assert handshakes(relay) == 1
        words.append("a planned restart without a handshake")

        with Relay(server.address) as relay:
            assert post(relay, 11, crash) == [CHANGED, SILENCE]
            told = len(relay.to_client)
            assert post(relay, 11) == [CHANGED]
            assert len(relay.to_client) > told
        words.append("a new handshake after a crash")
