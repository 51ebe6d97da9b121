"""The device's side of ``/bootstrap``: who am I, what is my key, and where do I go with it."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final

import attrs
from twisted.internet.defer import Deferred, inlineCallbacks

from coapgw.coap.codec import CONTENT, GET
from coapgw.coap.describe import code_text, printable_text
from coapgw.coap.url import Target, UrlRefused, parse_url
from coapgw.errors import PeerError
from coapgw.net.client import Answer, CoapClient

BOOTSTRAP_PATH: Final = "/bootstrap"


class BootstrapRefused(PeerError):
    """No identity and key came of it."""


@attrs.frozen
class Bootstrapped:
    """What ``/bootstrap`` says: ``iccid,psk,coaps-url``."""

    identity: bytes
    secret: bytes = attrs.field(repr=False)
    gateway: Target


@inlineCallbacks
def bootstrap(client: CoapClient, timeout: float) -> Generator[Deferred[Any], Any, Bootstrapped]:
    """Ask the client's target for identity, key and gateway; the client is closed afterwards.

    Fails with BootstrapRefused, NotReached, NoAnswer.

    Args:
        client: not connected yet.
        timeout: seconds.
    """
    try:
        yield client.connect()
        answer: Answer = yield client.request(GET, client.target.options, timeout=timeout)
    finally:
        yield client.close()
    code, payload = answer.response.code, answer.response.payload
    if code != CONTENT:
        said = printable_text(payload) if payload else None
        raise BootstrapRefused(f"the bootstrap answered {code_text(code)}" + (f": {said}" if said else ""))
    return parse_bootstrap(payload)


def parse_bootstrap(payload: bytes) -> Bootstrapped:
    """Take ``iccid,psk,coaps-url`` apart.

    Raises BootstrapRefused, whose sentence does not hold the answer: there may be a key in it.
    """
    identity, comma, rest = payload.strip().partition(b",")
    secret, second_comma, url = rest.rpartition(b",")  # a key that a person chose may have commas
    if not (identity and comma and secret and second_comma):
        raise BootstrapRefused("the bootstrap answered something else than iccid,psk,coaps-url")
    try:
        gateway = parse_url(url.decode())
    except (UnicodeDecodeError, UrlRefused):
        raise BootstrapRefused("the third field of the bootstrap's answer is no CoAP URL") from None
    return Bootstrapped(identity, secret, gateway)
