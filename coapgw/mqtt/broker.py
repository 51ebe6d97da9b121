"""The embedded broker as a machine without I/O: connections, sessions, retained messages, routing (MQTT 3.1.1).

The glue opens connections, moves their bytes, and calls ``handle_timer`` when ``next_timer`` has come.  The gateway
publishes with ``publish`` and learns through ``Publication.settled`` when nobody needs the message any more.

A client id belongs to the user whose session it is: a client that authenticates as somebody else is refused with 0x02
until that session has ended, and disturbs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import attrs

from coapgw.errors import TopicRefused
from coapgw.interfaces import ISessionStore, StoredSession
from coapgw.metrics import BrokerCounters
from coapgw.mqtt.access import Authenticator, Permissions
from coapgw.mqtt.connection import Connection
from coapgw.mqtt.deadlines import Deadlines
from coapgw.mqtt.packets import (
    REFUSED_CLIENT_ID,
    REFUSED_NOT_AUTHORISED,
    REFUSED_PASSWORD,
    TEXT_LIMIT,
    Connect,
    encode_publish,
)
from coapgw.mqtt.parser import ValidTopics
from coapgw.mqtt.remembered import ASSIGNED_ID, RememberedClients
from coapgw.mqtt.retained import RetainedMessages
from coapgw.mqtt.session import Publication, Session, Shared
from coapgw.mqtt.topics import LEVEL_LIMIT, SubscriptionTree


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
        max_client_id: bytes.
        max_retained: topics with a retained message; a wildcard subscription looks at each of them.
        max_retained_bytes: topics and payloads of all retained messages.
        max_offline_sessions: persistent sessions of clients that are away; beyond it the longest absent one ends.
    """

    max_packet: int = 262_144
    max_queue: int = 10_000
    max_connections: int = 10_000
    connect_timeout: float = 10.0
    max_queue_bytes: int = 64 << 20
    max_subscriptions: int = 1000
    max_client_id: int = 256
    max_retained: int = 20_000
    max_retained_bytes: int = 64 << 20
    max_offline_sessions: int = 10_000


class Broker:
    """Clients, their sessions, and the way from a publication to its subscribers.

    Attributes:
        on_output: called when there are connections to flush after there were none: see ``take_writable``.  It should
            ``tell_time``, so that what the gateway publishes after a silence is not judged by an old clock.
        on_publish: called with (connection, topic, payload) before a client's message is routed; True takes it away.
        crowded: online sessions whose queue is over half full, until it is under a quarter.
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
    ) -> None:
        """Begin without clients."""
        self.limits = limits or BrokerLimits()
        self.counters = counters or BrokerCounters()
        self.shared = Shared(self.limits.max_queue, self.limits.max_queue_bytes, self.counters)
        self.crowded = self.shared.crowded
        self.sessions: dict[str, Session] = {}
        self.deadlines: Deadlines[Connection] = Deadlines()
        self.valid_topics = ValidTopics()
        self.on_output: Callable[[], None] | None = None
        self.on_publish: Callable[[Connection, bytes, bytes], bool] | None = None
        self._access = access
        self._remembered = RememberedClients(store)
        self._random_bytes = random_bytes
        self._tree: SubscriptionTree[Session] = SubscriptionTree()
        self._retained = RetainedMessages(self.limits.max_retained, self.limits.max_retained_bytes)
        self._connections: set[Connection] = set()
        self._connected: dict[Session, Connection] = {}
        self._offline: dict[Session, None] = {}  # in the order they left
        self._writable: list[Connection] = []
        self._stopped = False

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
        return self._stopped

    # ------------------------------------------------------------------ connections, for the glue

    @property
    def connection_count(self) -> int:
        """How many transports are open."""
        return len(self._connections)

    @property
    def connected_clients(self) -> int:
        """How many clients are connected, their CONNECT accepted."""
        return len(self._connected)

    def open_connection(self, peer: str, loopback: bool, now: float) -> Connection | None:
        """Return the machine for a new connection, or None if there are too many: close it then.

        *loopback* says whether the listener is bound to a loopback address.
        """
        if self._stopped or len(self._connections) >= self.limits.max_connections:
            self.counters.refused_connections += 1
            return None
        self.shared.now = now
        self.counters.connections += 1
        connection = Connection(self, peer, loopback, now)
        self._connections.add(connection)
        return connection

    def take_writable(self) -> list[Connection]:
        """Return the connections that have bytes to send or are closing; some may be in it twice.

        Sessions that changed are handed to the store before, so that no SUBACK overtakes what it promises.
        """
        self._remembered.hand_over()
        writable, self._writable = self._writable, []
        return writable

    def next_timer(self) -> float | None:
        """Return the ``now`` at which ``handle_timer`` is due."""
        wanted = [due for due in (self.deadlines.next(), self._remembered.next_timer()) if due is not None]
        return min(wanted, default=None)

    def handle_timer(self, now: float) -> None:
        """Close what was silent for too long."""
        self.shared.now = now
        for connection in self.deadlines.due(now):
            connection.handle_deadline(now)
        self._remembered.handle_timer(now)

    def tell_time(self, now: float) -> None:
        """Set the broker's clock."""
        self.shared.now = now

    def stop(self) -> None:
        """Take no more connections, and settle, publish or forget nothing more: what is owed is owed after the restart.

        To be called before the connections are closed.
        """
        self._remembered.stop()
        self._stopped = True
        self.shared.on_relief = None

    # ------------------------------------------------------------------ messages

    def publish(self, publication: Publication, now: float | None = None) -> None:
        """Hand a publication to every session that subscribed to it.

        It is settled before this returns if no session has to acknowledge it; after ``stop``, nothing happens.

        Raises:
            TopicRefused: the topic is longer than MQTT can say; otherwise a valid topic is the caller's duty.
        """
        if self._stopped:
            return
        if now is not None:
            self.shared.now = now
        topic, qos = publication.topic, publication.qos
        if len(topic) > TEXT_LIMIT:
            raise TopicRefused(topic, f"over {TEXT_LIMIT} bytes")
        if publication.retain and not self._retained.keep(topic, publication.payload, qos):
            self.counters.not_retained += 1
        publication.owed += 1  # ours, so that nothing is settled half way
        packet = b""
        pushed_out: list[Publication] = []
        for session, subscribed_qos in self._tree.match(topic):
            if qos and subscribed_qos:
                oldest = session.deliver(publication, min(qos, subscribed_qos))
                if oldest is not None:
                    pushed_out += oldest
            else:
                packet = packet or encode_publish(topic, publication.payload)
                session.deliver_unacknowledged(packet)
        for pushed in pushed_out:
            pushed.release()
        publication.release()

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

    def forget_connection(self, connection: Connection) -> None:
        """The transport of *connection* is gone."""
        self._connections.discard(connection)

    def admit(self, connection: Connection, packet: Connect) -> int | tuple[Session, bool, Permissions]:
        """Decide about a CONNECT: a return code that refuses it, or (session, session present, permissions).

        Nothing of any session is touched before the client is known to be who it says (section 3.1.4).
        """
        permissions = self._access.authenticate(packet.user, packet.password, connection.loopback)
        if permissions is None:
            return REFUSED_NOT_AUTHORISED if packet.user is None else REFUSED_PASSWORD
        client_id = packet.client_id
        if len(client_id.encode()) > self.limits.max_client_id or not (client_id or packet.clean_session):
            return REFUSED_CLIENT_ID  # section 3.1.3.1
        client_id = client_id or ASSIGNED_ID + self._random_bytes(12).hex()
        session = self.sessions.get(client_id)
        if session is not None and session.user != packet.user:
            return REFUSED_CLIENT_ID
        if session is not None and session in self._connected:
            self._connected[session].abort()  # section 3.1.4: the older one goes; if it was clean, so does its session
            session = self.sessions.get(client_id)
        if session is not None and packet.clean_session:
            self._end(session)
            session = None
        present = session is not None
        if session is None:
            session = Session(client_id, packet.user, not packet.clean_session, self.shared)
            self.sessions[client_id] = session
        self._offline.pop(session, None)
        self._connected[session] = connection
        self._remembered.connected(client_id)
        if session.subscriptions:
            self._remembered.save(session)
        return session, present, permissions

    def leave(self, session: Session) -> None:
        """The client of *session* is away: a clean session ends, a persistent one waits."""
        del self._connected[session]
        if self._stopped:
            session.detach()
        elif not session.persistent:
            self._end(session)
        else:
            self._offline[session] = None
            session.detach()
            if len(self._offline) > self.limits.max_offline_sessions:
                self.counters.ended_sessions += 1
                self._end(next(iter(self._offline)))

    def subscribe(self, session: Session, topic_filter: bytes, qos: int) -> bool:
        """Add or change a subscription; return False if the client has too many, or the filter too many levels."""
        known = session.subscriptions
        if topic_filter not in known and len(known) >= self.limits.max_subscriptions:
            return False
        if topic_filter.count(b"/") >= LEVEL_LIMIT:
            return False
        if known.get(topic_filter) != qos:
            known[topic_filter] = qos
            self._tree.add(topic_filter, session, qos)
        return True

    def subscribed(self, session: Session, granted: Mapping[bytes, int]) -> None:
        """Remember the subscriptions that were just added, and send their retained messages (section 3.8.4)."""
        self._remembered.save(session)
        self._remembered.subscribed(session)
        for message, qos in self._retained.matching(granted):
            if not session.deliver_retained(message, min(qos, message.qos)):
                return

    def unsubscribe(self, session: Session, filters: Sequence[bytes]) -> None:
        """Take subscriptions away; what is owed already stays owed (section 3.10.4)."""
        for topic_filter in filters:
            if session.subscriptions.pop(topic_filter, None) is not None:
                self._tree.remove(topic_filter, session)
        self._remembered.save(session)

    def _end(self, session: Session) -> None:
        """Forget a session; what it was owed is released."""
        for topic_filter in session.subscriptions:
            self._tree.remove(topic_filter, session)
        self._remembered.end(session)
        session.subscriptions.clear()
        self._offline.pop(session, None)
        self.sessions.pop(session.client_id, None)
        session.end()

    # ------------------------------------------------------------------ over a restart

    def restore(self, stored: Iterable[StoredSession], now: float) -> set[str]:
        """Make the persistent sessions of an earlier life again, their clients away; call it before any connection.

        Subscriptions their users may not have any more are left out.  Returns the clients that had subscriptions,
        persistent or not, and may come back; those with clean sessions are forgotten if they do not within a minute.
        """
        self.shared.now = now
        expected = set()
        for record in stored:
            self._remembered.found(record, now)
            permissions = self._access.permissions_of(record.user)
            if permissions is None:
                self._remembered.forget(record.client_id)
                continue
            expected.add(record.client_id)
            if not record.persistent:
                continue
            session = Session(record.client_id, record.user, True, self.shared)
            self.sessions[record.client_id] = session
            self._offline[session] = None
            for text, qos in record.subscriptions:
                topic_filter = text.encode()
                if permissions.may_subscribe(topic_filter):
                    self.subscribe(session, topic_filter, qos)
        return expected
