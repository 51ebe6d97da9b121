"""The server under test, as its clients see it."""

from __future__ import annotations

from pathlib import Path

import attrs


@attrs.frozen
class CoapsServer:
    """Where it listens, and one device that it knows: identity and key are text, as a device has them."""

    host: str
    port: int
    identity: str
    key: str = attrs.field(repr=False)
    plain: tuple[str, int]  # where it takes plain CoAP
    pid: int = 0

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

    def memory(self) -> int:
        """Return the resident bytes of its process (proc(5))."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024
