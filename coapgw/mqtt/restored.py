"""What an earlier life of the broker left behind on disk, as it is given back to sessions."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

import attrs

from coapgw.interfaces import StoredClaim, StoredMessage, StoredState
from coapgw.mqtt.journal import Journal
from coapgw.mqtt.publication import Publication
from coapgw.mqtt.session import Owed, Session
from coapgw.mqtt.shared_group import SharedGroup
from coapgw.mqtt.subscriptions import Manner

if TYPE_CHECKING:
    from coapgw.mqtt.subscriptions import Match


SPOOL_SECONDS: Final = 1800.0  # until all that was in the spool has been published again, by far


@attrs.define(eq=False)
class RestoredState:
    """Messages and claims by client, until their sessions exist again.

    A device's message may be in the gateway's spool as well, because another subscriber had not acknowledged it: when
    it is published again, ``owed_by`` knows who has it already; it is forgotten some time after *until*.
    """

    until: float = 0.0
    retained: list[Publication] = attrs.Factory(list)
    owed_by: dict[str, set[Session]] = attrs.Factory(dict)
    _publications: dict[int, Publication] = attrs.Factory(dict)
    _claims: dict[str, list[StoredClaim]] = attrs.Factory(dict)
    _received: dict[str, list[int]] = attrs.Factory(dict)

    @classmethod
    def read(cls, stored: StoredState, journal: Journal, now: float) -> RestoredState:
        """Sort what was loaded; number new messages and claims behind the old ones."""
        state = cls(now + SPOOL_SECONDS)
        for message in stored.messages:
            publication = state._publications[message.number] = _publication(message, journal)
            publication.number = message.number
        claims: dict[str, list[StoredClaim]] = defaultdict(list)
        for claim in sorted(stored.claims):
            claims[claim.client_id].append(claim)
            if claim.number in state._publications:
                state._publications[claim.number].kept += 1
        state._claims = dict(claims)
        for client_id, packet_id in stored.received:
            state._received.setdefault(client_id, []).append(packet_id)
        for message in stored.retained:
            copy = _publication(message, journal)
            if copy.expires is None or copy.expires > now:
                state.retained.append(copy)
            else:
                journal.retain(message.topic, None)
        journal.begin_after(
            max((message.number for message in stored.messages), default=0),
            max((claim.serial for claim in stored.claims), default=0),
        )
        return state

    def give(self, session: Session) -> None:
        """Give a session what it was owed."""
        owed: list[tuple[Owed, int | None]] = []
        completing: list[tuple[int, int]] = []
        for claim in self._claims.pop(session.client_id, ()):
            if claim.number is None:
                if claim.packet_id is not None:
                    completing.append((claim.packet_id, claim.serial))
                continue
            publication = self._publications.get(claim.number)
            if publication is None:
                continue
            manner = Manner(claim.retain, claim.identifiers) if claim.retain or claim.identifiers else None
            owed.append(((publication, claim.qos, manner, claim.serial), claim.packet_id))
            if publication.origin_id is not None:
                self.owed_by.setdefault(publication.origin_id, set()).add(session)
        session.restore(owed, completing)
        for packet_id in self._received.pop(session.client_id, ()):
            session.receive(packet_id)

    def drop_the_rest(self, journal: Journal) -> None:
        """Have forgotten what belongs to sessions that are no more."""
        for claims in self._claims.values():
            for claim in claims:
                publication = None if claim.number is None else self._publications.get(claim.number)
                if publication is None:
                    journal.completed(claim.serial)
                else:
                    journal.paid(claim.serial, publication)
        for client_id, packet_ids in self._received.items():
            for packet_id in packet_ids:
                journal.receive(client_id, packet_id, False)
        for publication in self._publications.values():
            if not publication.kept and publication.number:
                journal.drop(publication)
        self._claims = {}
        self._received = {}
        self._publications = {}
        self.retained = []

    def without_those_who_have(
        self, origin: str, found: tuple[Match[Session | SharedGroup], ...]
    ) -> tuple[Match[Session | SharedGroup], ...]:
        """Return *found* without the subscribers that are owed the message with this id already."""
        have = self.owed_by.pop(origin, None)
        if have is None:
            return found
        return tuple(
            match
            for match in found
            if not (have & match[0].members.keys() if isinstance(match[0], SharedGroup) else match[0] in have)
        )


def _publication(message: StoredMessage, journal: Journal) -> Publication:
    publication = Publication(message.topic, message.payload, message.qos, message.retain)
    publication.expires = None if message.expires is None else message.expires - journal.epoch
    publication.stored_block = message.properties
    publication.stored_origin = message.origin
    return publication
