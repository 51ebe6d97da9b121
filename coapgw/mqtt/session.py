"""One client's session: what it subscribed to, what it is owed, in which order (MQTT sections 3.1.2.4 and 4.6).

A message that a QoS 1 or 2 subscriber has not acknowledged is *owed*: it is in flight under a packet identifier, or
waits in the queue.  ``Publication.settled`` is called when no session owes a publication any more.

What a session that outlives its connection is owed is kept on disk, through the journal: what clients published from
the beginning, what devices sent once the client is away, for until then it is in the gateway's spool.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import attrs

from coapgw.interfaces import StoredClaim
from coapgw.metrics import BrokerCounters
from coapgw.mqtt.journal import Journal
from coapgw.mqtt.outbox import Outbox
from coapgw.mqtt.packet_types import TEXT_LIMIT, pack_two
from coapgw.mqtt.packets import PubRel, encode_publish
from coapgw.mqtt.publication import Publication
from coapgw.mqtt.reasons import FAILURE, PACKET_ID_UNKNOWN
from coapgw.mqtt.subscriptions import Manner, Options
from coapgw.mqtt.version_5 import encode_5

WINDOW_BYTES: Final = 8 << 20  # in flight to one client, in payload bytes, for large messages
RECEIVED_LIMIT: Final = 4096  # QoS 2 messages a client may leave unreleased; clients' own windows are 10 to 1000
NEVER: Final = 0xFFFF_FFFF  # the expiry of a session that waits for ever


@attrs.define(eq=False)
class Shared:
    """What all sessions of a broker have in common.

    Args:
        max_queue: messages that wait for one client.
        max_queue_bytes: payload bytes that wait for one client.
        now: the broker's clock, as it was told last.
        crowded: sessions that are more than half full, online or expected back.
        on_relief: called when *crowded* becomes empty.
        journal: the way to the disk.
    """

    max_queue: int
    max_queue_bytes: int
    counters: BrokerCounters
    now: float = 0.0
    crowded: set[Session] = attrs.Factory(set)
    on_relief: Callable[[], None] | None = None
    journal: Journal = attrs.Factory(Journal)


Owed = tuple[Publication, int, Manner | None, int]
"""A publication; the QoS it goes out with, the lower of the publisher's and the subscriber's; how else it goes out;
the serial of the claim on disk, or 0."""


@attrs.define(eq=False)
class Session:
    """The state of one client, connected or not.

    Args:
        client_id: what the client calls itself.
        user: who it authenticated as; None for anonymous.
        expiry: seconds that the session outlives its connection; NEVER for "clean session 0" of 3.1.1.

    ``outbox`` is None while the client is away.  ``last_progress`` is the broker's clock when the client last
    acknowledged something, or when something was first sent to it after it owed nothing, or when it went away.  One
    that went away ``is_expected`` back, until ``give_up``.
    """

    client_id: str
    user: str | None
    expiry: int
    shared: Shared
    outbox: Outbox | None = None
    subscriptions: dict[bytes, Options] = attrs.Factory(dict)
    filter_levels: int = 0  # of all subscriptions together
    inflight: dict[int, Owed] = attrs.Factory(dict)
    queue: deque[Owed] | tuple[()] = ()  # an empty deque would be a sixth of what an idle client costs
    received: set[int] | frozenset[int] = frozenset()  # QoS 2 from the client: published, not yet released
    last_progress: float = 0.0
    is_expected: bool = False
    dropped: int = 0
    changed_in: int = 0  # the journal's generation with the latest change of subscriptions
    ends: float | None = None  # the broker's clock when it ends if the client does not come back
    _completing: dict[int, int] = attrs.Factory(dict)  # QoS 2 to the client: PUBREL sent, PUBCOMP owed; serials
    _resend: deque[int] | None = None  # in flight on an earlier connection, not sent on this one yet
    _inflight_bytes: int = 0
    _queue_bytes: int = 0
    _last_id: int = 0

    @property
    def persistent(self) -> bool:
        """Whether the session outlives its connection."""
        return self.expiry > 0

    @property
    def has_room(self) -> bool:
        """Whether a message would be sent at once."""
        outbox = self.outbox
        return outbox is not None and not self.queue and not self._resend and self._is_open(outbox)

    # ------------------------------------------------------------------ the way out

    def deliver(self, publication: Publication, qos: int, manner: Manner | None = None) -> list[Publication] | None:
        """Send a publication at QoS 1 or 2, or queue it; the caller may not hold the only claim to it.

        Returns publications that had to make room, or that the client does not take: they are the caller's to release,
        once every subscriber of the new one has been served.
        """
        outbox = self.outbox
        serial = 0
        if self.expiry and (publication.origin is None or (outbox is None and not self.shared.journal.is_full)):
            serial = self.shared.journal.owe(self.client_id, publication, qos, manner)
        else:
            publication.owed += 1
        owed = (publication, qos, manner, serial)
        if (
            outbox is None
            or self.queue
            or outbox.full
            or len(self.inflight) + len(self._completing) >= outbox.window
            or self._resend
            or self._inflight_bytes >= WINDOW_BYTES
        ):
            return self._enqueue(owed)
        return None if self._send(outbox, owed) else self._dropped(owed)

    def _is_open(self, outbox: Outbox) -> bool:
        return (
            not outbox.full
            and len(self.inflight) + len(self._completing) < outbox.window
            and self._inflight_bytes < WINDOW_BYTES
        )

    def _may_repeat(self, outbox: Outbox, resend: deque[int]) -> bool:
        """Return whether the client's window has room for what was in flight before; its window may have shrunk."""
        return len(self.inflight) + len(self._completing) - len(resend) < outbox.window

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

    def deliver_unacknowledged_5(self, publication: Publication, manner: Manner | None) -> None:
        """Send a QoS 0 message to a client of MQTT 5, or drop it if it is slow or does not take it."""
        outbox = self.outbox
        if outbox is None or outbox.writer is None:
            return
        if outbox.full:
            self._count_dropped()
        elif packet := outbox.writer.publish(publication, 0, False, 0, manner, self.shared.now):
            outbox.append(packet)
            self.shared.counters.delivered += 1
        else:
            self._count_dropped()

    def deliver_retained(self, publication: Publication, qos: int, manner: Manner | None = None) -> bool:
        """Send or queue a retained message to a new subscriber; return False if there is no room for it.

        It makes no room for itself: what waits already is newer.
        """
        queue, shared = self.queue, self.shared
        size = self._queue_bytes + len(publication.payload)
        if len(queue) >= shared.max_queue or (queue and size > shared.max_queue_bytes):
            self._count_dropped()
            return False
        serial = 0
        if qos:
            if self.expiry:
                serial = shared.journal.owe(self.client_id, publication, qos, manner)
            else:
                publication.owed += 1
        self._enqueue((publication, qos, manner, serial))
        self.pump()
        return True

    def _send(self, outbox: Outbox, owed: Owed) -> bool:
        """Send a message under a new packet identifier; return False if the client does not take it."""
        publication, qos, manner, serial = owed
        inflight = self.inflight
        packet_id = self._last_id
        while True:
            packet_id = packet_id % TEXT_LIMIT + 1
            if packet_id not in inflight and packet_id not in self._completing:
                break
        payload = publication.payload
        is_held = serial and qos == 2
        writer = outbox.writer
        if writer is None:
            retain = publication.retained if manner is None else publication.retains(manner)
            packet = encode_publish(publication.topic, payload, qos, retain, False, packet_id)
        else:
            packet = writer.publish(publication, qos, False, packet_id, manner, self.shared.now, may_alias=not is_held)
            if not packet:
                return False
        if is_held:  # the client may not know an identifier that we would have forgotten: it would take it for a repeat
            self.shared.journal.sent(serial, packet_id)
            self.shared.journal.hold(outbox, packet)
        else:
            outbox.append(packet)
        self._last_id = packet_id
        self._inflight_bytes += len(payload)
        if not inflight:
            self.last_progress = self.shared.now  # the time of this turn, since the outbox has woken the glue
        inflight[packet_id] = owed
        self.shared.counters.delivered += 1
        return True

    def _enqueue(self, owed: Owed) -> list[Publication] | None:
        """Queue a publication; return the oldest ones that had to go, with their claims."""
        queue, shared = self.queue, self.shared
        if not queue:
            queue = self.queue = deque()
        queue.append(owed)
        self._queue_bytes += len(owed[0].payload)
        pushed_out: list[Publication] = []
        while len(queue) > shared.max_queue or (self._queue_bytes > shared.max_queue_bytes and len(queue) > 1):
            oldest = queue.popleft()
            self._queue_bytes -= len(oldest[0].payload)
            self._drop(oldest, pushed_out)
        if self.outbox is not None or self.is_expected:
            self._join_crowd()
        return pushed_out or None

    def _dropped(self, owed: Owed) -> list[Publication]:
        """Give up a claim; return what is to be released."""
        gone: list[Publication] = []
        self._drop(owed, gone)
        return gone

    def _drop(self, owed: Owed, released: list[Publication]) -> None:
        """Give up a claim; what is to be released is added to *released*."""
        publication, qos, _, serial = owed
        self._count_dropped()
        if serial:
            self.shared.journal.paid(serial, publication)
        elif qos:
            released.append(publication)

    def _count_dropped(self) -> None:
        self.dropped += 1
        self.shared.counters.dropped += 1

    def pump(self) -> None:
        """Send what waits while there is room: first what was in flight on an earlier connection, then the queue."""
        outbox, queue = self.outbox, self.queue
        gone: list[Publication] = []
        while outbox is not None and not outbox.full:
            if self._resend:
                if not self._may_repeat(outbox, self._resend):
                    break
                self._send_again(outbox, self._resend.popleft(), gone)
                continue
            if not queue or not self._is_open(outbox):
                break
            owed = queue.popleft()
            if not queue:
                self.queue = ()
            publication, qos, manner, _ = owed
            self._queue_bytes -= len(publication.payload)
            if publication.expires is not None and publication.expires <= self.shared.now:
                self._drop(owed, gone)
            elif qos:
                if not self._send(outbox, owed):
                    self._drop(owed, gone)
            elif outbox.writer is None:
                retain = publication.retains(manner)
                outbox.append(encode_publish(publication.topic, publication.payload, 0, retain))
                self.shared.counters.delivered += 1
            else:
                self.deliver_unacknowledged_5(publication, manner)
        self._leave_crowd()
        for publication in gone:
            publication.release()

    def _send_again(self, outbox: Outbox, packet_id: int, gone: list[Publication]) -> None:
        owed = self.inflight.get(packet_id)
        if owed is None:
            return
        again, qos, manner, _ = owed
        if outbox.writer is None:
            packet = encode_publish(again.topic, again.payload, qos, again.retains(manner), True, packet_id)
        else:
            packet = outbox.writer.publish(again, qos, True, packet_id, manner, self.shared.now)
        if packet:
            outbox.append(packet)
        else:  # the client takes less than on its last connection
            del self.inflight[packet_id]
            self._inflight_bytes -= len(again.payload)
            self._drop(owed, gone)

    # ------------------------------------------------------------------ the way in

    def receive(self, packet_id: int) -> None:
        """Take note of a QoS 2 message of the client; one that never sends any need not have a set."""
        if not isinstance(self.received, set):
            self.received = set()
        self.received.add(packet_id)

    def release(self, packet_id: int) -> bool:
        """The client has released a QoS 2 message; return whether there was one with this identifier."""
        if not isinstance(self.received, set) or packet_id not in self.received:
            return False
        self.received.discard(packet_id)
        return True

    # ------------------------------------------------------------------ acknowledgements

    def acknowledge(self, packet_id: int, now: float) -> None:
        """PUBACK: a QoS 1 message has arrived.  One that is not owed is ignored: it may be a repeat."""
        owed = self.inflight.get(packet_id)
        if owed is not None and owed[1] == 1:
            self._settle(packet_id, owed, now)

    def received_by_client(self, packet_id: int, now: float, reason: int = 0) -> None:
        """PUBREC: a QoS 2 message has arrived, so nobody owes it any more; the handshake goes on.

        With a *reason* of failure the client does not want it, and there is nothing to release (MQTT 5 section 4.3.3).
        """
        outbox = self.outbox
        if outbox is None:
            return
        owed = self.inflight.get(packet_id)
        if reason >= FAILURE:
            if owed is not None and owed[1] == 2:
                self._settle(packet_id, owed, now)
            elif packet_id in self._completing:
                self.completed_by_client(packet_id)
            return
        serial = 0
        if owed is not None and owed[1] == 2:
            serial = owed[3]
            self._completing[packet_id] = serial
            self._settle(packet_id, owed, now)
        packet = b"\x62\x02" + pack_two(packet_id)  # also for one that is not known (section 4.3.3)
        if packet_id not in self._completing and outbox.writer is not None:
            packet = encode_5(PubRel(packet_id, PACKET_ID_UNKNOWN))
        if serial:
            self.shared.journal.hold(outbox, packet)
        else:
            outbox.append(packet)

    def completed_by_client(self, packet_id: int) -> None:
        """PUBCOMP: the packet identifier is free, and there is room in the window."""
        serial = self._completing.pop(packet_id, None)
        if serial is None:
            return
        if serial:
            self.shared.journal.completed(serial)
        if self.queue or self._resend:
            self.pump()

    def _settle(self, packet_id: int, owed: Owed, now: float) -> None:
        publication, _, _, serial = owed
        del self.inflight[packet_id]
        self._inflight_bytes -= len(publication.payload)
        self.last_progress = now
        if serial:
            if packet_id in self._completing:
                self.shared.journal.half_done(serial, publication)
            else:
                self.shared.journal.paid(serial, publication)
        if self.queue or self._resend:
            self.pump()
        if not serial:  # last, because whoever is told may publish
            publication.release()

    # ------------------------------------------------------------------ coming and going

    def attach(self, outbox: Outbox) -> None:
        """The client is here: send what it is owed, what was in flight first, in order and marked DUP (section 4.4)."""
        self.outbox = outbox
        self.is_expected = False
        self.ends = None
        self.last_progress = self.shared.now
        for packet_id in self._completing:
            outbox.append(b"\x62\x02" + pack_two(packet_id))
        self._resend = deque(self.inflight)
        self.pump()
        self._join_crowd()

    def detach(self) -> None:
        """The client is away; what devices sent it is kept on disk from now on, out of the spool's way."""
        self.outbox = None
        self._resend = None
        self.last_progress = self.shared.now
        self.is_expected = self.persistent
        if self.is_expected:
            self._join_crowd()
        self._leave_crowd()
        journal = self.shared.journal
        if not self.expiry or journal.store is None or journal.is_full:
            return
        released: list[Publication] = []
        for packet_id, owed in self.inflight.items():
            self.inflight[packet_id] = self._kept(owed, released)
        self.queue = deque(self._kept(owed, released) for owed in self.queue) if self.queue else ()
        for publication in released:
            publication.release()

    def _kept(self, owed: Owed, released: list[Publication]) -> Owed:
        publication, qos, manner, serial = owed
        if serial or not qos:
            return owed
        serial = self.shared.journal.owe(self.client_id, publication, qos, manner)
        released.append(publication)
        return publication, qos, manner, serial

    def restore(self, owed: Sequence[tuple[Owed, int | None]], completing: Sequence[tuple[int, int]]) -> None:
        """Take over what an earlier life of the broker owed, in order, with the packet identifiers of QoS 2.

        *completing* are packet identifiers whose PUBCOMP is to come, and serials.
        """
        waiting = deque[Owed]()
        for one, packet_id in owed:
            if packet_id is not None:
                self.inflight[packet_id] = one
                self._inflight_bytes += len(one[0].payload)
                self._last_id = packet_id
            else:
                waiting.append(one)
                self._queue_bytes += len(one[0].payload)
        self._completing.update(completing)
        self.queue = waiting or ()

    def keep_all(self) -> None:
        """Tell the journal once more everything that is to be on disk: the store has lost it."""
        journal = self.shared.journal
        for packet_id, owed in self.inflight.items():
            self._keep(owed, packet_id if owed[1] == 2 else None)
        for owed in self.queue:
            self._keep(owed, None)
        for packet_id, serial in self._completing.items():
            if serial:
                journal.keep_claim(StoredClaim(serial, self.client_id, None, 2, False, (), packet_id), None)
        if self.expiry:
            for packet_id in self.received:
                journal.receive(self.client_id, packet_id, True)

    def _keep(self, owed: Owed, packet_id: int | None) -> None:
        publication, qos, manner, serial = owed
        if serial:
            retain, identifiers = publication.retains(manner), () if manner is None else manner.identifiers
            claim = StoredClaim(serial, self.client_id, publication.number, qos, retain, identifiers, packet_id)
            self.shared.journal.keep_claim(claim, publication)

    def end(self) -> list[Owed]:
        """Forget everything; return what was owed, in order: it is the caller's to give to others, or ``let_go``."""
        self.outbox = None
        self.is_expected = False
        owed = [*self.inflight.values(), *self.queue]
        journal = self.shared.journal
        journal.forget_received(self.client_id, self.received)
        for serial in self._completing.values():
            if serial:
                journal.completed(serial)
        self.inflight.clear()
        self.queue = ()
        self._resend = None
        self._completing.clear()
        self.received = frozenset()
        self._inflight_bytes = self._queue_bytes = 0
        self._leave_crowd()
        return owed

    def let_go(self, owed: Sequence[Owed]) -> None:
        """Release what a session that ended was owed."""
        for publication, qos, _, serial in owed:
            if serial:
                self.shared.journal.paid(serial, publication)
            elif qos:
                publication.release()

    # ------------------------------------------------------------------ the crowd

    def give_up(self) -> None:
        """Wait no longer for a client that is away."""
        self.is_expected = False
        self._leave_crowd()

    def _join_crowd(self) -> None:
        shared = self.shared
        full = len(self.queue) * 2 > shared.max_queue or self._queue_bytes * 2 > shared.max_queue_bytes
        if full and self not in shared.crowded:
            shared.crowded.add(self)
            if not self.inflight and self.outbox is not None:
                self.last_progress = shared.now

    def _leave_crowd(self) -> None:
        """Leave the crowd if there is room again, or nobody who is to make any."""
        shared = self.shared
        if self not in shared.crowded:
            return
        full = len(self.queue) * 4 >= shared.max_queue or self._queue_bytes * 4 >= shared.max_queue_bytes
        if not full or (self.outbox is None and not self.is_expected):
            shared.crowded.discard(self)
            if not shared.crowded and shared.on_relief is not None:
                shared.on_relief()
