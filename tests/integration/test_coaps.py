"""CoAP over DTLS as devices meet it: keys, restarts, reboots, and what ends an association."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from coapgw.coap.codec import CHANGED
from coapgw.dtls.openssl import SUITES
from tests.integration.gateway_process import GatewayProcess, Subscriber, coapgw, until
from tests.integration.secure_device import SecureDevice

ICCID, OTHER = "8988280666000000017", "8988280666000000025"
KEY = "q8Yt2LmZ0aXw4RbK"
CBC = "PSK-AES128-CBC-SHA256"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with two devices that have keys and no address."""
    directory = tmp_path / "data"
    for iccid in (ICCID, OTHER):
        coapgw(directory, "device", "add", iccid)
        coapgw(directory, "device", "psk", iccid, "--set", KEY)
    return directory


@pytest.fixture
def gateway(data: Path) -> Iterator[GatewayProcess]:
    """A running gateway."""
    process = GatewayProcess(data).start()
    yield process
    process.stop()
    log = process.log.read_text()
    assert "Traceback" not in log
    assert KEY not in log


def changed(answer: bytes | None) -> bool:
    return answer is not None and answer[1] == CHANGED


def test_every_suite_carries_messages_to_mqtt(gateway: GatewayProcess) -> None:
    subscriber = Subscriber(gateway.mqtt)
    for suite in SUITES:
        with SecureDevice(gateway.coaps, ICCID, KEY, (suite,)) as device:
            assert device.connect(), suite
            assert device.engine.suite == suite
            for number in range(3):
                assert changed(device.post(f"{suite} {number}".encode(), b"t=dtls")), suite
    until(lambda: len(subscriber.documents()) == 3 * len(SUITES))
    subscriber.close()
    documents = subscriber.documents()
    values = [base64.b64decode(document["payload"]["value"]).decode() for document in documents]
    assert values == [f"{suite} {number}" for suite in SUITES for number in range(3)]
    assert {document["device"]["iccid"] for document in documents} == {ICCID}
    assert {topic for topic, _ in subscriber.received} == {f"{ICCID}/dtls", "lifecycle"}


@pytest.mark.parametrize(
    ("identity", "key"), [(ICCID, "another key 1234"), ("8988280666000000033", KEY), ("nobody", KEY)]
)
def test_nobody_gets_in_without_the_key(gateway: GatewayProcess, identity: str, key: str) -> None:
    with SecureDevice(gateway.coaps, identity, key) as device:
        assert not device.connect(1.5)


def test_an_inactive_device_does_not_get_in(gateway: GatewayProcess, data: Path) -> None:
    coapgw(data, "device", "set", ICCID, "--status", "INACTIVE")
    until(lambda: not _gets_in(gateway, ICCID))
    assert _gets_in(gateway, OTHER)


def _gets_in(gateway: GatewayProcess, iccid: str) -> bool:
    with SecureDevice(gateway.coaps, iccid, KEY) as device:
        return device.connect(1.0)


@pytest.mark.parametrize(
    "change",
    [
        ("device", "set", ICCID, "--status", "INACTIVE"),
        ("device", "remove", ICCID),
        ("device", "psk", ICCID, "--set", "another key 1234"),
        ("device", "psk", ICCID, "--rotate"),
    ],
)
@pytest.mark.parametrize("suite", ["PSK-AES128-CCM8", CBC])
def test_an_association_ends_when_its_device_may_no_longer_use_it(
    gateway: GatewayProcess, data: Path, suite: str, change: tuple[str, ...]
) -> None:
    with SecureDevice(gateway.coaps, ICCID, KEY, (suite,)) as device, SecureDevice(gateway.coaps, OTHER, KEY) as other:
        assert device.connect()
        assert other.connect()
        assert changed(device.post(b"before"))
        coapgw(data, *change)
        device.take(2.0)
        assert device.is_closed
        assert changed(other.post(b"not concerned"))


def test_aead_associations_survive_a_planned_restart(gateway: GatewayProcess, data: Path) -> None:
    with SecureDevice(gateway.coaps, ICCID, KEY) as device, SecureDevice(gateway.coaps, OTHER, KEY, (CBC,)) as cbc:
        assert device.connect()
        assert cbc.connect()
        before = device.engine.seal(b"\x40\x02\x00\x01\xffreplayed later")
        device.send(before)
        until(lambda: changed(device.take(0.5)))
        gateway.stop()
        cbc.take(2.0)
        assert cbc.is_closed
        assert {path.name for path in data.glob("associations*")} == {"associations", "associations.key"}
        assert KEY.encode() not in (data / "associations").read_bytes()
        gateway.start()
        assert not list(data.glob("associations*"))
        assert changed(device.post(b"after"))
        device.send(before)
        assert device.take(0.3) is None
        gateway.stop()
        gateway.start()
        assert changed(device.post(b"after the second"))


def test_a_restart_after_a_crash_knows_no_association(gateway: GatewayProcess, data: Path) -> None:
    with SecureDevice(gateway.coaps, ICCID, KEY) as device:
        assert device.connect()
        gateway.stop()
        gateway.start()
        assert changed(device.post(b"goes on"))
        gateway.kill()
        gateway.start()
        assert device.post(b"into the dark", seconds=0.5) is None
    assert _gets_in(gateway, ICCID)


def test_a_key_that_changed_between_stop_and_start_ends_the_association(gateway: GatewayProcess, data: Path) -> None:
    with SecureDevice(gateway.coaps, ICCID, KEY) as device:
        assert device.connect()
        gateway.stop()
        coapgw(data, "device", "psk", ICCID, "--set", "another key 1234")
        gateway.start()
        assert device.post(b"too late", seconds=0.5) is None


def test_a_device_that_rebooted_is_a_new_endpoint_on_the_same_port(gateway: GatewayProcess) -> None:
    with SecureDevice(gateway.coaps, ICCID, KEY) as device:
        assert device.connect()
        port = device.port
        assert changed(device.request(b"\x40\x02\x12\x34\xffone"))
    subscriber = Subscriber(gateway.mqtt)
    with SecureDevice(gateway.coaps, ICCID, KEY, port=port) as device:
        assert device.connect()
        assert changed(device.request(b"\x40\x02\x12\x34\xfftwo"))  # the same Message ID, and no repeat
    until(lambda: len(subscriber.documents()) == 1)
    subscriber.close()


def test_a_fifth_association_of_a_device_ends_the_one_heard_least_recently(gateway: GatewayProcess) -> None:
    devices = [SecureDevice(gateway.coaps, ICCID, KEY) for _ in range(5)]
    for device in devices:
        assert device.connect()
        assert changed(device.post(b"x"))
    devices[0].take(1.0)
    assert [device.is_closed for device in devices] == [True, False, False, False, False]
    for device in devices:
        device.close()
