"""Hands the gateway's messages to aMQTT's subscribers, one queue for each, and keeps what they have not acknowledged.

aMQTT's own way (``broadcast``) tells nobody whether a message arrived: it gives up an acknowledgement after five
seconds, and forgets what is in flight when a connection ends.  So the gateway's messages do not take it.  They wait
here, in memory and in the spool, until every subscriber has acknowledged them; aMQTT has the subscriptions, and sends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, NamedTuple, Protocol

import attrs

from coapgw.metrics import AmqttCounters
from coapgw.mqtt.publication import Publication

WINDOW: Final = 50  # messages in flight to a client; within five seconds, after which aMQTT gives up, it has to get on
CROWDED: Final = 1000  # messages waiting for a client that is there


class Recipient(NamedTuple):
    """A client that has subscribed to a topic; *session* is aMQTT's, another one when it began anew."""

    client_id: str
    session: object
    qos: int


class Courier(Protocol):
    """What aMQTT does for a message."""

    def recipients(self, topic: bytes) -> Iterable[Recipient]:
        """Return the clients that have subscribed to a topic, each once with its highest QoS."""

    def is_online(self, client_id: str) -> bool:
        """Return whether a client is connected."""

    def is_current(self, client_id: str, session: object) -> bool:
        """Return whether this is the client's session still."""

    def send(self, client_id: str, publication: Publication, qos: int, done: Callable[[bool], None]) -> None:
        """Send a message to a client that is online.

        *done* is called later: with True when it was acknowledged (QoS 0: sent); otherwise with False, in which case
        the connection has ended, or is about to.
        """


@attrs.define(eq=False)
class Backlog:
    """What one client is owed.

    Attributes:
        waiting: not sent yet, oldest first.
        in_flight: sent and not acknowledged, in that order.
        returned: sent on a connection that has ended; they go first when the client is back.
        last_progress: when it last acknowledged something, had nothing to acknowledge, or went away.
        is_away: it is not connected.
        is_expected: it went away, and may be back at any moment.
    """

    client_id: str
    session: object
    last_progress: float
    waiting: deque[Publication] = attrs.Factory(deque)
    in_flight: dict[Publication, None] = attrs.Factory(dict)
    returned: list[Publication] = attrs.Factory(list)
    is_away: bool = False
    is_expected: bool = False

    def give_up(self) -> None:
        """Wait no longer for a client that is away."""
        self.is_expected = False

    def __len__(self) -> int:
        """Return how many messages it holds."""
        return len(self.waiting) + len(self.in_flight) + len(self.returned)

    def take_back(self) -> None:
        """Put what has returned before what waits, in the order in which it was sent, once nothing is in flight."""
        if self.returned and not self.in_flight:
            self.waiting.extendleft(reversed(self.returned))
            self.returned.clear()


class Fanout:
    """Publications on their way to subscribers at QoS 1.

    Args:
        max_queue: messages that a client may be owed; beyond it the oldest is dropped.
        clock: seconds.

    Attributes:
        crowded: backlogs of clients that are far behind, and online or expected back.
        on_relief: called when *crowded* becomes empty.
    """

    def __init__(self, courier: Courier, max_queue: int, counters: AmqttCounters, clock: Callable[[], float]) -> None:
        """Begin with nothing."""
        self._courier = courier
        self._max_queue = max_queue
        self._counters = counters
        self._clock = clock
        self._backlogs: dict[str, Backlog] = {}
        self._stopped = False
        self.crowded: set[Backlog] = set()
        self.on_relief: Callable[[], None] | None = None

    def publish(self, publication: Publication) -> bool:
        """Hand a publication to everybody who subscribed; return whether there is anybody.

        It is settled when everybody with QoS 1 or 2 has acknowledged it, before this returns if there is none.
        """
        if self._stopped:
            return False
        publication.owed += 1  # ours, so that nothing is settled half way
        found = False
        for client_id, session, qos in self._courier.recipients(publication.topic):
            found = True
            if qos:
                self._owe(self._backlog(client_id, session), publication)
            elif self._courier.is_online(client_id):
                self._courier.send(client_id, publication, 0, _take_no_note)
        publication.release()
        return found

    def owed(self) -> int:
        """Return how many messages clients are owed, all together."""
        return sum(len(backlog) for backlog in self._backlogs.values())

    def client_returned(self, client_id: str) -> None:
        """Go on with a client that has connected."""
        backlog = self._backlogs.get(client_id)
        if backlog is not None and self._is_current(backlog):
            self._send(backlog)

    def handle_timer(self) -> None:
        """Forget sessions that have ended, go on with the others; called about once a second."""
        for backlog in list(self._backlogs.values()):
            if self._is_current(backlog):
                self._send(backlog)
                self._judge(backlog)

    def stop(self) -> None:
        """Settle nothing more: what is owed stays in the spool."""
        self._stopped = True
        self.on_relief = None

    # ------------------------------------------------------------------ one client

    def _backlog(self, client_id: str, session: object) -> Backlog:
        backlog = self._backlogs.get(client_id)
        if backlog is not None and backlog.session is not session:
            self._drop(backlog)
            backlog = None
        if backlog is None:
            backlog = self._backlogs[client_id] = Backlog(client_id, session, self._clock())
        return backlog

    def _is_current(self, backlog: Backlog) -> bool:
        if self._courier.is_current(backlog.client_id, backlog.session):
            return True
        self._drop(backlog)
        return False

    def _owe(self, backlog: Backlog, publication: Publication) -> None:
        publication.owed += 1
        if not backlog.in_flight and not backlog.is_away:
            backlog.last_progress = self._clock()
        backlog.waiting.append(publication)
        if len(backlog.waiting) > self._max_queue:
            self._counters.dropped += 1
            backlog.waiting.popleft().release()
        self._send(backlog)
        self._judge(backlog)

    def _send(self, backlog: Backlog) -> None:
        backlog.take_back()
        courier = self._courier
        while (
            backlog.waiting
            and not backlog.returned
            and len(backlog.in_flight) < WINDOW
            and courier.is_online(backlog.client_id)
        ):
            publication = backlog.waiting.popleft()
            backlog.in_flight[publication] = None
            courier.send(backlog.client_id, publication, 1, partial(self._sent, backlog, publication))

    def _sent(self, backlog: Backlog, publication: Publication, is_acknowledged: bool) -> None:
        """Take note of what became of a message."""
        if self._stopped or backlog.in_flight.pop(publication, self) is self:
            return
        if is_acknowledged:
            self._counters.delivered += 1
            backlog.last_progress = self._clock()
            publication.release()
        else:
            backlog.returned.append(publication)
        if not self._is_current(backlog):
            return
        self._send(backlog)
        if backlog in self.crowded or not is_acknowledged:
            self._judge(backlog)

    def _judge(self, backlog: Backlog) -> None:
        """Look whether a client is so far behind that the spool should wait for it, until it is a quarter of that."""
        if self._courier.is_online(backlog.client_id):
            backlog.is_away = backlog.is_expected = False
        elif not backlog.is_away:
            backlog.is_away = backlog.is_expected = True
            backlog.last_progress = self._clock()
        is_there = not backlog.is_away or backlog.is_expected
        if backlog not in self.crowded:
            if is_there and len(backlog.waiting) > CROWDED:
                self.crowded.add(backlog)
        elif not is_there or len(backlog.waiting) < CROWDED // 4:
            self._relieve(backlog)

    def _relieve(self, backlog: Backlog) -> None:
        self.crowded.discard(backlog)
        if not self.crowded and self.on_relief is not None:
            self.on_relief()

    def _drop(self, backlog: Backlog) -> None:
        """The session has ended: nobody is owed its messages."""
        self._backlogs.pop(backlog.client_id, None)
        owed = [*backlog.returned, *backlog.in_flight, *backlog.waiting]
        backlog.returned.clear()
        backlog.in_flight.clear()
        backlog.waiting.clear()
        for publication in owed:
            publication.release()
        if backlog in self.crowded:
            self._relieve(backlog)


def _take_no_note(_: bool) -> None:
    """QoS 0: nobody asks."""


__all__ = ["Backlog", "Courier", "Fanout", "Recipient"]
