"""The load of a ``coapgw bench``: clients, each with so many requests on their way, and what came of those."""

from __future__ import annotations

import ipaddress
import math
from array import array
from collections import Counter
from collections.abc import Generator, Sequence
from itertools import islice
from typing import Any, Final

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredList, inlineCallbacks
from twisted.internet.task import deferLater

from coapgw.cli.output import Json, Output
from coapgw.cli.send_order import Order, UsageMistake
from coapgw.coap.describe import code_text, dotted
from coapgw.coap.parameters import TransmissionParameters
from coapgw.dtls.openssl import SUITES
from coapgw.errors import CoapgwError
from coapgw.net.client import Answer, CoapClient, NoAnswer, PreSharedKey

EXIT_OK: Final = 0
EXIT_REFUSED: Final = 1
SUCCESS: Final = 2  # the class of a code that is one
REQUESTS_EACH: Final = 60_000  # of one socket: it has 65,536 Message IDs within EXCHANGE_LIFETIME
PERCENTILES: Final = (50, 90, 99)


@attrs.frozen
class Shape:
    """How much load.

    Args:
        sources: the local address of each client; "" for any.
        window: requests of each on their way.
        rate: requests a second of all of them; None: the next one when one is answered.
        seconds: for so long.
    """

    sources: Sequence[str]
    window: int
    rate: int | None
    seconds: float


def sources(bind: str, clients: int) -> Sequence[str]:
    """Return the local address of each client: of the address *bind*, or of a network.  Raises UsageMistake."""
    if "/" not in bind:
        return [bind] * clients
    try:
        network = ipaddress.ip_network(bind, strict=False)
    except ValueError:
        raise UsageMistake(f"--bind {bind}: neither an address nor a network") from None
    found = [str(address) for address in islice(network.hosts(), clients)]
    if len(found) < clients:
        raise UsageMistake(f"--bind {bind}: {len(found)} addresses are not enough for {clients} clients")
    return found


class Load:
    """The clients of one run."""

    def __init__(self, order: Order, shape: Shape, output: Output, reactor: Any) -> None:
        """Wait for ``run``."""
        self._order = order
        self._shape = shape
        self._output = output
        self._reactor = reactor
        self._clients: list[CoapClient] = []
        self._codes: Counter[int] = Counter()
        self._times = array("d")  # seconds, of answered requests
        self._unanswered = 0
        self._started = 0
        self._began = 0.0
        self._end = -math.inf

    @inlineCallbacks
    def run(self) -> Generator[Deferred[Any], Any, int]:
        """Connect all clients, send, say what came of it; return the exit status.

        Fails with CoapgwError where there is no server, and with CancelledError; what there is to say is said before.
        """
        failed: Exception | None = None
        try:
            clients: list[CoapClient] = []
            for source in self._shape.sources:
                client = yield self._connect(source)
                clients += [client]
            self._began = self._reactor.seconds()
            self._end = self._began + self._shape.seconds
            slots = [
                self._slot(source, client)
                for source, client in zip(self._shape.sources, clients, strict=True)
                for _ in range(self._shape.window)
            ]
            results = yield DeferredList(slots, consumeErrors=True)
            failed = next((found.value for is_good, found in results if not is_good), None)
        except (CancelledError, CoapgwError) as ended:
            failed = ended
        seconds = self._reactor.seconds() - self._began
        is_refused = isinstance(failed, CoapgwError)
        if self._started and not (is_refused and (self._output.json or not self._codes)):  # one JSON value, no more
            self._output.result(*self._summary(seconds))
        yield DeferredList([client.close() for client in self._clients])
        if failed is not None:
            raise failed
        return EXIT_OK if self._succeeded == self._started else EXIT_REFUSED

    @inlineCallbacks
    def _connect(self, source: str) -> Generator[Deferred[Any], Any, CoapClient]:
        """Return a client that is connected.  Fails with NotReached, HandshakeFailed."""
        order = self._order
        assert order.target is not None
        psk = None
        if order.identity is not None and order.secret is not None:
            psk = PreSharedKey(order.identity, order.secret, order.suites or SUITES)
        client = CoapClient(
            self._reactor,
            order.target,
            psk=psk,
            bind=source,
            parameters=TransmissionParameters(nstart=self._shape.window, probing_rate=math.inf),
            handshake_seconds=order.timeout,
        )
        self._clients.append(client)
        yield client.connect()
        return client

    @inlineCallbacks
    def _slot(self, source: str, client: CoapClient) -> Generator[Deferred[Any], Any, None]:
        """Send one request after the other until the time is over."""
        order, rate, reactor = self._order, self._shape.rate, self._reactor
        assert order.target is not None
        options = order.target.options + order.options
        sent = 0
        while (now := reactor.seconds()) < self._end:
            due = now
            if rate is not None:
                due = self._began + self._started / rate
                if due >= self._end:
                    return
            self._started += 1
            if due > now:
                yield deferLater(reactor, due - now)
            if sent >= REQUESTS_EACH // self._shape.window:
                client, sent = (yield self._connect(source)), 0
            sent += 1
            try:
                answer: Answer = yield client.request(
                    *(order.method, options, order.payload), confirmable=order.confirmable, timeout=order.timeout
                )
            except NoAnswer:
                self._unanswered += 1
            else:
                self._codes[answer.response.code] += 1
                self._times.append(reactor.seconds() - due)

    @property
    def _succeeded(self) -> int:
        return sum(count for code, count in self._codes.items() if code >> 5 == SUCCESS)

    def _summary(self, seconds: float) -> tuple[list[str], Json]:
        answered = len(self._times)
        per_second = answered / seconds if seconds else 0.0
        codes = sorted(self._codes.items())
        told = [f"{count:,} x {code_text(code)}" for code, count in codes] + [f"{self._unanswered:,} unanswered"]
        repeated = sum(client.retransmissions for client in self._clients)
        lines = [
            f"{self._started:,} requests of {len(self._shape.sources)} clients in {seconds:.1f} s, "
            f"{per_second:,.0f} answered a second",
            f"{', '.join(told)}; {repeated:,} repeated",
        ]
        value: Json = {
            "requests": self._started,
            "clients": len(self._shape.sources),
            "seconds": round(seconds, 3),
            "perSecond": round(per_second, 1),
            "codes": {dotted(code): count for code, count in codes},
            "unanswered": self._unanswered,
            "retransmissions": repeated,
        }
        if answered:
            times = sorted(self._times)
            ranks = {f"p{share}": times[min(answered - 1, answered * share // 100)] for share in PERCENTILES}
            ranks |= {"max": times[-1]}
            lines.append(", ".join(f"{name} {1000 * value:.1f} ms" for name, value in ranks.items()))
            value["latency"] = {name: round(value, 6) for name, value in ranks.items()}
        return lines, value
