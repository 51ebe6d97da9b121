"""ETSI CoAP test descriptions, TD_COAP_CORE and TD_COAP_LINK: what the server's messages have to be."""

from __future__ import annotations

from coapgw.coap.codec import ACCEPT, CONTENT_FORMAT, ETAG, IF_MATCH, IF_NONE_MATCH, PROXY_URI, URI_QUERY
from tests.interop.etsi import Cases
from tests.interop.wire_client import Exchange, WireClient
from tests.unit.coap_wire import ACK, CON, NON, RST, datagram

GET, POST, PUT, DELETE = 1, 2, 3, 4
LOCATION_PATH, LOCATION_QUERY = 8, 20
TEXT, XML, LINK_FORMAT = b"", b"\x29", b"\x28"
core = Cases()
link = Cases()


def piggybacked(exchange: Exchange, text: str) -> None:
    """The answer is an ACK with the Message ID and the token of the request."""
    response = exchange.response
    assert (response.kind, response.text) == (ACK, text)
    assert (response.message_id, response.token) == (exchange.message_id, exchange.token)


def non_confirmable(exchange: Exchange, text: str) -> None:
    """The answer is a NON with the token of the request."""
    assert (exchange.response.kind, exchange.response.text) == (NON, text)
    assert exchange.response.token == exchange.token


@core("TD_COAP_CORE_01", "GET, CON")
def core_01(client: WireClient, is_clear: bool) -> None:
    exchange = client.request(GET, "test")
    piggybacked(exchange, "2.05")
    assert exchange.response.payload == b"default"
    assert exchange.response.value(CONTENT_FORMAT) == TEXT
    assert exchange.sent == 1 or not is_clear


@core("TD_COAP_CORE_02", "DELETE, CON")
def core_02(client: WireClient, is_clear: bool) -> None:
    piggybacked(client.request(DELETE, "test"), "2.02")
    piggybacked(client.request(GET, "test"), "4.04")


@core("TD_COAP_CORE_03", "PUT, CON")
def core_03(client: WireClient, is_clear: bool) -> None:
    piggybacked(client.request(PUT, "test", [(CONTENT_FORMAT, TEXT)], b"put"), "2.04")
    assert client.request(GET, "test").response.payload == b"put"


@core("TD_COAP_CORE_04", "POST, CON")
def core_04(client: WireClient, is_clear: bool) -> None:
    piggybacked(client.request(POST, "validate", [(CONTENT_FORMAT, TEXT)], b", once"), "2.04")
    assert client.request(GET, "validate").response.payload == b"first, once"


@core("TD_COAP_CORE_05", "GET, NON")
def core_05(client: WireClient, is_clear: bool) -> None:
    non_confirmable(client.request(GET, "test", kind=NON), "2.05")


@core("TD_COAP_CORE_06", "DELETE, NON")
def core_06(client: WireClient, is_clear: bool) -> None:
    non_confirmable(client.request(DELETE, "test", kind=NON), "2.02")


@core("TD_COAP_CORE_07", "PUT, NON")
def core_07(client: WireClient, is_clear: bool) -> None:
    non_confirmable(client.request(PUT, "test", [(CONTENT_FORMAT, TEXT)], b"put", kind=NON), "2.04")


@core("TD_COAP_CORE_08", "POST, NON")
def core_08(client: WireClient, is_clear: bool) -> None:
    non_confirmable(client.request(POST, "test", [(CONTENT_FORMAT, TEXT)], b"post", kind=NON), "2.01")


def separate(exchange: Exchange, is_clear: bool) -> None:
    """An empty ACK first (it may have got lost), then the answer in a CON with the token of the request."""
    if is_clear:
        assert exchange.acknowledgement is not None
    if exchange.acknowledgement is not None:
        assert (exchange.acknowledgement.code, exchange.acknowledgement.token) == (0, b"")
        assert exchange.acknowledgement.message_id == exchange.message_id
    assert (exchange.response.kind, exchange.response.text) == (CON, "2.05")
    assert exchange.response.token == exchange.token
    assert exchange.response.payload == b"separate"


@core("TD_COAP_CORE_09", "GET with a separate response, CON")
def core_09(client: WireClient, is_clear: bool) -> None:
    separate(client.request(GET, "separate"), is_clear)


@core("TD_COAP_CORE_10", "a token of 1 to 8 bytes comes back")
def core_10(client: WireClient, is_clear: bool) -> None:
    for token in (b"\0", b"ab", b"12345678"):
        exchange = client.request(GET, "test", token=token)
        piggybacked(exchange, "2.05")
        assert exchange.response.token == token


@core("TD_COAP_CORE_11", "a token comes back in a separate response")
def core_11(client: WireClient, is_clear: bool) -> None:
    separate(client.request(GET, "separate", token=b"tokens"), is_clear)


@core("TD_COAP_CORE_12", "no token, none comes back")
def core_12(client: WireClient, is_clear: bool) -> None:
    exchange = client.request(GET, "test", token=b"")
    piggybacked(exchange, "2.05")
    assert exchange.response.token == b""


@core("TD_COAP_CORE_13", "several Uri-Path options")
def core_13(client: WireClient, is_clear: bool) -> None:
    exchange = client.request(GET, "seg1/seg2/seg3")
    piggybacked(exchange, "2.05")
    assert exchange.response.payload == b"three segments"


@core("TD_COAP_CORE_14", "several Uri-Query options")
def core_14(client: WireClient, is_clear: bool) -> None:
    query = [(URI_QUERY, b"first=1"), (URI_QUERY, b"second=2"), (URI_QUERY, b"third=3")]
    exchange = client.request(GET, "query", query)
    piggybacked(exchange, "2.05")
    assert exchange.response.payload == b"first=1&second=2&third=3"


@core("TD_COAP_CORE_15", "on a lossy way, piggybacked: a repeat is carried out once and answered alike")
def core_15(client: WireClient, is_clear: bool) -> None:
    for number in range(5):
        piggybacked(client.request(POST, "validate", payload=b"%d" % number), "2.04")
    assert client.request(GET, "validate").response.payload == b"first01234"


@core("TD_COAP_CORE_16", "on a lossy way, separate")
def core_16(client: WireClient, is_clear: bool) -> None:
    for _ in range(3):
        separate(client.request(GET, "separate"), is_clear)


@core("TD_COAP_CORE_17", "GET with a separate response, NON: no acknowledgement, a NON later")
def core_17(client: WireClient, is_clear: bool) -> None:
    exchange = client.request(GET, "separate", kind=NON)
    assert exchange.acknowledgement is None
    non_confirmable(exchange, "2.05")


@core("TD_COAP_CORE_18", "several Location-Path options in an answer")
def core_18(client: WireClient, is_clear: bool) -> None:
    exchange = client.request(POST, "test", [(CONTENT_FORMAT, TEXT)], b"new")
    piggybacked(exchange, "2.01")
    assert exchange.response.values(LOCATION_PATH) == [b"location1", b"location2", b"location3"]


@core("TD_COAP_CORE_19", "several Location-Query options in an answer")
def core_19(client: WireClient, is_clear: bool) -> None:
    exchange = client.request(POST, "location-query", [(CONTENT_FORMAT, TEXT)], b"new")
    piggybacked(exchange, "2.01")
    assert exchange.response.values(LOCATION_QUERY) == [b"first=1", b"second=2"]


@core("TD_COAP_CORE_20", "Accept: each format, and 4.06 for one there is not")
def core_20(client: WireClient, is_clear: bool) -> None:
    for accepted, payload in ((TEXT, b"text"), (XML, b"<text/>")):
        exchange = client.request(GET, "multi-format", [(ACCEPT, accepted)])
        piggybacked(exchange, "2.05")
        assert (exchange.response.value(CONTENT_FORMAT), exchange.response.payload) == (accepted, payload)
    piggybacked(client.request(GET, "multi-format", [(ACCEPT, b"\x3c")]), "4.06")


@core("TD_COAP_CORE_21", "ETag: 2.03 for what the client has, 2.05 for what it has not")
def core_21(client: WireClient, is_clear: bool) -> None:
    first = client.request(GET, "validate").response.value(ETAG)
    assert first is not None
    exchange = client.request(GET, "validate", [(ETAG, first)])
    piggybacked(exchange, "2.03")
    assert (exchange.response.value(ETAG), exchange.response.payload) == (first, b"")
    client.request(PUT, "validate", payload=b"second")
    exchange = client.request(GET, "validate", [(ETAG, first)])
    piggybacked(exchange, "2.05")
    assert exchange.response.payload == b"second"
    assert exchange.response.value(ETAG) not in (None, first)


@core("TD_COAP_CORE_22", "If-Match: done if it holds, 4.12 if not")
def core_22(client: WireClient, is_clear: bool) -> None:
    tag = client.request(GET, "validate").response.value(ETAG)
    assert tag is not None
    piggybacked(client.request(PUT, "validate", [(IF_MATCH, tag)], b"second"), "2.04")
    piggybacked(client.request(PUT, "validate", [(IF_MATCH, tag)], b"third"), "4.12")
    assert client.request(GET, "validate").response.payload == b"second"


@core("TD_COAP_CORE_23", "If-None-Match: created once, then 4.12")
def core_23(client: WireClient, is_clear: bool) -> None:
    piggybacked(client.request(PUT, "create1", [(IF_NONE_MATCH, b"")], b"new"), "2.01")
    piggybacked(client.request(PUT, "create1", [(IF_NONE_MATCH, b"")], b"again"), "4.12")
    assert client.request(GET, "create1").response.payload == b"new"


@core("TD_COAP_CORE_27", "a forward proxy is asked for: 5.05, there is none")
def core_27(client: WireClient, is_clear: bool) -> None:
    piggybacked(client.request(GET, "test", [(PROXY_URI, b"coap://192.0.2.1/test")]), "5.05")


@core("TD_COAP_CORE_31", "CoAP ping: an empty CON is answered by RST")
def core_31(client: WireClient, is_clear: bool) -> None:
    answers = []
    for _ in range(100):
        message_id = client.next_message_id()
        client.channel.send(datagram(CON, 0, message_id))
        answers.append(datagram(RST, 0, message_id))
        answer = client.channel.receive(0.3)
        if answer is not None:
            assert answer in answers  # that of an earlier one may have been held up
            return
    raise AssertionError("no answer to a ping")


# ---------------------------------------------------------------------- links


def listed(client: WireClient, query: bytes | None) -> list[str]:
    """Return the paths that /.well-known/core gives, whole."""
    links, number = b"", 0
    while True:
        options = [(URI_QUERY, query)] if query is not None else []
        if number:
            options.append((23, (number << 4 | 6).to_bytes(2, "big").lstrip(b"\0")))
        response = client.request(GET, ".well-known/core", options, absolute=True).response
        assert (response.text, response.value(CONTENT_FORMAT)) == ("2.05", LINK_FORMAT)
        links += response.payload
        if not (response.value(23) or b"\0")[-1] & 8:
            break
        number += 1
    return [one.partition(">")[0].lstrip("<") for one in links.decode().split(",") if one]


@link("TD_COAP_LINK_01", "discovery of everything")
def link_01(client: WireClient, is_clear: bool) -> None:
    assert {"/", "/data", "/bootstrap", "/link1", "/path"} <= set(listed(client, None))


@link("TD_COAP_LINK_02", "a filter by rt")
def link_02(client: WireClient, is_clear: bool) -> None:
    assert listed(client, b"rt=Type1") == ["/link1", "/link3"]


@link("TD_COAP_LINK_03", "a filter by rt, any value")
def link_03(client: WireClient, is_clear: bool) -> None:
    found = listed(client, b"rt=*")
    assert {"/link1", "/link2", "/link3"} <= set(found)
    assert "/link4" not in found


@link("TD_COAP_LINK_04", "a filter by rt where one has several")
def link_04(client: WireClient, is_clear: bool) -> None:
    assert listed(client, b"rt=Type2") == ["/link1", "/link2"]


@link("TD_COAP_LINK_05", "a filter by the beginning of if")
def link_05(client: WireClient, is_clear: bool) -> None:
    assert listed(client, b"if=If*") == ["/link1", "/link2"]


@link("TD_COAP_LINK_06", "a filter by sz, any value")
def link_06(client: WireClient, is_clear: bool) -> None:
    assert listed(client, b"sz=*") == ["/link4"]


@link("TD_COAP_LINK_07", "a filter by href")
def link_07(client: WireClient, is_clear: bool) -> None:
    assert listed(client, b"href=/link1") == ["/link1"]


@link("TD_COAP_LINK_08", "a filter by the beginning of href")
def link_08(client: WireClient, is_clear: bool) -> None:
    assert listed(client, b"href=/link*") == ["/link1", "/link2", "/link3", "/link4"]


@link("TD_COAP_LINK_09", "links in a hierarchy")
def link_09(client: WireClient, is_clear: bool) -> None:
    assert listed(client, b"ct=40") == ["/path"]
    assert listed(client, b"href=/path*") == ["/path", "/path/sub1", "/path/sub2", "/path/sub3"]
    response = client.request(GET, "path/sub1", absolute=True).response
    assert (response.text, response.payload) == ("2.05", b"sub1")
