"""Who observes what, and what they are told: the server's part of RFC 7641, for one message layer.

An observation is a GET (or FETCH) that goes on being answered.  When its resource changes (txThings calls ``trigger``)
the request is carried out again, as it is, and what it gets is sent as a notification:

* confirmable if the request was, one at a time: while one is under way a further change waits, and is in the next
  repetition of it (section 4.5.2).  An endpoint has NSTART of all confirmables of ours.
* non-confirmable otherwise, at most every three seconds to an endpoint (section 4.5.1), every sixteenth confirmable.
* an error and the end, if it is no success, or has another Content-Format than the first answer (section 4.2).
* confirmable, changed or not, when none was acknowledged for 24 hours (section 4.5); anew before a Max-Age that the
  resource gave is over.

It ends with a GET that says so, an RST, a confirmable that nobody acknowledges, another request to observe with the
same token, an answer that is no success, and with its endpoint: with DTLS, the association.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol

from coapgw.coap.codec import (
    CONTENT_FORMAT,
    HEADER_BYTES,
    MAX_AGE,
    NOT_ACCEPTABLE,
    OBSERVE,
    UNAUTHORIZED,
    add_options,
    decode_uint,
    encode_uint,
    option_value,
    parse_options,
)
from coapgw.coap.endpoints import Address, Endpoint
from coapgw.coap.exchange import Exchange, Handler
from coapgw.coap.exchanges import UNLIMITED
from coapgw.coap.outgoing import SUCCESS, Ending, Outgoing, Transmission, queue_of
from coapgw.coap.parameters import MessagingLimits
from coapgw.metrics import MessagingCounters

NON_SECONDS: Final = 3.0  # RFC 7641 section 4.5.1, where the round-trip time is not known
CONFIRM_EACH: Final = 16  # so that a client that went away is not told for a day
CONFIRM_SECONDS: Final = 86_400.0  # RFC 7641 section 4.5
SHORTEST_MAX_AGE: Final = 5.0  # seconds; a resource that is stale at once is not sent all the time
SERVED_EACH_TURN: Final = 256  # observations: about as long as a batch of datagrams
_TICKS: Final = 32_768  # a second: 24 bits of them go round in 512 s, twice the 256 s of RFC 7641 section 4.4
_NUMBER_MASK: Final = 0xFFFFFF


class Observable(Protocol):
    """A resource that can be observed; txThings' own are such."""

    observers: dict[Any, Any]


class Observation:
    """One client's interest in one resource.

    Args:
        resource: gets it among its ``observers`` and calls ``trigger``.
        handler: carries out the request, Observe left out.
    """

    __slots__ = (
        "alarm",
        "confirmable",
        "confirmed_at",
        "content_format",
        "endpoint",
        "fresh",
        "handler",
        "header",
        "is_announced",
        "is_ended",
        "is_last",
        "is_queued",
        "is_stale",
        "non_key",
        "nons",
        "notifications",
        "number",
        "payload",
        "rendering",
        "resource",
        "stale_at",
        "transmission",
    )

    def __init__(
        self, notifications: Notifications, exchange: Exchange, resource: Observable, handler: Handler, payload: bytes
    ) -> None:
        """Begin, unannounced."""
        self.notifications = notifications
        self.endpoint = exchange.endpoint
        self.resource = resource
        self.handler = handler
        self.payload = payload
        self.confirmable = not exchange.header[0] & 0x10
        token = exchange.header[HEADER_BYTES:]
        self.header = bytes((0x40 | len(token), exchange.header[1], 0, 0)) + token
        self.is_announced = self.is_ended = self.is_stale = self.is_queued = self.is_last = False
        self.rendering: Exchange | None = None
        self.transmission: Transmission | None = None
        self.fresh: tuple[int, bytes] | None = None  # what replaces the transmission when that is sent again
        self.non_key = 0
        self.nons = 0
        self.number = 0
        self.content_format: bytes | None = None  # of the first answer, hence of all notifications
        self.confirmed_at = exchange.now
        self.stale_at = math.inf
        self.alarm = math.inf

    @property
    def token(self) -> bytes:
        """What the client knows it by."""
        return self.header[HEADER_BYTES:]

    def trigger(self) -> None:
        """Take note that the resource changed: the client is told when it may be."""
        self.is_stale = True
        self.notifications.queue(self)

    def announce(self, code: int, body: bytes) -> tuple[int, bytes]:
        """Make the answer to the request the first notification, if it is a success; else there is no observation."""
        if self.is_ended:
            return code, body
        if code >> 5 != SUCCESS:
            self.notifications.remove(self)
            return code, body
        self.is_announced = True
        self.content_format = option_value(parse_options(body, 0)[0], CONTENT_FORMAT)
        numbered = self.notifications.numbered(self, body)
        if self.is_stale:
            self.notifications.queue(self)
        return code, numbered

    # ------------------------------------------------------------------ as the layer of the exchange that renders it

    @property
    def now(self) -> float:
        """The layer's time."""
        return self.notifications.now

    def local_host(self, address: Address, /) -> str:
        """Return which of our own addresses the client talks to."""
        return self.notifications.local_host(address)

    def respond(self, exchange: Exchange, code: int, body: bytes) -> None:
        """Take what the request gets now."""
        if exchange is self.rendering:
            self.rendering = None
            if not self.is_ended:
                self.notifications.rendered(self, code, body)

    def withhold(self, exchange: Exchange) -> None:
        """Take that there is nothing to tell."""
        if exchange is self.rendering:
            self.rendering = None

    def room(self, exchange: Exchange) -> int:
        """Return that there is room enough: only peers at proven addresses observe."""
        return UNLIMITED

    def challenge(self, exchange: Exchange) -> None:
        """Take that the request would not be answered."""
        exchange.respond(UNAUTHORIZED)

    def is_fresh(self, exchange: Exchange) -> bool:
        """Return whether the request was sent just now: it was when it was made."""
        return True


class Notifications:
    """The observations of one message layer.

    Args:
        send: takes (datagram, address).
        clock: the layer's time, in seconds.
        refresh_principal: looks again who is at an endpoint, if that may have changed.
    """

    def __init__(
        self,
        outgoing: Outgoing,
        send: Callable[[bytes, Address], None],
        *,
        clock: Callable[[], float],
        wake: Callable[[], None],
        refresh_principal: Callable[[Endpoint], None],
        local_host: Callable[[Address], str],
        limits: MessagingLimits,
        counters: MessagingCounters,
    ) -> None:
        """Begin without observations."""
        self._outgoing = outgoing
        self._send = send
        self._wake = wake
        self._refresh_principal = refresh_principal
        self.local_host = local_host
        self._limits = limits
        self._counters = counters
        self._of_endpoint: dict[Endpoint, dict[bytes, Observation]] = {}
        self._by_non: dict[int, Observation] = {}
        self.pending: deque[Observation] = deque()
        self._alarms: list[tuple[float, int, Observation]] = []
        self._alarm_number = 0
        self._count = 0
        self._clock = clock

    def __len__(self) -> int:
        """Return how many observations there are."""
        return self._count

    @property
    def now(self) -> float:
        """The layer's time, in seconds."""
        return self._clock()

    # ------------------------------------------------------------------ beginning and end

    def register(
        self, exchange: Exchange, resource: Observable, handler: Handler, payload: bytes
    ) -> Observation | None:
        """Begin an observation in place of one with the same token; None if there is no room for it."""
        self.deregister(exchange)
        siblings = self._of_endpoint.get(exchange.endpoint, {})
        if self._count >= self._limits.observations or len(siblings) >= self._limits.observations_per_endpoint:
            self._counters.observations_refused += 1
            return None
        observation = Observation(self, exchange, resource, handler, payload)
        self._add(observation)
        self._counters.observations_begun += 1
        return observation

    def _add(self, observation: Observation) -> None:
        self._of_endpoint.setdefault(observation.endpoint, {})[observation.token] = observation
        queue_of(observation.endpoint).observations += 1
        self._count += 1
        observation.resource.observers[observation] = observation

    def deregister(self, exchange: Exchange) -> None:
        """End the observation that has this request's endpoint and token, if there is one."""
        observation = self._of_endpoint.get(exchange.endpoint, {}).get(exchange.header[HEADER_BYTES:])
        if observation is not None:
            self.remove(observation)

    def remove(self, observation: Observation) -> None:
        """End an observation; nothing more is sent for it."""
        if observation.is_ended:
            return
        observation.is_ended = True
        self._detach(observation)
        observation.resource.observers.pop(observation, None)

    def _detach(self, observation: Observation) -> None:
        self._count -= 1
        queue_of(observation.endpoint).observations -= 1
        siblings = self._of_endpoint[observation.endpoint]
        del siblings[observation.token]
        if not siblings:
            del self._of_endpoint[observation.endpoint]
        self._by_non.pop(observation.non_key, None)
        transmission, observation.transmission = observation.transmission, None
        if transmission is not None:
            self._outgoing.cancel(transmission)

    def forget(self, endpoint: Endpoint) -> None:
        """End the observations of an endpoint that is let go."""
        for observation in list(self._of_endpoint.get(endpoint, {}).values()):
            self.remove(observation)

    def reset(self, endpoint: Endpoint, message_id: int) -> bool:
        """End the observation whose last non-confirmable an RST names; return whether there is one."""
        observation = self._by_non.get(endpoint.base | message_id)
        if observation is None:
            return False
        self._counters.observers_lost += 1
        self.remove(observation)
        return True

    def move(self, endpoint: Endpoint, to: Notifications, its_endpoint: Endpoint) -> None:
        """Give the observations of an endpoint to another layer, where the same peer is *its_endpoint* now."""
        for observation in list(self._of_endpoint.get(endpoint, {}).values()):
            self._detach(observation)
            observation.notifications, observation.endpoint, observation.fresh = to, its_endpoint, None
            observation.is_queued, observation.rendering = False, None
            to._add(observation)
            observation.trigger()

    # ------------------------------------------------------------------ telling

    def queue(self, observation: Observation) -> None:
        """Have an observation looked at when datagrams are sent next."""
        if observation.is_ended or observation.is_queued:
            return
        observation.is_queued = True
        self.pending.append(observation)
        if len(self.pending) == 1:
            self._wake()

    def serve(self) -> None:
        """Begin to tell those who are to be told, a batch at a time."""
        for _ in range(min(SERVED_EACH_TURN, len(self.pending))):
            observation = self.pending.popleft()
            observation.is_queued = False
            self._tell(observation)

    def _tell(self, observation: Observation) -> None:
        one = observation
        if one.is_ended or not one.is_stale or not one.is_announced or one.rendering is not None:
            return
        if one.transmission is not None:
            return  # what is under way takes the change along when it is sent again, or makes way when it ends
        due = queue_of(one.endpoint).non_due
        if due > self.now and not self._is_to_be_confirmed(one):
            self._set_alarm(one, due)
        else:
            self._render(one)

    def _render(self, observation: Observation) -> None:
        """Carry out the request again; ``rendered`` is called with the answer, now or later."""
        observation.is_stale = False
        self._refresh_principal(observation.endpoint)
        exchange = Exchange(observation, observation.endpoint, observation.header, len(observation.header))
        observation.rendering = exchange
        observation.handler(exchange, observation.payload)

    def rendered(self, observation: Observation, code: int, body: bytes) -> None:
        """Tell the client, or have what is under way replaced."""
        if (
            code >> 5 == SUCCESS
            and option_value(parse_options(body, 0)[0], CONTENT_FORMAT) != observation.content_format
        ):
            code, body = NOT_ACCEPTABLE, b""  # RFC 7641 section 4.2
        if code >> 5 == SUCCESS:
            body = self.numbered(observation, body)
        else:
            observation.is_last = True
        endpoint = observation.endpoint
        message_id = endpoint.next_message_id()
        confirmable = observation.is_last or self._is_to_be_confirmed(observation)
        first = (0x40 if confirmable or observation.transmission else 0x50) | len(observation.token)
        datagram = bytes((first, code, message_id >> 8, message_id & 0xFF)) + observation.token + body
        if observation.transmission is not None:
            observation.fresh = (message_id, datagram)
        elif confirmable:
            self._confirm(observation, message_id, datagram)
        else:
            self._counters.notifications += 1
            self._by_non.pop(observation.non_key, None)
            observation.non_key = endpoint.base | message_id
            self._by_non[observation.non_key] = observation
            observation.nons += 1
            queue_of(endpoint).non_due = self.now + NON_SECONDS
            self._send(datagram, endpoint.address)
        if observation.is_stale:
            self.queue(observation)

    def _confirm(self, observation: Observation, message_id: int, datagram: bytes) -> None:
        self._counters.notifications += 1
        observation.transmission = transmission = Transmission(observation.endpoint, message_id, datagram)
        transmission.refresh = partial(self._refresh, observation)
        transmission.ended = partial(self._ended, observation)
        self._outgoing.transmit(transmission)

    def _refresh(self, observation: Observation) -> tuple[int, bytes] | None:
        """Return what is to be sent in place of what was under way, if the resource changed meanwhile."""
        if observation.is_stale and observation.rendering is None and not observation.is_last:
            self._render(observation)
        fresh, observation.fresh = observation.fresh, None
        return fresh

    def _ended(self, observation: Observation, ending: Ending) -> None:
        observation.transmission = None
        fresh, observation.fresh = observation.fresh, None
        if ending is not Ending.ACKNOWLEDGED:
            self._counters.observers_lost += 1
            self.remove(observation)
            return
        observation.confirmed_at, observation.nons = self.now, 0
        if fresh is not None:
            self._confirm(observation, *fresh)
        elif observation.is_last:
            self.remove(observation)
        else:
            self._set_alarm(observation)
            self.queue(observation)

    def _is_to_be_confirmed(self, observation: Observation) -> bool:
        return (
            observation.confirmable
            or observation.nons >= CONFIRM_EACH - 1
            or self.now >= observation.confirmed_at + CONFIRM_SECONDS
        )

    def numbered(self, observation: Observation, body: bytes) -> bytes:
        """Return an answer's body with the next Observe number; numbers follow the clock (RFC 7641 section 4.4)."""
        observation.number = max(observation.number + 1, int(self.now * _TICKS))
        age = option_value(parse_options(body, 0)[0], MAX_AGE)
        observation.stale_at = math.inf if age is None else self.now + max(SHORTEST_MAX_AGE, decode_uint(age))
        self._set_alarm(observation)
        return add_options(body, [(OBSERVE, encode_uint(observation.number & _NUMBER_MASK))])

    # ------------------------------------------------------------------ time

    def _set_alarm(self, observation: Observation, at_latest: float = math.inf) -> None:
        """Have an observation looked at when it is to be told, changed or not; only the last alarm counts."""
        due = min(at_latest, observation.stale_at, observation.confirmed_at + CONFIRM_SECONDS)
        if due != observation.alarm:
            observation.alarm = due
            self._alarm_number += 1
            heapq.heappush(self._alarms, (due, self._alarm_number, observation))
        if len(self._alarms) > 64 + 4 * self._count:  # most of them do not count any more
            self._alarms = [alarm for alarm in self._alarms if self._counts(alarm)]
            heapq.heapify(self._alarms)

    def _counts(self, alarm: tuple[float, int, Observation]) -> bool:
        due, _, observation = alarm
        return not observation.is_ended and observation.notifications is self and observation.alarm == due

    def next_due(self) -> float | None:
        """Return when ``handle_due`` has something to do."""
        if self.pending:
            return self.now
        while self._alarms and not self._counts(self._alarms[0]):
            heapq.heappop(self._alarms)
        return self._alarms[0][0] if self._alarms else None

    def handle_due(self, now: float) -> None:
        """Look at those whose time it is, as if their resources had changed."""
        while self._alarms and self._alarms[0][0] <= now:
            alarm = heapq.heappop(self._alarms)
            if self._counts(alarm):
                alarm[2].alarm = math.inf
                alarm[2].trigger()
