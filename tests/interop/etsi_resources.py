"""The resources that the ETSI CoAP test descriptions ask of a server, as txThings resources."""

from __future__ import annotations

import hashlib
from typing import Any

from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from txthings import coap, resource

reactor: Any = installed
SEPARATE_SECONDS = 1.3  # longer than the gateway waits for an answer that could travel in the acknowledgement
LARGE = b"".join(b"line %03d of a large resource\n" % number for number in range(60))
MAX_AGE = 14
TEXT, XML, LINK_FORMAT, JSON = 0, 41, 40, 50


def message(code: int, payload: bytes = b"", content_format: int | None = None) -> coap.Message:
    """Return a response."""
    made = coap.Message(code=code, payload=payload)
    if content_format is not None:
        made.opt.content_format = content_format
    return made


class Text(resource.CoAPResource):  # type: ignore[misc]
    """/test, /large-update, /create1: text that can be read, replaced, added to and deleted; observable."""

    observable = True

    def __init__(self, text: bytes | None = b"default") -> None:
        super().__init__()
        self._text = text
        self._format = TEXT
        self.max_age: int | None = None

    @property
    def exists(self) -> bool:
        """Whether there is a representation."""
        return self._text is not None

    @property
    def etag(self) -> bytes | None:
        """Its entity-tag."""
        return None if self._text is None else hashlib.blake2b(self._text, digest_size=4).digest()

    def render_GET(self, request: coap.Message) -> coap.Message:
        if self._text is None:
            return message(coap.NOT_FOUND)
        response = message(coap.CONTENT, self._text, self._format)
        response.opt.etag = self.etag
        if self.max_age is not None:
            response.opt.addOption(coap.UintOption(number=MAX_AGE, value=self.max_age))
        return response

    def render_PUT(self, request: coap.Message) -> coap.Message:
        code = coap.CHANGED if self.exists else coap.CREATED
        self._text, self._format = request.payload, request.opt.content_format or TEXT
        self.updatedState()
        return message(code)

    def render_POST(self, request: coap.Message) -> coap.Message:
        self._text = (self._text or b"") + request.payload
        self.updatedState()
        return message(coap.CHANGED)

    def render_DELETE(self, request: coap.Message) -> coap.Message:
        self._text = None
        self.updatedState()
        return message(coap.DELETED)


class Test(Text):
    """/test: a POST creates something elsewhere."""

    def render_POST(self, request: coap.Message) -> coap.Message:
        response = message(coap.CREATED)
        response.opt.addOption(coap.StringOption(number=8, value="location1"))
        response.opt.addOption(coap.StringOption(number=8, value="location2"))
        response.opt.addOption(coap.StringOption(number=8, value="location3"))
        return response


class LocationQuery(resource.CoAPResource):  # type: ignore[misc]
    """/location-query: a POST answers with two Location-Query options."""

    def render_POST(self, request: coap.Message) -> coap.Message:
        response = message(coap.CREATED)
        response.opt.addOption(coap.StringOption(number=20, value="first=1"))
        response.opt.addOption(coap.StringOption(number=20, value="second=2"))
        return response


class Query(resource.CoAPResource):  # type: ignore[misc]
    """/query: tells its query."""

    def render_GET(self, request: coap.Message) -> coap.Message:
        query = [word if isinstance(word, bytes) else word.encode() for word in request.opt.uri_query]
        return message(coap.CONTENT, b"&".join(query), TEXT)


class Separate(resource.CoAPResource):  # type: ignore[misc]
    """/separate: takes its time."""

    def render_GET(self, request: coap.Message) -> Deferred[coap.Message]:
        return deferLater(reactor, SEPARATE_SECONDS, message, coap.CONTENT, b"separate", TEXT)


class MultiFormat(resource.CoAPResource):  # type: ignore[misc]
    """/multi-format: text or XML, as the client accepts."""

    def render_GET(self, request: coap.Message) -> coap.Message:
        accepted = request.opt.accept
        if accepted == XML:
            return message(coap.CONTENT, b"<text/>", XML)
        return message(coap.CONTENT, b"text", TEXT)


class TwoWay(resource.CoAPResource):  # type: ignore[misc]
    """/large-post: a large answer to a large question."""

    def render_POST(self, request: coap.Message) -> coap.Message:
        return message(coap.CHANGED, request.payload.upper(), TEXT)


class Aged(Text):
    """/obs-age: its state is fresh for a few seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.max_age = 5


def room() -> resource.CoAPResource:
    """Return a tree of all of them, new."""
    tree = resource.CoAPResource()
    deep = resource.CoAPResource()
    deeper = resource.CoAPResource()
    deep.putChild(b"seg2", deeper)
    deeper.putChild(b"seg3", Text(b"three segments"))
    for name, made in {
        b"test": Test(),
        b"seg1": deep,
        b"query": Query(),
        b"separate": Separate(),
        b"location-query": LocationQuery(),
        b"multi-format": MultiFormat(),
        b"validate": Text(b"first"),
        b"create1": Text(None),
        b"large": Text(LARGE),
        b"large-update": Text(LARGE),
        b"large-create": Text(None),
        b"large-post": TwoWay(),
        b"obs": Text(b"0"),
        b"obs-age": Aged(),
    }.items():
        tree.putChild(name, made)
    return tree


def _link(path: str, **attributes: str) -> resource.CoAPResource:
    made = Text(path.encode())
    made.observable = False
    made.visible = True
    for name, value in attributes.items():
        made.addParam(resource.LinkParam(name.rstrip("_"), value))
    return made


def links() -> dict[str, resource.CoAPResource]:
    """Return what the descriptions of links need; none of it changes."""
    path = _link("path", ct="40")
    for number in (1, 2, 3):
        path.putChild(b"sub%d" % number, _link(f"sub{number}", rt=f"sub{number}"))
    return {
        "link1": _link("link1", rt="Type1 Type2", if_="If1"),
        "link2": _link("link2", rt="Type2 Type3", if_="If2"),
        "link3": _link("link3", rt="Type1 Type3", if_="foo"),
        "link4": _link("link4", sz="64"),
        "path": path,
    }


def everything(rooms: int) -> dict[str, resource.CoAPResource]:
    """Return what is mounted for that many clients: ``/0/test`` and so on, and the links."""
    return {**links(), **{str(number): room() for number in range(rooms)}}
