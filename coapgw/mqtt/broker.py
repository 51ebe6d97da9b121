"""The embedded broker as a machine without I/O: its clients and their sessions (MQTT 3.1.1 and 5).

The glue opens connections, moves their bytes, and calls ``handle_timer`` when ``next_timer`` has come.  The gateway
publishes with ``publish`` and learns through ``Publication.settled`` when nobody needs the message any more; the way
from there to the sessions that subscribed is in ``routing``.

A client id belongs to the user whose session it is: a client that authenticates as somebody else is refused with 0x02
until that session has ended, and disturbs nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import attrs

from coapgw.interfaces import ISessionStore, StoredState
from coapgw.metrics import BrokerCounters
from coapgw.mqtt.access import Authenticator, Permissions, host_of
from coapgw.mqtt.connection import Connection
from coapgw.mqtt.deadlines import Deadlines
from coapgw.mqtt.journal import Journal
from coapgw.mqtt.outbox import Outbox
from coapgw.mqtt.packets import (
    LEVEL_5,
    REFUSED_CLIENT_ID,
    REFUSED_NOT_AUTHORISED,
    REFUSED_PASSWORD,
    Connect,
)
from coapgw.mqtt.parser import ValidTopics
from coapgw.mqtt.reasons import (
    ADMINISTRATIVE_ACTION,
    NO_SUBSCRIPTION,
    NOT_AUTHORISED,
    QUOTA_EXCEEDED,
    SESSION_TAKEN_OVER,
    SHUTTING_DOWN,
    TOPIC_FILTER_INVALID,
    UNSPECIFIED_ERROR,
)
from coapgw.mqtt.remembered import ASSIGNED_ID, RememberedClients
from coapgw.mqtt.restored import RestoredState
from coapgw.mqtt.retained import RetainedMessages
from coapgw.mqtt.routing import Routing, shared_filter
from coapgw.mqtt.session import NEVER, Session, Shared
from coapgw.mqtt.status_topics import FIRST_LEVEL, StatusTopics
from coapgw.mqtt.subscriptions import Options, read_options
from coapgw.mqtt.topics import LEVEL_LIMIT, level_count


@attrs.frozen
class BrokerLimits:
    """What clients may cost; the first five are configuration.

    Args:
        max_packet: bytes of a packet from a client, header included; a CONNECT has 32 KiB at most.
        max_queue: messages that wait for one client; beyond it the oldest is dropped.
        max_connections: clients at a time.
        connect_timeout: seconds until CONNECT must be there.
        max_queue_bytes: payload bytes that wait for one client.
        max_subscriptions: filters of one client.
        max_filter_levels: levels of one client's filters together; each costs half a kilobyte, and time with every
            message that it matches so far.
        max_client_id: bytes.
        max_retained: topics with a retained message; a wildcard subscription looks at each of them.
        max_retained_bytes: topics and payloads of all retained messages.
        max_offline_sessions: persistent sessions of clients that are away; beyond it the longest absent one ends.
        max_keepalive: seconds of silence that clients of MQTT 5 may ask for.
    """

    max_packet: int = 262_144
    max_queue: int = 10_000
    max_connections: int = 10_000
    connect_timeout: float = 10.0
    max_queue_bytes: int = 64 << 20
    max_subscriptions: int = 1000
    max_filter_levels: int = 10_000
    max_client_id: int = 256
    max_retained: int = 20_000
    max_retained_bytes: int = 64 << 20
    max_offline_sessions: int = 10_000
    max_keepalive: int = 65_535


class Admission(NamedTuple):
    """A CONNECT that was accepted; *assigned* is the client id if the broker made it up."""

    session: Session
    is_present: bool
    permissions: Permissions
    assigned: str | None


class Broker:
    """Clients and their sessions.

    Attributes:
        on_output: called when there are connections to flush after there were none: see ``take_writable``.  It should
            ``tell_time``, so that what the gateway publishes after a silence is not judged by an old clock.
        on_publish: called with (connection, topic, payload) before a client's message is routed; True takes it away.
        crowded: sessions whose queue is over half full, until it is under a quarter; of those whose client is away,
            ones that are expected back.
        publish: see ``Routing.publish``.
        sessions: by client id, connected or not.
        counters, limits: as given.
    """

    def __init__(
        self,
        access: Authenticator,
        limits: BrokerLimits | None = None,
        counters: BrokerCounters | None = None,
        store: ISessionStore | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
        *,
        epoch: float = 0.0,
    ) -> None:
        """Begin without clients; *epoch* is when the broker's clock was 0, in seconds since the epoch."""
        self.limits = limits or BrokerLimits()
        self.counters = counters or BrokerCounters()
        self.journal = Journal(store, epoch, self._has_work)
        self.shared = Shared(self.limits.max_queue, self.limits.max_queue_bytes, self.counters, journal=self.journal)
        self.crowded = self.shared.crowded
        self.sessions: dict[str, Session] = {}
        self.deadlines: Deadlines[Connection] = Deadlines()
        self.valid_topics = ValidTopics()
        self.on_output: Callable[[], None] | None = None
        self.on_publish: Callable[[Connection, bytes, bytes], bool] | None = None
        self._access = access
        self.journal.on_refused, self.journal.on_lost = self._close_unanswered, self._keep_all
        self._remembered = RememberedClients(self.journal)
        self._random_bytes = random_bytes
        retained = RetainedMessages(self.limits.max_retained, self.limits.max_retained_bytes)
        self._routing = Routing(self.shared, retained, self.counters)
        self.publish = self._routing.publish  # for every message: a call less
        self._connections: set[Connection] = set()
        self._connected: dict[Session, Connection] = {}
        self._offline: dict[Session, None] = {}  # in the order they left
        self._absences: Deadlines[Session] = Deadlines()  # when sessions end, and delayed wills come
        self._wills: dict[Session, tuple[float, Connection]] = {}  # delayed, of clients that are away
        self._status = StatusTopics()
        self._writable: list[Connection] = []

    @property
    def on_relief(self) -> Callable[[], None] | None:
        """Called when ``crowded`` becomes empty."""
        return self.shared.on_relief

    @on_relief.setter
    def on_relief(self, call: Callable[[], None] | None) -> None:
        self.shared.on_relief = call

    @property
    def is_stopped(self) -> bool:
        """Whether ``stop`` was called."""
        return self._routing.is_stopped

    # ------------------------------------------------------------------ connections, for the glue

    @property
    def connection_count(self) -> int:
        """How many transports are open."""
        return len(self._connections)

    @property
    def connected_clients(self) -> int:
        """How many clients are connected, their CONNECT accepted."""
        return len(self._connected)

    @property
    def retained_count(self) -> int:
        """How many topics have a retained message."""
        return len(self._routing.retained)

    @property
    def group_count(self) -> int:
        """How many shared subscriptions there are."""
        return self._routing.group_count

    def is_wanted(self, first_level: bytes) -> bool:
        """Return whether anybody subscribed to topics that begin with this level, by its name."""
        return self._routing.is_wanted(first_level)

    def open_connection(self, peer: str, loopback: bool, now: float) -> Connection | None:
        """Return the machine for a new connection, or None if there are too many: close it then.

        *loopback* says whether the listener is bound to a loopback address.
        """
        if self._routing.is_stopped or len(self._connections) >= self.limits.max_connections:
            self.counters.refused_connections += 1
            return None
        self.shared.now = now
        self.counters.connections += 1
        connection = Connection(self, peer, loopback, now)
        self._connections.add(connection)
        return connection

    def take_writable(self) -> list[Connection]:
        """Return the connections that have bytes to send or are closing; some may be in it twice.

        What changed is handed to the store before.
        """
        self.journal.hand_over()
        writable, self._writable = self._writable, []
        return writable

    def next_timer(self) -> float | None:
        """Return the ``now`` at which ``handle_timer`` is due."""
        wanted = (
            self.deadlines.next(),
            self._absences.next(),
            self._remembered.next_timer(),
            self._status.next_timer(),
        )
        return min((due for due in wanted if due is not None), default=None)

    def handle_timer(self, now: float) -> None:
        """Close what was silent for too long; end what was away for too long."""
        self.shared.now = now
        for connection in self.deadlines.due(now):
            connection.handle_deadline(now)
        for session in self._absences.due(now):
            self._look_at_absent(session, now)
        self._routing.handle_timer(now)
        self._remembered.handle_timer(now)
        self._status.handle_timer(self, now)

    def tell_time(self, now: float) -> None:
        """Set the broker's clock."""
        self.shared.now = now

    def stop(self) -> None:
        """Take no more connections, and settle, publish or forget nothing more: what is owed is owed after the restart.

        To be called before the connections are closed; clients of MQTT 5 are told.
        """
        self._routing.is_stopped = True
        for connection in list(self._connected.values()):
            if connection.is_5:
                connection.fail(SHUTTING_DOWN)
        self.journal.stop()
        self.shared.on_relief = None

    # ------------------------------------------------------------------ for the gateway

    def has_subscribers(self, client_ids: Iterable[str]) -> bool:
        """Return whether every one of these clients has a session with subscriptions.

        A client without an id of its own is taken to be back when one of the same user asks for the same filters.
        """
        return all(
            self._remembered.has_returned(client_id) or ((one := self.sessions.get(client_id)) and one.subscriptions)
            for client_id in client_ids
        )

    # ------------------------------------------------------------------ for connections

    def wake(self, connection: Connection) -> None:
        """Note that *connection* has something for the glue."""
        self._writable.append(connection)
        if len(self._writable) == 1 and self.on_output is not None:
            self.on_output()

    def _has_work(self) -> bool:
        """Have the glue call ``take_writable``, for the journal's sake; return whether it will."""
        if self.on_output is None:
            return False
        if not self._writable:
            self.on_output()
        return True

    def forget_connection(self, connection: Connection) -> None:
        """The transport of *connection* is gone."""
        self._connections.discard(connection)

    def admit(self, connection: Connection, packet: Connect) -> int | Admission:
        """Decide about a CONNECT: a return code of 3.1.1 that refuses it, or what it is to have.

        Nothing of any session is touched before the client is known to be who it says (section 3.1.4).
        """
        permissions = self._access.authenticate(
            packet.user, packet.password, connection.loopback, host_of(connection.peer), self.shared.now
        )
        if permissions is None:
            return REFUSED_NOT_AUTHORISED if packet.user is None else REFUSED_PASSWORD
        client_id, is_5 = packet.client_id, packet.level == LEVEL_5
        if len(client_id.encode()) > self.limits.max_client_id or not (client_id or packet.clean_session or is_5):
            return REFUSED_CLIENT_ID  # 3.1.1 section 3.1.3.1
        assigned = None if client_id else ASSIGNED_ID + self._random_bytes(12).hex()
        client_id = assigned or client_id
        session = self.sessions.get(client_id)
        if session is not None and session.user != packet.user:
            return REFUSED_CLIENT_ID
        if session is not None and session in self._connected:
            self._connected[session].fail(SESSION_TAKEN_OVER)  # section 3.1.4; if it was clean, so ends its session
            session = self.sessions.get(client_id)
        if session is not None and packet.clean_session:
            self._end(session)
            session = None
        present = session is not None
        expiry = (packet.properties.session_expiry or 0) if is_5 else (0 if packet.clean_session else NEVER)
        if session is None:
            session = Session(client_id, packet.user, expiry, self.shared)
            self.sessions[client_id] = session
        session.expiry = expiry
        self._offline.pop(session, None)
        self._stop_waiting(session)
        self._connected[session] = connection
        self._status.connected(len(self._connected), self.shared.now)
        self._remembered.connected(client_id)
        if session.subscriptions or expiry:
            session.ends = None
            self._remembered.save(session)
        return Admission(session, present, permissions, assigned)

    def access_changed(self, users: Collection[str]) -> None:
        """Close the connections of *users*, and take from their sessions what they may not have any more."""
        for session in [one for one in self.sessions.values() if one.user in users]:
            connection = self._connected.get(session)
            if connection is not None:
                connection.fail(ADMINISTRATIVE_ACTION)
            permissions = self._access.permissions_of(session.user)
            if permissions is None:
                if session.client_id in self.sessions:
                    self._end(session)
                continue
            wanted = [(one, shared_filter(one) or one) for one in session.subscriptions]
            self.unsubscribe(session, [one for one, topics in wanted if not permissions.may_subscribe(topics)])

    def leave(self, session: Session) -> None:
        """The client of *session* is away: the session ends, or waits for as long as its expiry says."""
        del self._connected[session]
        if self._routing.is_stopped:
            session.detach()
        elif not session.expiry:
            self._end(session)
        else:
            self._offline[session] = None
            session.detach()
            if session.expiry != NEVER:
                session.ends = self.shared.now + session.expiry
                self._absences.add(session, session.ends)
            self._remembered.save(session)
            if len(self._offline) > self.limits.max_offline_sessions:
                self.counters.ended_sessions += 1
                self._end(next(iter(self._offline)))

    def delay_will(self, session: Session, connection: Connection, seconds: int) -> bool:
        """Have *connection* publish its will later, unless its client comes back; return False if it is to do so now.

        The end of the session ends the delay too (MQTT 5 section 3.1.3.2.2).
        """
        if self.sessions.get(session.client_id) is not session or session in self._connected or not seconds:
            return False
        due = self.shared.now + seconds
        self._wills[session] = (due, connection)
        self._absences.add(session, due)
        return True

    def _stop_waiting(self, session: Session) -> Connection | None:
        """Forget the deadlines of a session; return the connection with a delayed will, if there is one."""
        if session.ends is not None:
            self._absences.discard(session, math.ceil(session.ends))
        due, connection = self._wills.pop(session, (None, None))
        if due is not None:
            self._absences.discard(session, math.ceil(due))
        return connection

    def _look_at_absent(self, session: Session, now: float) -> None:
        will = self._wills.get(session)
        if will is not None and will[0] <= now:
            del self._wills[session]
            will[1].publish_will()
        if session.ends is not None and session.ends <= now and session in self._offline:
            self._end(session)

    def subscribe(self, session: Session, topic_filter: bytes, options: Options, permissions: Permissions) -> int:
        """Add or change a subscription; return the QoS that is granted, or why there is none (MQTT 5 section 3.9.3)."""
        known = session.subscriptions
        shared = shared_filter(topic_filter)
        if not permissions.may_subscribe(shared or topic_filter):
            return NOT_AUTHORISED
        levels = 0 if topic_filter in known else level_count(topic_filter)
        if levels and len(known) >= self.limits.max_subscriptions:
            return QUOTA_EXCEEDED
        if levels > LEVEL_LIMIT:
            return TOPIC_FILTER_INVALID
        if session.filter_levels + levels > self.limits.max_filter_levels:
            return QUOTA_EXCEEDED
        if known.get(topic_filter) != options:
            known[topic_filter] = options
            session.filter_levels += levels
            if session.outbox is not None:  # the client asks for it: this is no restart
                session.changed_in = self.journal.generation
                self._remembered.save(session)
            self._routing.add(session, topic_filter, options)
        if (shared or topic_filter).startswith(FIRST_LEVEL):
            self._status.subscribed(self.shared.now)
        return options.qos

    def subscribed(self, session: Session, granted: Mapping[bytes, Options]) -> None:
        """Send the retained messages for subscriptions that were just *granted* (section 3.8.4)."""
        self._remembered.subscribed(session)
        self._routing.deliver_retained(session, granted)

    def unsubscribe(self, session: Session, filters: Sequence[bytes]) -> tuple[int, ...]:
        """Take subscriptions away; what is owed already stays owed (section 3.10.4).  Return a code for each."""
        codes = []
        for topic_filter in filters:
            known = session.subscriptions.pop(topic_filter, None)
            codes.append(NO_SUBSCRIPTION if known is None else 0)
            if known is not None:
                session.filter_levels -= level_count(topic_filter)
                self._routing.remove(session, topic_filter)
        self._remembered.save(session)
        return tuple(codes)

    def _end(self, session: Session) -> None:
        """Forget a session; what it was owed is released, or given to others of its shared subscriptions."""
        for topic_filter in session.subscriptions:
            self._routing.remove(session, topic_filter)
        session.subscriptions.clear()
        self._offline.pop(session, None)
        self.sessions.pop(session.client_id, None)
        owed = session.end()
        pushed_out = self._routing.hand_to_others(session, owed)
        session.let_go(owed)
        for pushed in pushed_out:
            pushed.release()
        self._remembered.end(session)
        connection = self._stop_waiting(session)
        if connection is not None:
            connection.publish_will()

    # ------------------------------------------------------------------ when the store fails

    def _close_unanswered(self, outboxes: Collection[Outbox]) -> None:
        """Leave the clients that wait for answers which they may not get: they will try again."""
        for connection in [one for one in self._connected.values() if one.waits_with(outboxes)]:
            connection.fail(UNSPECIFIED_ERROR)

    def _keep_all(self) -> None:
        """Tell the journal everything that is to be on disk, because it was lost there."""
        for session in self.sessions.values():
            self._remembered.save(session)
            session.keep_all()
        self._routing.keep_retained()

    # ------------------------------------------------------------------ over a restart

    def restore(self, stored: StoredState, now: float) -> set[str]:
        """Make the sessions of an earlier life again, their clients away; call it before any connection.

        Subscriptions their users may not have any more are left out.  Returns the clients that had subscriptions,
        persistent or not, and may come back; those with clean sessions are forgotten if they do not within a minute.
        """
        self.shared.now = now
        restored = RestoredState.read(stored, self.journal, now)
        self._routing.restore(restored)
        expected = set()
        for record in stored.sessions:
            self._remembered.found(record, now)
            permissions = self._access.permissions_of(record.user)
            ends = None if record.expires is None else record.expires - self.journal.epoch
            if permissions is None or (ends is not None and ends <= now):
                self._remembered.forget(record.client_id)
                continue
            if record.subscriptions:
                expected.add(record.client_id)
            if not record.expiry:
                continue
            session = Session(record.client_id, record.user, record.expiry, self.shared)
            self.sessions[record.client_id] = session
            self._offline[session] = None
            if record.expiry != NEVER:
                session.ends = now + record.expiry if ends is None else ends
                self._absences.add(session, session.ends)
                self._remembered.save(session)
            for text, byte, identifier in record.subscriptions:
                self.subscribe(session, text.encode(), read_options(byte, identifier), permissions)
            restored.give(session)
        restored.drop_the_rest(self.journal)
        return expected
