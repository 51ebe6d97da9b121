"""What we send of our own accord: confirmable messages until they are acknowledged, requests until they are answered.

RFC 7252 sections 4.2 (retransmission), 4.7 (NSTART), 5.2 and 5.3 (responses and how they are matched).
"""

from __future__ import annotations

import enum
import heapq
import math
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

import attrs

from coapgw.coap.codec import OBSERVE, Options, decode_uint, option_value
from coapgw.coap.endpoints import Address, Endpoint, RandomSource
from coapgw.coap.exchanges import UNLIMITED
from coapgw.coap.parameters import MessagingLimits, TransmissionParameters
from coapgw.metrics import MessagingCounters

SUCCESS: Final = 2  # the class of a code that is one
NON_BIT: Final = 0x10  # in the first byte of a CON or NON
_HALF_RANGE: Final = 1 << 23  # of the 24 bits of an Observe number
_LATER_SECONDS: Final = 128.0  # after that long a notification is newer whatever its number
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


class Ending(enum.Enum):
    """What became of a confirmable of ours."""

    ACKNOWLEDGED = "acknowledged"
    RESET = "reset"
    GIVEN_UP = "given up"


Outcome: TypeAlias = Callable[[Response | NoResponse], None]


@attrs.define(eq=False)
class Request:
    """A request of ours until its response or its end.

    Args:
        expires: on the layer's clock.
        observes: whether more responses may follow the first (RFC 7641).
        newest: Observe number and time of the newest of these, None before there is one.
    """

    endpoint: Endpoint
    token: bytes
    outcome: Outcome
    expires: float
    transmission: Transmission | None = None
    observes: bool = False
    newest: tuple[int, float] | None = None


@attrs.define(eq=False)
class Transmission:
    """A confirmable of ours until it is acknowledged, reset or given up.

    Or a non-confirmable request until its response, or until PROBING_RATE allows for another (RFC 7252 section 4.7).

    Args:
        request: the request it carries, None for a separate response.
        timeout: seconds until the next retransmission, doubled with each.
        due: when that is, on the layer's clock; set when the datagram is taken for sending.
        limit: how often it may be sent at most, where MAX_RETRANSMIT would be too much for a forged address.
        refresh: asked each time before it is sent; returns a Message ID and a datagram to send in its place, or None.
        ended: told once what became of it.
    """

    endpoint: Endpoint
    message_id: int
    datagram: bytes
    request: Request | None = None
    timeout: float = 0.0
    sent: int = 0
    limit: int = UNLIMITED
    due: float = 0.0
    done: bool = False
    refresh: Callable[[], tuple[int, bytes] | None] | None = None
    ended: Callable[[Ending], None] | None = None

    @property
    def is_confirmable(self) -> bool:
        """Whether it is repeated and acknowledged."""
        return not self.datagram[0] & NON_BIT


@attrs.define
class OutgoingQueue:
    """Confirmables and requests towards one endpoint: how many are under way, and which wait for their turn.

    Args:
        observations: what the endpoint observes here.
        non_due: when the next non-confirmable notification may be sent to it, on the layer's clock.
    """

    under_way: int = 0
    requests: int = 0
    observations: int = 0
    non_due: float = -math.inf
    waiting: deque[Transmission] = attrs.field(factory=deque)

    def is_busy(self) -> bool:
        """Return whether anything is left to do."""
        return self.under_way > 0 or self.requests > 0 or self.observations > 0


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
        self,
        endpoint: Endpoint,
        head: tuple[int, bool],
        body: bytes,
        outcome: Outcome,
        expires: float,
        *,
        observes: bool = False,
        token: bytes | None = None,
    ) -> bytes:
        """Send a request; return its token.

        Args:
            head: (method, confirmable).
            body: from ``codec.encode_body``.
            observes: whether *outcome* may be called with many responses.
            token: that of an earlier request, which ends without a word; a new one if None.
        """
        code, confirmable = head
        queue = queue_of(endpoint)
        if token is None:
            token = self._random.getrandbits(8 * TOKEN_BYTES).to_bytes(TOKEN_BYTES, "big")
        else:
            self.forget_request(endpoint, token)
        if len(queue.waiting) >= self._limits.queued_per_endpoint:
            outcome(NoResponse("refused"))
            return token
        request = Request(endpoint, token, outcome, expires, observes=observes)
        queue.requests += 1
        self._requests[endpoint.base, token] = request
        self._set_alarm(expires, request)
        first = (0x40 if confirmable else 0x50) | TOKEN_BYTES
        message_id = endpoint.next_message_id()
        datagram = bytes((first, code, message_id >> 8, message_id & 0xFF)) + token + body
        request.transmission = Transmission(endpoint, message_id, datagram, request)
        self.transmit(request.transmission)
        return token

    def forget_request(self, endpoint: Endpoint, token: bytes) -> None:
        """Let go of a request; a notification that comes for it is rejected with RST (RFC 7641 section 3.6)."""
        request = self._requests.get((endpoint.base, token))
        if request is not None:
            request.outcome = _nobody
            self._conclude(request, NoResponse("timeout"))

    def transmit(self, transmission: Transmission) -> None:
        """Send a confirmable now, or as soon as fewer than NSTART are under way to its endpoint."""
        queue = queue_of(transmission.endpoint)
        if queue.under_way < self._parameters.nstart:
            self._start(transmission, queue)
        elif len(queue.waiting) < self._limits.queued_per_endpoint:
            queue.waiting.append(transmission)
        else:
            self._counters.given_up += 1
            transmission.done = True
            if transmission.ended is not None:
                transmission.ended(Ending.GIVEN_UP)

    def cancel(self, transmission: Transmission) -> None:
        """Stop sending a confirmable; nobody is told."""
        transmission.refresh = transmission.ended = None
        self._finish(transmission, Ending.GIVEN_UP)

    def acknowledged(self, endpoint: Endpoint, message_id: int) -> bool:
        """End the transmission an empty ACK names; return whether there is one."""
        transmission = self._transmissions.get(endpoint.base | message_id)
        if transmission is None or not transmission.is_confirmable:
            return False
        self._finish(transmission, Ending.ACKNOWLEDGED)
        return True

    def reset(self, endpoint: Endpoint, message_id: int) -> bool:
        """End the transmission an RST names, and its request; return whether there is one."""
        transmission = self._transmissions.get(endpoint.base | message_id)
        if transmission is None:
            return False
        self._finish(transmission, Ending.RESET)
        if transmission.request is not None:
            self._conclude(transmission.request, NoResponse("reset"))
        return True

    def awaits(self, endpoint: Endpoint, token: bytes, acknowledged_id: int | None) -> bool:
        """Return whether a response with this token, in an ACK of this Message ID if not None, is awaited."""
        request = self._requests.get((endpoint.base, token))
        if request is None or acknowledged_id is None:
            return request is not None
        transmission = request.transmission
        if transmission is None or not transmission.is_confirmable:
            return False
        return transmission.message_id == acknowledged_id

    def responded(self, endpoint: Endpoint, token: bytes, response: Response, now: float) -> None:
        """Conclude the request with this token; a response also acknowledges it (RFC 7252 section 5.2.2).

        A request that observes goes on after a notification, and one that is older than the newest is dropped.
        """
        request = self._requests.get((endpoint.base, token))
        if request is None:
            return
        number = option_value(response.options, OBSERVE)
        if not request.observes or number is None or response.code >> 5 != SUCCESS:
            self._conclude(request, response)
            return
        request.expires = math.inf
        if request.transmission is not None:
            self._finish(request.transmission, Ending.ACKNOWLEDGED)
        notification = (decode_uint(number), now)
        if request.newest is None or is_fresher(notification, request.newest):
            request.newest = notification
            request.outcome(response)

    def abandon(self, endpoint: Endpoint) -> None:
        """End everything towards an endpoint that is let go."""
        queue = endpoint.outgoing
        if queue is None:
            return
        queue.waiting.clear()
        if queue.under_way:
            for transmission in [t for t in self._transmissions.values() if t.endpoint is endpoint]:
                self._finish(transmission, Ending.GIVEN_UP)
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
                if what.expires <= now:
                    self._conclude(what, NoResponse("timeout"))
            elif not what.is_confirmable:
                self._finish(what, Ending.GIVEN_UP)  # its response may come still; others may have their turn
            elif not what.done and what.sent < min(what.limit, self._parameters.max_retransmit + 1):
                self._counters.retransmissions += 1
                self._emit(what)
            elif not what.done:
                self._counters.given_up += 1
                self._finish(what, Ending.GIVEN_UP)
                if what.request is not None:
                    self._conclude(what.request, NoResponse("timeout"))

    # ------------------------------------------------------------------ inside

    def _start(self, transmission: Transmission, queue: OutgoingQueue) -> None:
        queue.under_way += 1
        parameters = self._parameters
        if transmission.is_confirmable:
            transmission.timeout = parameters.ack_timeout * self._random.uniform(1.0, parameters.ack_random_factor)
        else:
            transmission.timeout = len(transmission.datagram) / parameters.probing_rate
        self._transmissions[transmission.endpoint.base | transmission.message_id] = transmission
        self._emit(transmission)

    def _emit(self, transmission: Transmission) -> None:
        fresh = transmission.refresh() if transmission.refresh is not None else None
        if fresh is not None:
            del self._transmissions[transmission.endpoint.base | transmission.message_id]
            transmission.message_id, transmission.datagram = fresh
            self._transmissions[transmission.endpoint.base | transmission.message_id] = transmission
        transmission.sent += 1
        self._taken.append(transmission)
        self._send(transmission.datagram, transmission.endpoint.address)

    def _finish(self, transmission: Transmission, ending: Ending) -> None:
        """End a transmission and start the next one that waits."""
        if transmission.done:
            return
        transmission.done = True
        if self._transmissions.pop(transmission.endpoint.base | transmission.message_id, None) is None:
            return  # it waits for its turn still; it is passed over when that comes
        queue = queue_of(transmission.endpoint)
        queue.under_way -= 1
        while queue.waiting and queue.under_way < self._parameters.nstart:
            following = queue.waiting.popleft()
            if not following.done:
                self._start(following, queue)
        if transmission.ended is not None:
            transmission.ended(ending)

    def _conclude(self, request: Request, result: Response | NoResponse) -> None:
        if self._requests.pop((request.endpoint.base, request.token), None) is None:
            return
        queue_of(request.endpoint).requests -= 1
        if request.transmission is not None:
            self._finish(request.transmission, Ending.ACKNOWLEDGED)
        request.outcome(result)

    def _set_alarm(self, due: float, what: Transmission | Request) -> None:
        self._alarm_number += 1
        heapq.heappush(self._alarms, (due, self._alarm_number, what))

    def _is_over(self, what: Transmission | Request) -> bool:
        if isinstance(what, Request):
            return what.expires == math.inf or self._requests.get((what.endpoint.base, what.token)) is not what
        return what.done


def queue_of(endpoint: Endpoint) -> OutgoingQueue:
    """Return the queue of an endpoint, made now if there was none."""
    if endpoint.outgoing is None:
        endpoint.outgoing = OutgoingQueue()
    return endpoint.outgoing


def is_fresher(notification: tuple[int, float], newest: tuple[int, float]) -> bool:
    """Return whether a notification is newer than the newest, both as (Observe number, seconds).

    RFC 7641 section 3.4: numbers go round, and after 128 seconds they say nothing.
    """
    (number, now), (before, then) = notification, newest
    ahead = number - before & 2 * _HALF_RANGE - 1
    return 0 < ahead < _HALF_RANGE or now > then + _LATER_SECONDS


def _nobody(outcome: Response | NoResponse) -> None:
    """Hear what nobody waits for."""
