"""``make soak``: hours of ordinary trouble at half of what the gateway can: is memory flat, and is anything missing?

Rounds of a minute: load over UDP with repeated datagrams, devices over DTLS behind a way that loses every tenth
datagram, devices that come and go, keys that change, and in every third round a broker that is restarted.  After a
round everything that got a 2.04 has to arrive; then the gateway's memory is looked at.

Exit status 1 if a message is missing, if the log has a traceback, or if memory grew by more than a tenth after half of
the time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import attrs
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from tests.integration.gateway_process import ROOT, GatewayProcess, coapgw, until
from tests.integration.mosquitto import Mosquitto
from tests.integration.secure_device import SecureDevice
from tests.interop.relay import Link, Relay

COAPLOAD = ROOT / "bench" / "build" / "coapload"
DEVICES = 64
SECURE = 4
SECRET = "soaking wet"
LASTING = ("allow_anonymous true", "persistence true", "autosave_interval 1")
LOSSY = Link(loss=0.1)
PATIENCE = 60.0
GROWTH = 1.1


@attrs.frozen
class Round:
    """What a round came to."""

    acknowledged: int
    missing: int
    repeats: int
    resident_mib: float
    p99_ms: float


class Reader:
    """A persistent MQTT client that keeps the ids of a round."""

    def __init__(self, port: int) -> None:
        self.plain: set[bytes] = set()
        self.secure: set[bytes] = set()
        self.repeats = 0
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="reader", clean_session=False)
        self._client.on_connect = lambda client, *_: client.subscribe("#", 1)
        self._client.on_message = self._take
        self._client.reconnect_delay_set(1, 1)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def _take(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        if message.topic == "lifecycle":
            return
        begin = message.payload.index(b'"id":"') + 6
        name = bytes(message.payload[begin : begin + 35])
        ids = self.plain if message.topic.endswith("/bench/topic") else self.secure
        self.repeats += name in ids
        ids.add(name)

    def begin(self) -> None:
        """Begin another round."""
        self.plain, self.secure = set(), set()
        self.repeats = 0

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()


class Soak:
    """A gateway, its bridge to a broker, and everybody around them."""

    def __init__(self, place: Path, rate: int, stack: ExitStack) -> None:
        self._rate = rate
        self._place = place
        self.broker = Mosquitto(place / "mosquitto", *LASTING).start()
        stack.callback(self.broker.stop)
        data = place / "data"
        listed = subprocess.run(
            [COAPLOAD, "-n", str(DEVICES), "-b", "127.0.0.0/8", "--list"], check=True, capture_output=True, text=True
        )
        addresses = [line.split(",")[1] for line in listed.stdout.splitlines()]
        rows = [f"{iccid(number)},{ip}" for number, ip in enumerate(addresses)]
        rows += [f"{iccid(1000 + number)}," for number in range(SECURE)]
        (place / "devices.csv").write_text("\n".join(["iccid,ip", *rows]) + "\n")
        coapgw(data, "device", "import", str(place / "devices.csv"))
        for number in range(SECURE):
            coapgw(data, "device", "psk", iccid(1000 + number), "--set", SECRET)
        settings = ("mqtt.mode=bridge", f"mqtt.bridge.url=mqtt://127.0.0.1:{self.broker.port}")
        self.gateway = GatewayProcess(data, *settings).start()
        stack.callback(self.gateway.stop)
        until(lambda: "is connected to" in self.gateway.log.read_text())
        self.reader = Reader(self.broker.port)
        stack.callback(self.reader.close)

    def round(self, number: int, seconds: float) -> Round:
        """Return what came of a minute, or so many *seconds*."""
        self.reader.begin()
        command = [str(COAPLOAD), "-p", str(self.gateway.coap[1]), "-n", str(DEVICES), "-b", "127.0.0.0/8", "-W", "16"]
        command += ["-w", "0", "-r", str(self._rate), "-t", str(seconds), "-D", "5", "-S", "--json"]
        load = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._answered = [0] * SECURE
        with Relay(
            self.gateway.coaps, up=LOSSY, down=LOSSY, seed=number
        ) as relay:  # it keeps what each client has been
            about = [(relay.address, one, seconds) for one in range(SECURE)]
            senders = [threading.Thread(target=self._send_secure, args=one) for one in about]
            for thread in senders:
                thread.start()
            self._churn(number, seconds)
            for thread in senders:
                thread.join()
        figures = json.loads(load.communicate()[0])
        plain, secure = figures["ok"], sum(self._answered)
        deadline = time.monotonic() + PATIENCE
        while self._missing(plain, secure) and time.monotonic() < deadline:
            time.sleep(0.1)
        missing = self._missing(plain, secure)
        return Round(plain + secure, missing, self.reader.repeats, self._resident(), figures["p99_us"] / 1000)

    def _missing(self, plain: int, secure: int) -> int:
        return max(0, plain - len(self.reader.plain)) + max(0, secure - len(self.reader.secure))

    def _churn(self, number: int, seconds: float) -> None:
        """Have devices come and go; restart the broker in every third round."""
        data = self.gateway.data
        coapgw(data, "device", "add", iccid(100_000 + number), "--ip", f"10.9.{number >> 8 & 255}.{number & 255}")
        coapgw(data, "device", "psk", iccid(100_000 + number), "--rotate")
        if number:
            coapgw(data, "device", "remove", iccid(100_000 + number - 1))
        if number % 3 == 2:
            time.sleep(seconds / 3)
            self.broker.stop()
            time.sleep(1)
            self.broker.start()

    def _send_secure(self, relay: tuple[str, int], number: int, seconds: float) -> None:
        """Send over DTLS and a bad way until the round ends; a device that gets no answer makes a new association."""
        until_then = time.monotonic() + seconds
        while time.monotonic() < until_then:
            with SecureDevice(relay, iccid(1000 + number), SECRET.encode()) as device:
                if not device.connect(10):
                    continue
                for count in range(50):
                    answer = device.post(b"secure %d" % count, seconds=1)
                    if answer is None:
                        break
                    self._answered[number] += answer[1] == 0x44
                    time.sleep(0.02)

    def _resident(self) -> float:
        status = Path(f"/proc/{self.gateway.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    def tracebacks(self) -> int:
        """Return how often the gateway's log has one."""
        return self.gateway.log.read_text().count("Traceback")


def iccid(number: int) -> str:
    return f"8988280666{number:09}"


def rounds(soak: Soak, minutes: float, seconds: float) -> Iterator[Round]:
    """Yield rounds until the time is over."""
    until_then = time.monotonic() + 60 * minutes
    number = 0
    while time.monotonic() < until_then:
        yield soak.round(number, seconds)
        number += 1


def main() -> int:
    """Run, print, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=int, default=10_000, help="messages a second; default 10000")
    parser.add_argument("--round", type=float, default=60, dest="seconds", help="seconds; default 60")
    options = parser.parse_args()
    done: list[Round] = []
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coapgw-soak-")))
        soak = Soak(place, options.rate, stack)
        print("| round | got 2.04 | missing | repeats | memory MiB | p99 ms |")
        print("| ---: | ---: | ---: | ---: | ---: | ---: |")
        for one in rounds(soak, options.minutes, options.seconds):
            done.append(one)
            counts = f"{len(done)} | {one.acknowledged:,} | {one.missing} | {one.repeats}"
            print(f"| {counts} | {one.resident_mib:.0f} | {one.p99_ms:.1f} |", flush=True)
        tracebacks = soak.tracebacks()
    missing, third = sum(one.missing for one in done), max(1, len(done) // 3)
    middle = median(one.resident_mib for one in done[third : max(third + 1, len(done) - third)] or done)
    end = median(one.resident_mib for one in done[-third:])
    total = sum(one.acknowledged for one in done)
    print(f"\n{total:,} messages got a 2.04, {missing} of them are missing; {tracebacks} tracebacks;")
    print(f"memory in the middle {middle:.0f} MiB, at the end {end:.0f} MiB")
    return 1 if missing or tracebacks or end > GROWTH * middle else 0


if __name__ == "__main__":
    sys.exit(main())
