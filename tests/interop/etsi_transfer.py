"""ETSI CoAP test descriptions, TD_COAP_BLOCK and TD_COAP_OBS: bodies in blocks, and observation."""

from __future__ import annotations

from coapgw.coap.codec import BLOCK1, BLOCK2, CONTENT_FORMAT, ETAG, MAX_AGE, OBSERVE, decode_uint, encode_uint
from tests.interop.etsi import Cases
from tests.interop.etsi_core import DELETE, GET, POST, PUT, TEXT, piggybacked
from tests.interop.etsi_resources import LARGE
from tests.interop.wire_client import Message, WireClient
from tests.unit.coap_wire import CON, NON

REGISTER, DEREGISTER = (OBSERVE, b""), (OBSERVE, b"\x01")
block = Cases()
observe = Cases()


def download(client: WireClient, path: str, exponent: int | None, token: bytes | None = None) -> bytes:
    """Get a body block by block, of the size asked for or offered."""
    body, number, tag = b"", 0, None
    while True:
        asked = [] if exponent is None else [(BLOCK2, encode_uint(number << 4 | exponent))]
        response = client.request(GET, path, asked, token=token).response
        assert response.text == "2.05"
        given = decode_uint(response.value(BLOCK2) or b"")
        assert given >> 4 == number
        assert exponent is None or given & 7 <= exponent
        assert tag in (None, response.value(ETAG))
        tag, exponent = response.value(ETAG), given & 7
        body += response.payload
        if not given & 8:
            return body
        assert len(response.payload) == 16 << exponent
        number += 1


def upload(client: WireClient, method: int, path: str, body: bytes, exponent: int) -> Message:
    """Give a body block by block; return the last answer."""
    size = 16 << exponent
    count = -(-len(body) // size)
    for number in range(count):
        more = number + 1 < count
        option = (BLOCK1, encode_uint(number << 4 | more << 3 | exponent))
        chunk = body[number * size : (number + 1) * size]
        exchange = client.request(method, path, [(CONTENT_FORMAT, TEXT), option], chunk)
        assert exchange.response.value(BLOCK1) == option[1]
        if more:
            piggybacked(exchange, "2.31")
    return exchange.response


@block("TD_COAP_BLOCK_01", "GET of a large resource, the client names the size first")
def block_01(client: WireClient, is_clear: bool) -> None:
    assert download(client, "large", 2) == LARGE


@block("TD_COAP_BLOCK_02", "GET of a large resource, the server names the size")
def block_02(client: WireClient, is_clear: bool) -> None:
    assert download(client, "large", None) == LARGE


@block("TD_COAP_BLOCK_03", "PUT of a large resource")
def block_03(client: WireClient, is_clear: bool) -> None:
    body = LARGE[::-1]
    assert upload(client, PUT, "large-update", body, 3).text == "2.04"
    assert download(client, "large-update", 6) == body


@block("TD_COAP_BLOCK_04", "a large resource is created")
def block_04(client: WireClient, is_clear: bool) -> None:
    assert upload(client, PUT, "large-create", LARGE, 4).text == "2.01"
    assert download(client, "large-create", 6) == LARGE


@block("TD_COAP_BLOCK_05", "POST in blocks both ways")
def block_05(client: WireClient, is_clear: bool) -> None:
    response = upload(client, POST, "large-post", LARGE, 5)
    body, number = response.payload, 0
    while (response.value(BLOCK2) or b"\0")[-1] & 8:
        exponent = (response.value(BLOCK2) or b"")[-1] & 7
        number += 1
        option = (BLOCK2, encode_uint(number << 4 | exponent))
        response = client.request(POST, "large-post", [(CONTENT_FORMAT, TEXT), option]).response
        assert response.text == "2.04"
        body += response.payload
    assert body == LARGE.upper()


@block("TD_COAP_BLOCK_06", "GET of a large resource in blocks of 16 bytes")
def block_06(client: WireClient, is_clear: bool) -> None:
    assert download(client, "seg1/seg2/seg3", 0) == b"three segments"
    client.request(PUT, "validate", payload=bytes(range(200)))
    assert download(client, "validate", 0) == bytes(range(200))


# ---------------------------------------------------------------------- observe


def begin(client: WireClient, path: str, token: bytes = b"obs", kind: int = CON) -> Message:
    """Begin to observe."""
    first = client.request(GET, path, [REGISTER], token=token, kind=kind).response
    assert first.text == "2.05"
    assert first.observed is not None
    return first


def is_newer(message: Message, before: Message) -> bool:
    """Whether one comes after the other: RFC 7641 section 3.4."""
    assert message.observed is not None
    assert before.observed is not None
    return 0 < (message.observed - before.observed & 0xFFFFFF) < 1 << 23


def change(client: WireClient, path: str, value: bytes) -> None:
    """Give a resource another state."""
    piggybacked(client.request(PUT, path, payload=value), "2.04")


@observe("TD_COAP_OBS_01", "notifications in CON, with the token, numbers that grow, and the format of the first")
def obs_01(client: WireClient, is_clear: bool) -> None:
    before = begin(client, "obs")
    for value in (b"1", b"2", b"3"):
        change(client, "obs", value)
        told = client.notification(b"obs", value)
        assert (told.kind, told.text, told.value(CONTENT_FORMAT)) == (CON, "2.05", before.value(CONTENT_FORMAT))
        assert is_newer(told, before)
        before = told


@observe("TD_COAP_OBS_02", "notifications in NON to who asked in NON")
def obs_02(client: WireClient, is_clear: bool) -> None:
    before = begin(client, "obs", kind=NON)
    told = before
    for number in range(12):  # a NON that is lost is lost: the next state tells
        value = b"state %d" % number
        change(client, "obs", value)
        for told in client.silence(0.2 if is_clear else 3.2):
            assert told.kind == NON
        if told.payload == value:
            assert is_newer(told, before)
            return
    raise AssertionError("no notification got through")


@observe("TD_COAP_OBS_03", "GET with Observe 1 ends it")
def obs_03(client: WireClient, is_clear: bool) -> None:
    begin(client, "obs")
    response = client.request(GET, "obs", [DEREGISTER], token=b"obs").response
    assert (response.text, response.observed) == ("2.05", None)
    client.silence(0.3)
    change(client, "obs", b"1")
    assert client.silence(1.0) == []


@observe("TD_COAP_OBS_04", "Max-Age: the state is told again before it grows old")
def obs_04(client: WireClient, is_clear: bool) -> None:
    before = begin(client, "obs-age")
    assert before.value(MAX_AGE) == b"\x05"
    told = client.notification(b"obs")
    assert told.payload == before.payload
    assert is_newer(told, before)


@observe("TD_COAP_OBS_06", "an RST ends it")
def obs_06(client: WireClient, is_clear: bool) -> None:
    begin(client, "obs")
    change(client, "obs", b"1")
    client.notification(b"obs", b"1")
    client.forget(b"obs")
    change(client, "obs", b"2")
    client.silence(0.5 if is_clear else 8.0)  # until an RST got through
    change(client, "obs", b"3")
    client.forget(b"")
    assert client.silence(0.5) == []


@observe("TD_COAP_OBS_07", "DELETE of what is observed: 4.04, and the end")
def obs_07(client: WireClient, is_clear: bool) -> None:
    begin(client, "obs")
    piggybacked(client.request(DELETE, "obs"), "2.02")
    while True:
        told = client.notification(b"obs")
        if told.text == "4.04":
            break
    assert told.observed is None
    client.silence(0.3)
    assert client.request(PUT, "obs", payload=b"again").response.text == "2.01"
    assert client.silence(1.0) == []


@observe("TD_COAP_OBS_08", "another Content-Format: 4.06, and the end")
def obs_08(client: WireClient, is_clear: bool) -> None:
    begin(client, "obs")
    response = client.request(PUT, "obs", [(CONTENT_FORMAT, encode_uint(50))], b"{}").response
    assert response.text == "2.04"
    told = client.notification(b"obs")
    assert (told.text, told.observed) == ("4.06", None)
    client.silence(0.3)
    change(client, "obs", b"1")
    assert client.silence(1.0) == []


@observe("TD_COAP_OBS_09", "a PUT to what is observed is told")
def obs_09(client: WireClient, is_clear: bool) -> None:
    before = begin(client, "obs")
    change(client, "obs", b"by another")
    told = client.notification(b"obs", b"by another")
    assert is_newer(told, before)


@observe("TD_COAP_OBS_10", "a GET without Observe ends nothing")
def obs_10(client: WireClient, is_clear: bool) -> None:
    begin(client, "obs")
    response = client.request(GET, "obs").response
    assert (response.text, response.observed) == ("2.05", None)
    change(client, "obs", b"1")
    client.notification(b"obs", b"1")
