"""coap/tally.py: answers counted by resource and code."""

from __future__ import annotations

import random

import pytest
from txthings import coap, resource

from coapgw.coap.messaging import MessageLayer
from coapgw.coap.site import Branch, ResourceSite
from coapgw.coap.tally import Answered, TalliedSite
from tests.unit.coap_wire import DEVICE, STRANGER, Peers, datagram, option

GET, POST = 1, 2


class Greeting(resource.CoAPResource):  # type: ignore[misc]
    """Answers GET."""

    def render_GET(self, request: coap.Message) -> coap.Message:
        return coap.Message(code=coap.CONTENT)


class Server:
    """A tree with ``/a/b``, answering datagrams."""

    def __init__(self) -> None:
        root = Branch()
        root.putChild(b"a", Branch())
        root.children[b"a"].putChild(b"b", Greeting())
        self.site = TalliedSite(ResourceSite(root), root)
        self.layer = MessageLayer(self.site, Peers(DEVICE[0]), random.Random(1))

    def ask(self, message_id: int, code: int, *path: bytes, address: tuple[str, int] = DEVICE) -> None:
        block = b"".join(option(11 if not number else 0, segment) for number, segment in enumerate(path))
        self.layer.receive_datagram(datagram(code=code, message_id=message_id, options=block), address, 0.0)
        self.layer.datagrams_to_send(0.0)


@pytest.mark.parametrize(
    ("code", "path", "counted"),
    [
        (GET, [b"a", b"b"], Answered("/a/b", "2.05", 1)),
        (POST, [b"a", b"b"], Answered("/a/b", "4.05", 1)),
        (GET, [b"a"], Answered("/a", "4.04", 1)),
        (GET, [b"a", b"b", b"c"], Answered("/a/b", "4.04", 1)),
        (GET, [], Answered("/", "4.04", 1)),
        (GET, [b"x", b"y"], Answered("none", "4.04", 1)),
    ],
)
def test_answer_is_counted_for_the_resource_that_was_asked(code: int, path: list[bytes], counted: Answered) -> None:
    server = Server()
    server.ask(1, code, *path)
    assert list(server.site.answered()) == [counted]


def test_answers_add_up_and_repeats_do_not_count() -> None:
    server = Server()
    for message_id in (1, 2, 2, 3):
        server.ask(message_id, GET, b"a", b"b")
    server.ask(9, GET, b"a", b"b", address=STRANGER)
    assert set(server.site.answered()) == {Answered("/a/b", "2.05", 3), Answered("/a/b", "4.01", 1)}


def test_made_up_paths_take_no_room() -> None:
    server = Server()
    for number in range(1000):
        server.ask(number, GET, str(number).encode())
    assert list(server.site.answered()) == [Answered("none", "4.04", 1000)]
