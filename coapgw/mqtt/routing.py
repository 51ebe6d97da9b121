"""The way from a publication to the sessions that subscribed: filters, shared groups, retained messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from coapgw.errors import TopicRefused
from coapgw.metrics import BrokerCounters
from coapgw.mqtt.packets import TEXT_LIMIT, encode_publish
from coapgw.mqtt.publication import Publication
from coapgw.mqtt.restored import RestoredState
from coapgw.mqtt.retained import RetainedMessages
from coapgw.mqtt.session import Owed, Session, Shared
from coapgw.mqtt.shared_group import SharedGroup
from coapgw.mqtt.subscriptions import SHARED, Manner, Options, SubscriptionTree, split_shared


def shared_filter(topic_filter: bytes) -> bytes | None:
    """Return the filter behind ``$share/name/``, None if this is no shared subscription."""
    shared = split_shared(topic_filter) if topic_filter.startswith(SHARED) else None
    return None if shared is None else shared[1]


_GROUP = Options(2, retain_as_published=True)  # of a shared subscription in the tree; its members have their own


class Routing:
    """Who has subscribed to what, and what is retained.

    Args:
        shared: what all sessions have in common: clock, journal.
        retained: the retained messages.

    Attributes:
        is_stopped: nothing is published any more.
    """

    def __init__(self, shared: Shared, retained: RetainedMessages, counters: BrokerCounters) -> None:
        """Begin without subscriptions."""
        self.retained = retained
        self.is_stopped = False
        self._shared = shared
        self._counters = counters
        self._tree: SubscriptionTree[Session | SharedGroup] = SubscriptionTree()
        self._groups: dict[bytes, SharedGroup] = {}
        self._restored = RestoredState()

    def restore(self, restored: RestoredState) -> None:
        """Have again what was retained, and remember for a while what sessions were owed in an earlier life."""
        self._restored = restored
        for message in restored.retained:
            self.retained.keep(message)

    def handle_timer(self, now: float) -> None:
        """Forget the earlier life when its time is over."""
        if self._restored.owed_by and now > self._restored.until:
            self._restored.owed_by.clear()

    # ------------------------------------------------------------------ subscriptions

    @property
    def group_count(self) -> int:
        """How many shared subscriptions there are."""
        return len(self._groups)

    @property
    def is_empty(self) -> bool:
        """Whether there are no subscriptions."""
        return not self._groups and self._tree.is_empty()

    def is_wanted(self, first_level: bytes) -> bool:
        """Return whether anybody subscribed to topics that begin with this level, by its name."""
        return self._tree.has_below(first_level)

    def add(self, session: Session, topic_filter: bytes, options: Options) -> None:
        """Remember a subscription, in place of one with the same filter."""
        shared = shared_filter(topic_filter)
        if shared is None:
            self._tree.add(topic_filter, session, options)
        else:
            self._join(session, topic_filter, shared, options)

    def _join(self, session: Session, topic_filter: bytes, wanted: bytes, options: Options) -> None:
        group = self._groups.get(topic_filter)
        if group is None:
            group = self._groups[topic_filter] = SharedGroup(topic_filter)
            self._tree.add(wanted, group, _GROUP)
        group.members[session] = options

    def remove(self, session: Session, topic_filter: bytes) -> None:
        """Forget a subscription."""
        shared = shared_filter(topic_filter)
        if shared is None:
            self._tree.remove(topic_filter, session)
            return
        group = self._groups[topic_filter]
        group.members.pop(session, None)
        if not group.members:
            del self._groups[topic_filter]
            self._tree.remove(shared, group)

    # ------------------------------------------------------------------ messages

    def publish(  # noqa: PLR0912 - one loop: calls would cost every message
        self, publication: Publication, now: float | None = None, publisher: Session | None = None
    ) -> bool:
        """Hand a publication to every session that subscribed to it; return whether there were any.

        It is settled before this returns if no session has to acknowledge it; after ``stop``, nothing happens.

        Raises:
            TopicRefused: the topic is longer than MQTT can say; otherwise a valid topic is the caller's duty.
        """
        if self.is_stopped:
            return False
        if now is not None:
            self._shared.now = now
        topic, qos = publication.topic, publication.qos
        if len(topic) > TEXT_LIMIT:
            raise TopicRefused(topic, f"over {TEXT_LIMIT} bytes")
        if publication.retain:
            self._retain(publication)
        publication.owed += 1  # ours, so that nothing is settled half way
        packet = b""
        pushed_out: list[Publication] = []
        found = self._tree.match(topic)
        if self._restored.owed_by and publication.origin is not None:
            found = self._restored.without_those_who_have(publication.origin.message_id, found)
        for session, highest_qos, special in found:
            manner, subscribed_qos = None, highest_qos
            if special is not None:
                manner = special.manner
                if isinstance(session, SharedGroup):
                    self._to_member(publication, session, pushed_out)
                    continue
                if session is publisher:
                    subscribed_qos, manner = special.own_qos, special.own_manner
                    if subscribed_qos < 0:
                        continue
            if TYPE_CHECKING:
                assert isinstance(session, Session)  # a group always is special
            if qos and subscribed_qos:
                oldest = session.deliver(publication, qos if qos < subscribed_qos else subscribed_qos, manner)
                if oldest is not None:
                    pushed_out += oldest
            elif (outbox := session.outbox) is not None:
                if outbox.writer is None:
                    packet = packet or encode_publish(topic, publication.payload)
                    session.deliver_unacknowledged(packet)
                else:
                    session.deliver_unacknowledged_5(publication, manner)
        for pushed in pushed_out:
            pushed.release()
        publication.release()
        return bool(found)

    def _to_member(
        self,
        publication: Publication,
        group: SharedGroup,
        pushed_out: list[Publication],
        but_not: Session | None = None,
    ) -> None:
        """Hand a publication to one member of a group."""
        session = group.choose(but_not)
        if session is None:
            return
        options = group.members[session]
        manner = Manner(options.retain_as_published, (options.identifier,) if options.identifier else (), group)
        if publication.qos and options.qos:
            pushed_out += session.deliver(publication, min(publication.qos, options.qos), manner) or ()
        elif session.outbox is not None and session.outbox.writer is None:
            session.deliver_unacknowledged(encode_publish(publication.topic, publication.payload))
        else:
            session.deliver_unacknowledged_5(publication, manner)

    def _retain(self, publication: Publication) -> None:
        topic = publication.topic
        if not publication.payload:
            if self.retained.remove(topic):
                self._shared.journal.retain(topic, None)
            return
        copy = self.retained.keep(publication)
        if copy is None:
            self._counters.not_retained += 1
        self._shared.journal.retain(topic, copy)

    def keep_retained(self) -> None:
        """Tell the journal once more what is retained: the store has lost it."""
        for message in self.retained:
            self._shared.journal.retain(message.topic, message)

    def deliver_retained(self, session: Session, granted: Mapping[bytes, Options]) -> None:
        """Send what is retained for subscriptions that were just *granted* (section 3.8.4)."""
        if not len(self.retained):
            return
        for message, qos, manner in self.retained.matching(granted, self._shared.now):
            if not session.deliver_retained(message, min(qos, message.qos), manner):
                return

    def hand_to_others(self, session: Session, owed: Iterable[Owed]) -> list[Publication]:
        """Give what the *session* was *owed* as a member of groups to other members (MQTT 5 section 4.8.2).

        Returns the publications that had to make room for it: release them.
        """
        pushed_out: list[Publication] = []
        for publication, qos, manner, _ in owed:
            if manner is not None and isinstance(manner.group, SharedGroup) and qos == 1:
                self._to_member(publication, manner.group, pushed_out, session)
        return pushed_out


__all__ = ["Routing", "shared_filter"]
