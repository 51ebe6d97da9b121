"""Whether time tells who is served: what the server spends on a handshake that ends in an alert, by who it was.

    .venv/bin/python bench/identity_timing.py

An identity that is unknown, of an inactive device, of one without a key, and of one with another key, in random order.
Measured is the turn that reads the key exchange and three Finished messages, the last of which is answered.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

from coapgw.dtls.admission import Admission, HandshakeLimits
from coapgw.dtls.association import CipherCache
from coapgw.dtls.front import Front
from coapgw.dtls.hello import Cookies
from coapgw.dtls.openssl import ClientContext, ServerContext
from coapgw.dtls.records import pack, split
from coapgw.dtls.table import AssociationLimits, AssociationTable
from coapgw.model import Device, DeviceStatus, WrittenKey
from coapgw.storage.credentials import DeviceCredentials
from coapgw.storage.database import open_registry
from coapgw.storage.devices import DeviceRegistry
from coapgw.storage.directory import DeviceDirectory
from coapgw.storage.keys import DeviceKeys
from coapgw.storage.sealing import open_seal

MTU = 1280
DEVICES = 1000  # of each kind
WARM_UP = 400  # handshakes that do not count
CALM = 0.9  # the part of the measurements, the shortest, whose mean is shown
WRONG_KEY, INACTIVE, WITHOUT_KEY, UNKNOWN = KINDS = ("another key", "inactive", "without a key", "unknown")


def iccid_of(kind: str, number: int) -> str:
    """Return the ICCID of a device of this kind."""
    return f"8988280{KINDS.index(kind)}{number:011d}"


def fill(data: Path) -> DeviceCredentials:
    """Return what DTLS asks, for a registry with every kind of device."""
    registry = open_registry("", data)
    seal = open_seal(data, registry)
    devices = DeviceRegistry(registry, lambda: time.time_ns() // 1_000_000)
    keys = DeviceKeys(registry, seal, lambda: time.time_ns() // 1_000_000)
    for kind in (WRONG_KEY, INACTIVE, WITHOUT_KEY):
        status = DeviceStatus.INACTIVE if kind == INACTIVE else DeviceStatus.ACTIVE
        devices.import_all(Device(iccid_of(kind, number), status=status) for number in range(DEVICES))
        if kind != WITHOUT_KEY:
            keys.set_all(WrittenKey(iccid_of(kind, number), "0123456789abcdef") for number in range(DEVICES))
    directory = DeviceDirectory(devices.changes_since)
    directory.load()
    registry.close()
    return DeviceCredentials(directory, seal)


def front_of(credentials: DeviceCredentials) -> Front:
    """Return a front without limits."""
    table = AssociationTable(AssociationLimits(), credentials.is_current)
    return Front(
        *(table, Admission(HandshakeLimits(0, 0), table.counters), ServerContext(credentials.credential, MTU).engine),
        *(Cookies(os.urandom), CipherCache()),
        deliver=lambda plaintext, association, now: None,
        forgotten=lambda association: None,
        mtu=MTU,
    )


def measure(front: Front, identity: str, suite: str, number: int) -> int:
    """Make a handshake that fails, from an address of its own; return the nanoseconds of its last turn."""
    address, now = ("192.0.2.1", number), float(number)
    client = ClientContext(identity.encode(), b"this is not the key", (suite,)).engine()

    def answers(datagram: bytes) -> list[bytes]:
        front.receive_datagram(datagram, address, now)
        return [data for data, _ in front.datagrams_to_send()]

    client.begin_as_client()
    for _ in range(2):
        for datagram in answers(pack(client.take_records(), MTU)[0]):
            for record in split(datagram):
                client.receive(record)
    records = client.take_records()
    flight = b"".join(records) + 2 * records[-1]
    begun = time.perf_counter_ns()
    answer = answers(flight)
    spent = time.perf_counter_ns() - begun
    assert len(answer) == 1, "no alert"
    return spent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="whether time tells who is served")
    parser.add_argument("--handshakes", type=int, default=6000, help="of each kind")
    parser.add_argument("--suite", default="PSK-AES128-CCM8")
    arguments = parser.parse_args()
    order = random.Random(1)
    with tempfile.TemporaryDirectory() as data:
        front = front_of(fill(Path(data)))
    kinds = [kind for kind in KINDS for _ in range(arguments.handshakes)]
    order.shuffle(kinds)
    spent: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for number, kind in enumerate(kinds):
        took = measure(front, iccid_of(kind, order.randrange(DEVICES)), arguments.suite, number)
        if number >= WARM_UP:
            spent[kind].append(took)
    for kind, figures in spent.items():
        calm = sorted(figures)[: int(len(figures) * CALM)]
        error = statistics.stdev(calm) / len(calm) ** 0.5
        print(
            f"{kind:14}{len(figures):6} handshakes, median {statistics.median(figures) / 1000:.2f} µs, "
            f"mean of the calmer {CALM:.0%} {statistics.mean(calm) / 1000:.2f} ± {error / 1000:.2f} µs"
        )


if __name__ == "__main__":
    main()
