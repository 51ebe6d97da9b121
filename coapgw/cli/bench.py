"""``coapgw bench``: many requests at once to any CoAP or CoAPs server, and how long their answers took."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Final

from coapgw.cli import send
from coapgw.cli.output import Output

CLIENTS: Final = 16
SECURE_CLIENTS: Final = 4  # that is how many associations a gateway lets one device have
PAYLOAD: Final = b'{"temperature":21.5,"humidity":40,"battery":3.61,"uptime":86400}'
LONGEST_SECONDS: Final = 3600.0


def add_verb(parser: send.MixedParser) -> None:
    """Make *parser* that of ``coapgw bench``."""
    send.add_request(
        parser,
        url="coap://host[:port]/path?query or coaps://…",
        payload=f"text; default: {len(PAYLOAD)} bytes of JSON, unless a method is given",
        method="default: post",
    )
    send.add_security(parser.add_argument_group("DTLS"))
    load = parser.add_argument_group("the load")
    load.add_argument(
        "--clients",
        metavar="N",
        type=send.whole_number(10_000, 1),
        help=f"so many, each with a socket of its own (default {CLIENTS}, of coaps {SECURE_CLIENTS})",
    )
    load.add_argument(
        "--window", metavar="N", type=send.whole_number(1000, 1), default=1, help="requests of each on their way"
    )
    load.add_argument(
        "--rate",
        metavar="N",
        type=send.whole_number(1_000_000, 1),
        help="of all, a second; default: as fast as answered",
    )
    load.add_argument("--seconds", metavar="N", type=send.seconds, default=10.0, help="default 10")
    load.add_argument(
        "--bind",
        metavar="ADDRESS[/BITS]",
        default="",
        help="the local address to send from, or a network: each client has its own address of it, in order",
    )
    send.add_timeout(load)
    parser.set_defaults(run_alone=run, bootstrap=None, repeat=None, observe=None, retransmit=True, show=0)


def run(asked: argparse.Namespace, output: Output) -> int:
    """Send the load; return the exit status, 0 if every answer was a 2.xx.  Raises CoapgwError."""
    from coapgw.cli.conversation import under_reactor  # here, because few verbs need CoAP, OpenSSL and a reactor
    from coapgw.cli.load import Load, Shape, sources
    from coapgw.cli.send_order import UsageMistake, understand
    from coapgw.coap.describe import OptionTextRefused
    from coapgw.coap.url import UrlRefused

    if asked.method is None:
        asked.method = "post"
        if asked.payload is None and asked.payload_hex is None and asked.file is None:
            asked.payload = PAYLOAD.decode()
    try:
        order = understand(asked, sys.stdin.buffer, os.environ.get(send.KEY_VARIABLE))
        if asked.seconds > LONGEST_SECONDS:
            raise UsageMistake(f"--seconds: {LONGEST_SECONDS:g} at most")
        clients = asked.clients or (CLIENTS if order.identity is None else SECURE_CLIENTS)
        shape = Shape(sources=sources(order.bind, clients), window=asked.window, rate=asked.rate, seconds=asked.seconds)
    except (UsageMistake, UrlRefused, OptionTextRefused) as mistake:
        output.errors([str(mistake)])
        return send.EXIT_USAGE
    return under_reactor(lambda reactor: Load(order, shape, output, reactor).run())
