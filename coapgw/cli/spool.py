"""``coapgw spool …``: what waits on disk for MQTT, whether a gateway runs or not."""

from __future__ import annotations

import argparse
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from coapgw.cli.output import Json, Output
from coapgw.config import Config
from coapgw.storage.dead_letters import DeadLetter, Wish, dead_letters, open_requests, write_requests
from coapgw.storage.spool_file import SpoolInUse, do_requests, spool_status

EXIT_OK: Final = 0
EXIT_REFUSED: Final = 1
LIST_LIMIT: Final = 100
WAIT_SECONDS: Final = 5.0  # for a running gateway, which looks once a second
LOOK_SECONDS: Final = 0.1


def add_verbs(parser: argparse.ArgumentParser, leaf: argparse.ArgumentParser) -> None:
    """Add the verbs to the *parser* of ``coapgw spool``; *leaf* has the options that each of them takes."""
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    about = "Say how many messages wait, how many bytes they are, and when the oldest was received."
    showing = verbs.add_parser("status", help=about, description=about, parents=[leaf], allow_abbrev=False)
    showing.set_defaults(run=status)
    about = "See and treat the messages that the broker of a bridge refused."
    dead = verbs.add_parser("dead", help=about, description=about, allow_abbrev=False)
    dead_verbs = dead.add_subparsers(metavar="VERB", required=True)
    about = "List them with their places, oldest first."
    listing = dead_verbs.add_parser("list", help=about, description=about, parents=[leaf], allow_abbrev=False)
    listing.add_argument("--after", type=int, default=0, metavar="PLACE", help="begin behind this place")
    listing.add_argument("--limit", type=int, default=LIST_LIMIT, metavar="N", help=f"at most N ({LIST_LIMIT})")
    listing.set_defaults(run=list_dead)
    for wish, about in (
        (Wish.REQUEUE, "Have them published again, behind everything that waits now."),
        (Wish.DROP, "Delete them."),
    ):
        treating = dead_verbs.add_parser(wish.value, help=about, description=about, parents=[leaf], allow_abbrev=False)
        which = treating.add_mutually_exclusive_group(required=True)
        which.add_argument("places", type=int, nargs="*", default=[], metavar="PLACE", help="as listed")
        which.add_argument("--all", action="store_true", help="all of them")
        treating.set_defaults(run=treat, wish=wish)


def status(asked: argparse.Namespace, config: Config, output: Output) -> int:
    """Say what the spool holds.  Raises StorageError."""
    path = config.data / "spool.db"
    held = spool_status(path)
    value: Json = {"messages": held.messages, "bytes": held.bytes, "maxBytes": config.spool.max_bytes}
    lines = [f"{held.messages} messages, {held.bytes} of {config.spool.max_bytes} bytes"]
    if not path.exists():
        lines.append(f"there is no spool in {config.data}: no gateway has run there")
    if held.oldest_received is not None:
        value["oldestReceived"] = _time(held.oldest_received)
        lines.append(f"the oldest was received at {value['oldestReceived']}")
    value["deadMessages"], value["deadBytes"] = held.dead_messages, held.dead_bytes
    if held.dead_messages:
        lines.append(
            f"{held.dead_messages} more, {held.dead_bytes} bytes, were refused by the broker: coapgw spool dead list"
        )
    output.result(lines, value)
    return EXIT_OK


def list_dead(asked: argparse.Namespace, config: Config, output: Output) -> int:
    """List messages that the broker refused.  Raises StorageError."""
    letters = dead_letters(config.data / "spool.db", asked.after, max(1, asked.limit))
    lines = [
        f"{one.place}  {one.iccid}  {one.topic.decode(errors='replace')}  {len(one.payload)} bytes, "
        f"received {_time(one.received)}: {one.reason}"
        for one in letters
    ]
    output.result(lines or ["no dead letters"], {"deadLetters": [_letter_json(one) for one in letters]})
    return EXIT_OK


def _letter_json(letter: DeadLetter) -> Json:
    return {
        "place": letter.place,
        "id": letter.message_id,
        "iccid": letter.iccid,
        "topic": letter.topic.decode(errors="replace"),
        "bytes": len(letter.payload),
        "received": _time(letter.received),
        "setAside": _time(letter.set_aside),
        "reason": letter.reason,
    }


def treat(asked: argparse.Namespace, config: Config, output: Output) -> int:
    """Have dead letters published again or deleted, by the gateway if one runs; refused if there are none such."""
    path = config.data / "spool.db"
    places = None if asked.all else asked.places
    done = True
    try:
        count = do_requests(path, asked.wish, places)
    except SpoolInUse:
        count = write_requests(path, asked.wish, places)
        done = _wait_for_gateway(path)
    verb = "requeued" if asked.wish is Wish.REQUEUE else "dropped"
    line = f"{count} messages {verb}" if done else f"{count} messages will be {verb} by the gateway, which is busy"
    output.result([line], {"messages": count, "done": done})
    return EXIT_OK if count or asked.all else EXIT_REFUSED


def _wait_for_gateway(path: Path) -> bool:
    """Return whether the gateway has done everything soon."""
    until = time.monotonic() + WAIT_SECONDS
    while open_requests(path):
        if time.monotonic() >= until:
            return False
        time.sleep(LOOK_SECONDS)
    return True


def _time(milliseconds: int) -> str:
    text = datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")
