"""Devices and a registry for the tests of storage and of the command line."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from coapgw.storage.database import RegistryDatabase, open_registry
from coapgw.storage.devices import DeviceRegistry

START_MS = 1_700_000_000_000


def iccid(number: int) -> str:
    return f"8988280666{number:09}"


@attrs.frozen
class OpenRegistry:
    database: RegistryDatabase
    devices: DeviceRegistry


@contextmanager
def registry_in(data: Path) -> Iterator[OpenRegistry]:
    """Open the registry in a data directory, with a clock that moves by a second a call."""
    database = open_registry("", data)
    clock = itertools.count(START_MS, 1000)
    try:
        yield OpenRegistry(database, DeviceRegistry(database, lambda: next(clock)))
    finally:
        database.close()
