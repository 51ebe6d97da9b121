"""A ``coapgw send`` from the first datagram to the exit status."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Generator
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred, inlineCallbacks
from twisted.python.failure import Failure

from coapgw.cli.output import Json, Output
from coapgw.cli.send_order import Order
from coapgw.coap.codec import Options
from coapgw.coap.describe import (
    code_text,
    describe_datagram,
    dotted,
    option_name,
    option_value,
    printable_text,
)
from coapgw.coap.parameters import TransmissionParameters
from coapgw.coap.url import Target, resolve_url
from coapgw.dtls.describe import describe_records
from coapgw.dtls.openssl import SUITES
from coapgw.net.bootstrap import Bootstrapped, bootstrap
from coapgw.net.client import Answer, CoapClient, NoAnswer, PreSharedKey, Sighting

EXIT_OK: Final = 0
EXIT_REFUSED: Final = 1
EXIT_INTERRUPTED: Final = 130
SUCCESS: Final = 2  # the class of a code that is one
SHOW_BYTES: Final = 2

_BLOCK2: Final = 23
_MORE: Final = 0x08  # in a block option: RFC 7959 section 2.2


def converse(order: Order, output: Output) -> int:
    """Send what was ordered, under the global reactor; return the exit status.  Raises CoapgwError."""
    return under_reactor(lambda reactor: Conversation(order, output, reactor).run())


def under_reactor(make: Callable[[Any], Deferred[int]]) -> int:
    """Run what *make* begins under the global reactor, until it gives an exit status or the user has enough."""
    from twisted.internet import reactor as installed

    reactor: Any = installed
    statuses: list[int] = []
    failures: list[Failure] = []

    def begin() -> None:
        done = make(reactor)
        reactor.addSystemEventTrigger("before", "shutdown", done.cancel)  # SIGINT, unless it is done already
        done.addCallbacks(statuses.append, failures.append)
        done.addBoth(lambda _: reactor.callLater(0, _stop, reactor))

    reactor.callWhenRunning(begin)
    reactor.run()
    for failure in failures:
        if failure.check(CancelledError) is None:
            failure.raiseException()
    return statuses[0] if statuses else EXIT_INTERRUPTED


def _stop(reactor: Any) -> None:
    if reactor.running:
        reactor.stop()


class Conversation:
    """The requests of one order, one after the other."""

    def __init__(self, order: Order, output: Output, reactor: Any) -> None:
        """Wait for ``run``."""
        self._order = order
        self._output = output
        self._reactor = reactor
        self._answers: list[Answer] = []
        self._results: list[Json] = []
        self._unanswered = 0

    @inlineCallbacks
    def run(self) -> Generator[Deferred[Any], Any, int]:
        """Bootstrap if that is wanted, shake hands if it takes that, send; return the exit status.

        Fails with CoapgwError.
        """
        order = self._order
        target, psk = order.target, None
        if order.bootstrap is not None:
            found: Bootstrapped = yield self._bootstrap(order.bootstrap)
            target = resolve_url(order.url, found.gateway)
            psk = PreSharedKey(found.identity, found.secret, order.suites or SUITES) if target.is_secure else None
        elif order.identity is not None and order.secret is not None:
            psk = PreSharedKey(order.identity, order.secret, order.suites or SUITES)
        assert target is not None
        client = self._client(target, psk, is_secret=False)
        try:
            yield client.connect()
            if client.suite:
                self._watch_line(f"         {client.suite}, handshake {_milliseconds(client.handshake_seconds)}")
            if order.observe is not None:
                yield self._observe(client, target.options + order.options, order.observe)
            for number in range(1, (order.repeat or 1) + 1 if order.observe is None else 1):
                yield self._request(client, target.options + order.options, number)
        finally:
            yield client.close()
        return self._close(client)

    @inlineCallbacks
    def _bootstrap(self, target: Target) -> Generator[Deferred[Any], Any, Bootstrapped]:
        """Ask for identity, key and gateway.  Fails with BootstrapRefused, NotReached, NoAnswer."""
        found: Bootstrapped = yield bootstrap(self._client(target, None, is_secret=True), self._order.timeout)
        identity = found.identity.decode("utf-8", "backslashreplace")
        self._watch_line(f"         bootstrapped: identity {identity}, gateway {found.gateway}")
        return found

    @inlineCallbacks
    def _request(self, client: CoapClient, options: Options, number: int) -> Generator[Deferred[Any], Any, None]:
        """Send one request and say what came of it.

        A request without an answer is the end only if it is the only one.
        """
        order = self._order
        try:
            answer: Answer = yield client.request(
                *(order.method, options, order.payload), confirmable=order.confirmable, timeout=order.timeout
            )
        except NoAnswer as none:
            if order.repeat is None:
                raise
            self._unanswered += 1
            self._results.append({"error": str(none)})
            if not self._output.json:
                print(f"{number}: {none}", flush=True)
            return
        self._answers.append(answer)
        self._results.append(answer_json(answer))
        if not self._output.json:
            prefix = "" if order.repeat is None else f"{number}: "
            print(prefix + "\n".join(answer_lines(answer)), flush=True)

    @inlineCallbacks
    def _observe(self, client: CoapClient, options: Options, seconds: float) -> Generator[Deferred[Any], Any, None]:
        """Say every state that is told, for some seconds or until the server ends it."""

        def told(answer: Answer) -> None:
            self._answers.append(answer)
            self._results.append(answer_json(answer))
            if not self._output.json:
                print("\n".join(answer_lines(answer)), flush=True)

        order = self._order
        observing = client.observe(options, told, confirmable=order.confirmable, timeout=order.timeout)
        enough = self._reactor.callLater(seconds, observing.stop)
        try:
            yield observing.ended
        finally:
            if enough.active():
                enough.cancel()

    def _close(self, client: CoapClient) -> int:
        """Say what is left to say; return the exit status."""
        succeeded = sum(answer.response.code >> 5 == SUCCESS for answer in self._answers)
        about: Json = {"url": str(client.target), "address": client.address}
        if client.suite:
            about |= {"suite": client.suite, "handshakeSeconds": round(client.handshake_seconds, 6)}
        if self._order.observe is not None:
            self._output.result((), {"answers": self._results} | about)
        elif self._order.repeat is None:
            self._output.result((), self._results[0] | about)
        else:
            lines, value = self._summary(succeeded)
            self._output.result(lines, {"answers": self._results} | value | about)
        return EXIT_OK if succeeded == len(self._results) else EXIT_REFUSED

    def _summary(self, succeeded: int) -> tuple[list[str], Json]:
        refused = len(self._answers) - succeeded
        line = f"{len(self._results)} requests: {succeeded} answered 2.xx"
        line += f", {refused} refused, {self._unanswered} unanswered"
        value: Json = {"succeeded": succeeded, "refused": refused, "unanswered": self._unanswered}
        times = [answer.seconds for answer in self._answers]
        if times:
            least, middle, most = min(times), statistics.median(times), max(times)
            line += f"; {_milliseconds(least)} at least, {_milliseconds(middle)} median, {_milliseconds(most)} at most"
            value["seconds"] = {"min": round(least, 6), "median": round(middle, 6), "max": round(most, 6)}
        return [line], value

    # ------------------------------------------------------------------ clients, and watching them

    def _client(self, target: Target, psk: PreSharedKey | None, is_secret: bool) -> CoapClient:
        """Return a client; of one whose answer *is_secret* no bytes are shown."""
        order = self._order
        if order.retransmit:
            parameters = TransmissionParameters(probing_rate=math.inf)  # who tests decides how fast
        else:  # the acknowledgement is waited for as long as the answer
            parameters = TransmissionParameters(ack_timeout=order.timeout, max_retransmit=0, probing_rate=math.inf)

        def watch(sighting: Sighting) -> None:
            for line in sighting_lines(sighting, order.show >= SHOW_BYTES and not is_secret):
                self._watch_line(line)

        return CoapClient(
            self._reactor,
            target,
            psk=psk,
            bind=order.bind,
            parameters=parameters,
            handshake_seconds=order.timeout,
            watch=watch if order.show else None,
        )

    def _watch_line(self, line: str) -> None:
        if self._order.show:
            print(line, file=sys.stderr, flush=True)


def answer_lines(answer: Answer) -> list[str]:
    """Return an answer for people: code and time, options, payload."""
    response = answer.response
    head = f"{code_text(response.code)}, {_milliseconds(answer.seconds)}"
    if answer.retransmissions:
        head += f", repeated {answer.retransmissions} times" if answer.retransmissions > 1 else ", repeated once"
    lines = [head]
    lines += [f"  {option_name(number)}: {option_value(number, value)}" for number, value in response.options]
    if is_first_block(response.options):
        lines.append("  (the first block of a longer answer; block-wise transfer is not there yet)")
    if response.payload:
        text = printable_text(response.payload)
        lines.append(text.rstrip("\n") if text is not None else f"0x{response.payload.hex()}")
    return lines


def answer_json(answer: Answer) -> Json:
    """Return an answer for programs: ``payload`` is text, ``payloadHex`` anything else."""
    response = answer.response
    value: Json = {"code": dotted(response.code), "name": code_text(response.code).partition(" ")[2]}
    value["seconds"] = round(answer.seconds, 6)
    value["retransmissions"] = answer.retransmissions
    value["options"] = [
        {"number": number, "name": option_name(number), "value": option_value(number, content)}
        for number, content in response.options
    ]
    try:
        value["payload"] = response.payload.decode()
    except UnicodeDecodeError:
        value["payloadHex"] = response.payload.hex()
    return value


def is_first_block(options: Options) -> bool:
    """Return whether more of the answer is to be had with Block2."""
    return any(number == _BLOCK2 and value and value[-1] & _MORE for number, value in options)


def sighting_lines(sighting: Sighting, show_bytes: bool) -> list[str]:
    """Return what ``-v`` shows of a datagram: seconds, direction, contents, and with *show_bytes* all of it."""
    arrow = "->" if sighting.is_outgoing else "<-"
    describe = describe_records if sighting.is_sealed else describe_datagram
    lines = [f"{sighting.seconds:8.4f} {arrow} {describe(sighting.data)}"]
    if show_bytes:
        lines.append(f"            {sighting.data.hex()}")
    return lines


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
