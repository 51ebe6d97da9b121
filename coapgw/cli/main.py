"""``coapgw``: the command line tool: parses, dispatches, turns every failure into a sentence and an exit status."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from coapgw import __version__
from coapgw.cli import bench as bench_verb
from coapgw.cli import config as config_verbs
from coapgw.cli import device as device_verbs
from coapgw.cli import mqtt_user as mqtt_user_verbs
from coapgw.cli import send as send_verb
from coapgw.cli import spool as spool_verbs
from coapgw.cli import template as template_verbs
from coapgw.cli.output import Output
from coapgw.config import load
from coapgw.errors import CoapgwError, ConfigurationInvalid

EXIT_OK: Final = 0
EXIT_REFUSED: Final = 1  # the registry, or the machine, would not
EXIT_USAGE: Final = 2  # the command line or the configuration is wrong
BEFORE_THE_VERB: Final = ("--config", "--data", "--set", "-s")
EXIT_INTERRUPTED: Final = 130  # what a shell makes of SIGINT


class ToolParser(argparse.ArgumentParser):
    """The parser of the whole command line."""

    def error(self, message: str) -> NoReturn:
        """End with a usage error; to who gives a verb what belongs to the tool, say where it goes."""
        _, _, unrecognized = message.partition("unrecognized arguments: ")
        for word in unrecognized.split():
            option = word.partition("=")[0]
            if option in BEFORE_THE_VERB:
                message = f"{option} goes before the verb: coapgw {option} … device list"
                break
        super().error(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; return the exit status: 0 ok, 1 refused, 2 usage."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name in a terminal that cannot show it
    try:
        asked = make_parser().parse_args(argv)
    except SystemExit as done:  # --help and --version, or a mistake that argparse has told
        return EXIT_OK if done.code is None else int(done.code)
    try:
        status = _run(asked, Output(asked.json))
        print(end="", flush=True)
    except BrokenPipeError:  # whoever read has seen enough; what was asked for is done
        _discard_output()
        return EXIT_OK
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except OSError as error:  # storage and input have their own errors: this is standard output
        _discard_output()
        print(f"coapgw: the output cannot be written: {error.strerror}", file=sys.stderr)
        return EXIT_REFUSED
    return status


def _run(asked: argparse.Namespace, output: Output) -> int:
    """Run the verb; what coapgw raises becomes sentences."""
    try:
        if "run_alone" in asked:
            return int(asked.run_alone(asked, output))
        return int(asked.run(asked, load(asked.config, asked.overrides, asked.data), output))
    except ConfigurationInvalid as invalid:
        output.errors(invalid.mistakes)
        return EXIT_USAGE
    except CoapgwError as refused:
        output.errors([str(refused)])
        return EXIT_REFUSED


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; the namespace it makes has ``run(asked, config, output)``, or ``run_alone(asked, output)``."""
    leaf = send_verb.MixedParser(add_help=False)
    leaf.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="answer with one JSON value")
    parser = ToolParser(
        prog="coapgw", description="Look after a CoAP gateway, whether it runs or not.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"coapgw {__version__}")
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML configuration; without it, defaults")
    parser.add_argument("--data", type=Path, metavar="DIR", help="directory for everything that must survive")
    parser.add_argument(
        *("--set", "-s"),
        dest="overrides",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override a key of the configuration; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="answer with one JSON value")
    rooms = parser.add_subparsers(metavar="WHAT", required=True, parser_class=send_verb.MixedParser)
    for name, verbs, about in (
        ("device", device_verbs, "the list of devices"),
        ("template", template_verbs, "Energy Saver templates"),
        ("spool", spool_verbs, "messages on their way to MQTT"),
        ("mqtt-user", mqtt_user_verbs, "users of the embedded MQTT broker"),
        ("config", config_verbs, "the configuration"),
    ):
        room = rooms.add_parser(
            name, help=about, description=about[0].upper() + about[1:] + ".", parents=[leaf], allow_abbrev=False
        )
        verbs.add_verbs(room, leaf)
    about = "Send a CoAP request, over UDP or DTLS, and show the answer."
    send_verb.add_verb(rooms.add_parser("send", help=about, description=about, parents=[leaf], allow_abbrev=False))
    about = "Send many CoAP requests at once, over UDP or DTLS, and say how long the answers took."
    bench_verb.add_verb(rooms.add_parser("bench", help=about, description=about, parents=[leaf], allow_abbrev=False))
    return parser


def _discard_output() -> None:
    """Send what is left in the buffer nowhere, or the interpreter would complain at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
