"""The cases of the ETSI CoAP test descriptions as an application on somebody else's client sees them."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from coapgw.coap.codec import ACCEPT, ETAG, IF_MATCH, IF_NONE_MATCH
from tests.interop.clients.plain import Answered, Asked, PlainClient
from tests.interop.etsi import EtsiServer
from tests.interop.etsi_resources import LARGE, Text
from tests.interop.wire_client import PlainChannel, WireClient

PUT = 3


@attrs.frozen
class Situation:
    """A client, where it sends to, the room it is in, and a client of the test's own beside it."""

    client: PlainClient
    server: EtsiServer
    relay: tuple[str, int]
    room: int

    def ask(
        self, path: str, method: str = "GET", expect: str = "2.05", within: bytes = b"", **about: object
    ) -> Answered:
        """Ask; the answer has the code *expect*, and *within* in its payload."""
        prefix = "" if path.startswith((".", "link", "path")) else f"{self.room}/"
        answer = self.client.ask(self.relay, Asked(prefix + path, method, **about))  # type: ignore[arg-type]
        assert answer.code == expect, answer
        assert within in answer.payload, answer
        return answer

    def change(self, path: str, value: bytes) -> None:
        """Give a resource another state, from elsewhere."""
        other = WireClient(
            PlainChannel(self.server.coap, self.server.source(self.room)), str(self.room), len(value) + self.room
        )
        other.request(PUT, path, payload=value)
        other.close()


Case = Callable[[Situation], object]


def once(*path: str, **about: object) -> Case:
    """Return a case of one request."""
    return lambda one: one.ask(*path, **about)  # type: ignore[arg-type]


def changed(path: str, method: str, expect: str, within: bytes, non: bool = False) -> Case:
    """Return a case that changes something and looks at it."""

    def run(one: Situation) -> None:
        one.ask(path, method, expect, payload=b"changed", non=non)
        one.ask(path, expect="2.05" if within else "4.04", within=within)

    return run


def _etag(text: bytes) -> bytes:
    tag = Text(text).etag
    assert tag is not None
    return tag


def validation(one: Situation) -> None:
    """Nothing new is 2.03, something new 2.05."""
    one.ask("validate", expect="2.03", options=[(ETAG, _etag(b"first"))])
    one.change("validate", b"second")
    one.ask("validate", within=b"second", options=[(ETAG, _etag(b"first"))])


def if_match(one: Situation) -> None:
    """Done if it holds, 4.12 if not."""
    tag = [(IF_MATCH, _etag(b"first"))]
    one.ask("validate", "PUT", "2.04", payload=b"second", options=tag)
    one.ask("validate", "PUT", "4.12", payload=b"third", options=tag)


def if_none_match(one: Situation) -> None:
    """Created once, then 4.12."""
    one.ask("create1", "PUT", "2.01", payload=b"new", options=[(IF_NONE_MATCH, b"")])
    one.ask("create1", "PUT", "4.12", payload=b"again", options=[(IF_NONE_MATCH, b"")])


def accept(one: Situation) -> None:
    """Each format."""
    one.ask("multi-format", within=b"text", options=[(ACCEPT, b"")])
    one.ask("multi-format", within=b"<text/>", options=[(ACCEPT, b"\x29")])


def large(path: str, block: int = 0) -> Case:
    """Return a case that gets a large body."""

    def run(one: Situation) -> None:
        answer = one.ask(path, block=block)
        assert LARGE in answer.payload or all(line in answer.payload for line in LARGE.splitlines()), answer

    return run


def upload(path: str, expect: str) -> Case:
    """Return a case that gives a large body."""

    def run(one: Situation) -> None:
        one.ask(path, "PUT", expect, payload=LARGE.swapcase())
        answer = one.ask(path)
        assert all(line in answer.payload for line in LARGE.swapcase().splitlines()), answer

    return run


def observed(one: Situation) -> None:
    """Every state that lasts is told, in order."""
    heard: list[bytes] = []

    def told(state: bytes) -> bool:
        heard.append(state)
        number = len([value for value in dict.fromkeys(heard) if value])
        if number <= 3 and state == b"%d" % (number - 1):
            one.change("obs", b"%d" % number)
        return state == b"3"

    one.client.observe(one.relay, f"{one.room}/obs", told)
    assert list(dict.fromkeys(heard)) == [b"0", b"1", b"2", b"3"]


FOREIGN: dict[str, Case] = {
    "TD_COAP_CORE_01": once("test", within=b"default"),
    "TD_COAP_CORE_02": changed("test", "DELETE", "2.02", b""),
    "TD_COAP_CORE_03": changed("test", "PUT", "2.04", b"changed"),
    "TD_COAP_CORE_04": changed("validate", "POST", "2.04", b"firstchanged"),
    "TD_COAP_CORE_05": once("test", within=b"default", non=True),
    "TD_COAP_CORE_07": changed("test", "PUT", "2.04", b"changed", non=True),
    "TD_COAP_CORE_09": once("separate", within=b"separate"),
    "TD_COAP_CORE_13": once("seg1/seg2/seg3", within=b"three segments"),
    "TD_COAP_CORE_14": once("query", within=b"first=1&second=2", query=("first=1", "second=2")),
    "TD_COAP_CORE_17": once("separate", within=b"separate", non=True),
    "TD_COAP_CORE_18": lambda one: one.ask("test", "POST", "2.01", payload=b"new"),
    "TD_COAP_CORE_20": accept,
    "TD_COAP_CORE_21": validation,
    "TD_COAP_CORE_22": if_match,
    "TD_COAP_CORE_23": if_none_match,
    "TD_COAP_LINK_01": once(".well-known/core", within=b"</link1>"),
    "TD_COAP_LINK_02": once(".well-known/core", within=b"</link1>", query=("rt=Type1",)),
    "TD_COAP_LINK_08": once(".well-known/core", within=b"</link4>", query=("href=/link*",)),
    "TD_COAP_BLOCK_01": large("large", 512),
    "TD_COAP_BLOCK_02": large("large"),
    "TD_COAP_BLOCK_03": upload("large-update", "2.04"),
    "TD_COAP_BLOCK_04": upload("large-create", "2.01"),
    "TD_COAP_OBS_01": observed,
}
ONCE_ONLY = ("TD_COAP_CORE_05", "TD_COAP_CORE_07", "TD_COAP_CORE_17")  # NON: nobody repeats them, so on good ways only
