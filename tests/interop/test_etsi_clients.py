"""The ETSI CoAP test descriptions with aiocoap, libcoap and node's coap, on good ways and bad ones."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.interop.clients.plain import Aiocoap, Libcoap, NodeCoap, PlainClient
from tests.interop.etsi import KEY, LINKS, EtsiServer, running_etsi_gateway
from tests.interop.etsi_foreign import FOREIGN, ONCE_ONLY, Situation
from tests.interop.relay import Relay

CLIENTS: tuple[PlainClient, ...] = (Aiocoap(), Libcoap("notls"), Libcoap("openssl", KEY), NodeCoap())
LACKS: dict[tuple[str, str], str] = {}
WAYS = [
    (client, case, way)
    for client in CLIENTS
    for case in FOREIGN
    for way in LINKS
    if (client.name, case) not in LACKS and (way == "0 %" or (case not in ONCE_ONLY and client.transport == "UDP"))
]
AT_A_TIME = 48


def converse(server: EtsiServer, client: PlainClient, case: str, way: str, room: int) -> None:
    """Run one case through a relay of its own."""
    seed = zlib.crc32(f"{client.name} {case} {way}".encode())
    where = server.coaps if client.transport == "DTLS" else server.coap
    if isinstance(client, Libcoap) and client.transport == "DTLS":
        client = Libcoap("openssl", KEY)
        client.identity = server.iccid(room)
    with Relay(where, seed=seed, source=server.source(room)) as relay:
        relay.become(LINKS[way])
        FOREIGN[case](Situation(client, server, relay.address, room))


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str, str], Future[None]]]:
    """All conversations, under way."""
    trusted = "coap.trusted_networks=['127.0.0.0/8']"
    with (
        running_etsi_gateway(tmp_path_factory.mktemp("etsi-clients"), len(WAYS), trusted) as server,
        ThreadPoolExecutor(AT_A_TIME) as threads,
    ):
        order = sorted(range(len(WAYS)), key=lambda room: WAYS[room][2], reverse=True)
        futures = {
            (WAYS[room][0].name, *WAYS[room][1:]): threads.submit(converse, server, *WAYS[room], room) for room in order
        }
        yield futures
        for future in futures.values():
            future.cancel()


@pytest.mark.parametrize(("client", "case", "way"), WAYS, ids=lambda value: getattr(value, "name", str(value)))
def test_case(ends: dict[tuple[str, str, str], Future[None]], client: PlainClient, case: str, way: str) -> None:
    ends[client.name, case, way].result(180)
