"""``coapgw device …``: the list of devices, through its database, whether a gateway runs or not."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from coapgw.cli.device_csv import CsvInvalid, read_devices
from coapgw.cli.device_psk import add_options as add_psk_options
from coapgw.cli.device_psk import psk
from coapgw.cli.output import Output, read_stdin
from coapgw.config import Config
from coapgw.errors import ImportRefused
from coapgw.http.device_json import device_json
from coapgw.model import NAME_LIMIT, Device, DeviceStatus
from coapgw.storage.database import open_registry
from coapgw.storage.devices import DeviceRegistry

PAGE: Final = 1000  # devices asked for at a time
EXIT_OK: Final = 0
EXIT_REFUSED: Final = 1

_STATUSES: Final = tuple(status.value for status in DeviceStatus)


def add_verbs(parser: argparse.ArgumentParser, leaf: argparse.ArgumentParser) -> None:
    """Add the verbs to the *parser* of ``coapgw device``; *leaf* has the options that each of them takes."""
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def verb(
        name: str, run: Callable[[argparse.Namespace, Config, Output], int], about: str
    ) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=about, description=about, parents=[leaf], allow_abbrev=False)
        made.set_defaults(run=run)
        return made

    adding = verb("add", add, "Register a device.")
    adding.add_argument("iccid", metavar="ICCID", help="18 to 20 digits")
    _add_fields(adding, "")
    setting = verb("set", change, "Change a device.")
    setting.add_argument("iccid", metavar="ICCID")
    _add_fields(setting, '; "" empties it')
    listing = verb("list", show_list, "List devices in the order of their ICCIDs.")
    listing.add_argument("--status", choices=_STATUSES, help="only these")
    listing.add_argument("--limit", type=_count, metavar="N", help="at most N of them; all without it")
    listing.add_argument("--q", metavar="TEXT", help="only with TEXT in ICCID, IMSI, address or name")
    verb("show", show, "Show a device.").add_argument("iccid", metavar="ICCID")
    verb("remove", remove, "Forget a device.").add_argument("iccid", metavar="ICCID")
    add_psk_options(verb("psk", psk, "Show a device's pre-shared key, or give it another."))
    importing = verb("import", import_file, "Register many devices, or none if any cannot be.")
    importing.add_argument("file", metavar="FILE.csv", help="header row of iccid, ip, imsi, name, status; - is stdin")


def _add_fields(parser: argparse.ArgumentParser, note: str) -> None:
    parser.add_argument("--ip", metavar="A", help=f"source address on the operator's network{note}")
    parser.add_argument("--imsi", metavar="N", help=f"15 digits{note}")
    parser.add_argument("--name", metavar="S", help=f"up to {NAME_LIMIT} characters, for people{note}")
    parser.add_argument("--status", choices=_STATUSES, help="an INACTIVE device is treated like an unknown one")


def _count(word: str) -> int:
    if not (word.isascii() and word.isdigit()):
        raise argparse.ArgumentTypeError(f"{word!r} is no count of devices")
    return int(word)


@contextmanager
def registry_of(config: Config) -> Iterator[DeviceRegistry]:
    """Open the registry for a while.  Raises StorageError."""
    database = open_registry(config.registry.url, config.data)
    try:
        yield DeviceRegistry(database, lambda: time.time_ns() // 1_000_000)
    finally:
        database.close()


def add(asked: argparse.Namespace, config: Config, output: Output) -> int:
    """Register a device."""
    status = DeviceStatus(asked.status or DeviceStatus.ACTIVE.value)
    wanted = Device(asked.iccid, asked.imsi or None, asked.ip or None, asked.name or None, status)
    with registry_of(config) as registry:
        device = registry.add(wanted)
    output.result([f"added {device.iccid}"], device_json(device))
    return EXIT_OK


def change(asked: argparse.Namespace, config: Config, output: Output) -> int:
    """Change a device."""
    fields = {"ip": asked.ip, "imsi": asked.imsi, "name": asked.name, "status": asked.status}
    with registry_of(config) as registry:
        changes: dict[str, object] = {field: value or None for field, value in fields.items() if value is not None}
        device = registry.update(asked.iccid, changes)
    output.result([f"set {device.iccid}"], device_json(device))
    return EXIT_OK


def show_list(asked: argparse.Namespace, config: Config, output: Output) -> int:
    """List devices."""
    with registry_of(config) as registry:
        found = _pages(registry, asked)
        if output.json:
            output.result([], {"items": [device_json(device) for device in found]})
        else:
            output.result((_table_row(device) for device in found), {})
    return EXIT_OK


def show(asked: argparse.Namespace, config: Config, output: Output) -> int:
    """Show a device."""
    with registry_of(config) as registry:
        shown = device_json(registry.get(asked.iccid))
    output.result([f"{field:<9}  {value}" for field, value in shown.items()], shown)
    return EXIT_OK


def remove(asked: argparse.Namespace, config: Config, output: Output) -> int:
    """Forget a device."""
    with registry_of(config) as registry:
        registry.remove(asked.iccid)
    output.result([f"removed {asked.iccid}"], {"removed": asked.iccid})
    return EXIT_OK


def import_file(asked: argparse.Namespace, config: Config, output: Output) -> int:
    """Register every device of a CSV file, or none of them."""
    name = "stdin" if asked.file == "-" else asked.file
    try:
        data = read_stdin() if asked.file == "-" else Path(asked.file).read_bytes()
    except OSError as error:
        output.errors([f"{name}: {error.strerror}"])
        return EXIT_REFUSED
    try:
        rows = read_devices(data)
        with registry_of(config) as registry:
            imported = registry.import_all(row.device for row in rows)
    except CsvInvalid as invalid:
        output.errors([f"{name}, {mistake}" for mistake in invalid.mistakes])
        return EXIT_REFUSED
    except ImportRefused as refused:
        output.errors([f"{name}, line {rows[row - 1].line}: {refusal}" for row, refusal in refused.refusals])
        return EXIT_REFUSED
    output.result([f"imported {imported} devices"], {"imported": imported})
    return EXIT_OK


def _pages(registry: DeviceRegistry, asked: argparse.Namespace) -> Iterator[Device]:
    """Yield what was asked for, page by page."""
    left: int | None = asked.limit
    after: str | None = None
    while left is None or left > 0:
        wanted = PAGE if left is None else min(PAGE, left)
        page = registry.list(wanted, after, asked.status, asked.q)
        yield from page
        if len(page) < wanted:
            return
        after = page[-1].iccid
        left = None if left is None else left - len(page)


def _table_row(device: Device) -> str:
    cells = f"{device.iccid:<20}  {device.status.value:<8}  {device.ip or '-':<15}  {device.imsi or '-':<15}"
    return f"{cells}  {device.name or '-'}"
