"""What devices sent and were sent over DTLS is counted: handshakes and messages, and nothing that is forged."""

from __future__ import annotations

import pytest
from zope.interface.verify import verifyObject

from coapgw.dtls.traffic import DtlsTraffic
from coapgw.interfaces import IWireBytes
from coapgw.model import WireBytes
from tests.unit.dtls_peers import CBC, ICCID, CidClient, Client, Server


def test_it_is_what_the_api_asks() -> None:
    traffic = DtlsTraffic()
    assert verifyObject(IWireBytes, traffic)
    assert traffic.of(ICCID) is None
    traffic.took(ICCID, 10)
    traffic.gave(ICCID, 3)
    traffic.took(ICCID, 1)
    assert traffic.of(ICCID) == WireBytes(11, 3)


@pytest.mark.parametrize("kind", ["plain", "with a CID", "CBC"])
def test_every_byte_of_a_device_is_counted(kind: str) -> None:
    """From the ClientHello with the cookie on: nobody is known before."""
    server = Server(cid_bytes=6)
    client = (
        CidClient(server)
        if kind == "with a CID"
        else Client(server, suites=(CBC,) if kind == "CBC" else ("PSK-AES128-CCM8",))
    )
    up = down = 0
    receive = server.receive

    def counted(data: bytes, address: object = None) -> list[tuple[bytes, object]]:
        nonlocal up, down
        answers = receive(data, client.address)
        up += len(data)
        down += sum(len(answer) for answer, _ in answers)
        return answers

    ((request, _),) = receive(client.first_flight()[0])
    server.receive = counted  # type: ignore[method-assign]
    client.exchange(client.take(request))
    for text in (b"one", b"two"):
        client.send(text)
    assert client.received == [b"echo one", b"echo two"]
    assert server.table.traffic.of(ICCID) == WireBytes(up, down)


def test_what_is_forged_is_not_counted_for_a_device() -> None:
    server = Server(cid_bytes=6)
    client = CidClient(server)
    client.connect()
    before = server.table.traffic.of(ICCID)
    sealed = client.sealed(b"data")
    forged = sealed[:-1] + bytes((sealed[-1] ^ 1,))
    for address in (client.address, ("198.51.100.7", 6000)):
        server.receive(forged, address)
    assert server.table.traffic.of(ICCID) == before
