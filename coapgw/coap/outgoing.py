"""What we send of our own accord: confirmable messages until they are acknowledged, requests until they are answered.

RFC 7252 sections 4.2 (retransmission), 4.7 (NSTART), 5.2 and 5.3 (responses and how they are matched).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

import attrs

from coapgw.coap.codec import Options
from coapgw.coap.endpoints import Address, Endpoint, RandomSource
from coapgw.coap.parameters import MessagingLimits, TransmissionParameters
from coapgw.metrics import MessagingCounters

TOKEN_BYTES: Final = 8  # as much as fits: an off-path attacker has to guess it (RFC 7252 section 5.3.1)


class Response(NamedTuple):
    """An answer to a request of ours."""

    code: int
    options: Options
    payload: bytes


@attrs.frozen
class NoResponse:
    """Why a request of ours has no answer: ``timeout``, ``reset`` or ``refused`` (too many wait for that endpoint)."""

    reason: str


Outcome: TypeAlias = Callable[[Response | NoResponse], None]


@attrs.define(eq=False)
class Request:
    """A request of ours until its response or its end; *expires* on the layer's clock."""

    endpoint: Endpoint
    token: bytes
    outcome: Outcome
    expires: float
    transmission: Transmission | None = None


@attrs.define(eq=False)
class Transmission:
    """A confirmable of ours until it is acknowledged, reset or given up.

    Args:
        request: the request it carries, None for a separate response.
        timeout: seconds until the next retransmission, doubled with each.
        due: when that is, on the layer's clock; set when the datagram is taken for sending.
    """

    endpoint: Endpoint
    message_id: int
    datagram: bytes
    request: Request | None = None
    timeout: float = 0.0
    sent: int = 0
    due: float = 0.0
    done: bool = False


@attrs.define
class OutgoingQueue:
    """Confirmables and requests towards one endpoint: how many are under way, and which wait for their turn."""

    under_way: int = 0
    requests: int = 0
    waiting: deque[Transmission] = attrs.field(factory=deque)

    def is_busy(self) -> bool:
        """Return whether anything is left to do."""
        return self.under_way > 0 or self.requests > 0


class Outgoing:
    """All confirmables and requests of one message layer.

    Args:
        send: takes (datagram, address).
    """

    def __init__(
        self,
        send: Callable[[bytes, Address], None],
        random: RandomSource,
        parameters: TransmissionParameters,
        limits: MessagingLimits,
        counters: MessagingCounters,
    ) -> None:
        """Begin with nothing under way."""
        self._send = send
        self._random = random
        self._parameters = parameters
        self._limits = limits
        self._counters = counters
        self._transmissions: dict[int, Transmission] = {}
        self._requests: dict[tuple[int, bytes], Request] = {}
        self._alarms: list[tuple[float, int, Transmission | Request]] = []
        self._alarm_number = 0
        self._taken: list[Transmission] = []

    def request(
        self, endpoint: Endpoint, head: tuple[int, bool], body: bytes, outcome: Outcome, expires: float
    ) -> None:
        """Send a request; *head* is (method, confirmable), *body* comes from ``codec.encode_body``."""
        code, confirmable = head
        queue = _queue(endpoint)
        if len(queue.waiting) >= self._limits.queued_per_endpoint:
            outcome(NoResponse("refused"))
            return
        token = self._random.getrandbits(8 * TOKEN_BYTES).to_bytes(TOKEN_BYTES, "big")
        request = Request(endpoint, token, outcome, expires)
        queue.requests += 1
        self._requests[endpoint.base, token] = request
        self._set_alarm(expires, request)
        first = (0x40 if confirmable else 0x50) | TOKEN_BYTES
        message_id = endpoint.next_message_id()
        datagram = bytes((first, code, message_id >> 8, message_id & 0xFF)) + token + body
        if confirmable:
            request.transmission = Transmission(endpoint, message_id, datagram, request)
            self.transmit(request.transmission)
        else:
            self._send(datagram, endpoint.address)

    def transmit(self, transmission: Transmission) -> None:
        """Send a confirmable now, or as soon as fewer than NSTART are under way to its endpoint."""
        queue = _queue(transmission.endpoint)
        if queue.under_way < self._parameters.nstart:
            self._start(transmission, queue)
        elif len(queue.waiting) < self._limits.queued_per_endpoint:
            queue.waiting.append(transmission)
        else:
            self._counters.given_up += 1

    def acknowledged(self, endpoint: Endpoint, message_id: int) -> bool:
        """End the transmission an empty ACK names; return whether there is one."""
        transmission = self._transmissions.get(endpoint.base | message_id)
        if transmission is not None:
            self._finish(transmission)
        return transmission is not None

    def reset(self, endpoint: Endpoint, message_id: int) -> bool:
        """End the transmission an RST names, and its request; return whether there is one."""
        transmission = self._transmissions.get(endpoint.base | message_id)
        if transmission is None:
            return False
        self._finish(transmission)
        if transmission.request is not None:
            self._conclude(transmission.request, NoResponse("reset"))
        return True

    def awaits(self, endpoint: Endpoint, token: bytes, acknowledged_id: int | None) -> bool:
        """Return whether a response with this token, in an ACK of this Message ID if not None, is awaited."""
        request = self._requests.get((endpoint.base, token))
        if request is None or acknowledged_id is None:
            return request is not None
        transmission = request.transmission
        return transmission is not None and transmission.message_id == acknowledged_id

    def responded(self, endpoint: Endpoint, token: bytes, response: Response) -> None:
        """Conclude the request with this token; a response also acknowledges it (RFC 7252 section 5.2.2)."""
        request = self._requests.get((endpoint.base, token))
        if request is not None:
            self._conclude(request, response)

    def abandon(self, endpoint: Endpoint) -> None:
        """End everything towards an endpoint that is let go."""
        queue = endpoint.outgoing
        if queue is None:
            return
        queue.waiting.clear()
        if queue.under_way:
            for transmission in [t for t in self._transmissions.values() if t.endpoint is endpoint]:
                self._finish(transmission)
        if queue.requests:
            for request in [r for r in self._requests.values() if r.endpoint is endpoint]:
                self._conclude(request, NoResponse("timeout"))

    # ------------------------------------------------------------------ time

    def taken(self, now: float) -> None:
        """Start the retransmission clocks of what is taken for sending *now*."""
        for transmission in self._taken:
            if not transmission.done:
                transmission.due = now + transmission.timeout
                transmission.timeout *= 2
                self._set_alarm(transmission.due, transmission)
        self._taken.clear()

    def next_alarm(self) -> float | None:
        """Return when ``handle_alarms`` has something to do."""
        alarms = self._alarms
        while alarms and self._is_over(alarms[0][2]):
            heapq.heappop(alarms)
        return alarms[0][0] if alarms else None

    def handle_alarms(self, now: float) -> None:
        """Retransmit what is due, give up what was sent MAX_RETRANSMIT times again, end requests that expired."""
        alarms = self._alarms
        while alarms and alarms[0][0] <= now:
            what = heapq.heappop(alarms)[2]
            if isinstance(what, Request):
                self._conclude(what, NoResponse("timeout"))
            elif not what.done and what.sent <= self._parameters.max_retransmit:
                self._counters.retransmissions += 1
                self._emit(what)
            elif not what.done:
                self._counters.given_up += 1
                self._finish(what)
                if what.request is not None:
                    self._conclude(what.request, NoResponse("timeout"))

    # ------------------------------------------------------------------ inside

    def _start(self, transmission: Transmission, queue: OutgoingQueue) -> None:
        queue.under_way += 1
        parameters = self._parameters
        transmission.timeout = parameters.ack_timeout * self._random.uniform(1.0, parameters.ack_random_factor)
        self._transmissions[transmission.endpoint.base | transmission.message_id] = transmission
        self._emit(transmission)

    def _emit(self, transmission: Transmission) -> None:
        transmission.sent += 1
        self._taken.append(transmission)
        self._send(transmission.datagram, transmission.endpoint.address)

    def _finish(self, transmission: Transmission) -> None:
        """End a transmission and start the next one that waits."""
        if transmission.done:
            return
        transmission.done = True
        if self._transmissions.pop(transmission.endpoint.base | transmission.message_id, None) is None:
            return  # it waits for its turn still; it is passed over when that comes
        queue = _queue(transmission.endpoint)
        queue.under_way -= 1
        while queue.waiting and queue.under_way < self._parameters.nstart:
            following = queue.waiting.popleft()
            if not following.done:
                self._start(following, queue)

    def _conclude(self, request: Request, result: Response | NoResponse) -> None:
        if self._requests.pop((request.endpoint.base, request.token), None) is None:
            return
        _queue(request.endpoint).requests -= 1
        if request.transmission is not None:
            self._finish(request.transmission)
        request.outcome(result)

    def _set_alarm(self, due: float, what: Transmission | Request) -> None:
        self._alarm_number += 1
        heapq.heappush(self._alarms, (due, self._alarm_number, what))

    def _is_over(self, what: Transmission | Request) -> bool:
        if isinstance(what, Request):
            return (what.endpoint.base, what.token) not in self._requests
        return what.done


def _queue(endpoint: Endpoint) -> OutgoingQueue:
    if endpoint.outgoing is None:
        endpoint.outgoing = OutgoingQueue()
    return endpoint.outgoing
