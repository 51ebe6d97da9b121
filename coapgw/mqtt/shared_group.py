"""A shared subscription: several clients, each message to one of them (MQTT 5 section 4.8.2)."""

from __future__ import annotations

from itertools import islice
from typing import Final

import attrs

from coapgw.mqtt.session import Session
from coapgw.mqtt.subscriptions import Options

PROBE_LIMIT: Final = 64  # members looked at for a message, if none of them has room; the next message begins further on


@attrs.define(eq=False)
class SharedGroup:
    """The members of one share name and filter, in the order in which their turn comes.

    Args:
        topic_filter: with ``$share/`` and the name.
    """

    topic_filter: bytes
    members: dict[Session, Options] = attrs.Factory(dict)

    def choose(self, but_not: Session | None = None) -> Session | None:
        """Return whose turn it is: the next that can take a message at once, or one that is here, or one that is away.

        Among those that have to queue it, the shortest queue counts.
        """
        chosen: Session | None = None
        for member in islice(self.members, PROBE_LIMIT):
            if member is but_not:
                continue
            if member.has_room:
                chosen = member
                break
            if chosen is None or self._comes_before(member, chosen):
                chosen = member
        if chosen is not None:
            self.members[chosen] = self.members.pop(chosen)  # to the end
        return chosen

    @staticmethod
    def _comes_before(one: Session, other: Session) -> bool:
        here, there = one.outbox is not None, other.outbox is not None
        return here if here != there else len(one.queue) < len(other.queue)
