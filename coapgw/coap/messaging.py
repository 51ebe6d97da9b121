"""The message layer of RFC 7252 section 4 as a machine without I/O.

Five verbs, as a pump uses them::

    layer.receive_datagram(data, address, now)
    for data, address in layer.datagrams_to_send(now): ...
    layer.next_timer()  ->  layer.handle_timer(now)
    layer.request(address, ..., now)          # client role
    exchange.respond(code, body)              # server role: the answer to what the site's handler was given

``now`` is any monotonic clock in seconds; one layer serves one socket.

Rules, in the order they are applied to a datagram:

* fewer than 4 bytes, or another version: silence (section 3).
* a request seen before from this endpoint: the same bytes again (CON), silence (NON, or not answered yet).
* a format error: RST to a confirmable, silence otherwise (sections 4.2, 4.3).
* empty: CON is a ping and gets RST; ACK and RST end the transmission with that Message ID to that endpoint.
* a response: matched by endpoint and token; nobody's CON gets RST.
* a critical option that is not known: 4.02 (CON), silence (NON).
* everything else goes, once, to the handler that the site has for its code and options.

The path of an ordinary uplink is flat on purpose: a known endpoint that sends the same options as last time is served
without parsing, and nobody pays for a lock, a timer or a Deferred.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from coapgw.coap.client_role import ClientRole
from coapgw.coap.codec import (
    ACK,
    BAD_OPTION,
    CON,
    ECHO,
    EMPTY,
    HEADER_BYTES,
    MESSAGE_PARTS,
    RST,
    TOKEN_LIMIT,
    TOO_MANY_REQUESTS,
    MessageFormatError,
    OptionRefused,
    Options,
    known_options,
    option_value,
    parse_options,
)
from coapgw.coap.echo import AddressProof, room_for_answer
from coapgw.coap.endpoints import Address, Endpoint, EndpointTable, PeerDirectory, RandomSource
from coapgw.coap.exchange import Exchange, Handler
from coapgw.coap.exchanges import PENDING, ExchangeMemory
from coapgw.coap.observe import Notifications
from coapgw.coap.outgoing import Outgoing, Transmission
from coapgw.coap.parameters import MessagingLimits, TransmissionParameters
from coapgw.coap.strangers import Strangers
from coapgw.metrics import MessagingCounters

EXPIRE_PER_BATCH: Final = 256  # twice what a batch of datagrams can add, so that forgetting keeps up
EXPIRE_PER_TIMER: Final = 5_000  # a few milliseconds
SWEEP_SECONDS: Final = 1.0
PREFIX_LIMIT: Final = 300  # bytes of options worth remembering: the longest topic and what modems add

_CODE: Final = tuple(bytes((code,)) for code in range(256))
_ACK_HEAD: Final = tuple(bytes((0x60 | length,)) for length in range(TOKEN_LIMIT + 1))
_NON_BIT: Final = 0x10  # in the first byte of a CON or NON it tells them apart
_NON_FLAG: Final = 0x10  # the same in _TOKEN_END


def _token_ends() -> tuple[int, ...]:
    """By the first byte: where the token of a version 1 CON ends, the same with a flag for NON, 0 for anything else."""
    ends = [0] * 256
    for length in range(TOKEN_LIMIT + 1):
        ends[0x40 | length] = HEADER_BYTES + length
        ends[0x50 | length] = HEADER_BYTES + length | _NON_FLAG
    return tuple(ends)


_TOKEN_END: Final = _token_ends()


class Site(Protocol):
    """Says what a request means."""

    def resolve(self, code: int, options: Options) -> Handler:
        """Return the handler of requests with this method and these options; it is remembered for the next ones."""


class MessageLayer(ClientRole):
    """The message layer of one socket.

    Args:
        site: what requests mean.
        peers: who is behind an address.
        random: Message IDs, tokens, retransmission times.
        wake: called when there is something to send after there was nothing.
        local_host: which of our own addresses a peer at an address talks to, in figures; empty if that is not known.
        is_proven: whether nobody else can send with that source address; what is said of strangers does not matter.
        siblings: layers of other sockets where the same address is the same peer: what it observes follows it.
    """

    def __init__(
        self,
        site: Site,
        peers: PeerDirectory,
        random: RandomSource,
        *,
        parameters: TransmissionParameters | None = None,
        limits: MessagingLimits | None = None,
        counters: MessagingCounters | None = None,
        wake: Callable[[], None] = lambda: None,
        local_host: Callable[[Address], str] = lambda _: "",
        siblings: Sequence[MessageLayer] = (),
        is_proven: Callable[[Address], bool] = lambda _: True,
    ) -> None:
        """Begin without endpoints."""
        self.parameters = parameters or TransmissionParameters()
        self.limits = limits or MessagingLimits()
        self.counters = counters or MessagingCounters()
        self.malformed = dict.fromkeys(MESSAGE_PARTS, 0)
        """How many datagrams are no CoAP, by the part that is wrong."""
        self.wake = wake
        self.local_host = local_host
        self._siblings = siblings
        self._site = site
        self._peers = peers
        self._lifetime = self.parameters.exchange_lifetime
        self._memory = ExchangeMemory(self.limits.exchanges, self._lifetime, self.parameters.non_lifetime)
        self._outgoing = Outgoing(self._send, random, self.parameters, self.limits, self.counters)
        self.notifications = Notifications(
            *(self._outgoing, self._send),
            clock=lambda: self._now,
            wake=wake,
            refresh_principal=self._refresh_principal,
            local_host=local_host,
            limits=self.limits,
            counters=self.counters,
        )
        self._table = EndpointTable(
            *(self.limits.endpoints, self._lifetime, self._memory, random),
            abandon=self._abandon,
            per_host=self.limits.endpoints_per_host,
        )
        self._endpoints = self._table.by_address
        self._strangers = Strangers(
            self.limits.stranger_exchanges,
            self.limits.stranger_datagrams_per_host,
            self.limits.stranger_datagrams,
        )
        self._handlers: dict[bytes, Handler] = {}
        self._is_proven = is_proven
        self._proof = AddressProof(random, self.limits.extra_bytes_to_strangers, self.counters)
        self._waiting: deque[Exchange] = deque()  # confirmables without an answer, in the order their ACKs fall due
        self._outbox: list[tuple[bytes, Address]] = []
        self._now = -math.inf
        self._pending_limit = self.limits.pending_per_endpoint
        self._refusals: dict[Endpoint, int] = {}  # how many 4.29 each got in this second
        self._muted: set[Endpoint] = set()
        self._second_ends = -math.inf
        self._turn_due = -math.inf
        self._sweep_due = -math.inf

    # ------------------------------------------------------------------ datagrams in

    def crowd(self, *, crowded: bool) -> None:
        """Know whether more arrives than can be served."""
        limits = self.limits
        self._pending_limit = limits.pending_when_crowded if crowded else limits.pending_per_endpoint

    def receive_datagram(self, data: bytes, address: Address, now: float) -> None:
        """Take a datagram; raises nothing that the peer could cause."""
        counters = self.counters
        counters.received += 1
        self._now = now
        if now >= self._turn_due:
            self._turn(now)
        endpoint = self._endpoints.get(address)
        if endpoint is None or endpoint.generation != self._peers.generation:
            endpoint = self._identify(address, endpoint, now)
            if endpoint is None:
                counters.dropped_of_strangers += 1
                return
        if self._muted and endpoint in self._muted:
            counters.dropped_over_rate += 1
            return
        token_end = _TOKEN_END[data[0]] if len(data) >= HEADER_BYTES else 0
        if token_end and endpoint.base and 0 < data[1] < 0x20:
            non_confirmable = token_end & _NON_FLAG
            key = endpoint.base | data[2] << 8 | data[3]
            answer = endpoint.shard.get(key)
            if answer is not None:
                counters.duplicates += 1
                is_due = answer and not non_confirmable
                if is_due and (now < endpoint.proven_until or len(answer) <= room_for_answer(len(data))):
                    self._send(answer, address)
                return
            token_end &= ~_NON_FLAG
            prefix = endpoint.prefix
            handler = endpoint.handler
            if (
                handler is not None
                and data[1] == endpoint.code
                and data.startswith(prefix, token_end)
                and endpoint.pending < self._pending_limit
                and (payload := data[token_end + len(prefix) :])  # a marker without one is a format error
            ):
                counters.requests += 1
                endpoint.last_seen = now
                endpoint.pending += 1
                exchange = Exchange(self, endpoint, data[:token_end], len(data))
                endpoint.shard[key] = PENDING
                if non_confirmable:
                    self._memory.non_confirmable.bucket.append(key)
                else:
                    self._memory.confirmable.bucket.append(key)
                    exchange.ack_due = now + self.limits.piggyback_seconds
                    self._waiting.append(exchange)
                handler(exchange, payload)
                return
        self._receive(data, endpoint, now)

    def _receive(self, data: bytes, endpoint: Endpoint, now: float) -> None:
        """Take a datagram that is neither a repeat nor an ordinary request: everything is looked at."""
        if len(data) < HEADER_BYTES or data[0] >> 6 != 1:
            self.malformed["header"] += 1
            return
        kind, token_end, code = data[0] >> 4 & 3, HEADER_BYTES + (data[0] & 15), data[1]
        try:
            if token_end > HEADER_BYTES + TOKEN_LIMIT or token_end > len(data):
                raise MessageFormatError("too long, or cut off", "token")
            if code == EMPTY and len(data) > HEADER_BYTES:
                raise MessageFormatError("an empty message with something in it", "code")
            if code >> 5 not in (0, 2, 4, 5) or (code and (kind == RST or (kind == ACK and code < 0x20))):
                raise MessageFormatError("of a reserved class, or one that its type may not carry", "code")
            options, payload_at = parse_options(data, token_end)
        except MessageFormatError as error:
            self.malformed[error.part] += 1
            if kind == CON:
                self._reset(data, endpoint.address)
            return
        if code == EMPTY:
            self._receive_empty(kind, data, endpoint)
        elif code >> 5:
            self._receive_response(data, token_end, (options, payload_at), endpoint)
        else:
            self._receive_request(data, token_end, (options, payload_at), endpoint, now)

    def _receive_empty(self, kind: int, data: bytes, endpoint: Endpoint) -> None:
        message_id = data[2] << 8 | data[3]
        if kind == CON:
            self.counters.pings += 1
            self._reset(data, endpoint.address)
        elif kind == ACK:
            self.counters.unmatched += not self._outgoing.acknowledged(endpoint, message_id)
        elif kind == RST:
            self.counters.resets_received += 1
            ended = self._outgoing.reset(endpoint, message_id) or self.notifications.reset(endpoint, message_id)
            self.counters.unmatched += not ended

    def _reset(self, data: bytes, address: Address) -> None:
        """Reject a confirmable message (RFC 7252 section 4.2)."""
        self._send(b"\x70\x00" + data[2:4], address)

    # ------------------------------------------------------------------ server role

    def _receive_request(
        self, data: bytes, token_end: int, parsed: tuple[Options, int], endpoint: Endpoint, now: float
    ) -> None:
        options, payload_at = parsed
        non_confirmable = data[0] & _NON_BIT
        if not endpoint.base and self._repeat_to_stranger(data, endpoint.address, now):
            return
        try:
            known = known_options(options)
        except OptionRefused:
            self.counters.bad_options += 1
            if not non_confirmable:
                self._send(
                    _ACK_HEAD[token_end - HEADER_BYTES] + _CODE[BAD_OPTION] + data[2:token_end], endpoint.address
                )
            return
        if endpoint.pending >= self._pending_limit:
            self.counters.refused_busy += 1  # like a lost datagram: the client's own backoff is the remedy
            return
        self.counters.requests += 1
        endpoint.last_seen = now
        endpoint.pending += 1
        exchange = Exchange(self, endpoint, data[:token_end], len(data))
        self._remember(exchange, PENDING)
        if endpoint.base and not non_confirmable:
            exchange.ack_due = now + self.limits.piggyback_seconds
            self._waiting.append(exchange)
        if known and known[-1][0] >= ECHO and (echo := option_value(known, ECHO)) is not None:
            self._proof.receive(echo, exchange, now)
            known = tuple(option for option in known if option[0] != ECHO)
            self._site.resolve(data[1], known)(exchange, data[payload_at:])
            return
        self._handler(data, token_end, (known, payload_at), endpoint)(exchange, data[payload_at:])

    def _repeat_to_stranger(self, data: bytes, address: Address, now: float) -> bool:
        """Treat a stranger's request as a repeat if it is one."""
        answer = self._strangers.answer(address, data[2] << 8 | data[3], now)
        if answer is None:
            return False
        self.counters.duplicates += 1
        if answer and not data[0] & _NON_BIT and len(answer) <= room_for_answer(len(data)):
            self._send(answer, address)
        return True

    def _handler(self, data: bytes, token_end: int, parsed: tuple[Options, int], endpoint: Endpoint) -> Handler:
        """Return what a request means, and remember it, by the bytes of its options, for the endpoint's next one."""
        options, payload_at = parsed
        code, block = data[1], data[token_end:payload_at]
        if endpoint.principal is None or len(block) > PREFIX_LIMIT:
            return self._site.resolve(code, options)
        key = _CODE[code] + block
        handler = self._handlers.get(key)
        if handler is None:
            handler = self._site.resolve(code, options)
            if len(self._handlers) >= self.limits.remembered_handlers:
                self._handlers.clear()
            self._handlers[key] = handler
        if payload_at < len(data):  # only a marker tells where the options end without parsing them
            endpoint.code, endpoint.prefix, endpoint.handler = code, block, handler
        return handler

    def _remember(self, exchange: Exchange, answer: bytes) -> None:
        """Note that a request was taken, or what its repeats are answered."""
        endpoint, header = exchange.endpoint, exchange.header
        message_id = header[2] << 8 | header[3]
        if not endpoint.base:
            lifetime = self.parameters.non_lifetime if header[0] & _NON_BIT else self._lifetime
            self._strangers.remember(endpoint.address, message_id, self._now + lifetime, answer)
        elif answer is PENDING:
            wheel = self._memory.non_confirmable if header[0] & _NON_BIT else self._memory.confirmable
            wheel.bucket.append(endpoint.base | message_id)
            endpoint.shard[endpoint.base | message_id] = answer
        elif endpoint.base | message_id in endpoint.shard:  # else its lifetime is over
            endpoint.shard[endpoint.base | message_id] = answer

    def respond(self, exchange: Exchange, code: int, body: bytes) -> None:
        """Send the answer to *exchange*; ``Exchange.respond`` calls this once."""
        endpoint, header = exchange.endpoint, exchange.header
        if body and self._now >= endpoint.proven_until:
            code, body = self._proof.within_room(exchange, code, body, self._now)
        endpoint.pending -= 1
        if exchange.tally is not None:
            exchange.tally[code] += 1
        if code == TOO_MANY_REQUESTS:
            self._refused(endpoint)
        if header[0] & _NON_BIT:
            message_id = endpoint.next_message_id()
            head = bytes((0x50 | header[0] & 15, code, message_id >> 8, message_id & 0xFF))
            self._send(head + header[HEADER_BYTES:] + body, endpoint.address)
        elif exchange.separate:
            message_id = endpoint.next_message_id()
            head = bytes((0x40 | header[0] & 15, code, message_id >> 8, message_id & 0xFF))
            transmission = Transmission(endpoint, message_id, head + header[HEADER_BYTES:] + body)
            transmission.limit = self._proof.times(exchange, len(transmission.datagram), self._now)
            self._outgoing.transmit(transmission)
        else:
            answer = _ACK_HEAD[header[0] & 15] + _CODE[code] + header[2:] + body
            self._remember(exchange, answer)
            self._send(answer, endpoint.address)

    def _refused(self, endpoint: Endpoint) -> None:
        """Count a 4.29; who goes on all the same is not listened to for the rest of the second."""
        times = self._refusals[endpoint] = self._refusals.get(endpoint, 0) + 1
        if times >= self.limits.refusals_per_endpoint:
            self._muted.add(endpoint)

    def room(self, exchange: Exchange) -> int:
        """Return how many bytes the answer may have, header and token included."""
        return self._proof.room(exchange, self._now)

    def challenge(self, exchange: Exchange) -> None:
        """Have the peer come again, with the Echo option of the answer; strangers are only refused."""
        exchange.respond(*self._proof.challenge(exchange, self._now))

    def is_fresh(self, exchange: Exchange) -> bool:
        """Return whether the request just received had a valid Echo."""
        return self._proof.is_fresh(exchange)

    def withhold(self, exchange: Exchange) -> None:
        """Leave a request without an answer that nobody wants: a confirmable gets an acknowledgement all the same."""
        exchange.endpoint.pending -= 1
        if not (exchange.separate or exchange.header[0] & _NON_BIT):
            self._acknowledge(exchange)

    def _acknowledge(self, exchange: Exchange) -> None:
        """Send an empty acknowledgement, and again to repeats."""
        acknowledgement = b"\x60\x00" + exchange.header[2:4]
        self._remember(exchange, acknowledgement)
        self._send(acknowledgement, exchange.endpoint.address)

    def _acknowledge_late(self, now: float) -> None:
        """Send empty acknowledgements where answers take longer than may be waited for (RFC 7252 section 5.2.2)."""
        waiting = self._waiting
        while waiting and (waiting[0].answered or waiting[0].ack_due <= now):
            exchange = waiting.popleft()
            if not exchange.answered:
                exchange.separate = True
                self.counters.separate += 1
                self._acknowledge(exchange)

    # ------------------------------------------------------------------ datagrams out, timers

    def _send(self, datagram: bytes, address: Address) -> None:
        outbox = self._outbox
        outbox.append((datagram, address))
        if len(outbox) == 1:
            self.wake()

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Address]]:
        """Return what is to be sent, as (datagram, address), and forget a little of what is due."""
        self._now = now
        if self.notifications.pending:
            self.notifications.serve()
        outbox = self._outbox
        self._outbox = []
        self.counters.sent += len(outbox)
        self._outgoing.taken(now)
        waiting = self._waiting
        while waiting and waiting[0].answered:
            waiting.popleft()
        self._memory.expire(now, EXPIRE_PER_BATCH)
        return outbox

    def next_timer(self) -> float | None:
        """Return when ``handle_timer`` is to be called, or None if nothing can become due."""
        waiting = self._waiting
        while waiting and waiting[0].answered:
            waiting.popleft()
        dues = [waiting[0].ack_due] if waiting else []
        alarm = self._outgoing.next_alarm()
        if alarm is not None:
            dues.append(alarm)
        notification = self.notifications.next_due()
        if notification is not None:
            dues.append(notification)
        if self._endpoints or self._strangers or self._memory.next_expiry() is not None:
            dues.append(max(self._sweep_due, self._now + SWEEP_SECONDS))
        return min(dues, default=None)

    def handle_timer(self, now: float) -> None:
        """Do what is due: empty acknowledgements, retransmissions, forgetting."""
        self._now = now
        self._acknowledge_late(now)
        self._outgoing.handle_alarms(now)
        self.notifications.handle_due(now)
        self._memory.expire(now, EXPIRE_PER_TIMER)
        self._turn(now)

    def _turn(self, now: float) -> None:
        """Do what is to be done a few times a second."""
        self._memory.expire(now, EXPIRE_PER_BATCH)
        self._turn_due = min(self._memory.confirmable.bucket_ends, self._memory.non_confirmable.bucket_ends)
        if now >= self._second_ends:
            self._second_ends = now + 1.0
            self._refusals.clear()
            self._muted.clear()
        if now < self._sweep_due:
            return
        self._sweep_due = now + SWEEP_SECONDS
        self._table.sweep(now, SWEEP_SECONDS)
        self._strangers.expire(now)
        self.counters.evicted_exchanges = self._memory.evicted
        self.counters.evicted_endpoints = self._table.evicted

    def _identify(self, address: Address, endpoint: Endpoint | None, now: float) -> Endpoint | None:
        """Ask who is behind *address*; a stranger does not become known, and is not listened to too often."""
        generation = self._peers.generation
        principal = self._peers.identify(address)
        if endpoint is None and principal is None:
            if not self._strangers.admit(address, now):
                return None
            endpoint = self._table.stranger(address)
        elif endpoint is None:
            endpoint = self._table.know(address, now)
            self._greet(endpoint)
        endpoint.generation = generation
        if endpoint.principal is not principal:
            endpoint.principal = principal
            endpoint.handler = None
        return endpoint

    def forget(self, address: Address) -> None:
        """Let go of the endpoint at an address that will not be used again; what is under way with it has no answer."""
        endpoint = self._table.forget(address)
        if endpoint is not None:
            self._abandon(endpoint)

    def _greet(self, endpoint: Endpoint) -> None:
        """Take in an endpoint that is known from now on."""
        if self._is_proven(endpoint.address):
            endpoint.proven_until = math.inf
        for sibling in self._siblings:
            if sibling is not self:
                sibling.hand_over(endpoint, self)

    def hand_over(self, endpoint: Endpoint, to: MessageLayer) -> None:
        """Give what the peer at an address observes to another layer, whose *endpoint* it is now."""
        before = self._endpoints.get(endpoint.address)
        if before is not None:
            self.notifications.move(before, to.notifications, endpoint)
            self.forget(endpoint.address)

    def _abandon(self, endpoint: Endpoint) -> None:
        self.notifications.forget(endpoint)
        self._outgoing.abandon(endpoint)

    def _refresh_principal(self, endpoint: Endpoint) -> None:
        """Look again who is at an endpoint, if that may have changed."""
        if endpoint.generation != self._peers.generation:
            self._identify(endpoint.address, endpoint, self._now)

    @property
    def now(self) -> float:
        """The time of the datagram or timer being served, in seconds."""
        return self._now

    @property
    def endpoints(self) -> int:
        """How many endpoints are known."""
        return len(self._endpoints)

    @property
    def remembered(self) -> int:
        """How many exchanges are remembered."""
        return len(self._memory) + len(self._strangers)
