"""The server under test, as its clients see it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from coapgw.model import Device, DeviceStatus, WrittenKey
from coapgw.storage.database import open_registry
from coapgw.storage.devices import DeviceRegistry
from coapgw.storage.keys import DeviceKeys
from coapgw.storage.sealing import open_seal
from tests.integration.gateway_process import GatewayProcess

FIRST_ICCID, DEVICES = 8988280666000000017, 40
INACTIVE, UNKNOWN = "8988280666999999999", "8988280666888888888"
KEY = "q8Yt2LmZ0aXw4RbK"


@attrs.frozen
class CoapsServer:
    """Where it listens, and one device that it knows: identity and key are text, as a device has them.

    It knows others with the same key: a device may have few associations at a time.
    """

    host: str
    port: int
    plain: tuple[str, int]  # where it takes plain CoAP
    mqtt: int  # its broker's port
    pid: int
    log: Path
    identity: str = str(FIRST_ICCID)
    key: str = attrs.field(default=KEY, repr=False)

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return self.host, self.port

    @property
    def key_hex(self) -> str:
        """The key, as many command lines want it."""
        return self.key.encode().hex()

    def at(self, address: tuple[str, int]) -> CoapsServer:
        """Return the same server, seen through a relay at *address*."""
        return attrs.evolve(self, host=address[0], port=address[1])

    def known_as(self, identity: str) -> CoapsServer:
        """Return the same server, for a client that calls itself *identity*."""
        return attrs.evolve(self, identity=identity)

    def device(self, number: int) -> CoapsServer:
        """Return the same server, for another of its DEVICES devices."""
        assert number < DEVICES
        return self.known_as(str(FIRST_ICCID + number))

    def memory(self) -> int:
        """Return the resident bytes of its process (proc(5))."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024


@contextmanager
def running_gateway(data: Path, *settings: str) -> Iterator[CoapsServer]:
    """Run a gateway that knows DEVICES devices, the first of them also at 127.0.0.1; asserts that its log is clean."""
    with gateway_process(data, *settings) as gateway:
        yield as_clients_see(gateway)


@contextmanager
def gateway_process(data: Path, *settings: str) -> Iterator[GatewayProcess]:
    """Run the same, as a process that can be stopped, killed and started again."""
    data.mkdir(mode=0o700)
    registry = open_registry("", data)
    devices, keys = DeviceRegistry(registry, lambda: 0), DeviceKeys(registry, open_seal(data, registry), lambda: 0)
    made = [Device(str(FIRST_ICCID + number), ip=None if number else "127.0.0.1") for number in range(DEVICES)]
    made.append(Device(INACTIVE, status=DeviceStatus.INACTIVE))
    for device in made:
        devices.add(device)
    keys.set_all(WrittenKey(device.iccid, KEY) for device in made)
    registry.close()
    gateway = GatewayProcess(data, *settings).start()
    try:
        yield gateway
    finally:
        gateway.stop()
    log = gateway.log.read_text()
    assert "Traceback" not in log, log
    assert KEY not in log


def as_clients_see(gateway: GatewayProcess) -> CoapsServer:
    """Return a gateway as it is now."""
    return CoapsServer(*gateway.coaps, gateway.coap, gateway.mqtt, gateway.pid, gateway.log)
