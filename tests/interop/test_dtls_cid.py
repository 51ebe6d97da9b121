"""Connection IDs (RFC 9146) with another implementation: a device whose port changes goes on without a handshake."""

from __future__ import annotations

import pytest

from tests.interop.clients.pion import PionClient
from tests.interop.coaps_server import CoapsServer
from tests.interop.dtls_wire import chosen_suites, records
from tests.interop.relay import Relay
from tests.interop.suites import BY_NUMBER, Suite

TLS12_CID = 25
PAYLOADS = [b"one", b"two", b"three"]
AEAD = [suite for suite in PionClient.suites if suite.is_aead]


def kinds(datagrams: list[bytes]) -> set[int]:
    """Return the types of the first records of protected datagrams; what follows a CID cannot be split."""
    return {datagram[0] for datagram in datagrams if datagram[3:5] != b"\0\0"}


@pytest.mark.parametrize("size", [0, 1, 8], ids=["wants none", "one byte", "eight bytes"])
@pytest.mark.parametrize("suite", [None, *AEAD], ids=lambda suite: getattr(suite, "name", "own"))
def test_an_association_follows_its_device(coaps: CoapsServer, suite: Suite | None, size: int) -> None:
    """The port changes between the messages; only where the client wants a CID do the gateway's records bear one."""
    with Relay(coaps.address) as relay:
        codes = PionClient(size).post(coaps.at(relay.address), suite, PAYLOADS, relay.rebind)
        assert codes == ["2.04"] * len(PAYLOADS)
        [chosen] = chosen_suites(relay.to_client)
        assert BY_NUMBER[chosen].is_aead
        assert kinds(relay.to_server) == {TLS12_CID}
        assert (TLS12_CID in kinds(relay.to_client)) == (size > 0)


def test_without_an_aead_suite_no_connection_id_is_agreed(coaps: CoapsServer) -> None:
    [cbc] = [suite for suite in PionClient.suites if suite.name == "PSK-AES128-CBC-SHA256"]
    with Relay(coaps.address) as relay:
        assert PionClient(8).post(coaps.at(relay.address), cbc, PAYLOADS) == ["2.04"] * len(PAYLOADS)
        assert all(record.type != TLS12_CID for datagram in relay.to_server for record in records(datagram))
