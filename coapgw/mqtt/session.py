"""One client's session: what it subscribed to, what it is owed, in which order (MQTT 3.1.1 sections 3.1.2.4 and 4.6).

A message that a QoS 1 or 2 subscriber has not acknowledged is *owed*: it is in flight under a packet identifier, or
waits in the queue.  ``Publication.settled`` is called when no session owes a publication any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import attrs

from coapgw.metrics import BrokerCounters
from coapgw.mqtt.outbox import Outbox
from coapgw.mqtt.packets import TEXT_LIMIT, PubRel, encode, encode_publish

WINDOW: Final = 1000
"""Messages in flight to one client.  3.1.1 has no Receive Maximum; 1000 carry 30,000 a second over a round trip of
33 ms, cost at most that many repeats when a client comes back, and are far from running out of identifiers."""
WINDOW_BYTES: Final = 8 << 20  # the same in payload bytes, for large messages
RECEIVED_LIMIT: Final = 4096  # QoS 2 messages a client may leave unreleased; clients' own windows are 10 to 1000


@attrs.define(eq=False)
class Publication:
    """A message on its way through the broker.

    Args:
        topic: a valid topic name.
        payload: any bytes.
        qos: what its publisher asked for.
        retain: whether it replaces the retained message of its topic.
        settled: called once, with *place*, when nobody owes an acknowledgement for it any more; from inside
            ``Broker.publish`` if nobody ever did.
        place: whatever the publisher knows it by.
        retained: True for the copy that a new subscriber is given (section 3.3.1.3).
        owed: sessions that still want it.
    """

    topic: bytes
    payload: bytes
    qos: int = 0
    retain: bool = False
    settled: Callable[[object], None] | None = None
    place: object = None
    retained: bool = False
    owed: int = 0

    def release(self) -> None:
        """Let one owner go."""
        self.owed -= 1
        if not self.owed and self.settled is not None:
            settled, self.settled = self.settled, None
            settled(self.place)


@attrs.define(eq=False)
class Shared:
    """What all sessions of a broker have in common.

    Args:
        max_queue: messages that wait for one client.
        max_queue_bytes: payload bytes that wait for one client.
        now: the broker's clock, as it was told last.
        crowded: online sessions that are more than half full.
        on_relief: called when *crowded* becomes empty.
    """

    max_queue: int
    max_queue_bytes: int
    counters: BrokerCounters
    now: float = 0.0
    crowded: set[Session] = attrs.Factory(set)
    on_relief: Callable[[], None] | None = None


Owed = tuple[Publication, int]
"""A publication and the QoS it goes out with: the lower of the publisher's and the subscriber's."""


@attrs.define(eq=False)
class Session:
    """The state of one client, connected or not.

    Args:
        client_id: what the client calls itself.
        user: who it authenticated as; None for anonymous.
        persistent: whether the session outlives its connection ("clean session 0").

    ``outbox`` is None while the client is away.  ``last_progress`` is the broker's clock when the client last
    acknowledged something, or when something was first sent to it after it owed nothing.
    """

    client_id: str
    user: str | None
    persistent: bool
    shared: Shared
    outbox: Outbox | None = None
    subscriptions: dict[bytes, int] = attrs.Factory(dict)
    inflight: dict[int, Owed] = attrs.Factory(dict)
    queue: deque[Owed] | tuple[()] = ()  # an empty deque would be a sixth of what an idle client costs
    received: set[int] = attrs.Factory(set)  # QoS 2 from the client: published, not yet released
    last_progress: float = 0.0
    dropped: int = 0
    _completing: dict[int, None] = attrs.Factory(dict)  # QoS 2 to the client: PUBREL sent, PUBCOMP owed
    _resend: deque[int] | None = None  # in flight on an earlier connection, not sent on this one yet
    _inflight_bytes: int = 0
    _queue_bytes: int = 0
    _last_id: int = 0

    # ------------------------------------------------------------------ the way out

    def deliver(self, publication: Publication, qos: int) -> list[Publication] | None:
        """Send a publication at QoS 1 or 2, or queue it; the caller may not hold the only claim to it.

        Returns the oldest queued publications if they had to make room: they are the caller's to release, once every
        subscriber of the new one has been served.
        """
        publication.owed += 1
        outbox = self.outbox
        if (
            outbox is None
            or self.queue
            or outbox.full
            or len(self.inflight) + len(self._completing) >= WINDOW
            or self._resend
            or self._inflight_bytes >= WINDOW_BYTES
        ):
            return self._enqueue(publication, qos)
        self._send(outbox, publication, qos)
        return None

    def deliver_unacknowledged(self, packet: bytes) -> None:
        """Send an encoded QoS 0 PUBLISH, or drop it if the client is slow; one that is away has no claim to it."""
        outbox = self.outbox
        if outbox is None:
            return
        if outbox.full:
            self._count_dropped()
        else:
            outbox.append(packet)
            self.shared.counters.delivered += 1

    def deliver_retained(self, publication: Publication, qos: int) -> bool:
        """Send or queue a retained message to a new subscriber; return False if there is no room for it.

        It makes no room for itself: what waits already is newer.
        """
        queue, shared = self.queue, self.shared
        size = self._queue_bytes + len(publication.payload)
        if len(queue) >= shared.max_queue or (queue and size > shared.max_queue_bytes):
            self._count_dropped()
            return False
        if qos:
            publication.owed += 1
        self._enqueue(publication, qos)
        self.pump()
        return True

    def _send(self, outbox: Outbox, publication: Publication, qos: int) -> None:
        inflight = self.inflight
        packet_id = self._last_id
        while True:
            packet_id = packet_id % TEXT_LIMIT + 1
            if packet_id not in inflight and packet_id not in self._completing:
                break
        self._last_id = packet_id
        payload = publication.payload
        self._inflight_bytes += len(payload)
        outbox.append(encode_publish(publication.topic, payload, qos, publication.retained, False, packet_id))
        if not inflight:
            self.last_progress = self.shared.now  # the time of this turn, since the outbox has woken the glue
        inflight[packet_id] = (publication, qos)
        self.shared.counters.delivered += 1

    def _enqueue(self, publication: Publication, qos: int) -> list[Publication] | None:
        """Queue a publication; return the oldest ones that had to go, with their claims."""
        queue, shared = self.queue, self.shared
        if not queue:
            queue = self.queue = deque()
        queue.append((publication, qos))
        self._queue_bytes += len(publication.payload)
        pushed_out = None
        while len(queue) > shared.max_queue or (self._queue_bytes > shared.max_queue_bytes and len(queue) > 1):
            oldest, oldest_qos = queue.popleft()
            self._queue_bytes -= len(oldest.payload)
            self._count_dropped()
            if oldest_qos:
                pushed_out = pushed_out or []
                pushed_out.append(oldest)
        if self.outbox is not None:
            self._join_crowd()
        return pushed_out

    def _count_dropped(self) -> None:
        self.dropped += 1
        self.shared.counters.dropped += 1

    def pump(self) -> None:
        """Send what waits while there is room: first what was in flight on an earlier connection, then the queue."""
        outbox, inflight, queue = self.outbox, self.inflight, self.queue
        while outbox is not None and not outbox.full:
            if self._resend:
                packet_id = self._resend.popleft()
                owed = inflight.get(packet_id)
                if owed is not None:
                    again, qos = owed
                    outbox.append(encode_publish(again.topic, again.payload, qos, again.retained, True, packet_id))
                continue
            if (
                not queue
                or len(inflight) + len(self._completing) >= WINDOW
                or self._inflight_bytes >= WINDOW_BYTES
            ):
                break
            publication, qos = queue.popleft()
            if not queue:
                self.queue = ()
            self._queue_bytes -= len(publication.payload)
            if qos:
                self._send(outbox, publication, qos)
            else:
                outbox.append(encode_publish(publication.topic, publication.payload, 0, publication.retained))
                self.shared.counters.delivered += 1
        self._leave_crowd()

    # ------------------------------------------------------------------ acknowledgements

    def acknowledge(self, packet_id: int, now: float) -> None:
        """PUBACK: a QoS 1 message has arrived.  One that is not owed is ignored: it may be a repeat."""
        owed = self.inflight.get(packet_id)
        if owed is not None and owed[1] == 1:
            self._settle(packet_id, owed[0], now)

    def received_by_client(self, packet_id: int, now: float) -> None:
        """PUBREC: a QoS 2 message has arrived, so nobody owes it any more; the handshake goes on."""
        outbox = self.outbox
        if outbox is None:
            return
        owed = self.inflight.get(packet_id)
        if owed is not None and owed[1] == 2:
            self._completing[packet_id] = None
            self._settle(packet_id, owed[0], now)
        outbox.append(encode(PubRel(packet_id)))  # also for one that is not known (section 4.3.3)

    def completed_by_client(self, packet_id: int) -> None:
        """PUBCOMP: the packet identifier is free, and there is room in the window."""
        if self._completing.pop(packet_id, self) is None and self.queue:
            self.pump()

    def _settle(self, packet_id: int, publication: Publication, now: float) -> None:
        del self.inflight[packet_id]
        self._inflight_bytes -= len(publication.payload)
        self.last_progress = now
        if self.queue:
            self.pump()
        publication.release()

    # ------------------------------------------------------------------ coming and going

    def attach(self, outbox: Outbox) -> None:
        """The client is here: send what it is owed, what was in flight first, in order and marked DUP (section 4.4)."""
        self.outbox = outbox
        self.last_progress = self.shared.now
        for packet_id in self._completing:
            outbox.append(encode(PubRel(packet_id)))
        self._resend = deque(self.inflight)
        self.pump()
        self._join_crowd()

    def detach(self) -> None:
        """The client is away."""
        self.outbox = None
        self._resend = None
        self._leave_crowd()

    def end(self) -> None:
        """Forget everything and release what was owed."""
        self.outbox = None
        owed = [publication for publication, _ in self.inflight.values()]
        owed += [publication for publication, qos in self.queue if qos]
        self.inflight.clear()
        self.queue = ()
        self._resend = None
        self._completing.clear()
        self.received.clear()
        self._inflight_bytes = self._queue_bytes = 0
        self._leave_crowd()
        for publication in owed:
            publication.release()

    # ------------------------------------------------------------------ the crowd

    def _join_crowd(self) -> None:
        shared = self.shared
        full = len(self.queue) * 2 > shared.max_queue or self._queue_bytes * 2 > shared.max_queue_bytes
        if full and self not in shared.crowded:
            shared.crowded.add(self)
            if not self.inflight:
                self.last_progress = shared.now

    def _leave_crowd(self) -> None:
        """Leave the crowd if there is room again, or nobody here to make any."""
        shared = self.shared
        if self not in shared.crowded:
            return
        full = len(self.queue) * 4 >= shared.max_queue or self._queue_bytes * 4 >= shared.max_queue_bytes
        if self.outbox is None or not full:
            shared.crowded.discard(self)
            if not shared.crowded and shared.on_relief is not None:
                shared.on_relief()
