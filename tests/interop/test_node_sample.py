"""The published Node.js sample's flow, unchanged: bootstrap over plain CoAP, then messages over DTLS."""

from __future__ import annotations

import json

import pytest

from tests.integration.gateway_process import Subscriber, until
from tests.interop.clients.node import NodeCoapClient, run_script
from tests.interop.coaps_server import CoapsServer


@pytest.mark.parametrize("edition", ["1.0.9", "latest"])
def test_the_sample_bootstraps_and_posts(coaps: CoapsServer, edition: str) -> None:
    host, port = coaps.plain
    subscriber = Subscriber(coaps.mqtt)
    topic = f"sample/{edition.replace('.', '_')}"
    try:
        module = NodeCoapClient(edition).module
        bootstrap, *codes = run_script("sample.js", module, f"coap://{host}:{port}", topic, "one", "two")
        assert bootstrap == f"2.05 {coaps.identity},{coaps.key},coaps://{coaps.host}:{coaps.port}"
        assert codes == ["2.04", "2.04"]
        wanted = [(f"{coaps.identity}/{topic}", payload) for payload in ("b25l", "dHdv")]
        until(lambda: _uplinks(subscriber) == wanted, what=f"not published: {_uplinks(subscriber)}")
    finally:
        subscriber.close()


def _uplinks(subscriber: Subscriber) -> list[tuple[str, str]]:
    return [
        (topic, json.loads(payload)["payload"]["value"])
        for topic, payload in subscriber.received
        if b'"TELEMETRY_DATA"' in payload
    ]
