"""What the message layer keeps in memory: bytes per remembered exchange and per endpoint, all told.

    .venv/bin/python bench/memory.py

Counts what the process holds (resident memory, from /proc), not what objects say of themselves.
"""

from __future__ import annotations

import argparse
import random
import resource
import time
from collections.abc import Hashable
from pathlib import Path

from coapgw.coap.codec import CHANGED, Options
from coapgw.coap.exchange import Exchange, Handler
from coapgw.coap.messaging import MessageLayer
from coapgw.coap.parameters import MessagingLimits

PAGE_BYTES = resource.getpagesize()


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


class Everybody:
    """Everybody is known."""

    generation = 0

    def identify(self, address: Hashable) -> object:
        """Return the one principal."""
        return self


class AlwaysChanged:
    """2.04 to everything."""

    def resolve(self, code: int, options: Options) -> Handler:
        """Return the handler."""

        def handle(exchange: Exchange, payload: bytes) -> None:
            exchange.respond(CHANGED)

        return handle


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="bytes per remembered exchange and per endpoint")
    parser.add_argument("--exchanges", type=int, default=1_000_000)
    parser.add_argument("--endpoints", type=int, default=100_000)
    arguments = parser.parse_args()
    limits = MessagingLimits(endpoints=arguments.endpoints + 64, exchanges=2 * arguments.exchanges)
    layer = MessageLayer(AlwaysChanged(), Everybody(), random.Random(1), limits=limits)
    option = b"\xb4data\xff"

    def send(address: Hashable, message_id: int) -> None:
        data = b"\x44\x02" + message_id.to_bytes(2, "big") + b"tokn" + option + b"x" * 64
        layer.receive_datagram(data, address, time.monotonic())
        layer.datagrams_to_send(time.monotonic())

    devices = [("127.0.0.1", 10_000 + number, b"\0" * 12) for number in range(64)]
    for device in devices:
        send(device, 0)
    before = resident_bytes()
    begun = time.process_time()
    for number in range(arguments.exchanges):
        send(devices[number % 64], number // 64 + 1)
    seconds = time.process_time() - begun
    per_exchange = (resident_bytes() - before) / arguments.exchanges
    print(f"{layer.remembered:,} exchanges remembered: {per_exchange:.0f} bytes each, {seconds:.1f} s of CPU")
    before = resident_bytes()
    for number in range(arguments.endpoints):
        send((f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 5683, number.to_bytes(12, "big")), 1)
    per_endpoint = (resident_bytes() - before) / arguments.endpoints - per_exchange
    print(f"{layer.endpoints:,} endpoints known: {per_endpoint:.0f} bytes each, beside their one exchange")


if __name__ == "__main__":
    main()
