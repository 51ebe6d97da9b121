"""The link from the publisher to the embedded broker: no socket, and no message dropped for going too fast.

Three things make it more than a function call.

* After a start the broker has no clients yet, but the spool may be full of what was acknowledged before.  Published at
  once, it would go to nobody.  So the link is not ready until the clients that were there before are back, or
  ``HOLD_SECONDS`` have passed.
* A subscriber that is slower than the spool would have its queue overrun, and so would one that is away for a moment.
  So the link is not ready while a subscriber's queue is more than half full and the subscriber is getting on with it;
  one that acknowledges nothing, or is away, for ``STALLED_SECONDS`` is not waited for, and neither is anyone once the
  spool is half full.
* Messages that subscribers owe an acknowledgement stay in the spool, those of absent ones for as long as they are away.
  Devices come first: in a spool that is three quarters full the oldest of them are let go.  The subscribers still find
  them in the broker's memory, but not after a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, Final, Protocol

from twisted.logger import Logger
from zope.interface import implementer

from coapgw.interfaces import IBrokerLink, IDelivery
from coapgw.model import Spooled
from coapgw.mqtt.publication import Publication

HOLD_SECONDS: Final = 10.0
STALLED_SECONDS: Final = 10.0
PATIENT_BELOW: Final = 0.5  # of the spool
RELEASE_ABOVE: Final = 0.75  # of the spool
QOS: Final = 1


class Queue(Protocol):
    """What a subscriber is owed; *last_progress* is when it last got on, or went away.

    One that went away *is_expected* back.
    """

    last_progress: float
    is_expected: bool

    def give_up(self) -> None:
        """Wait no longer for a client that is away."""


class PublishingBroker(Protocol):
    """A broker of this process: ``mqtt.broker.Broker``, or aMQTT.

    Attributes:
        on_relief: called when ``crowded`` becomes empty.
    """

    on_relief: Callable[[], None] | None

    @property
    def crowded(self) -> Collection[Queue]:
        """Return the queues of online subscribers that are far behind."""

    def has_subscribers(self, client_ids: Iterable[str]) -> bool:
        """Return whether every one of these clients has subscriptions."""

    def publish(self, publication: Publication) -> bool:
        """Hand a publication to everybody who subscribed."""


@implementer(IBrokerLink)
class EmbeddedLink:
    """Publishes the spool's messages in the broker of this process.

    Args:
        delivery: told how messages fare.
        clock: the broker's ``now``, seconds.
        fill: how full the spool is, 0 to 1.
    """

    log = Logger()

    def __init__(
        self, broker: PublishingBroker, delivery: IDelivery, clock: Callable[[], float], fill: Callable[[], float]
    ) -> None:
        """Begin ready; ``hold`` makes it wait."""
        self._broker = broker
        self._delivery = delivery
        self._clock = clock
        self._fill = fill
        self._awaited: set[str] = set()
        self._awaits_anybody = False
        self._hold_until = 0.0
        self._owed: dict[Any, None] = {}  # places the broker has, but not every subscriber: oldest first
        self._is_releasing = False
        self._accepted = delivery.accepted
        self._settled = delivery.settled
        broker.on_relief = delivery.resume

    def hold(self, clients: set[str], now: float, *, are_all: bool = True) -> None:
        """Wait for the clients with these ids to have subscriptions again, but not for long.

        Not *are_all*: there may be others whom nobody remembers, so the time is waited out.
        """
        self._awaited = set(clients)
        self._awaits_anybody = not are_all
        self._hold_until = now + HOLD_SECONDS

    def handle_timer(self) -> None:
        """Look whether waiting is over, and whether the spool needs room; called about once a second."""
        stalled = self._clock() - STALLED_SECONDS
        for session in [one for one in self._broker.crowded if one.is_expected and one.last_progress < stalled]:
            session.give_up()
        if self.ready():
            self._delivery.resume()
        if self._fill() < RELEASE_ABOVE:
            self._is_releasing = False
        elif self._owed:
            self._release()

    def ready(self) -> bool:
        """Return whether a message may be published now."""
        if (self._awaited or self._awaits_anybody) and not self._is_hold_over():
            return False
        crowded = self._broker.crowded
        if not crowded:
            return True
        stalled = self._clock() - STALLED_SECONDS
        return self._fill() >= PATIENT_BELOW or all(session.last_progress < stalled for session in crowded)

    def _is_hold_over(self) -> bool:
        is_early = self._clock() < self._hold_until
        if is_early and (self._awaits_anybody or not self._broker.has_subscribers(self._awaited)):
            return False
        self._awaited.clear()
        self._awaits_anybody = False
        return True

    def deliver(self, message: Spooled) -> None:
        """Publish a message; the broker of this process always takes it."""
        place = message.place
        self._owed[place] = None
        self._broker.publish(Publication(message.topic, message.payload, QOS, False, self._settle, place, message))
        self._accepted(place)

    def _settle(self, place: Any) -> None:
        """Nobody owes the message at *place* any more; a place that was released is settled already."""
        if self._owed.pop(place, self) is None:
            self._settled(place)

    def _release(self) -> None:
        """Let the older half of what is owed leave the spool."""
        if not self._is_releasing:
            self._is_releasing = True
            self.log.warn(
                "the spool is {percent} % full of messages that subscribers have not acknowledged; the oldest are kept "
                "in memory only, and those subscribers lose them if the gateway stops",
                percent=round(100 * self._fill()),
            )
        oldest = [place for place, _ in zip(self._owed, range(len(self._owed) // 2 + 1), strict=False)]
        for place in oldest:
            del self._owed[place]
            self._settled(place)
