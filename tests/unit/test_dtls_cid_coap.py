"""What CoAP sees of a device whose address changes: nothing, except how much a new address may be sent."""

from __future__ import annotations

import random
from collections.abc import Hashable

from coapgw.coap.blockwise import BlockwiseLimits, BlockwiseSite
from coapgw.coap.codec import BLOCK1, BLOCK2, CHANGED, CONTENT, CONTINUE, GET, POST, encode_body, encode_uint
from coapgw.coap.messaging import MessageLayer
from coapgw.dtls.table import Association
from tests.unit.coap_wire import datagram, option
from tests.unit.dtls_peers import CidClient, Server
from tests.unit.test_coap_blockwise import Inner


class Everybody:
    generation = 0

    def identify(self, address: Hashable) -> object:
        return self


class CoapServer(Server):
    """A front with a message layer behind it, as ``net/dtls.py`` puts them together."""

    def __init__(self) -> None:
        super().__init__(cid_bytes=6)
        self.inner = Inner()
        site = BlockwiseSite(self.inner, BlockwiseLimits())
        self.layer = MessageLayer(site, Everybody(), random.Random(1))

    def _deliver(self, plaintext: bytes, association: Association, now: float) -> None:
        self.layer.receive_datagram(plaintext, association, now)
        self.front.seal(self.layer.datagrams_to_send(now))


def connected() -> tuple[CoapServer, CidClient]:
    server = CoapServer()
    client = CidClient(server)
    client.connect()
    return server, client


def move(client: CidClient, number: int) -> None:
    client.address = ("198.51.100.7", 6000 + number)


def post_block(number: int, *, more: bool) -> bytes:
    block = option(BLOCK1, encode_uint(number << 4 | more << 3 | 1))
    return datagram(0, POST, 100 + number, b"tk", block, bytes((number,)) * 32)


def test_a_body_arrives_whole_though_each_block_comes_from_elsewhere() -> None:
    server, client = connected()
    for number in range(8):
        move(client, number)
        client.send(post_block(number, more=number < 7))
    assert [answer[1] for answer in client.received] == [CONTINUE] * 7 + [CHANGED]
    assert server.inner.bodies == [b"".join(bytes((number,)) * 32 for number in range(8))]
    assert server.counters.moved == 8
    assert server.counters.withheld == 0
    assert server.layer.endpoints == 1


def test_a_repeat_from_another_address_gets_the_same_answer_and_nothing_is_done_twice() -> None:
    server, client = connected()
    request = datagram(0, POST, 7, b"tk", b"", b"payload")
    client.send(request)
    move(client, 1)
    client.send(request)
    assert server.inner.bodies == [b"payload"]
    assert client.received[0] == client.received[1]


def test_a_large_answer_waits_until_its_new_address_has_sent_enough() -> None:
    """RFC 9146 section 6: three times what came from there; small blocks pass at once, large ones after repeats."""
    server, client = connected()
    server.inner.answer = CONTENT, encode_body((), bytes(1024))

    def ask(message_id: int, exponent: int) -> None:
        client.send(datagram(0, GET, message_id, b"tk", option(BLOCK2, encode_uint(exponent))))

    ask(1, 6)
    assert len(client.received) == 1  # the address of the handshake
    move(client, 1)
    ask(2, 1)
    assert len(client.received) == 2
    withheld = 0
    while len(client.received) == 2:
        ask(3, 6)
        withheld += 1
    assert server.counters.withheld == withheld - 1
    assert 5 < withheld < 15
