"""service.py in this process: start, stop, start again, and what happens when the machine will not let it."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.error import CannotListenError
from twisted.logger import capturedLogs
from txthings import resource

from coapgw.config import load
from coapgw.errors import ConfigurationInvalid, StorageError
from coapgw.service import Gateway, makeGateway
from tests.integration.gateway_process import Device, coapgw
from tests.unit.coap_wire import datagram, option

ANY = [f"{key}=['127.0.0.1:0']" for key in ("coap.listen", "coaps.listen", "mqtt.embedded.listen")] + [
    "http.listen=127.0.0.1:0"
]


class Reactor(EPollReactor):
    """A reactor that is iterated by hand."""

    def until(self, holds: Callable[[], object], seconds: float = 10.0) -> None:
        deadline = self.seconds() + seconds
        while not holds():
            assert self.seconds() < deadline, "nothing happened in time"
            self.iterate(0.02)

    def result(self, deferred: Deferred[Any]) -> object:
        fired: list[object] = []
        deferred.addBoth(fired.append)
        self.until(lambda: fired)
        return fired[0]


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    made = Reactor()
    made.startRunning(installSignalHandlers=False)  # callWhenRunning calls at once
    yield made
    for call in made.getDelayedCalls():
        call.cancel()
    made.fireSystemEvent("shutdown")
    made.disconnectAll()
    for reader in [*made._internalReaders]:
        reader.connectionLost(None)
    made._poller.close()


def _gateway(reactor: Reactor, data: Path, *settings: str) -> Gateway:
    return makeGateway(load(None, [*ANY, *settings], data), reactor)


def _post(reactor: Reactor, gateway: Gateway, options: bytes = b"") -> bytes:
    with Device("127.0.0.1", ("127.0.0.1", gateway.ports["coap"][0])) as device:
        device._socket.send(datagram(options=options, payload=b"x"))
        device._socket.setblocking(False)
        got: list[bytes] = []

        def arrived() -> bool:
            try:
                got.append(device._socket.recv(2048))
            except BlockingIOError:
                return False
            return True

        reactor.until(arrived)
        return got[0]


def test_it_starts_stops_and_starts_again(reactor: Reactor, tmp_path: Path) -> None:
    coapgw(tmp_path, "device", "add", "8988280666000000017", "--ip", "127.0.0.1")
    gateway = _gateway(reactor, tmp_path)
    for _ in range(2):
        gateway.startService()
        reactor.until((tmp_path / "ports.json").exists)
        assert json.loads((tmp_path / "ports.json").read_text()) == gateway.ports
        assert _post(reactor, gateway)[1] == 0x44
        assert reactor.result(gateway.stopService()) is None
        assert not (tmp_path / "ports.json").exists()
        assert list(gateway) == []  # nothing of this life looks at the registry in the next


class Broken(resource.CoAPResource):  # type: ignore[misc] # txThings has no types
    """A mounted resource with a mistake in it."""

    def render_POST(self, request: object) -> object:
        raise ZeroDivisionError


def test_failures_of_mounted_resources_are_among_the_metrics(reactor: Reactor, tmp_path: Path) -> None:
    coapgw(tmp_path, "device", "add", "8988280666000000017", "--ip", "127.0.0.1")
    gateway = makeGateway(load(None, ANY, tmp_path), reactor, mount={"broken": Broken()})
    gateway.startService()
    reactor.until((tmp_path / "ports.json").exists)
    with capturedLogs():
        assert _post(reactor, gateway, option(11, b"broken"))[1] == 0xA0
    assert b"coapgw_coap_failed_requests_total 1" in gateway._metrics_page()()
    assert reactor.result(gateway.stopService()) is None


def test_stopping_twice_or_before_the_start_does_no_harm(reactor: Reactor, tmp_path: Path) -> None:
    gateway = _gateway(reactor, tmp_path)
    assert reactor.result(gateway.stopService()) is None
    gateway.startService()
    assert reactor.result(gateway.stopService()) is None
    assert reactor.result(gateway.stopService()) is None


@pytest.mark.parametrize("kind", ["coap", "mqtt.embedded", "http"])
def test_an_address_in_use_leaves_nothing_open(reactor: Reactor, tmp_path: Path, kind: str) -> None:
    family = socket.SOCK_DGRAM if kind == "coap" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, family) as taken:
        taken.bind(("127.0.0.1", 0))
        if kind != "coap":
            taken.listen()
        number = taken.getsockname()[1]
        addresses = f"127.0.0.1:{number}" if kind == "http" else f"['127.0.0.1:0', '127.0.0.1:{number}']"
        gateway = _gateway(reactor, tmp_path, f"{kind}.listen={addresses}")
        with pytest.raises(CannotListenError):
            gateway.startService()
        assert not gateway.running
        assert reactor.result(gateway.stopService()) is None
    second = _gateway(reactor, tmp_path)
    reactor.until(lambda: _starts(second))  # the writer's thread lets go of the lock when its file is closed
    assert reactor.result(second.stopService()) is None


def _starts(gateway: Gateway) -> bool:
    try:
        gateway.startService()
    except StorageError:
        return False
    return True


def test_a_data_directory_that_cannot_be_is_a_sentence(reactor: Reactor, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be used"):
        _gateway(reactor, tmp_path / "file" / "data").startService()


@pytest.mark.parametrize(
    "setting",
    [
        "mqtt.embedded.engine=amqtt",
        "mqtt.embedded.users=[{name='a', password='$7$no$hash'}]",
    ],
)
def test_what_this_version_cannot_do_is_refused_before_the_start(
    reactor: Reactor, tmp_path: Path, setting: str
) -> None:
    with pytest.raises(ConfigurationInvalid, match=r"mqtt\.embedded"):
        _gateway(reactor, tmp_path, setting)


def test_a_bridge_needs_files_that_can_be_used(reactor: Reactor, tmp_path: Path) -> None:
    settings = ("mqtt.mode=bridge", "mqtt.bridge.url=mqtts://u@broker")
    with pytest.raises(ConfigurationInvalid, match="pem cannot be read"):
        _gateway(reactor, tmp_path, *settings, f"mqtt.bridge.ca_file={tmp_path}/missing.pem")
    (tmp_path / "empty").touch()
    with pytest.raises(ConfigurationInvalid, match="is no password"):
        _gateway(reactor, tmp_path, *settings, f"mqtt.bridge.password_file={tmp_path}/empty")
