"""``make demo``: a gateway, a few devices that send to it over real sockets, and a live view of what reaches MQTT.

The gateway is a process of its own, started as an operator would.  The devices are CoAP clients on loopback addresses
of their own (127.1.0.1, 127.1.0.2, …), as SIMs on an operator's network have them.  Half of them have nothing but their
SIM: they ask ``/bootstrap`` for a key over plain CoAP and then send over DTLS; the others send over plain CoAP.
"""

from __future__ import annotations

import argparse
import base64
import csv
import itertools
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

import attrs
from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.python.failure import Failure

from coapgw.coap.codec import CHANGED, POST, URI_QUERY
from coapgw.coap.describe import code_text
from coapgw.coap.url import parse_url
from coapgw.errors import CoapgwError
from coapgw.net.bootstrap import BOOTSTRAP_PATH, Bootstrapped, bootstrap
from coapgw.net.client import Answer, CoapClient, PreSharedKey
from coapgw.net.mqtt_client import MqttSubscriber

DEVICES: Final = 4
START_SECONDS: Final = 30.0
SEND_SECONDS: Final = 1.0
ARRIVE_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 5.0
DEFAULT_PORTS: Final = {"coap": 5683, "coaps": 5684, "mqtt": 1883, "http": 8080}
DATAGRAM_PORTS: Final = ("coap", "coaps")
USED_PORTS: Final = ("coap", "coaps", "mqtt")
SENSORS: Final = (("temperature", 21.5, "C"), ("humidity", 48.0, "%"), ("battery", 3.71, "V"), ("level", 112.0, "cm"))


@attrs.frozen
class SimulatedDevice:
    """A SIM with a sensor.

    Args:
        address: its own on loopback.
        scheme: ``coaps`` if it bootstraps and sends over DTLS, else ``coap``.
    """

    iccid: str
    imsi: str
    address: str
    scheme: str
    sensor: str
    value: float
    unit: str


def devices() -> list[SimulatedDevice]:
    """Return the demo's devices."""
    return [
        SimulatedDevice(
            f"898828066600000{number:04}",
            f"90140510000{number:04}",
            f"127.1.0.{number}",
            "coaps" if number % 2 else "coap",
            *sensor,
        )
        for number, sensor in zip(range(1, DEVICES + 1), SENSORS, strict=True)
    ]


def is_free(kind: int, port: int) -> bool:
    """Return whether a *port* of this socket *kind* can be had on all addresses."""
    with socket.socket(socket.AF_INET, kind) as probe:
        if kind == socket.SOCK_STREAM:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True


def chosen_ports() -> dict[str, int]:
    """Return the usual ports where they are free, 0 (any) where something else has them."""

    def kind(name: str) -> int:
        return socket.SOCK_DGRAM if name in DATAGRAM_PORTS else socket.SOCK_STREAM

    return {name: port if is_free(kind(name), port) else 0 for name, port in DEFAULT_PORTS.items()}


class GatewayProcess:
    """``twistd -n coapgw`` with a data directory of its own, and its ports once it is ready."""

    def __init__(self, data: Path) -> None:
        """Register the devices, as an operator would, and start the gateway."""
        self._ports_file = data / "ports.json"
        self._log_path = data / "gateway.log"
        table = data / "devices.csv"
        with table.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("iccid", "imsi", "ip", "name"))
            writer.writerows((d.iccid, d.imsi, d.address, f"demo {d.sensor}") for d in devices())
        python = sys.executable
        subprocess.run(
            [python, "-m", "coapgw.cli.main", "--data", str(data), "device", "import", str(table)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        ports = chosen_ports()
        settings = [
            f'coap.listen=["127.0.0.1:{ports["coap"]}"]',
            f'coaps.listen=["127.0.0.1:{ports["coaps"]}"]',
            f'http.listen="127.0.0.1:{ports["http"]}"',
            f'mqtt.embedded.listen=["127.0.0.1:{ports["mqtt"]}"]',
            'http.listen="127.0.0.1:0"',
        ]
        self._log: IO[bytes] = self._log_path.open("wb")
        self.process = subprocess.Popen(
            self._command(python, data, settings),
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the demo, which stops the gateway in order
        )

    @staticmethod
    def _command(python: str, data: Path, settings: Sequence[str]) -> list[str]:
        twistd = [python, "-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile=", "coapgw"]
        return [*twistd, "--data", str(data), *(f"--set={setting}" for setting in settings)]

    def ports(self) -> dict[str, int] | None:
        """Return the ports once the gateway is ready.  Raises RuntimeError if it ended."""
        if self.process.poll() is not None:
            raise RuntimeError(f"the gateway did not start:\n{self._log_path.read_text(errors='replace')}")
        try:
            listening = json.loads(self._ports_file.read_text())
        except (OSError, ValueError):
            return None
        return {name: int(listening[name][0]) for name in USED_PORTS}

    def stop(self) -> None:
        """End the gateway in order."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._log.close()


class Demo:
    """The devices, the view, and what is counted.

    Args:
        say: takes a line for the person who watches.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        """Begin with nothing sent."""
        self.say = say
        self.acknowledged: set[tuple[str, bytes]] = set()
        self.arrived: set[tuple[str, bytes]] = set()
        self.refused = 0
        self.waiting = 0  # for an answer
        self._schemes = {device.iccid: device.scheme for device in devices()}
        self._random = random.Random()
        self._numbers = itertools.count(1)

    @inlineCallbacks
    def connect(
        self, device: SimulatedDevice, reactor: Any, ports: dict[str, int]
    ) -> Generator[Deferred[Any], Any, CoapClient]:
        """Return a device's client, ready to send.  Fails with CoapgwError."""
        plain = CoapClient(reactor, parse_url(f"coap://127.0.0.1:{ports['coap']}{BOOTSTRAP_PATH}"), bind=device.address)
        if device.scheme == "coap":
            yield plain.connect()
            return plain
        found: Bootstrapped = yield bootstrap(plain, ANSWER_SECONDS)
        self.say(f"coap  {device.address} -> 2.05  GET {BOOTSTRAP_PATH}  a key, to be used at {found.gateway}")
        psk = PreSharedKey(found.identity, found.secret)
        secure = CoapClient(reactor, found.gateway, psk=psk, bind=device.address, handshake_seconds=ANSWER_SECONDS)
        yield secure.connect()
        self.say(f"coaps {device.address} -> DTLS handshake, {secure.suite}")
        return secure

    @inlineCallbacks
    def send(self, client: CoapClient, device: SimulatedDevice) -> Generator[Deferred[Any], Any, None]:
        """Have a device send a reading."""
        reading = round(device.value + self._random.uniform(-0.5, 0.5), 2)
        payload = f"{reading} {device.unit} #{next(self._numbers)}".encode()
        query = (URI_QUERY, f"t={device.sensor}".encode())
        where = f"{device.scheme:5} {device.address}"
        self.waiting += 1
        try:
            answer: Answer = yield client.request(POST, (query,), payload, timeout=ANSWER_SECONDS)
        except CoapgwError as error:
            self.refused += 1
            self.say(f"{where} -> {error}")
            return
        finally:
            self.waiting -= 1
        if answer.response.code == CHANGED:
            self.acknowledged.add((device.iccid, payload))
            self.say(f"{where} -> 2.04  POST /?t={device.sensor}  {payload.decode()}")
        else:
            self.refused += 1
            self.say(f"{where} -> {code_text(answer.response.code)}")

    def arrive(self, topic: bytes, payload: bytes) -> None:
        """Take a message from MQTT."""
        self.say(f"mqtt  {topic.decode()}  {payload.decode()}")
        message = json.loads(payload)
        if message["type"] == "TELEMETRY_DATA":
            self.arrived.add((message["device"]["iccid"], base64.b64decode(message["payload"]["value"])))

    @property
    def missing(self) -> int:
        """How many acknowledged messages have not arrived."""
        return len(self.acknowledged - self.arrived)

    def arrived_over(self, scheme: str) -> int:
        """Return how many messages arrived that were sent over *scheme*."""
        return sum(self._schemes.get(iccid) == scheme for iccid, _ in self.arrived)

    def verdict(self) -> tuple[str, int]:
        """Return the closing line and the exit status: 0 only if messages arrived by both ways and none is missing."""
        secure, plain = self.arrived_over("coaps"), self.arrived_over("coap")
        line = (
            f"{len(self.acknowledged)} messages acknowledged with 2.04, {len(self.arrived)} of them seen on MQTT "
            f"({secure} came over DTLS, {plain} over plain CoAP), "
            f"{self.missing} missing, {self.refused} without a 2.04"
        )
        return line, 0 if secure and plain and not self.missing else 1


@inlineCallbacks
def run(
    reactor: Any, gateway: GatewayProcess, demo: Demo, seconds: float | None, stop: Deferred[None]
) -> Generator[Deferred[Any], Any, None]:
    """Wait for the gateway, watch MQTT, have the devices send, until *seconds* are over or *stop* fires."""
    deadline = reactor.seconds() + START_SECONDS
    while (ports := gateway.ports()) is None:
        if reactor.seconds() > deadline:
            raise TimeoutError(f"the gateway was not ready after {START_SECONDS:.0f} s")
        yield deferLater(reactor, 0.1)
    places = ", ".join(f"{name} on 127.0.0.1:{port}" for name, port in ports.items())
    demo.say(f"the gateway is ready: {places}")
    subscribed: Deferred[None] = Deferred()
    subscriber = MqttSubscriber(
        reactor, "127.0.0.1", ports["mqtt"], [(b"#", 1)], demo.arrive, on_subscribed=partial(_fire, subscribed)
    )
    subscriber.start()
    yield subscribed
    if seconds is not None:
        reactor.callLater(seconds, _fire, stop)
    clients: list[CoapClient] = []
    senders: list[LoopingCall] = []
    for device in devices():
        if stop.called:
            break
        client: CoapClient = yield demo.connect(device, reactor, ports)
        clients.append(client)
        senders.append(LoopingCall(demo.send, client, device))
        senders[-1].start(SEND_SECONDS)
        yield deferLater(reactor, SEND_SECONDS / DEVICES)
    yield stop
    for sender in senders:
        sender.stop()
    deadline = reactor.seconds() + ARRIVE_SECONDS
    while (demo.missing or demo.waiting) and reactor.seconds() < deadline:
        yield deferLater(reactor, 0.1)
    for client in clients:
        yield client.close()
    yield maybeDeferred(subscriber.stop)


def _fire(waiting: Deferred[None]) -> None:
    """Fire a Deferred that may have fired."""
    if not waiting.called:
        waiting.callback(None)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit status."""
    parser = argparse.ArgumentParser(prog="coapgw demo", description="A gateway, a few devices, and a view of MQTT.")
    parser.add_argument("--seconds", type=float, default=None, help="end by itself; without it Ctrl-C ends the demo")
    arguments = parser.parse_args(argv)
    from twisted.internet import reactor as installed

    reactor: Any = installed  # no interface has all of what a reactor can do
    data = Path(tempfile.mkdtemp(prefix="coapgw-demo-"))
    demo = Demo(lambda line: print(line, flush=True))
    stop: Deferred[None] = Deferred()
    failures: list[Failure] = []
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: reactor.callFromThread(_fire, stop))
    gateway = GatewayProcess(data)
    try:
        running = run(reactor, gateway, demo, arguments.seconds, stop)
        running.addErrback(failures.append)
        running.addBoth(lambda _: reactor.callLater(0, reactor.stop))
        reactor.run(installSignalHandlers=False)
    finally:
        gateway.stop()
        shutil.rmtree(data, ignore_errors=True)
    line, status = demo.verdict()
    print(line)
    if failures:
        print(f"the demo failed: {failures[0].getErrorMessage()}", file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
