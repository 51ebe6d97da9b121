"""A front among honest, mistaken and hostile clients, with everything damaged, repeated, swapped, late or elsewhere.

Whatever comes in whatever order, nothing raises, and what is counted in two places is the same in both.
"""

from __future__ import annotations

import random
from collections.abc import Hashable

import pytest

from coapgw.dtls.admission import HandshakeLimits
from coapgw.dtls.openssl import SUITES, EngineFailed
from coapgw.dtls.table import AssociationLimits
from coapgw.model import Credential
from tests.unit.dtls_peers import AEAD, ICCID, SECRET, CidClient, Client, Server

LIMITS = AssociationLimits(associations=5, connections=2, per_device=2, idle_seconds=50)
STEPS = 40  # datagrams of one client
ADDRESSES = [("192.0.2.1", port) for port in range(3)]
Datagram = tuple[bytes, Hashable]


class Disorder:
    """What happens to the datagrams of some clients that share a few addresses and one device."""

    def __init__(self, seed: int, cid_bytes: int) -> None:
        self.chance = random.Random(seed)
        self.server = Server(LIMITS, HandshakeLimits(20, 0), cid_bytes=cid_bytes)
        self.cid_bytes = cid_bytes
        self.seen: list[bytes] = []

    def client(self) -> Client:
        chance = self.chance
        address, secret = chance.choice(ADDRESSES), chance.choice([SECRET, SECRET, b"another secret"])
        if self.cid_bytes and chance.random() < 0.7:
            return CidClient(self.server, address, cid=chance.choice([b"", b"abc"]), secret=secret, suites=(AEAD,))
        return Client(self.server, address, secret=secret, suites=(chance.choice(SUITES),))

    def run(self, client: Client) -> None:
        """Have a client talk, badly."""
        waiting: list[bytes] = client.first_flight()
        for _ in range(STEPS):
            if not waiting:
                return
            self.seen += waiting
            datagram, address = self.spoilt(waiting.pop(self.chance.randrange(len(waiting))), client.address)
            for answer, to in self.server.receive(datagram, address):
                if to == client.address and self.chance.random() < 0.9:
                    waiting += self.answers(client, answer)
            if client.is_connected() and self.chance.random() < 0.5:
                waiting += self.said(client)
            self.server.front.next_timer()

    def spoilt(self, datagram: bytes, address: Hashable) -> Datagram:
        """Return what arrives instead of a datagram, and from where; other things may happen first."""
        chance, server = self.chance, self.server
        match chance.randrange(20):
            case 0 | 1 | 2:
                at = chance.randrange(len(datagram))
                datagram = datagram[:at] + bytes([datagram[at] ^ 1 << chance.randrange(8)]) + datagram[at + 1 :]
            case 3:
                datagram = datagram[: chance.randrange(len(datagram) + 1)]
            case 4:
                datagram += chance.choice(self.seen)
            case 5:
                datagram = chance.choice(self.seen)
            case 6:
                address = chance.choice(ADDRESSES)
            case 7:
                server.now += chance.choice([0.3, 2, 20, 61])
                server.front.handle_timer(server.now)
            case 8:
                server.keys.known[ICCID] = Credential(ICCID, SECRET, chance.randrange(3))
                server.table.devices_changed([ICCID])
            case 9 if chance.random() < 0.2:
                server.front.release()
        return datagram, address

    @staticmethod
    def answers(client: Client, datagram: bytes) -> list[bytes]:
        try:
            return client.take(datagram)
        except (EngineFailed, AssertionError):  # OpenSSL's client gives up, or has no keys for what it gets
            return []

    @staticmethod
    def said(client: Client) -> list[bytes]:
        try:
            return [client.sealed(b"hello") if isinstance(client, CidClient) else client.engine.seal(b"hello")]
        except EngineFailed:
            return []


@pytest.mark.parametrize("cid_bytes", [0, 1, 6])
@pytest.mark.parametrize("seed", range(15))
def test_tables_agree_after_any_disorder(seed: int, cid_bytes: int) -> None:
    disorder = Disorder(seed, cid_bytes)
    front, table = disorder.server.front, disorder.server.table
    for _ in range(6):
        disorder.run(disorder.client())
        assert front._admission.half_open == sum(front._admission._networks.values()) == front.half_open
        assert set(front._by_address.values()) <= set(table.all())
        assert len(list(table.of_device(ICCID))) == len(table) <= LIMITS.per_device
        assert {one.cid: one for one in table.all() if one.cid} == table.by_cid
    disorder.server.now += 1000
    front.handle_timer(disorder.server.now)
    assert (len(table), front.half_open, front._by_address) == (0, 0, {})
    assert front.next_timer() is None
