"""``make chaos``: everything is killed, stalled and cut in seeded random order; what got a 2.04 has to arrive.

Exit status 1 if a message is missing, if a device's messages changed their order (apart from repeats), or if more than
one in a hundred was repeated.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs

from tests.chaos.link import Link
from tests.integration.gateway_process import Device, GatewayProcess, Subscriber, coapgw, until
from tests.integration.mosquitto import Mosquitto

DEVICES = 8
LASTING = ("allow_anonymous true", "persistence true", "autosave_interval 1")
SAVED_SECONDS = 1.5  # until mosquitto has on its disk what it has acknowledged: it does so once a second


@attrs.define
class Outcome:
    """What came of a run."""

    acknowledged: int = 0
    missing: int = 0
    arrived: int = 0
    repeated: int = 0
    out_of_order: int = 0
    events: Counter[str] = attrs.Factory(Counter)
    tracebacks: int = 0

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost, and no more than may be was repeated."""
        return not (self.missing or self.out_of_order or self.tracebacks) and self.repeated * 100 <= self.arrived

    def lines(self) -> Iterator[str]:
        """Yield the outcome for people."""
        share = 100 * self.repeated / self.arrived if self.arrived else 0
        yield ", ".join(f"{count} x {event}" for event, count in sorted(self.events.items()))
        yield f"{self.acknowledged} messages got a 2.04, {self.missing} of them are missing"
        yield f"{self.arrived} arrived, and {self.repeated} repeats ({share:.2f} %); {self.out_of_order} out of order"
        yield f"{self.tracebacks} tracebacks in the gateway's log"


class Fleet:
    """Devices that send numbered messages, one after the other, as fast as they are answered."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self.acknowledged: list[list[int]] = [[] for _ in range(DEVICES)]
        self._finished = threading.Event()
        self._gateway = gateway
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(DEVICES)]
        for thread in self._threads:
            thread.start()

    def _send(self, number: int) -> None:
        with Device(address(number), self._gateway.coap, timeout=0.3) as device:
            count = 0
            while not self._finished.is_set():
                answer = device.post(b"%d %d" % (number, count))
                if answer is not None and answer[1] == 0x44:
                    self.acknowledged[number].append(count)
                count += 1

    def stop(self) -> None:
        """Have them finish."""
        self._finished.set()
        for thread in self._threads:
            thread.join()


def iccid(number: int) -> str:
    return f"898828066600000{number:04}"


def address(number: int) -> str:
    return f"127.0.3.{number + 1}"


@contextmanager
def prepared(place: Path) -> Iterator[Path]:
    """Register the devices in a data directory."""
    table = place / "devices.csv"
    table.write_text("iccid,ip\n" + "".join(f"{iccid(n)},{address(n)}\n" for n in range(DEVICES)))
    coapgw(place / "data", "device", "import", str(table))
    yield place / "data"


class Run:
    """One gateway, its way out, and what happens to both."""

    def __init__(self, place: Path, mode: str, acknowledge: str, stack: ExitStack) -> None:
        data = stack.enter_context(prepared(place))
        settings = [f"uplink.acknowledge={acknowledge}"]
        self.broker: Mosquitto | None = None
        if mode == "bridge":
            self.broker = Mosquitto(place / "mosquitto", *LASTING).start()
            stack.callback(self.broker.stop)
            self.link = Link(self.broker.port)
            settings += ["mqtt.mode=bridge", f"mqtt.bridge.url=mqtt://127.0.0.1:{self.link.port}"]
            self.gateway = GatewayProcess(data, *settings).start()
            subscribed_at = self.broker.port
        else:
            self.gateway = GatewayProcess(data, *settings).start()
            self.link = Link(self.gateway.mqtt)
            subscribed_at = self.link.port
        stack.callback(self.link.close)
        stack.callback(self.gateway.stop)
        self.subscriber = Subscriber(subscribed_at, client_id="reader", clean=False)
        stack.callback(self.subscriber.close)
        self.outcome = Outcome()

    def chaos(self, seconds: float, chance: random.Random, calm: float) -> None:
        """Do something to somebody, again and again."""
        deeds: list[tuple[str, Callable[[random.Random], None]]] = [
            ("kill -9 of the gateway", self._kill_gateway),
            ("cut", self._cut),
            ("stall", self._stall),
            ("slow link", self._slow),
        ]
        if self.broker is not None:
            deeds.append(("kill -9 of the broker", self._kill_broker))
        until_then = time.monotonic() + seconds
        order: list[tuple[str, Callable[[random.Random], None]]] = []
        while time.monotonic() < until_then:
            time.sleep(calm + chance.uniform(0.1, 1.0))
            if not order:  # each before any again, so that a short run has them all
                order = chance.sample(deeds, len(deeds))
            name, deed = order.pop()
            deed(chance)
            self.outcome.events[name] += 1

    def _kill_gateway(self, chance: random.Random) -> None:
        self.gateway.kill()
        time.sleep(chance.uniform(0, 0.3))
        self.gateway.start()

    def _kill_broker(self, chance: random.Random) -> None:
        assert self.broker is not None
        self.link.is_stalled = True  # what mosquitto has acknowledged it may lose for a second: that is not our loss
        time.sleep(SAVED_SECONDS)
        self.broker.kill()
        self.link.cut()
        self.link.is_stalled = False
        time.sleep(chance.uniform(0, 0.5))
        self.broker.start()

    def _cut(self, chance: random.Random) -> None:
        self.link.cut()

    def _stall(self, chance: random.Random) -> None:
        self.link.is_stalled = True
        time.sleep(chance.uniform(0.1, 1.5))
        self.link.is_stalled = False

    def _slow(self, chance: random.Random) -> None:
        self.link.delay = chance.uniform(0.01, 0.2)
        time.sleep(chance.uniform(0.3, 1.0))
        self.link.delay = 0.0

    def conclude(self, acknowledged: list[list[int]], patience: float) -> Outcome:
        """Wait for what is on its way, and count."""
        wanted = {(number, count) for number, counts in enumerate(acknowledged) for count in counts}

        def rest() -> set[tuple[int, int]]:
            return wanted - set(self._arrived())

        deadline = time.monotonic() + patience
        while rest() and time.monotonic() < deadline:
            time.sleep(0.2)
        arrived = self._arrived()
        firsts = list(dict.fromkeys(arrived))
        newest: dict[int, int] = {}
        for number, count in firsts:
            self.outcome.out_of_order += newest.get(number, -1) >= count
            newest[number] = max(count, newest.get(number, -1))
        self.outcome.acknowledged = len(wanted)
        self.outcome.missing = len(rest())
        self.outcome.arrived = len(firsts)
        self.outcome.repeated = len(arrived) - len(firsts)
        self.outcome.tracebacks = self.gateway.log.read_text().count("Traceback")
        return self.outcome

    def _arrived(self) -> list[tuple[int, int]]:
        found = []
        for topic, data in list(self.subscriber.received):
            if topic == "lifecycle":
                continue
            payload = base64.b64decode(json.loads(data)["payload"]["value"])
            number, count = payload.split()
            found.append((int(number), int(count)))
        return found


def run(place: Path, mode: str, seconds: float, seed: int, acknowledge: str = "stored", calm: float = 0.0) -> Outcome:
    """Return what came of *seconds* of chaos; between two events there are *calm* seconds, and up to one more."""
    with ExitStack() as stack:
        one = Run(place, mode, acknowledge, stack)
        if one.broker is not None:
            until(lambda: "is connected to" in one.gateway.log.read_text(), 30)
        fleet = Fleet(one.gateway)
        try:
            one.chaos(seconds, random.Random(seed), calm)
        finally:
            fleet.stop()
        return one.conclude(fleet.acknowledged, 60)


def main() -> int:
    """Run, print, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120, help="of each mode; default 120")
    parser.add_argument("--calm", type=float, default=2, help="seconds between two events; default 2")
    parser.add_argument("--seed", type=int, default=None, help="default: another one each time, which is printed")
    parser.add_argument("--acknowledge", choices=("stored", "published"), default="stored")
    parser.add_argument("--modes", nargs="+", choices=("embedded", "bridge"), default=["embedded", "bridge"])
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    good = True
    for mode in options.modes:
        print(f"{mode}, {options.seconds:g} s, acknowledge {options.acknowledge}, --seed {seed}", flush=True)
        with tempfile.TemporaryDirectory(prefix="coapgw-chaos-") as place:
            outcome = run(Path(place), mode, options.seconds, seed, options.acknowledge, options.calm)
        good &= outcome.is_good
        print("\n".join(f"  {line}" for line in outcome.lines()), flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
