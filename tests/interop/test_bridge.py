"""The bridge to RabbitMQ and to NATS: what was acknowledged arrives, also when the broker was killed in between.

Debian's versions of both know MQTT 3.1.1 only, so that this is the way back from 5 as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.gateway_process import Device, GatewayProcess, Subscriber, coapgw, until
from tests.interop.brokers import ForeignBroker, Nats, RabbitMq

ICCID, ADDRESS = "8988280666000000017", "127.0.1.1"


@pytest.fixture(params=[Nats, RabbitMq], ids=["NATS", "RabbitMQ"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ForeignBroker]:
    """A running broker."""
    kind: type[ForeignBroker] = request.param
    running = kind(tmp_path / "broker")
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.fixture
def gateway(broker: ForeignBroker, tmp_path: Path) -> Iterator[GatewayProcess]:
    """A gateway that bridges to it."""
    coapgw(tmp_path / "data", "device", "add", ICCID, "--ip", ADDRESS)
    url = f"mqtt.bridge.url=mqtt://127.0.0.1:{broker.port}"
    running = GatewayProcess(tmp_path / "data", "mqtt.mode=bridge", url, "mqtt.payload=raw").start()
    yield running
    running.stop()
    assert "Traceback" not in running.log.read_text()


def test_nothing_is_lost(broker: ForeignBroker, gateway: GatewayProcess) -> None:
    subscriber = Subscriber(broker.port, [("#", 1)], client_id="reader", clean=False)
    acknowledged: list[bytes] = []
    with Device(ADDRESS, gateway.coap) as device:

        def send(count: int) -> None:
            for _ in range(count):
                payload = b"%d" % len(acknowledged)
                answer = device.post(payload)
                assert answer is not None
                acknowledged.append(payload)

        send(200)
        until(lambda: set(acknowledged) <= {payload for _, payload in subscriber.received}, 20)
        if isinstance(broker, Nats):  # RabbitMQ takes half a minute to come back
            broker.kill()
            send(200)
            broker.start()
        send(200)
    until(lambda: '"messages": 0' in coapgw(gateway.data, "--json", "spool", "status"), 40)
    until(lambda: set(acknowledged) <= {payload for _, payload in subscriber.received}, 40)
    numbers = [int(payload) for topic, payload in subscriber.received if topic == ICCID]
    assert list(dict.fromkeys(numbers)) == sorted(set(numbers))
    assert "(MQTT 3.1.1)" in gateway.log.read_text()
    subscriber.close()
