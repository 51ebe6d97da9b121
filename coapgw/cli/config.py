"""``coapgw config …``: what an operator wants to know of a configuration before the gateway reads it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from coapgw.cli.output import Output
from coapgw.config import Engine, MqttMode, as_json, load
from coapgw.errors import ConfigurationInvalid
from coapgw.outlets.amqtt_requirements import START, missing_package

EXIT_OK: Final = 0


def add_verbs(parser: argparse.ArgumentParser, leaf: argparse.ArgumentParser) -> None:
    """Add the verbs to the *parser* of ``coapgw config``; *leaf* has the options that each of them takes."""
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    about = "Check a configuration file, with every --set and --data before the verb; say all mistakes at once."
    checking = verbs.add_parser(
        "check", help="Check a configuration file.", description=about, parents=[leaf], allow_abbrev=False
    )
    checking.add_argument("file", metavar="FILE", type=Path)
    checking.set_defaults(run_alone=check)


def check(asked: argparse.Namespace, output: Output) -> int:
    """Read a configuration and say that it is good.  Raises ConfigurationInvalid."""
    config = load(asked.file, asked.overrides, asked.data)
    lines = [f"{asked.file} is good"]
    if config.mqtt.mode is MqttMode.EMBEDDED and config.mqtt.embedded.engine is Engine.AMQTT:
        if missing := missing_package():
            raise ConfigurationInvalid([missing])
        lines.append(f"aMQTT needs asyncio's reactor; start the gateway with: {START}")
    output.result(lines, as_json(config))
    return EXIT_OK
