"""A gateway under a flood from many ports of a host, of junk and of what looks like messages: others are served."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.integration.gateway_process import Device, GatewayProcess, coapgw
from tests.unit.coap_wire import datagram, option

FLOOD_SECONDS = 3.0
FLOOD_RATE = 8000  # datagrams a second: with what the device sends a machine that does much else can read them all
BURST = 200
PATIENCE = 5.0  # of a device with its message, repetitions included
HONEST, FLOODER, STRANGER = "127.0.0.2", "127.0.0.3", "127.0.0.66"


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[GatewayProcess]:
    """A gateway that knows two devices."""
    data = tmp_path / "data"
    for number, address in enumerate((HONEST, FLOODER)):
        coapgw(data, "device", "add", f"898828066600000001{number}", "--ip", address)
    process = GatewayProcess(data, "coap.max_endpoints=1000").start()
    yield process
    process.stop()
    assert "Traceback" not in process.log.read_text()


def _junk(chance: random.Random) -> bytes:
    """Return a message to publish, a stray ACK or RST, a block, an observer, or nothing that makes sense."""
    message_id = chance.randrange(0x10000)
    return chance.choice(
        (
            datagram(1, 2, message_id, b"tk", option(15, b"t=flood"), b"x"),
            datagram(0, 1, message_id, b"tk", option(11, b".well-known") + option(0, b"core")),
            datagram(2, 0, message_id),
            datagram(3, 0, message_id),
            datagram(0, 2, message_id, b"t", option(27, b"\x08"), bytes(16)),
            datagram(0, 1, message_id, b"t", option(6, b"")),
            datagram(2, 0x45, message_id, b"tk"),
            chance.randbytes(chance.randrange(1, 60)),
        )
    )


@contextmanager
def _flood(gateway: tuple[str, int], address: str) -> Iterator[list[int]]:
    """Send from many ports of a host until the end; how many is the last of the list."""
    stop, sent = threading.Event(), [0]
    chance = random.Random(address)
    prepared = [_junk(chance) for _ in range(5000)]

    def run() -> None:
        sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(100)]
        for one in sockets:
            one.bind((address, 0))
            one.setblocking(False)
        began = time.monotonic()
        while not stop.is_set():
            for data in prepared:
                with suppress(OSError):
                    sockets[sent[0] % 100].sendto(data, gateway)
                sent[0] += 1
                if sent[0] % BURST == 0:
                    time.sleep(max(0.0, began + sent[0] / FLOOD_RATE - time.monotonic()))
        for one in sockets:
            one.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield sent
    finally:
        stop.set()
        thread.join()


def _post(device: Device, number: int) -> float:
    """Post a message, repeated until it is answered; return how long that took."""
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE:
        answer = device.post(b"%d" % number)
        if answer is not None:
            assert answer[1] == 0x44
            return time.monotonic() - began
    raise AssertionError(f"message {number} was not answered in {PATIENCE} s")


def _times(gateway: GatewayProcess, seconds: float) -> list[float]:
    with Device(HONEST, gateway.coap, timeout=0.5) as device:
        end = time.monotonic() + seconds
        times: list[float] = []
        while time.monotonic() < end:
            times.append(_post(device, len(times)))
            time.sleep(0.005)
    return sorted(times)


@pytest.mark.parametrize("address", [FLOODER, STRANGER], ids=["of a device", "of a stranger"])
def test_a_device_is_served_during_the_flood_of_another(gateway: GatewayProcess, address: str) -> None:
    calm = _times(gateway, 1.0)
    with _flood(gateway.coap, address) as sent:
        busy = _times(gateway, FLOOD_SECONDS)
    assert sent[0] > FLOOD_RATE
    print(
        f"{sent[0] / FLOOD_SECONDS:.0f} datagrams a second; median {calm[len(calm) // 2] * 1000:.1f} ms calm, "
        f"{busy[len(busy) // 2] * 1000:.1f} ms during it, longest {busy[-1] * 1000:.0f} ms, {len(busy)} messages"
    )
    assert len(busy) > 10
    after = _times(gateway, 0.5)
    assert after[len(after) // 2] < PATIENCE / 10
