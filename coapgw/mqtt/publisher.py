"""Empties the spool into a broker, in order, and lets a message leave the spool only when nobody needs it any more.

Messages come from the spool's writer as they are committed.  When the broker is slower than the devices the publisher
stops keeping them in memory and reads them from disk again when it gets there: memory holds at most a few thousand,
the disk holds the rest.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from coapgw.interfaces import IBrokerLink, IDelivery, ISpool
from coapgw.metrics import Histogram
from coapgw.model import Spooled

MEMORY_LIMIT: Final = 20_000  # messages kept in memory, some 10 MB of envelopes
READ_LIMIT: Final = 5_000  # messages read from disk at a time: a few milliseconds of the writer's thread
RETRY_SECONDS: Final = 1.0  # after the spool could not be read


@implementer(IDelivery)
class Publisher:
    """The way from the spool to a broker link.

    Args:
        accepted: told the place of each message the broker has taken.
        clock: seconds since the epoch.
    """

    log = Logger()

    def __init__(
        self,
        spool: ISpool,
        reactor: IReactorTime,
        accepted: Callable[[int], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Wait for ``start``."""
        self._spool = spool
        self._reactor = reactor
        self._accepted = accepted
        self._clock = clock
        self.delays = Histogram()
        """From receiving a message to handing it to the broker; one is looked at each time."""
        self._link: IBrokerLink | None = None
        self._ready: deque[Spooled] = deque()
        self._tail = 0  # the highest place that is in memory or was delivered
        self._newest = 0  # the highest place known to be committed
        self._reading = False
        self._is_unreadable = False
        self._retry: IDelayedCall | None = None
        self._settled: list[int] = []
        self._stopped = False

    def start(self, link: IBrokerLink) -> None:
        """Deliver everything the spool holds, and what comes from now on, through *link*."""
        self._link = link
        self._newest = self._spool.last_place()
        self._spool.follow(self._take)
        self._deliver_or_read()

    def stop(self) -> None:
        """Deliver nothing from now on; what was settled is handed to the spool."""
        self._stopped = True
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._hand_over_settled()

    @property
    def backlog(self) -> bool:
        """Whether messages are waiting for the link."""
        return bool(self._ready) or self._tail < self._newest

    @property
    def oldest_received(self) -> int | None:
        """When the first message that waits in memory was received, milliseconds since the epoch."""
        return self._ready[0].received if self._ready else None

    @property
    def oldest_seconds(self) -> float:
        """How long ago the next message was received; 0 if none waits in memory."""
        return max(0.0, self._clock() - self._ready[0].received / 1000) if self._ready else 0.0

    # ------------------------------------------------------------------ from the spool

    def _take(self, group: Sequence[Spooled]) -> None:
        """Take a group that was just committed."""
        caught_up = self._tail >= self._newest
        self._newest = group[-1].place
        if caught_up and not self._reading and len(self._ready) + len(group) <= MEMORY_LIMIT:
            self._tail = self._newest
            self._ready.extend(group)
        self._deliver_or_read()

    def resume(self) -> None:
        """Go on after the link was not ready."""
        self._deliver_or_read()

    def _deliver_or_read(self) -> None:
        """Deliver what is in memory while the link takes it; read on if memory runs low and there is more on disk."""
        link, ready = self._link, self._ready
        if link is None or self._stopped:
            return
        if ready and link.ready():
            self.delays.observe(max(0.0, self._clock() - ready[0].received / 1000))
        while ready and link.ready():
            link.deliver(ready.popleft())
        self._hand_over_settled()
        if self._tail < self._newest and len(ready) < READ_LIMIT and not self._reading:
            self._reading = True
            reading = self._spool.read(self._tail, READ_LIMIT)
            reading.addCallbacks(self._read, self._not_read, callbackArgs=(self._newest,))

    def _read(self, messages: list[Spooled], newest: int) -> None:
        """Take what was read; *newest* was committed when the read was asked for."""
        self._reading = self._is_unreadable = False
        if messages:
            self._ready.extend(messages)
            self._tail = messages[-1].place
        if len(messages) < READ_LIMIT:
            self._tail = max(self._tail, newest)  # places up to there that did not come never will: failed, or settled
        self._deliver_or_read()

    def _not_read(self, failure: Failure) -> None:
        if not self._is_unreadable:
            self._is_unreadable = True
            self.log.error("the spool cannot be read: {reason}", reason=failure.getErrorMessage())
        if not self._stopped:
            self._retry = self._reactor.callLater(RETRY_SECONDS, self._read_again)

    def _read_again(self) -> None:
        self._retry = None
        self._reading = False
        self._deliver_or_read()

    # ------------------------------------------------------------------ from the link

    def accepted(self, place: int) -> None:
        """Take note that the broker has taken responsibility for a message."""
        if self._accepted is not None:
            self._accepted(place)

    def settled(self, place: int) -> None:
        """Take note that a message may leave the spool; it does so with others."""
        settled = self._settled
        settled.append(place)
        if len(settled) == 1:
            self._reactor.callLater(0, self._hand_over_settled)

    def refused(self, message: Spooled, reason: str) -> None:
        """Have a message set aside that the broker will not take."""
        self._spool.set_aside(message, reason)

    def _hand_over_settled(self) -> None:
        if self._settled:
            settled, self._settled = self._settled, []
            self._spool.settle(settled)
