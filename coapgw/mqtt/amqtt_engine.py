"""aMQTT as the embedded broker: its coroutines on asyncio's loop, its clients through the gateway's own listeners.

aMQTT listens nowhere itself.  The glue of the own broker (``net.mqtt``) gives it connections as "external" ones, so
that TLS, WebSocket, limits and the port numbers are those of the own broker; ``amqtt_guard`` looks at every packet
before aMQTT does, and ``amqtt_fanout`` has the gateway's messages until they are acknowledged.

Import this only once the reactor is known to be asyncio's, and aMQTT to be installed.  No other module knows asyncio.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from functools import lru_cache, partial
from typing import Any, Final

from amqtt.broker import Broker
from amqtt.contexts import Action, BrokerConfig, ListenerConfig, ListenerType
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from coapgw.interfaces import IDelivery
from coapgw.metrics import AmqttCounters
from coapgw.mqtt.access import Authenticator, host_of
from coapgw.mqtt.amqtt_complaints import Complaints
from coapgw.mqtt.amqtt_connection import AmqttConnection
from coapgw.mqtt.amqtt_fanout import Backlog, Fanout, Recipient
from coapgw.mqtt.amqtt_guard import Guard
from coapgw.mqtt.amqtt_rules import AccessPlugin, OthersDecide, authenticates, filters_topics
from coapgw.mqtt.broker import BrokerLimits
from coapgw.mqtt.embedded import EmbeddedLink
from coapgw.mqtt.publication import Publication
from coapgw.mqtt.remembered import ASSIGNED_ID
from coapgw.mqtt.topics import compiled_filter

LISTENER: Final = "gateway"
STATUS_SECONDS: Final = 10  # between two rounds of $SYS
BUSY_MESSAGES: Final = 2_000  # of clients on their way to clients; beyond that nobody is read from
BUSY_LOOK_SECONDS: Final = 0.05
READY_LOOKS: Final = 20  # afterwards the once-a-second look is enough
READY_LOOK_SECONDS: Final = 0.005
STOP_SECONDS: Final = 3.0  # for aMQTT to stop


@lru_cache(maxsize=20_000)
def _pattern(topic_filter: str) -> Callable[[bytes], object]:
    return compiled_filter(topic_filter.encode()).fullmatch


class AmqttEngine:
    """aMQTT, its clients, and the gateway's messages to them.

    It looks like ``mqtt.broker.Broker`` to the glue (``net.mqtt.BrokerPump``) and to ``EmbeddedLink``.

    Args:
        access: who may connect, and what for.
        limits: what clients may cost.
        clock: seconds.
        plugins: aMQTT's, by dotted name, with their options.
    """

    log = Logger()

    def __init__(
        self,
        access: Authenticator,
        limits: BrokerLimits,
        clock: Callable[[], float],
        plugins: Mapping[str, Mapping[str, object]] | None = None,
    ) -> None:
        """Begin without a broker; ``begin`` makes it, on the running loop."""
        self.limits = limits
        self.counters = AmqttCounters()
        self.on_output: Callable[[], None] | None = None
        self.fanout = Fanout(self, limits.max_queue, self.counters, clock)
        self.now = clock()
        self._access = access
        self._clock = clock
        self._plugins = {name: dict(options) for name, options in (plugins or {}).items()}
        self._others_authenticate = any(authenticates(name) for name in self._plugins)
        self._others_filter = any(filters_topics(name) for name in self._plugins)
        if self._others_authenticate:
            self._access = OthersDecide()
        self._complaints = Complaints(self.counters)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._broker: Broker | None = None
        self._is_started = False
        self._connections: dict[AmqttConnection, None] = {}
        self._serving: dict[str, tuple[AmqttConnection, asyncio.Task[None]]] = {}
        self._early: list[AmqttConnection] = []  # accepted before aMQTT was there
        self._tasks: set[asyncio.Task[Any]] = set()
        self._writable: list[AmqttConnection] = []
        self._is_looking = False
        self._stopped = False

    # ------------------------------------------------------------------ its life

    def begin(self) -> None:
        """Make aMQTT's broker; to be called by the running reactor.  Raises what aMQTT and its plugins raise."""
        if self._stopped:
            return
        loop = self._loop = asyncio.get_running_loop()
        self._complaints.listen(loop)
        self._broker = Broker(self._config(), loop=loop)
        self._task(self._start(self._broker))

    def _config(self) -> BrokerConfig:
        rules = f"{AccessPlugin.__module__}.{AccessPlugin.__name__}"
        plugins = {
            rules: {"access": self._access, "connected": self._connected},
            "amqtt.plugins.sys.broker.BrokerSysPlugin": {"sys_interval": STATUS_SECONDS},
            **self._plugins,
        }
        external = ListenerConfig(type=ListenerType.EXTERNAL, bind="")
        return BrokerConfig(listeners={"default": ListenerConfig(bind=None), LISTENER: external}, plugins=plugins)

    async def _start(self, broker: Broker) -> None:
        await broker.start()
        self._is_started = True
        early, self._early = self._early, []
        for connection in early:
            if connection.is_open:
                self.serve(connection)
        if self.fanout.on_relief is not None:
            self.fanout.on_relief()

    def stop(self) -> None:
        """Take no more connections and settle nothing more; the glue closes those that there are."""
        self._stopped = True
        self.fanout.stop()

    def finished(self) -> Deferred[None]:
        """End aMQTT; fires when that is done, or soon.  Every connection has been closed before."""
        if self._loop is None:
            return succeed(None)
        return Deferred.fromFuture(asyncio.ensure_future(self._finish(), loop=self._loop))

    async def _finish(self) -> None:
        serving = [task for _, task in self._serving.values()]
        if serving:
            await asyncio.wait(serving, timeout=STOP_SECONDS / 2)
        if self._broker is not None and self._is_started:
            try:
                await asyncio.wait_for(self._broker.shutdown(), STOP_SECONDS)
            except Exception as failed:  # noqa: BLE001 - nothing of aMQTT's may keep the gateway from stopping
                self._complaints.note("shutdown", failed)
        left = [task for task in self._tasks if not task.done()]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=STOP_SECONDS / 2)
        self._complaints.stop()

    def _task(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        assert self._loop is not None
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @property
    def is_stopped(self) -> bool:
        """Whether ``stop`` was called."""
        return self._stopped

    @property
    def is_running(self) -> bool:
        """Whether messages may be published."""
        return self._is_started and not self._stopped

    # ------------------------------------------------------------------ connections, for the glue

    @property
    def connected_clients(self) -> int:
        """How many clients are connected, their CONNECT accepted."""
        return len(self._serving)

    @property
    def session_count(self) -> int:
        """How many sessions there are, connected or not."""
        return len(self._broker.sessions) if self._broker is not None else 0

    def open_connection(self, peer: str, loopback: bool, now: float) -> AmqttConnection | None:
        """Return the end of a new connection, or None if there are too many."""
        if self._stopped or len(self._connections) >= self.limits.max_connections:
            self.counters.refused_connections += 1
            return None
        self.now = now
        self.counters.connections += 1
        guard = Guard(
            *(self._access, self.limits, loopback, self.owner_of, self._has_room, _new_id, now),
            keeps_password=self._others_authenticate,
            host=host_of(peer),
        )
        connection = AmqttConnection(self, peer, guard)
        self._connections[connection] = None
        return connection

    def take_writable(self) -> list[AmqttConnection]:
        """Return the connections that have bytes to send or are closing; some may be in it twice."""
        writable, self._writable = self._writable, []
        return writable

    def tell_time(self, now: float) -> None:
        """Set the clock."""
        self.now = now

    def next_timer(self) -> None:
        """None: the once-a-second call is enough."""

    def handle_timer(self, now: float) -> None:
        """Close who was silent, or has read nothing, for too long; called about once a second."""
        self.now = now
        for connection in list(self._connections):
            if connection.look(now):
                self.counters.timeouts += 1
        self.fanout.handle_timer()
        self._trim_queues()
        self._complaints.report(now)

    def new_future(self) -> asyncio.Future[None]:
        """Return something to wait for."""
        return asyncio.get_running_loop().create_future()

    def wake(self, connection: AmqttConnection) -> None:
        """Note that *connection* has something for the glue."""
        self._writable.append(connection)
        if len(self._writable) == 1 and self.on_output is not None:
            self.on_output()

    def forget(self, connection: AmqttConnection) -> None:
        """The transport of *connection* is gone."""
        self._connections.pop(connection, None)

    def refused(self, is_new: bool) -> None:
        """Count a client whose connection has to end."""
        if is_new:
            self.counters.refused_connections += 1
        else:
            self.counters.protocol_errors += 1

    def is_busy(self) -> bool:
        """Return whether clients publish faster than aMQTT hands on; if so, look again soon."""
        broker = self._broker
        if broker is None:
            return False
        waiting: int = broker._broadcast_queue.qsize()  # there is no public way to ask
        tasks = broker._tasks_queue
        if waiting <= BUSY_MESSAGES and len(tasks) > BUSY_MESSAGES:
            waiting += sum(not task.done() for task in tasks)
        if waiting > BUSY_MESSAGES and not self._is_looking and self._loop is not None:
            self._is_looking = True
            self._loop.call_later(BUSY_LOOK_SECONDS, self._look_whether_relieved)
        return waiting > BUSY_MESSAGES

    def _look_whether_relieved(self) -> None:
        self._is_looking = False
        for connection in list(self._connections):
            connection.look_whether_relieved()

    # ------------------------------------------------------------------ clients

    def owner_of(self, client_id: str) -> tuple[str | None] | None:
        """Return in a tuple whose session this is, None if there is none."""
        found = self._broker.sessions.get(client_id) if self._broker is not None else None
        if found is not None:
            return (found[0].username,)
        serving = self._serving.get(client_id)
        client = serving[0].guard.client if serving is not None else None
        return (client.user,) if client is not None else None

    def _has_room(self) -> bool:
        return self.session_count - len(self._serving) < self.limits.max_offline_sessions

    def serve(self, connection: AmqttConnection) -> None:
        """Hand a client that was accepted to aMQTT, after the one that had its id before."""
        if not self._is_started:
            self._early.append(connection)
            return
        before = self._serving.get(connection.client_id)
        task = self._task(self._serve(connection, before))
        self._serving[connection.client_id] = (connection, task)

    async def _serve(
        self, connection: AmqttConnection, before: tuple[AmqttConnection, asyncio.Task[None]] | None
    ) -> None:
        broker, client_id = self._broker, connection.client_id
        assert broker is not None
        try:
            if before is not None:
                before[0].fail()  # section 3.1.4
                await asyncio.wait({before[1]})
            if connection.is_open:
                await broker.external_connected(connection.reader, connection.writer, LISTENER)
        except Exception as failed:  # noqa: BLE001 - one client's trouble is nobody else's
            self._complaints.note("a connection", failed)
        finally:
            connection.finish()
            if self._serving.get(client_id, (None,))[0] is connection:
                del self._serving[client_id]
                self._leave(connection, broker.sessions.get(client_id))

    def _leave(self, connection: AmqttConnection, found: tuple[Any, Any] | None) -> None:
        """Put right what aMQTT leaves behind where it refuses a client, or gives up on one."""
        session = found[0] if found is not None else None
        if session is None:
            return
        if session.transitions.state == "connected":
            session.transitions.disconnect()
        if self._others_authenticate and not connection.is_accepted and not session.parent:
            session.clean_session = True  # of somebody who was refused: it must not keep its client id from others

    def _connected(self, client_id: str) -> None:
        serving = self._serving.get(client_id)
        if serving is not None:
            serving[0].is_accepted = True
        self._task(self._go_on_with(client_id))

    async def _go_on_with(self, client_id: str) -> None:
        """Send a client that has connected what it is owed, as soon as it may be sent to."""
        for _ in range(READY_LOOKS):
            if self.is_online(client_id):
                self.fanout.client_returned(client_id)
                return
            await asyncio.sleep(READY_LOOK_SECONDS)

    def access_changed(self, users: Collection[str]) -> None:
        """Close the connections of *users*, and take from their sessions what they may not have any more."""
        for connection in list(self._connections):
            client = connection.guard.client
            if client is not None and client.user in users:
                connection.fail()
        if self._broker is None:
            return
        for topic_filter, subscribers in self._broker.subscriptions.items():
            kept = [one for one in subscribers if one[0].username not in users or self._may(one[0], topic_filter)]
            subscribers[:] = kept

    def _may(self, session: Any, topic_filter: str) -> bool:
        permissions = self._access.permissions_of(session.username)
        return permissions is not None and permissions.may_subscribe(topic_filter.encode())

    def _trim_queues(self) -> None:
        """Drop the oldest of what aMQTT keeps, without a limit, of clients' messages for clients that are away."""
        if self._broker is None:
            return
        for session, _ in self._broker.sessions.values():
            while session.retained_messages.qsize() > self.limits.max_queue:
                session.retained_messages.get_nowait()
                self.counters.dropped += 1

    # ------------------------------------------------------------------ messages of the gateway

    def publish(self, publication: Publication) -> bool:
        """Hand a message to everybody who has subscribed; return whether there is anybody."""
        return self.fanout.publish(publication)

    @property
    def crowded(self) -> Collection[Backlog]:
        """Return the queues of clients that are there and far behind."""
        return self.fanout.crowded

    @property
    def on_relief(self) -> Callable[[], None] | None:
        """Called when ``crowded`` becomes empty, and when aMQTT has started."""
        return self.fanout.on_relief

    @on_relief.setter
    def on_relief(self, call: Callable[[], None] | None) -> None:
        self.fanout.on_relief = call

    def subscribers(self) -> set[str]:
        """Return the clients that have subscribed to something at QoS 1 or 2."""
        if self._broker is None:
            return set()
        subscriptions = self._broker.subscriptions.values()
        return {str(session.client_id) for subscribers in subscriptions for session, qos in subscribers if qos}

    def has_subscribers(self, client_ids: Iterable[str]) -> bool:
        """Return whether all of these clients are connected and have subscribed.

        Those without an id of their own count as back when as many such are there.
        """
        if not self.is_running:
            return False
        there = {client_id for client_id in self.subscribers() if self.is_online(client_id)}
        missing = set(client_ids) - there
        nameless = {client_id for client_id in missing if client_id.startswith(ASSIGNED_ID)}
        newcomers = sum(client_id.startswith(ASSIGNED_ID) for client_id in there.difference(client_ids))
        return missing == nameless and newcomers >= len(nameless)

    def recipients(self, topic: bytes) -> Iterable[Recipient]:
        """Return the clients that have subscribed to a topic, each once with its highest QoS."""
        found: dict[str, Recipient] = {}
        assert self._broker is not None
        for topic_filter, subscribers in self._broker.subscriptions.items():
            if subscribers and _pattern(topic_filter)(topic):
                for session, qos in subscribers:
                    client_id = str(session.client_id)
                    known = found.get(client_id)
                    if known is None or known.qos < qos:
                        found[client_id] = Recipient(client_id, session, qos)
        return found.values()

    def is_asked_for(self, client_id: str, topic: bytes) -> bool:
        """Return whether a client has subscribed to a topic."""
        return any(one.client_id == client_id for one in self.recipients(topic))

    def is_online(self, client_id: str) -> bool:
        """Return whether a client is connected and may be sent to."""
        serving = self._serving.get(client_id)
        if serving is None or not serving[0].is_open or self._broker is None:
            return False
        found = self._broker.sessions.get(client_id)
        if found is None:
            return False
        session, handler = found
        is_its = session.transitions.state == "connected" and handler.writer is serving[0].writer
        # Until its handler has started, aMQTT takes what it is given to send for what it once sent, and sends it twice.
        return bool(is_its and handler._disconnect_waiter is not None)

    def is_current(self, client_id: str, session: object) -> bool:
        """Return whether this is the client's session still."""
        found = self._broker.sessions.get(client_id) if self._broker is not None else None
        return found is not None and bool(found[0] is session)

    def send(self, client_id: str, publication: Publication, qos: int, done: Callable[[bool], None]) -> None:
        """Have aMQTT send a message to a client that is online."""
        assert self._broker is not None
        connection = self._serving[client_id][0]
        session, handler = self._broker.sessions[client_id]
        topic = publication.topic.decode()
        sending = handler.mqtt_publish(topic, publication.payload, qos, False)
        if self._others_filter:
            sending = self._unless_filtered(session, topic, sending)
        task = self._task(sending)
        task.add_done_callback(partial(self._sent, connection, qos, done))

    async def _unless_filtered(self, session: Any, topic: str, sending: Coroutine[Any, Any, Any]) -> None:
        """Send if every plugin lets the client have it; otherwise it is as good as acknowledged."""
        assert self._broker is not None
        plugins = self._broker.plugins_manager
        answers = await plugins.map_plugin_topic(session=session, topic=topic, action=Action.RECEIVE)
        if all(answers.values()):
            await sending
        else:
            sending.close()

    def _sent(
        self, connection: AmqttConnection, qos: int, done: Callable[[bool], None], task: asyncio.Task[Any]
    ) -> None:
        failed = None if task.cancelled() else task.exception()
        is_acknowledged = not task.cancelled() and failed is None
        if not is_acknowledged and qos:
            if isinstance(failed, TimeoutError) and connection.is_open:
                self.counters.unacknowledged += 1
            connection.fail()
        try:
            done(is_acknowledged)
        except Exception as wrong:  # noqa: BLE001 - the pump
            self.counters.pump_errors += 1
            self.log.failure("aMQTT's clients: {reason!r}", reason=wrong)


class AmqttLink(EmbeddedLink):
    """Publishes the spool's messages through aMQTT, once that has started."""

    def __init__(
        self, engine: AmqttEngine, delivery: IDelivery, clock: Callable[[], float], fill: Callable[[], float]
    ) -> None:
        """Wait for the *engine*."""
        super().__init__(engine, delivery, clock, fill)
        self._engine = engine

    def ready(self) -> bool:
        """Return whether a message may be published now."""
        return self._engine.is_running and super().ready()


def _new_id() -> str:
    return ASSIGNED_ID + os.urandom(12).hex()


__all__ = ["AmqttEngine", "AmqttLink"]
