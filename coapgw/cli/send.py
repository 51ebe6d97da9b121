"""``coapgw send``: a CoAP and CoAPs client to test firmware and gateways with; it needs no gateway's files."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Final

from coapgw.cli.output import Output

EXIT_USAGE: Final = 2
TIMEOUT_SECONDS: Final = 30.0
METHODS: Final = ("get", "post", "put", "delete")
KEY_VARIABLE: Final = "COAPGW_KEY"


class MixedParser(argparse.ArgumentParser):
    """A parser that, if it *mixes*, lets options stand between positional arguments: ``send URL --non PAYLOAD``."""

    mixes = False
    _is_mixing = False

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]  # overloaded there
        """Parse as argparse does, or as it does when asked to intermix, which calls back here."""
        if not self.mixes or self._is_mixing:
            return super().parse_known_args(args, namespace)
        self._is_mixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_mixing = False


def add_verb(parser: MixedParser) -> None:
    """Make *parser* that of ``coapgw send``."""
    add_request(
        parser,
        url="coap://host[:port]/path?query or coaps://…; with --bootstrap a path and query will do",
        payload="text; with it the method is post, without it get",
        method="default: post with a payload, get without one",
    )
    security = parser.add_argument_group("DTLS")
    add_security(security)
    security.add_argument(
        "--bootstrap",
        metavar="URL",
        help="ask there for identity, key and gateway first, as devices do; its path is /bootstrap if it has none",
    )
    sending = parser.add_argument_group("sending")
    sending.add_argument("--bind", metavar="ADDRESS", default="", help="the local address to send from")
    add_timeout(sending)
    sending.add_argument(
        "--retransmit",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="repeat a confirmable after 2 to 3 seconds, then with doubled gaps, as RFC 7252 has it (default); or not",
    )
    sending.add_argument(
        "--repeat", type=whole_number(1_000_000, 1), metavar="N", help="send N requests one after the other"
    )
    sending.add_argument(
        "--observe",
        type=seconds,
        metavar="SECONDS",
        help="observe the resource for so long (RFC 7641) and show every state it is told",
    )
    sending.add_argument(
        "-v", dest="show", action="count", default=0, help="show datagrams and handshake flights; -vv: their bytes too"
    )
    parser.set_defaults(run_alone=run)


def add_request(parser: MixedParser, *, url: str, payload: str, method: str) -> None:
    """Have *parser* take a request: where to, and the message; the texts are the help for these three."""
    parser.mixes = True
    parser.add_argument("url", metavar="URL", help=url)
    parser.add_argument("payload", metavar="PAYLOAD", nargs="?", help=payload)
    message = parser.add_argument_group("the message")
    message.add_argument("-m", "--method", choices=METHODS, help=method)
    message.add_argument("--non", action="store_true", help="send it non-confirmable")
    content = message.add_mutually_exclusive_group()
    content.add_argument("--payload-hex", metavar="HEX", help="the payload, in hexadecimal")
    content.add_argument("--file", metavar="FILE", help="the payload is the file's content; - is stdin")
    message.add_argument(
        "--content-format", metavar="N", type=whole_number(0xFFFF), help="Content-Format, e.g. 0, 50, 60"
    )
    message.add_argument("--accept", metavar="N", type=whole_number(0xFFFF), help="Accept, a Content-Format")
    message.add_argument(
        *("-O", "--option"),
        dest="raw_options",
        metavar="NUMBER,VALUE",
        action="append",
        default=[],
        help="any option: text, 0x and hexadecimal, or a decimal number where the option is one; may be repeated",
    )


def add_security(group: argparse._ArgumentGroup) -> None:
    """Have *group* take what a client proves itself with."""
    group.add_argument("--identity", metavar="TEXT", help="PSK identity: the device's ICCID")
    key = group.add_mutually_exclusive_group()
    key.add_argument(
        "--key", metavar="TEXT", help=f"pre-shared key; - reads a line of stdin; without it ${KEY_VARIABLE} is the key"
    )
    key.add_argument("--hex-key", metavar="HEX", help="pre-shared key in hexadecimal; - reads a line of stdin")
    group.add_argument(
        "--cipher", metavar="NAME", action="append", help="offer this suite (OpenSSL's name); may be repeated"
    )


def add_timeout(group: argparse._ArgumentGroup) -> None:
    """Have *group* take how long to wait."""
    group.add_argument(
        "--timeout",
        type=seconds,
        default=TIMEOUT_SECONDS,
        metavar="SECONDS",
        help=f"for the handshake, and for each answer (default {TIMEOUT_SECONDS:g})",
    )


def run(asked: argparse.Namespace, output: Output) -> int:
    """Send what was asked for; return the exit status.  Raises CoapgwError when there is no answer."""
    from coapgw.cli.conversation import converse  # here, because few verbs need CoAP, OpenSSL and a reactor
    from coapgw.cli.send_order import UsageMistake, understand
    from coapgw.coap.describe import OptionTextRefused
    from coapgw.coap.url import UrlRefused

    try:
        order = understand(asked, sys.stdin.buffer, os.environ.get(KEY_VARIABLE))
    except (UsageMistake, UrlRefused, OptionTextRefused) as mistake:
        output.errors([str(mistake)])
        return EXIT_USAGE
    return converse(order, output)


def whole_number(highest: int, lowest: int = 0) -> Callable[[str], int]:
    """Return what reads a number between two others."""

    def number(text: str) -> int:
        value = int(text)
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"{value} is not one of {lowest} to {highest}")
        return value

    return number


def seconds(text: str) -> float:
    """Read a time of at most a day."""
    value = float(text)
    if not 0 < value <= 86_400:
        raise argparse.ArgumentTypeError("more than 0, at most 86400 seconds")
    return value
