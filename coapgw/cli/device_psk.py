"""``coapgw device psk``: a device's pre-shared key, shown, chosen or made anew."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from coapgw.cli.output import Json, Output, read_stdin
from coapgw.config import Config
from coapgw.errors import KeyRefused
from coapgw.http.device_json import time_text
from coapgw.model import KEY_CHARACTERS, DeviceKey, KeyFormat
from coapgw.storage.database import open_registry
from coapgw.storage.keys import DeviceKeys
from coapgw.storage.sealing import open_seal

EXIT_OK: Final = 0
EXIT_REFUSED: Final = 1
EXIT_USAGE: Final = 2

_FORMATS: Final = tuple(key_format.value for key_format in KeyFormat)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what the verb takes to its *parser*."""
    parser.add_argument("iccid", metavar="ICCID")
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--set",
        dest="written",
        metavar="KEY",
        help=f"give it this key, {KEY_CHARACTERS[0]} to {KEY_CHARACTERS[-1]} characters, which no bootstrap replaces; "
        "- reads it from stdin, where neither history nor process list show it",
    )
    either.add_argument("--rotate", action="store_true", help="give it a new generated key")
    parser.add_argument("--format", choices=_FORMATS, help="what KEY is: its characters (STRING, the default), or HEX")


@contextmanager
def keys_of(config: Config) -> Iterator[DeviceKeys]:
    """Open the registry and what seals its keys for a while.  Raises StorageError."""
    database = open_registry(config.registry.url, config.data)
    try:
        yield DeviceKeys(database, open_seal(config.data, database), lambda: time.time_ns() // 1_000_000)
    finally:
        database.close()


def psk(asked: argparse.Namespace, config: Config, output: Output) -> int:
    """Show a device's key, or give it another."""
    if asked.format is not None and asked.written is None:
        output.errors(["--format says what --set KEY is: it needs that"])
        return EXIT_USAGE
    try:
        written = _from_stdin() if asked.written == "-" else asked.written
    except OSError as error:
        output.errors([f"stdin: {error.strerror}"])
        return EXIT_REFUSED
    with keys_of(config) as keys:
        if written is not None:
            key = keys.set(asked.iccid, written, KeyFormat(asked.format or KeyFormat.STRING.value))
        else:
            key = keys.rotate(asked.iccid) if asked.rotate else keys.get(asked.iccid)
    output.result([f"set the key of {key.iccid}"] if written is not None else _lines(key), key_json(key))
    return EXIT_OK


def _from_stdin() -> str:
    """Return the key on standard input, without the line end behind it."""
    data = read_stdin()
    try:
        return data.removesuffix(b"\n").removesuffix(b"\r").decode()
    except UnicodeDecodeError:
        raise KeyRefused("what is on stdin is no text") from None


def _lines(key: DeviceKey) -> Iterator[str]:
    fields = {
        "psk": key.written,
        "format": key.format.value,
        "chosen by": "a user" if key.by_user else "the gateway",
        "createdAt": time_text(key.created_at),
        "updatedAt": time_text(key.updated_at),
    }
    return (f"{field:<9}  {value}" for field, value in fields.items())


def key_json(key: DeviceKey) -> Json:
    """Return a key as JSON shows it (PRODUCT section 8), and who chose it."""
    return {
        "deviceId": key.iccid,
        "identity": key.iccid,
        "secretKey": key.written,
        "createdAt": time_text(key.created_at),
        "updatedAt": time_text(key.updated_at),
        "protocol": "COAP",
        "format": key.format.value,
        "byUser": key.by_user,
    }
