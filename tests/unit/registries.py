"""Devices and a registry for the tests of storage and of the command line."""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from coapgw.storage.database import FILE_NAME, RegistryDatabase, open_registry
from coapgw.storage.devices import DeviceRegistry

START_MS = 1_700_000_000_000


def iccid(number: int) -> str:
    return f"8988280666{number:09}"


@attrs.frozen
class OpenRegistry:
    database: RegistryDatabase
    devices: DeviceRegistry


@functools.cache
def empty_registry() -> bytes:
    """Return the file of a registry without devices: a copy is there sooner than one that is made anew."""
    with tempfile.TemporaryDirectory() as data:
        open_registry("", Path(data)).close()
        return (Path(data) / FILE_NAME).read_bytes()


@contextmanager
def registry_in(data: Path) -> Iterator[OpenRegistry]:
    """Open the registry in a data directory, with a clock that moves by a second a call."""
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (data / FILE_NAME).exists():
        (data / FILE_NAME).write_bytes(empty_registry())
    with opened_in(data) as opened:
        yield opened


@contextmanager
def opened_in(data: Path) -> Iterator[OpenRegistry]:
    """Open the registry in a data directory, or make it, as the gateway does."""
    database = open_registry("", data)
    clock = itertools.count(START_MS, 1000)
    try:
        yield OpenRegistry(database, DeviceRegistry(database, lambda: next(clock)))
    finally:
        database.close()
