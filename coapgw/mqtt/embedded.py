"""The link from the publisher to the embedded broker: no socket, and no message dropped for going too fast.

Two things make it more than a function call.

* After a start the broker has no clients yet, but the spool may be full of what was acknowledged before.  Published at
  once, it would go to nobody.  So the link is not ready until the clients that were there before are back, or
  ``HOLD_SECONDS`` have passed.
* A subscriber that is slower than the spool would have its queue overrun.  So the link is not ready while an online
  subscriber's queue is more than half full and the subscriber is getting on with it; one that acknowledges nothing for
  ``STALLED_SECONDS`` is not waited for, and neither is anyone once the spool is half full.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from zope.interface import implementer

from coapgw.interfaces import IBrokerLink, IDelivery
from coapgw.model import Spooled
from coapgw.mqtt.broker import Broker
from coapgw.mqtt.session import Publication

HOLD_SECONDS: Final = 10.0
STALLED_SECONDS: Final = 10.0
QOS: Final = 1


@implementer(IBrokerLink)
class EmbeddedLink:
    """Publishes the spool's messages in the broker of this process.

    Args:
        delivery: told how messages fare.
        clock: the broker's ``now``, seconds.
        patience: whether there is room left to wait for slow subscribers.
    """

    def __init__(
        self, broker: Broker, delivery: IDelivery, clock: Callable[[], float], patience: Callable[[], bool]
    ) -> None:
        """Begin ready; ``hold`` makes it wait."""
        self._broker = broker
        self._delivery = delivery
        self._clock = clock
        self._patience = patience
        self._awaited: set[str] = set()
        self._hold_until = 0.0
        self._accepted = delivery.accepted
        self._settled: Callable[[Any], None] = delivery.settled  # a Publication's place is whatever its publisher says
        broker.on_relief = delivery.resume

    def hold(self, clients: set[str], now: float) -> None:
        """Wait for the clients with these ids to have subscriptions again, but not for long."""
        self._awaited = set(clients)
        self._hold_until = now + HOLD_SECONDS

    def handle_timer(self) -> None:
        """Look whether waiting is over; called about once a second."""
        if self.ready():
            self._delivery.resume()

    def ready(self) -> bool:
        """Return whether a message may be published now."""
        if self._awaited and not self._is_hold_over():
            return False
        crowded = self._broker.crowded
        if not crowded:
            return True
        stalled = self._clock() - STALLED_SECONDS
        return not self._patience() or all(session.last_progress < stalled for session in crowded)

    def _is_hold_over(self) -> bool:
        if self._clock() < self._hold_until and not self._broker.has_subscribers(self._awaited):
            return False
        self._awaited.clear()
        return True

    def deliver(self, message: Spooled) -> None:
        """Publish a message; the broker of this process always takes it."""
        place = message.place
        self._broker.publish(Publication(message.topic, message.payload, QOS, settled=self._settled, place=place))
        self._accepted(place)
