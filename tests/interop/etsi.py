"""Runs the cases of the ETSI CoAP test descriptions: over UDP and DTLS, on good ways and bad ones, all at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import attrs

from coapgw.model import Device, WrittenKey
from coapgw.storage.database import open_registry
from coapgw.storage.devices import DeviceRegistry
from coapgw.storage.keys import DeviceKeys
from coapgw.storage.sealing import open_seal
from tests.integration.gateway_process import ROOT, START_SECONDS, TWISTD, until
from tests.interop.relay import CLEAR, Link, Relay
from tests.interop.wire_client import PlainChannel, SecureChannel, WireClient

KEY = "q8Yt2LmZ0aXw4RbK"
TRANSPORTS = ("UDP", "DTLS")
LINKS = {
    "0 %": CLEAR,
    "10 %": Link(loss=0.1, duplication=0.1, reordering=0.1),
    "30 %": Link(loss=0.3, duplication=0.3, reordering=0.3),
}
AT_A_TIME = 96
TAC = """
from pathlib import Path
from twisted.application.service import Application
from coapgw.config import load
from coapgw.service import makeGateway
from tests.interop.etsi_resources import everything

settings = [f"{{key}}=['127.0.0.1:0']" for key in ("coap.listen", "coaps.listen", "mqtt.embedded.listen")]
settings += ["http.listen=127.0.0.1:0", *{settings!r}]
gateway = makeGateway(load(None, settings, Path({data!r})), mount=everything({rooms}))
application = Application("coapgw with the resources of a test description")
gateway.setServiceParent(application)
"""


@attrs.frozen
class Case:
    """One case of a test description.

    Args:
        run: takes a client, and whether its way loses nothing; raises AssertionError.
    """

    name: str
    title: str
    run: Callable[[WireClient, bool], None] = attrs.field(repr=False)


class Cases(list[Case]):
    """The cases of one chapter."""

    def __call__(self, name: str, title: str) -> Callable[[Callable[[WireClient, bool], None]], None]:
        """Add a function to them."""

        def add(function: Callable[[WireClient, bool], None]) -> None:
            self.append(Case(name, title, function))

        return add


@attrs.frozen
class EtsiServer:
    """A gateway with the resources of the descriptions; each client is a device with a room of its own."""

    coap: tuple[str, int]
    coaps: tuple[str, int]

    @staticmethod
    def iccid(room: int) -> str:
        """Return who a client in this room is."""
        return f"8988280666{room:09d}"

    @staticmethod
    def source(room: int) -> str:
        """Return from where it sends."""
        return f"127.7.{room // 250}.{room % 250 + 1}"


@contextmanager
def running_etsi_gateway(place: Path, rooms: int, *settings: str) -> Iterator[EtsiServer]:
    """Run a gateway that knows as many devices as it has *rooms*; asserts that its log is clean."""
    data = place / "data"
    data.mkdir(mode=0o700)
    registry = open_registry("", data)
    made = [Device(EtsiServer.iccid(room), ip=EtsiServer.source(room)) for room in range(rooms)]
    DeviceRegistry(registry, lambda: 0).import_all(made)
    keys = DeviceKeys(registry, open_seal(data, registry), lambda: 0)
    keys.set_all(WrittenKey(device.iccid, KEY) for device in made)
    registry.close()
    (place / "gateway.tac").write_text(TAC.format(settings=list(settings), data=str(data), rooms=rooms))
    log = place / "gateway.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*TWISTD, "-n", "--pidfile=", "-y", "gateway.tac"],
            cwd=place,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        until(lambda: (data / "ports.json").exists() or process.poll() is not None, START_SECONDS)
        assert process.poll() is None, log.read_text()
        ports = json.loads((data / "ports.json").read_text())
        yield EtsiServer(("127.0.0.1", ports["coap"][0]), ("127.0.0.1", ports["coaps"][0]))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    assert "Traceback" not in log.read_text(), log.read_text()


def converse(server: EtsiServer, case: Case, transport: str, link: str, room: int) -> None:
    """Run one case through a relay of its own; raises AssertionError."""
    seed = zlib.crc32(f"{case.name} {transport} {link}".encode())
    is_secure = transport == "DTLS"
    with Relay(server.coaps if is_secure else server.coap, seed=seed, source=server.source(room)) as relay:
        if is_secure:
            client = WireClient(SecureChannel(relay.address, server.iccid(room), KEY), str(room), seed)
        else:
            client = WireClient(PlainChannel(relay.address), str(room), seed)
        relay.become(LINKS[link])  # from here on: handshakes on bad ways have tests of their own
        try:
            case.run(client, link == "0 %")
        finally:
            client.close()


class Conversations:
    """All cases of a chapter on all ways, begun at once; a test waits for the one that it is about."""

    def __init__(self, server: EtsiServer, cases: Sequence[Case], first_room: int) -> None:
        self._threads = ThreadPoolExecutor(AT_A_TIME)
        self._ends: dict[tuple[str, str, str], Future[None]] = {}
        room = first_room
        for link in reversed(LINKS):  # what takes longest first
            for case in cases:
                for transport in TRANSPORTS:
                    end = self._threads.submit(converse, server, case, transport, link, room)
                    self._ends[case.name, transport, link] = end
                    room += 1

    def end(self, case: Case, transport: str, link: str) -> None:
        """Wait for the end of a conversation; raises what it ended with."""
        self._ends[case.name, transport, link].result(180)
