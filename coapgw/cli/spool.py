"""``coapgw spool …``: what waits on disk for MQTT, whether a gateway runs or not."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from typing import Final

from coapgw.cli.output import Json, Output
from coapgw.config import Config
from coapgw.storage.spool_file import spool_status

EXIT_OK: Final = 0


def add_verbs(parser: argparse.ArgumentParser, leaf: argparse.ArgumentParser) -> None:
    """Add the verbs to the *parser* of ``coapgw spool``; *leaf* has the options that each of them takes."""
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    about = "Say how many messages wait, how many bytes they are, and when the oldest was received."
    showing = verbs.add_parser("status", help=about, description=about, parents=[leaf], allow_abbrev=False)
    showing.set_defaults(run=status)


def status(asked: argparse.Namespace, config: Config, output: Output) -> int:
    """Say what the spool holds.  Raises StorageError."""
    held = spool_status(config.data / "spool.db")
    value: Json = {"messages": held.messages, "bytes": held.bytes, "maxBytes": config.spool.max_bytes}
    lines = [f"{held.messages} messages, {held.bytes} of {config.spool.max_bytes} bytes"]
    if held.oldest_received is not None:
        oldest = datetime.fromtimestamp(held.oldest_received / 1000, UTC).isoformat(timespec="milliseconds")
        value["oldestReceived"] = oldest.replace("+00:00", "Z")
        lines.append(f"the oldest was received at {value['oldestReceived']}")
    output.result(lines, value)
    return EXIT_OK
