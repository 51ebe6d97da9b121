"""What the broker's sessions must not forget, on its way to the disk in groups.

Changes of many turns go into one transaction: while one is being written, the next gathers.  What a peer may only be
told when it is on disk is *held*: an acknowledgement of a message that an absent client is owed, for one.  A claim
that is paid before its turn comes is never written at all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Final

import attrs

from coapgw.interfaces import ISessionStore, SessionChanges, StoredClaim, StoredMessage, StoredSession, Written
from coapgw.mqtt.outbox import Outbox
from coapgw.mqtt.publication import Publication
from coapgw.mqtt.subscriptions import Manner

FULL_BYTES: Final = 32 << 20  # of messages that wait for the disk; beyond it clients are refused, and devices' stay put
ROW_BYTES: Final = 200  # counted for a message beside its payload


@attrs.define(eq=False)
class _Group:
    """Changes, and what is to happen when they are on disk.

    Args:
        safe: publications to release, by the serial of the claim that stands for them then.
        held: answers to send.
        begun: clients whose sessions the store did not know before.
        size: bytes, about.
    """

    changes: SessionChanges = attrs.Factory(SessionChanges)
    safe: dict[int, Publication] = attrs.Factory(dict)
    held: dict[Outbox, list[bytes]] = attrs.Factory(dict)
    begun: set[str] = attrs.Factory(set)
    size: int = 0

    def __bool__(self) -> bool:
        return bool(self.held) or bool(self.safe) or bool(self.changes)


@attrs.define(eq=False)
class Journal:
    """The way to the session store; without a store nothing is kept.

    Args:
        epoch: seconds since the epoch when the broker's clock was 0.
        generation: number of the group that gathers now.
        is_full: so much waits for the disk that no more should come.
        on_work: called when there is something to hand over after there was nothing; returns whether it will be.
        gather: called before a group is handed over, to add to it.
        on_refused: told whose answers are never to be sent, because the store does not take what they wait for.
        on_lost: called when the store has nothing any more; adds everything that is to be there.
    """

    store: ISessionStore | None = None
    epoch: float = 0.0
    on_work: Callable[[], bool] | None = None
    is_full: bool = False
    generation: int = 1
    gather: Callable[[], None] | None = None
    on_refused: Callable[[Collection[Outbox]], None] | None = None
    on_lost: Callable[[], None] | None = None
    _is_awake: bool = False
    _group: _Group = attrs.Factory(_Group)
    _writing: _Group | None = None
    _refused: dict[int, Publication] = attrs.Factory(dict)  # by serial, claims that the store may not have taken
    _begun_anew: int = 0  # the generation that holds everything from before it once more
    _last_number: int = 0
    _last_serial: int = 0

    def wake(self) -> None:
        """See that ``hand_over`` is called."""
        if not self._is_awake and self.on_work is not None:
            self._is_awake = self.on_work()

    def begin_after(self, number: int, serial: int) -> None:
        """Number messages and claims from behind these."""
        self._last_number, self._last_serial = number, serial

    def wall(self, now: float | None) -> float | None:
        """Return the broker's clock as seconds since the epoch."""
        return None if now is None else now + self.epoch

    # ------------------------------------------------------------------ messages and claims

    def owe(self, client_id: str, publication: Publication, qos: int, manner: Manner | None) -> int:
        """Keep a claim, and the message it is for; return its serial, or 0 if there is no store."""
        if self.store is None:
            publication.owed += 1
            return 0
        self.wake()
        changes = self._group.changes
        if not publication.number:
            self._last_number += 1
            number = publication.number = self._last_number
            changes.messages[number] = self._stored(publication, number)
            self._grow(len(publication.payload) + ROW_BYTES)
        self._last_serial += 1
        serial = self._last_serial
        identifiers = () if manner is None else manner.identifiers
        changes.claims[serial] = StoredClaim(
            serial, client_id, publication.number, qos, publication.retains(manner), identifiers
        )
        publication.kept += 1
        if publication.settled is not None:
            publication.owed += 1
            self._group.safe[serial] = publication
        return serial

    def paid(self, serial: int, publication: Publication) -> None:
        """Forget a claim, and the message with the last one."""
        self.wake()
        changes = self._group.changes
        if changes.claims.pop(serial, None) is None:
            changes.paid[serial] = None
        changes.sent.pop(serial, None)
        self._received(serial, publication)

    def half_done(self, serial: int, publication: Publication) -> None:
        """A QoS 2 message was received; what is left of its claim is the packet identifier."""
        self.wake()
        claim = self._group.changes.claims.get(serial)
        if claim is not None:
            self._group.changes.claims[serial] = claim._replace(number=None)
        else:
            self._group.changes.half_done[serial] = None
        self._received(serial, publication)

    def completed(self, serial: int) -> None:
        """The packet identifier of a QoS 2 message is free."""
        self.wake()
        changes = self._group.changes
        changes.half_done.pop(serial, None)
        changes.sent.pop(serial, None)
        if changes.claims.pop(serial, None) is None:
            changes.paid[serial] = None

    def sent(self, serial: int, packet_id: int) -> None:
        """A QoS 2 message has a packet identifier."""
        self.wake()
        claim = self._group.changes.claims.get(serial)
        if claim is not None:
            self._group.changes.claims[serial] = claim._replace(packet_id=packet_id)
        else:
            self._group.changes.sent[serial] = packet_id

    def _grow(self, size: int) -> None:
        self._group.size += size
        self.is_full = self._group.size > FULL_BYTES

    def _received(self, serial: int, publication: Publication) -> None:
        if self._refused:
            refused = self._refused.pop(serial, None)
            if refused is not None:
                self._group.safe[serial] = refused  # not at once: whoever is told may publish
        publication.kept -= 1
        if not publication.kept:
            self.drop(publication)

    def drop(self, publication: Publication) -> None:
        """Forget a message that nobody is owed."""
        self.wake()
        number, publication.number = publication.number, 0
        changes = self._group.changes
        if changes.messages.pop(number, None) is None:
            changes.dropped.append(number)

    def _stored(self, publication: Publication, number: int) -> StoredMessage:
        return StoredMessage(
            number,
            publication.topic,
            publication.payload,
            publication.qos,
            publication.retain or publication.retained,
            publication.block(),
            self.wall(publication.expires),
            publication.origin_id,
        )

    # ------------------------------------------------------------------ sessions

    def save(self, session: StoredSession, *, is_new: bool = False) -> None:
        """Remember a session; *is_new* says that the store knows none of this client."""
        if self.store is not None:
            self.wake()
            group = self._group
            group.changes.sessions[session.client_id] = session
            if is_new:
                group.begun.add(session.client_id)

    def forget(self, client_id: str) -> None:
        """Forget a session; its claims were paid before.  One that began in this group was never anywhere."""
        if self.store is not None:
            group = self._group
            group.changes.sessions.pop(client_id, None)
            if client_id in group.begun:
                group.begun.discard(client_id)
            else:
                group.changes.ended[client_id] = None
            self.wake()

    def receive(self, client_id: str, packet_id: int, is_unreleased: bool) -> None:
        """A QoS 2 message of a client has come, or was released."""
        if self.store is not None:
            self._group.changes.received[client_id, packet_id] = is_unreleased
            self._grow(ROW_BYTES)
            self.wake()

    def forget_received(self, client_id: str, packet_ids: Iterable[int]) -> None:
        """Take back what was not written yet of a session that ends."""
        for packet_id in packet_ids:
            self._group.changes.received.pop((client_id, packet_id), None)

    def retain(self, topic: bytes, publication: Publication | None) -> None:
        """Remember the retained message of a topic, or that it has none."""
        if self.store is None:
            return
        self.wake()
        size = ROW_BYTES + len(topic)
        if publication is None:
            self._group.changes.retained[topic] = None
        else:
            self._group.changes.retained[topic] = self._stored(publication, 0)
            size += len(publication.payload)
        self._grow(size)

    # ------------------------------------------------------------------ all of it once more, for a store that lost it

    def keep_claim(self, claim: StoredClaim, publication: Publication | None) -> None:
        """Keep an open claim, and its message."""
        changes = self._group.changes
        changes.claims[claim.serial] = claim
        if publication is not None and publication.number not in changes.messages:
            changes.messages[publication.number] = self._stored(publication, publication.number)

    # ------------------------------------------------------------------ groups

    def is_written(self, generation: int) -> bool:
        """Return whether the changes that gathered in this *generation* are on disk."""
        return max(generation, self._begun_anew) < self.generation - (self._writing is not None)

    def hold(self, outbox: Outbox, data: bytes) -> None:
        """Send *data* when all that was changed so far is on disk; at once without a store."""
        if self.store is None:
            outbox.append(data)
            return
        self.wake()
        held = self._group.held.get(outbox)
        if held is None:
            held = self._group.held[outbox] = []
        held.append(data)
        outbox.held += 1

    def hand_over(self) -> None:
        """Give the store what has gathered, unless it is still writing; called at the end of a turn."""
        self._is_awake = False
        if self.gather is not None:
            self.gather()
        if self._writing is not None or not self._group or self.store is None:
            return
        group, self._group = self._group, _Group()
        self.is_full = False
        self.generation += 1
        self._writing = group
        if group.changes:
            self.store.write(group.changes, self._written)
        else:
            self._written(Written.YES)

    def _written(self, written: Written) -> None:
        group, self._writing = self._writing, None
        if group is None:
            return
        if written is Written.LOST:
            self._begin_anew(group)
        else:
            if written is Written.REFUSED:
                self._keep_back(group)
            for outbox, held in group.held.items():
                outbox.held -= len(held)
                if not outbox.closed:
                    outbox.append(b"".join(held))
            for publication in group.safe.values():
                publication.release()
        self.hand_over()

    def _keep_back(self, group: _Group) -> None:
        """Promise nothing of a group that is not all on disk: no answers; devices' messages stay in the spool."""
        changes = self._group.changes
        for serial, claim in group.changes.claims.items():
            is_open = claim.number is not None and serial not in changes.paid and serial not in changes.half_done
            if is_open and serial in group.safe:
                self._refused[serial] = group.safe.pop(serial)
        if group.held and self.on_refused is not None:
            self.on_refused(group.held.keys())

    def _begin_anew(self, group: _Group) -> None:
        """Have everything written that there is now, in place of what changed."""
        self._begun_anew = self.generation
        gathered, self._group = self._group, _Group(safe=group.safe)
        self._group.safe.update(gathered.safe)
        self.is_full = False
        for held in (group.held, gathered.held):
            for outbox, packets in held.items():
                self._group.held.setdefault(outbox, []).extend(packets)
        if self.on_lost is not None:
            self.on_lost()

    def stop(self) -> None:
        """Write what there is, and then nothing more: what is held is never sent."""
        if self.gather is not None:
            self.gather()
        group, self._group = self._group, _Group()
        if self.store is not None and group.changes:
            self.store.write(group.changes, _nothing)
        self._writing = None
        self.store = None


def _nothing(_: Written) -> None:
    """Be told in vain."""
