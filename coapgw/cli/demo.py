"""``make demo``: a gateway, a few devices that send to it over real sockets, and a live view of what reaches MQTT.

The gateway is a process of its own, started as an operator would.  The devices are CoAP clients on loopback addresses
of their own (127.1.0.1, 127.1.0.2, …), as SIMs on an operator's network have them.
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
import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from random import SystemRandom
from typing import IO, Any, Final

import attrs
from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.python.failure import Failure

from coapgw.coap.codec import CHANGED, POST, URI_QUERY
from coapgw.coap.messaging import MessageLayer
from coapgw.coap.outgoing import NoResponse, Response
from coapgw.coap.site import Branch, ResourceSite
from coapgw.net.mqtt_client import MqttSubscriber
from coapgw.net.udp import CoapPort

DEVICES: Final = 4
START_SECONDS: Final = 30.0
SEND_SECONDS: Final = 1.0
ARRIVE_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 5.0
DEFAULT_PORTS: Final = {"coap": 5683, "mqtt": 1883}
SENSORS: Final = (("temperature", 21.5, "C"), ("humidity", 48.0, "%"), ("battery", 3.71, "V"), ("level", 112.0, "cm"))


@attrs.frozen
class SimulatedDevice:
    """A SIM with a sensor: *address* is its own on loopback."""

    iccid: str
    imsi: str
    address: str
    sensor: str
    value: float
    unit: str


def devices() -> list[SimulatedDevice]:
    """Return the demo's devices."""
    return [
        SimulatedDevice(f"898828066600000{number:04}", f"90140510000{number:04}", f"127.1.0.{number}", *sensor)
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
    kinds = {"coap": socket.SOCK_DGRAM, "mqtt": socket.SOCK_STREAM}
    return {name: port if is_free(kinds[name], port) else 0 for name, port in DEFAULT_PORTS.items()}


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
        return {name: int(listening[name][0]) for name in DEFAULT_PORTS}

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
        self._random = random.Random()
        self._numbers = itertools.count(1)

    def send(self, layer: MessageLayer, device: SimulatedDevice, gateway: tuple[str, int]) -> None:
        """Have a device send a reading."""
        reading = round(device.value + self._random.uniform(-0.5, 0.5), 2)
        payload = f"{reading} {device.unit} #{next(self._numbers)}".encode()

        def concluded(outcome: Response | NoResponse) -> None:
            if isinstance(outcome, Response) and outcome.code == CHANGED:
                self.acknowledged.add((device.iccid, payload))
                self.say(f"coap  {device.address} -> 2.04  POST /?t={device.sensor}  {payload.decode()}")
            else:
                self.refused += 1
                self.say(f"coap  {device.address} -> {outcome}")

        query = (URI_QUERY, f"t={device.sensor}".encode())
        layer.request(
            gateway, POST, concluded, time.monotonic(), options=(query,), payload=payload, timeout=ANSWER_SECONDS
        )

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

    def verdict(self) -> tuple[str, int]:
        """Return the closing line and the exit status: 0 only if messages arrived and none is missing."""
        line = (
            f"{len(self.acknowledged)} messages acknowledged with 2.04, {len(self.arrived)} of them seen on MQTT, "
            f"{self.missing} missing, {self.refused} without a 2.04"
        )
        return line, 0 if self.arrived and not self.missing else 1


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
    demo.say(f"the gateway is ready: CoAP on 127.0.0.1:{ports['coap']}, MQTT on 127.0.0.1:{ports['mqtt']}")
    subscribed: Deferred[None] = Deferred()
    subscriber = MqttSubscriber(
        reactor, "127.0.0.1", ports["mqtt"], [(b"#", 1)], demo.arrive, on_subscribed=partial(_fire, subscribed)
    )
    subscriber.start()
    yield subscribed
    if seconds is not None:
        reactor.callLater(seconds, _fire, stop)
    sockets = [(device, _client_socket(device, reactor)) for device in devices()]
    senders = [LoopingCall(demo.send, port.layer, device, ("127.0.0.1", ports["coap"])) for device, port in sockets]
    for number, sender in enumerate(senders):
        yield deferLater(reactor, SEND_SECONDS / DEVICES * (number > 0))
        sender.start(SEND_SECONDS)
    yield stop
    for sender in senders:
        sender.stop()
    deadline = reactor.seconds() + ARRIVE_SECONDS
    while demo.missing and reactor.seconds() < deadline:
        yield deferLater(reactor, 0.1)
    yield maybeDeferred(subscriber.stop)
    for _, port in sockets:
        yield maybeDeferred(port.stopListening)


def _fire(waiting: Deferred[None]) -> None:
    """Fire a Deferred that may have fired."""
    if not waiting.called:
        waiting.callback(None)


def _client_socket(device: SimulatedDevice, reactor: Any) -> CoapPort:
    """Return a device's socket, on its own address."""

    def make(wake: Callable[[], None]) -> MessageLayer:
        return MessageLayer(ResourceSite(Branch()), Nobody(), SystemRandom(), wake=wake)

    port = CoapPort(0, device.address, make, reactor)
    port.startListening()
    return port


class Nobody:
    """A device serves nobody."""

    generation = 0

    def identify(self, address: object) -> object | None:
        """Know nobody."""
        return None


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
