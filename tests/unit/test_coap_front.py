"""Options that concern every resource: proxies, hops, conditions, formats, and answers that nobody wants."""

from __future__ import annotations

import random
from collections.abc import Hashable

import pytest
from twisted.internet.defer import Deferred
from txthings import coap, resource

from coapgw.coap.blockwise import BlockwiseSite
from coapgw.coap.codec import (
    ACCEPT,
    BLOCK1,
    BLOCK2,
    CHANGED,
    CONTENT,
    CONTENT_FORMAT,
    CONTINUE,
    ETAG,
    HOP_LIMIT,
    IF_MATCH,
    IF_NONE_MATCH,
    MAX_AGE,
    NO_RESPONSE,
    PROXY_SCHEME,
    PROXY_URI,
    URI_PATH,
    encode_options,
    encode_uint,
    parse_options,
)
from coapgw.coap.front import FrontSite
from coapgw.coap.messaging import MessageLayer
from coapgw.coap.site import Branch, ResourceSite
from tests.unit.coap_wire import ACK, CON, DEVICE, NON, STRANGER, Peers, datagram

GET, POST, PUT, DELETE, FETCH, PATCH, IPATCH = range(1, 8)
EMPTY_ACK = b"\x60\x00"
TAG = b"\x01\x02"


class Document(resource.CoAPResource):  # type: ignore[misc]
    """Text with an entity-tag."""

    etag = TAG
    accepted_formats = (0, 50)

    def __init__(self) -> None:
        super().__init__()
        self.text = b"text"
        self.changes = 0

    def render_GET(self, request: coap.Message) -> coap.Message:
        response = coap.Message(code=coap.CONTENT, payload=self.text)
        response.opt.content_format = 0
        response.opt.etag = self.etag
        response.opt.addOption(coap.UintOption(number=MAX_AGE, value=5))
        return response

    def render_PUT(self, request: coap.Message) -> coap.Message:
        self.changes += 1
        return coap.Message(code=coap.CHANGED)

    def render_FETCH(self, request: coap.Message) -> coap.Message:
        return coap.Message(payload=request.payload[::-1])

    def render_iPATCH(self, request: coap.Message) -> coap.Message:
        self.changes += 1
        return coap.Message()


class Absent(Document):
    """What a PUT creates."""

    exists = False
    etag = None  # type: ignore[assignment]


class Server:
    """Front, blocks and tree, answering datagrams."""

    def __init__(self) -> None:
        root = Branch()
        self.document = Document()
        root.putChild(b"doc", self.document)
        root.putChild(b"absent", Absent())
        root.putChild(b"plain", resource.CoAPResource())
        self.layer = MessageLayer(FrontSite(BlockwiseSite(ResourceSite(root))), Peers(DEVICE[0]), random.Random(1))
        self.message_id = 0

    def send(
        self,
        code: int,
        path: bytes = b"doc",
        *options: tuple[int, bytes],
        kind: int = CON,
        payload: bytes = b"",
        source: Hashable = DEVICE,
    ) -> list[bytes]:
        self.message_id += 1
        block = encode_options([(URI_PATH, path), *options])
        self.last = datagram(kind, code, self.message_id, b"t", block, payload)
        self.layer.receive_datagram(self.last, source, 0.0)
        return [sent for sent, _ in self.layer.datagrams_to_send(0.0)]

    def code(self, code: int, path: bytes = b"doc", *options: tuple[int, bytes], payload: bytes = b"") -> str:
        (answer,) = self.send(code, path, *options, payload=payload)
        return f"{answer[1] >> 5}.{answer[1] & 31:02}"


def test_a_proxy_request_is_5_05() -> None:
    server = Server()
    assert server.code(GET, b"doc", (PROXY_URI, b"coap://elsewhere/")) == "5.05"
    assert server.code(GET, b"doc", (PROXY_SCHEME, b"coap")) == "5.05"


@pytest.mark.parametrize(("value", "code"), [(b"\x01", "2.05"), (b"\xff", "2.05"), (b"\x00", "4.00"), (b"", "4.00")])
def test_a_hop_limit_is_1_to_255(value: bytes, code: str) -> None:
    assert Server().code(GET, b"doc", (HOP_LIMIT, value)) == code


def test_a_hop_limit_over_255_is_4_00() -> None:
    assert Server().code(GET, b"doc", (HOP_LIMIT, b"\x01\x00")) == "4.00"


# ---------------------------------------------------------------------- If-Match, If-None-Match, Accept, formats


@pytest.mark.parametrize(
    ("path", "options", "code"),
    [
        (b"doc", [(IF_MATCH, TAG)], "2.04"),
        (b"doc", [(IF_MATCH, b"other"), (IF_MATCH, TAG)], "2.04"),
        (b"doc", [(IF_MATCH, b"")], "2.04"),
        (b"doc", [(IF_MATCH, b"other")], "4.12"),
        (b"doc", [(IF_NONE_MATCH, b"")], "4.12"),
        (b"absent", [(IF_NONE_MATCH, b"")], "2.04"),
        (b"absent", [(IF_MATCH, b"")], "4.12"),
        (b"doc", [(CONTENT_FORMAT, b"")], "2.04"),
        (b"doc", [(CONTENT_FORMAT, encode_uint(50))], "2.04"),
        (b"doc", [(CONTENT_FORMAT, encode_uint(60))], "4.15"),
        (b"doc", [], "2.04"),
    ],
)
def test_a_put_is_done_if_its_conditions_hold(path: bytes, options: list[tuple[int, bytes]], code: str) -> None:
    server = Server()
    assert server.code(PUT, path, *options, payload=b"x") == code
    assert server.document.changes == (code == "2.04" and path == b"doc")


def test_what_the_client_does_not_accept_is_4_06() -> None:
    server = Server()
    assert server.code(GET, b"doc", (ACCEPT, b"")) == "2.05"
    assert server.code(GET, b"doc", (ACCEPT, encode_uint(60))) == "4.06"
    assert server.code(PUT, b"doc", (ACCEPT, encode_uint(60))) == "2.04"  # it gives nothing that could be refused


def test_what_the_client_has_already_is_2_03_with_tag_and_age_only() -> None:
    server = Server()
    (answer,) = server.send(GET, b"doc", (ETAG, b"old"), (ETAG, TAG))
    assert answer[1] == coap.VALID
    assert parse_options(answer, 5) == (((ETAG, TAG), (MAX_AGE, b"\x05")), len(answer))
    assert server.code(GET, b"doc", (ETAG, b"old")) == "2.05"
    assert server.code(GET, b"doc", (ETAG, TAG), (BLOCK2, b"\x10")) == "4.00"  # a later block is none of the first


# ---------------------------------------------------------------------- methods


def test_the_methods_of_rfc_8132_go_to_resources_that_offer_them() -> None:
    server = Server()
    (answer,) = server.send(FETCH, b"doc", payload=b"abc")
    assert (answer[1], answer[5:]) == (CONTENT, b"\xffcba")
    assert server.code(IPATCH, b"doc", payload=b"x") == "2.04"
    assert server.code(PATCH, b"doc", payload=b"x") == "4.05"
    assert [server.code(code, b"plain") for code in (GET, FETCH, PATCH, IPATCH, 8, 31)] == ["4.05"] * 6
    assert server.code(FETCH, b"nowhere") == "4.04"


# ---------------------------------------------------------------------- No-Response (RFC 7967)


@pytest.mark.parametrize(
    ("silenced", "ok", "refused"),
    [(b"", True, True), (b"\x00", True, True), (b"\x02", False, True), (b"\x08", True, False), (b"\x1a", False, False)],
)
def test_no_response_withholds_the_classes_it_names(silenced: bytes, ok: bool, refused: bool) -> None:
    server = Server()
    for code, wanted in ((PUT, ok), (DELETE, refused)):
        assert bool(server.send(code, b"doc", (NO_RESPONSE, silenced), kind=NON)) == wanted
        (answer,) = server.send(code, b"doc", (NO_RESPONSE, silenced))
        assert answer[0] >> 4 & 3 == ACK
        assert bool(answer[1]) == wanted
        if not wanted:
            assert answer == EMPTY_ACK + server.last[2:4]
            server.layer.receive_datagram(server.last, DEVICE, 1.0)
            assert server.layer.datagrams_to_send(1.0) == [(answer, DEVICE)]  # also to a repeat
    assert server.document.changes == 2


def test_a_server_error_can_be_silenced_and_a_stranger_can_ask_for_silence() -> None:
    server = Server()
    server.document.render_PUT = lambda _: 1 / 0  # type: ignore[assignment]
    assert server.send(PUT, b"doc", (NO_RESPONSE, b"\x10"), kind=NON) == []
    assert server.send(GET, b"doc", (NO_RESPONSE, b"\x08"), kind=NON, source=STRANGER) == []


def test_no_response_does_not_stop_a_transfer_in_blocks() -> None:
    server = Server()
    (answer,) = server.send(PUT, b"doc", (BLOCK1, b"\x08"), (NO_RESPONSE, b"\x1a"), payload=bytes(16))
    assert answer[1] == CONTINUE
    (answer,) = server.send(PUT, b"doc", (BLOCK1, b"\x10"), (NO_RESPONSE, b"\x1a"), payload=b"end")
    assert answer == EMPTY_ACK + server.last[2:4]
    assert server.document.changes == 1


def test_an_answer_that_is_withheld_after_the_acknowledgement_is_not_sent_at_all() -> None:
    server = Server()
    later: list[Deferred[coap.Message]] = []

    def keep(request: coap.Message) -> Deferred[coap.Message]:
        later.append(Deferred())
        return later[-1]

    server.document.render_PUT = keep  # type: ignore[method-assign]
    assert server.send(PUT, b"doc", (NO_RESPONSE, b"\x02"), payload=b"x") == []
    server.layer.handle_timer(1.5)
    assert [sent for sent, _ in server.layer.datagrams_to_send(1.5)] == [EMPTY_ACK + server.last[2:4]]
    later[0].callback(coap.Message(code=CHANGED))
    assert server.layer.datagrams_to_send(1.6) == []
