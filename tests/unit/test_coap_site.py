"""coap/site.py: resources of coapgw's and of an embedding application, by the way of the wire."""

from __future__ import annotations

import random

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.logger import capturedLogs
from txthings import coap, resource

from coapgw.coap.messaging import MessageLayer
from coapgw.coap.site import ANSWER_SECONDS, Branch, ResourceSite, WellKnownCore
from tests.unit.coap_wire import DEVICE, STRANGER, Peers, datagram, option

GET, POST, PUT, FETCH = 1, 2, 3, 5


class Greeting(resource.CoAPResource):  # type: ignore[misc]
    """An application's resource, as txThings' documentation writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.visible = True
        self.addParam(resource.LinkParam("title", "greeting"))
        self.requests: list[coap.Message] = []
        self.later: Deferred[coap.Message] = Deferred()

    def render_GET(self, request: coap.Message) -> Deferred[coap.Message]:
        self.requests.append(request)
        response = coap.Message(code=coap.CONTENT, payload=b"hello " + b"/".join(request.postpath))
        response.opt.content_format = 0
        return succeed(response)

    def render_POST(self, request: coap.Message) -> Deferred[coap.Message]:
        return self.later

    async def render_PUT(self, request: coap.Message) -> coap.Message:
        return coap.Message(code=coap.CHANGED)

    def render_DELETE(self, request: coap.Message) -> coap.Message:
        raise ValueError("a mistake of the application's")


class Server:
    """The tree below a root, answering datagrams."""

    def __init__(self) -> None:
        self.root = Branch()
        self.greeting = Greeting()
        self.root.putChild(b"greeting", self.greeting)
        text_keyed = resource.CoAPResource()
        self.root.putChild("text", text_keyed)
        well_known = Branch()
        well_known.putChild(b"core", WellKnownCore(self.root))
        self.root.putChild(b".well-known", well_known)
        self.site = ResourceSite(self.root)
        self.layer = MessageLayer(self.site, Peers(DEVICE[0]), random.Random(1))
        self.message_id = 0

    def ask(
        self, code: int, *path: bytes, address: tuple[str, int] = DEVICE, options: bytes = b"", payload: bytes = b""
    ) -> bytes:
        self.message_id += 1
        block = b"".join(option(11 if not number else 0, segment) for number, segment in enumerate(path)) + options
        self.layer.receive_datagram(
            datagram(code=code, message_id=self.message_id, options=block, payload=payload), address, 0.0
        )
        return self.answer()

    def answer(self) -> bytes:
        ((answer, _),) = self.layer.datagrams_to_send(0.0)
        return answer


def test_a_mounted_resource_is_rendered_with_what_txthings_gives_it() -> None:
    server = Server()
    assert server.ask(GET, b"greeting") == b"\x60\x45\x00\x01\xc0\xffhello "
    request = server.greeting.requests[0]
    assert request.opt.uri_path == [b"greeting"]
    assert request.prepath == [b"greeting"]
    assert request.remote == DEVICE
    assert request.principal == DEVICE[0]


def test_a_deferred_and_a_coroutine_answer_too() -> None:
    server = Server()
    assert server.ask(PUT, b"greeting", payload=b"x")[1] == coap.CHANGED
    server.layer.receive_datagram(datagram(code=POST, message_id=99, options=option(11, b"greeting")), DEVICE, 0.0)
    assert server.layer.datagrams_to_send(0.0) == []
    server.greeting.later.callback(coap.Message(payload=b"late"))
    assert server.answer() == b"\x60\x44\x00\x63\xfflate"


def test_a_resource_that_raises_is_5_00_and_the_next_request_is_served() -> None:
    server = Server()
    assert server.ask(4, b"greeting")[1] == coap.INTERNAL_SERVER_ERROR
    assert server.ask(GET, b"greeting")[1] == coap.CONTENT


class Slow(resource.CoAPResource):  # type: ignore[misc] # txThings has no types
    """Answers when the test wants it to, if ever."""

    def __init__(self) -> None:
        super().__init__()
        self.cancelled: list[Deferred[coap.Message]] = []
        self.rendering: list[Deferred[coap.Message]] = []

    def render_GET(self, request: coap.Message) -> Deferred[coap.Message]:
        self.rendering.append(Deferred(self.cancelled.append))
        return self.rendering[-1]


def test_resource_that_never_answers_is_5_04_and_takes_no_room_for_ever() -> None:
    server, slow = Server(), Slow()
    server.root.putChild(b"slow", slow)
    for message_id in range(1, 4):
        block = option(11, b"slow")
        server.layer.receive_datagram(datagram(code=GET, message_id=message_id, options=block), DEVICE, 0.0)
    slow.rendering[1].callback(coap.Message(payload=b"x"))
    assert len(server.layer.datagrams_to_send(0.0)) == 1
    server.site.handle_timer(ANSWER_SECONDS - 1)
    assert server.layer.datagrams_to_send(0.0) == []
    with capturedLogs() as logged:
        server.site.handle_timer(ANSWER_SECONDS)
    assert [answer[1] for answer, _ in server.layer.datagrams_to_send(0.0)] == [coap.GATEWAY_TIMEOUT] * 2
    assert slow.cancelled == [slow.rendering[0], slow.rendering[2]]
    assert logged == []
    assert server.layer._endpoints[DEVICE].pending == 0


def test_what_is_not_there_is_4_04_and_what_cannot_be_done_4_05() -> None:
    server = Server()
    assert server.ask(GET, b"nowhere") == b"\x60\x84\x00\x01\xffNot Found"
    assert server.ask(GET, b"greeting", b"deeper")[1] == coap.NOT_FOUND
    assert server.ask(GET)[1] == coap.NOT_FOUND
    assert server.ask(GET, b".well-known")[1] == coap.NOT_FOUND
    assert server.ask(GET, b"text")[1] == coap.METHOD_NOT_ALLOWED
    assert server.ask(FETCH, b"greeting")[1] == coap.METHOD_NOT_ALLOWED
    assert server.ask(POST, b".well-known", b"core")[1] == coap.METHOD_NOT_ALLOWED


def test_the_links_of_visible_resources_are_told_to_devices_only() -> None:
    server = Server()
    assert server.ask(GET, b".well-known", b"core") == b'\x60\x45\x00\x01\xc1\x28\xff</greeting>;title="greeting"'
    assert server.ask(GET, b".well-known", b"core", address=STRANGER) == b"\x60\x81\x00\x02"


def test_a_stranger_gets_4_01_from_a_mounted_resource() -> None:
    server = Server()
    assert server.ask(GET, b"greeting", address=STRANGER) == b"\x60\x81\x00\x01"
    assert server.greeting.requests == []
    assert server.ask(GET, b"nowhere", address=STRANGER)[1] == coap.NOT_FOUND


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (b"title=greeting", True),
        (b"title=gree*", True),
        (b"title=gree", False),
        (b"title=other*", False),
        (b"title", True),
        (b"rt=first", True),
        (b"rt=second", True),
        (b"rt=first second", True),
        (b"rt=sec*", True),
        (b"href=/greeting", True),
        (b"href=/gr*", True),
        (b"href=/", False),
        (b"obs", False),
        (b"\xff=\xfe*", False),
        (b"", False),
    ],
)
def test_links_can_be_filtered(query: bytes, found: bool) -> None:
    server = Server()
    server.greeting.addParam(resource.LinkParam("rt", "first second"))
    answer = server.ask(GET, b".well-known", b"core", options=option(4, query))
    assert answer[1] == coap.CONTENT
    assert (b"</greeting>" in answer) == found


def test_two_filters_are_refused() -> None:
    assert Server().ask(GET, b".well-known", b"core", options=option(4, b"rt=a") + option(0, b"if=b"))[1] == 0x80


def test_only_answers_of_coapgws_own_resources_are_known_to_be_small() -> None:
    site = Server().site
    assert site.may_be_large(((11, b"greeting"),))
    assert site.may_be_large(((11, b".well-known"), (11, b"core")))
    assert not site.may_be_large(())
    assert not site.may_be_large(((11, b""),))
    assert not site.may_be_large(((11, b"nothing"),))
