"""Measure Connection IDs: throughput and memory with and without, what forged records cost, bytes on the wire.

    make bench-cid BENCH=--help

Throughput and wire: a gateway process and ``cidload``, a load generator on pion.  Memory and forged records: the DTLS
front alone, in processes of its own, because the difference is smaller than what else a gateway does.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from coaps import KEY, NO_LIMITS, coaps_gateway
from report import BLOCK_CID, spread, table, write_block
from run import noise
from servers import BUILD, Running, Subscriber, pinned

from coapgw.dtls.admission import Admission, HandshakeLimits
from coapgw.dtls.association import AeadAssociation, CipherCache
from coapgw.dtls.cid import CidAssociation, ConnectionIds
from coapgw.dtls.front import Front
from coapgw.dtls.hello import Cookies
from coapgw.dtls.records import APPLICATION_DATA
from coapgw.dtls.suites import KeyBlock, suite_of
from coapgw.dtls.table import AssociationLimits, AssociationTable

CIDLOAD = BUILD / "cidload"
CID_BYTES = 6
FORGED = 10_000
PAYLOAD = bytes(64)
WAYS = {
    "no Connection IDs": -1,
    "Connection IDs to the gateway only": 0,
    "Connection IDs of 6 bytes both ways": 6,
}


def load(core: int, server: Running, cid: int, *options: str) -> dict[str, Any]:
    """Run cidload once and return what it says."""
    command: list[str | Path] = [
        CIDLOAD,
        "-p",
        str(server.coaps_port),
        "-k",
        KEY,
        "-cid",
        str(cid),
        "-server-pid",
        str(server.pid),
    ]
    done = subprocess.run(pinned(core, [*command, *options]), check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


class Bench:
    """The measurements, each giving lines of Markdown."""

    def __init__(self, server_core: int, load_core: int, seconds: float, repeat: int) -> None:
        """Measure for *seconds* a run."""
        self._server_core = server_core
        self._load_core = load_core
        self._seconds = seconds
        self._repeat = repeat
        self._runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        self.loops: list[float] = []

    def messages(self) -> list[str]:
        """Measure durable messages, delivered to one subscriber, the ways taking turns in changing order."""
        missing = dict.fromkeys(WAYS, 0)
        for turn in range(self._repeat):
            for way in list(WAYS)[:: 1 if turn % 2 else -1]:
                self.loops.append(noise(self._server_core))
                with coaps_gateway(self._server_core, 500, NO_LIMITS) as (server, place):
                    assert server.mqtt_port is not None
                    subscriber = Subscriber(server.mqtt_port, place, self._load_core)
                    run = load(self._load_core, server, WAYS[way], "-t", f"{self._seconds:g}")
                    subscriber.wait_for(run["ok"])
                    missing[way] += max(0, run["ok"] - subscriber.close()[1])
                    self._runs[way].append(run)
        rows = []
        plain = self._runs["no Connection IDs"]
        for way, runs in self._runs.items():
            figures = [spread([run[name] for run in runs]) for name in ("per_cpu_second", "req_per_s")]
            delays = [spread([run[name] for run in runs], digits=1) for name in ("p50_ms", "p99_ms")]
            shares = [run["per_cpu_second"] / other["per_cpu_second"] for run, other in zip(runs, plain, strict=True)]
            rows.append([way, *figures, spread(shares, digits=2), *delays, str(missing[way])])
        head = [
            "`PSK-AES128-CCM8`, 500 associations, one CON each outstanding",
            "per CPU second",
            "per second",
            "ratio, per CPU second, of the same turn",
            "p50 ms",
            "p99 ms",
            "missing",
        ]
        return ["### Throughput", "", *table(head, rows)]

    def wire(self) -> list[str]:
        """Measure bytes and datagrams of a handshake and of a message, as UDP payload."""
        rows = []
        for way, cid in WAYS.items():
            with coaps_gateway(self._server_core, 1, NO_LIMITS) as (server, _):
                run = load(self._load_core, server, cid, "-n", "1", "-t", "0")
            shaken = run["handshake_sent"] + run["handshake_received"]
            datagrams = f"{run['handshake_datagrams_out']} + {run['handshake_datagrams_in']}"
            message = f"{run['message_sent']} + {run['message_received']}"
            rows.append([way, f"{shaken}", datagrams, message])
        head = [
            "bytes of UDP payload, pion, `PSK-AES128-CCM8`",
            "handshake, bytes",
            "its datagrams, out + in",
            "64 bytes POSTed and 2.04, bytes out + in",
        ]
        text = (
            "A device that woke up behind a new address sends the message alone with a Connection ID, and without one "
            "the handshake before it."
        )
        return ["", "### On the wire", "", text, "", *table(head, rows)]

    def memory(self, count: int) -> list[str]:
        """Measure what an idle association costs the front, each kind in processes of its own, taking turns."""
        found: dict[str, list[float]] = {"plain": [], "cid": []}
        for _ in range(self._repeat):
            for kind, values in found.items():
                values.append(float(alone(self._server_core, "memory", kind, count)))
        plain, with_cid = (median(found[kind]) for kind in ("plain", "cid"))
        text = (
            f"{count:,} idle associations of the front: **{plain:,.0f} bytes each without, {with_cid:,.0f} with "
            f"Connection IDs of {CID_BYTES} bytes both ways: {with_cid - plain:,.0f} more** (resident memory)."
        )
        return ["", "### Memory", "", text]

    def forged(self) -> list[str]:
        """Measure what forged records cost, the kinds taking turns."""
        titles = {
            "plain": "from the address of an association",
            "cid": "with the Connection ID of an association, from other addresses",
            "unknown": "with a Connection ID that nobody has",
        }
        found: dict[str, list[float]] = {kind: [] for kind in titles}
        for _ in range(3 * self._repeat):
            for kind, values in found.items():
                values.append(float(alone(self._server_core, "forged", kind, FORGED)))
        plain = median(found["plain"])
        rows = [
            [title, spread(found[kind], digits=2), f"{median(found[kind]) / plain:.2f}"]
            for kind, title in titles.items()
        ]
        head = [f"{FORGED:,} forged records of {len(PAYLOAD)} bytes", "µs of CPU each", "ratio"]
        text = "Nothing was delivered or answered, and no address moved."
        return ["", "### Forged records", "", *table(head, rows), "", text]


def alone(core: int, *arguments: object) -> str:
    """Return what this program prints when it does one small thing."""
    command = [sys.executable, __file__, "--alone", *map(str, arguments)]
    return subprocess.run(pinned(core, command), check=True, stdout=subprocess.PIPE, text=True).stdout


def make_front(delivered: list[bytes]) -> tuple[Front, AssociationTable]:
    """Return a front that nobody has talked to."""
    table_ = AssociationTable(
        AssociationLimits(associations=1_000_000, per_device=1_000_000), lambda iccid, serial: True
    )

    def no_engine(aead: bool, cid: bytes | None) -> Any:
        raise AssertionError("no handshakes here")

    front = Front(
        *(table_, Admission(HandshakeLimits(), table_.counters), no_engine, Cookies(os.urandom), CipherCache()),
        deliver=lambda plaintext, association, now: delivered.append(plaintext),
        forgotten=lambda association: None,
        mtu=1280,
        connection_ids=ConnectionIds(CID_BYTES, 1, os.urandom),
    )
    return front, table_


def make_association(kind: str, number: int, ciphers: CipherCache, *, client: bool = False) -> AeadAssociation:
    """Return an association, or with *client* the other end of the same."""
    suite = suite_of("PSK-AES128-CCM8")
    assert suite is not None
    choose = random.Random(number)
    keys = KeyBlock(choose.randbytes(suite.block_bytes))
    address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 5684
    iccid = f"8988280666{number:09d}"
    about = (address, iccid, 1, suite, keys, 1, ciphers, client)
    ours, theirs = b"\1" + choose.randbytes(CID_BYTES - 1), choose.randbytes(CID_BYTES)
    if kind == "plain":
        return AeadAssociation(*about)
    return CidAssociation(*about, cid=theirs if client else ours, peer_cid=ours if client else theirs)


def measure_memory(kind: str, count: int) -> float:
    """Return bytes for each of *count* associations."""
    front, _ = make_front([])
    ciphers = CipherCache()

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    for number in range(1000):
        front.restore(make_association(kind, number, ciphers))
    before = resident()
    for number in range(1000, 1000 + count):
        front.restore(make_association(kind, number, ciphers))
    return (resident() - before) / count


def measure_forged(kind: str, count: int) -> float:
    """Return microseconds of CPU for each of *count* forged records."""
    delivered: list[bytes] = []
    front, table_ = make_front(delivered)
    ciphers = CipherCache()
    known = "plain" if kind == "plain" else "cid"
    front.restore(make_association(known, 1, ciphers))
    (association,) = table_.all()
    peer = make_association(known, 1, CipherCache(), client=True)
    forged: list[tuple[bytes, object]] = []
    for number in range(count):
        record = bytearray(peer.seal(APPLICATION_DATA, PAYLOAD))
        record[-1] ^= 1
        if kind == "unknown":
            record[11:17] = b"nobody"
        elsewhere = f"192.0.{number >> 8 & 255}.{number & 255}", 1024 + number
        forged.append((bytes(record), association.address if kind == "plain" else elsewhere))
    before = association.address
    receive: Callable[[bytes, Any, float], None] = front.receive_datagram
    begun = time.process_time()
    for data, address in forged:
        receive(data, address, 1.0)
    used = time.process_time() - begun
    assert not delivered
    assert not front.datagrams_to_send()
    assert association.address == before
    assert table_.counters.moved == 0
    receive(peer.seal(APPLICATION_DATA, PAYLOAD), before, 2.0)
    assert delivered == [PAYLOAD]
    return used / count * 1e6


def main() -> None:
    """Measure, print, write."""
    if sys.argv[1:2] == ["--alone"]:
        what, kind, count = sys.argv[2:]
        print({"memory": measure_memory, "forged": measure_forged}[what](kind, int(count)))
        return
    parser = argparse.ArgumentParser(description="Measure Connection IDs.", prog="bench/cid.py")
    parser.add_argument("--seconds", type=float, default=8, help="one run; default 8")
    parser.add_argument("--repeat", type=int, default=5, help="runs of each; default 5")
    parser.add_argument("--associations", type=int, default=50_000, help="idle ones; default 50000")
    parser.add_argument("--only", nargs="+", choices=("messages", "wire", "memory", "forged"))
    parser.add_argument("--write", type=Path, metavar="FILE", help="rewrite the marked block of this file")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    bench = Bench(cores[-1], cores[0], options.seconds, options.repeat)
    parts: dict[str, Callable[[], list[str]]] = {
        "messages": bench.messages,
        "wire": bench.wire,
        "memory": lambda: bench.memory(options.associations),
        "forged": bench.forged,
    }
    lines: list[str] = []
    for name in options.only or parts:
        print(name, file=sys.stderr, flush=True)
        lines += parts[name]()
    if bench.loops:
        loops = spread([1000 * seconds for seconds in bench.loops], " ms")
        lines += ["", f"Noise of the machine: a fixed Python loop took {loops}."]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        write_block(options.write, text, BLOCK_CID)


if __name__ == "__main__":
    main()
