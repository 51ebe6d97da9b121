"""Which clients have subscriptions, kept over a restart; and after one, who is not back yet.

A session store holds persistent sessions, and clean ones while they live: if the process is killed, the clients of both
kinds are expected again, and what they may have missed can wait for them.
"""

from __future__ import annotations

from typing import Final

import attrs

from coapgw.interfaces import StoredSession
from coapgw.mqtt.journal import Journal
from coapgw.mqtt.session import Session

ASSIGNED_ID: Final = "auto-"  # begins the client ids that the broker makes up (MQTT 3.1.1 section 3.1.3.1)
ABSENT_SECONDS: Final = 60.0  # a clean session that ended with the process is remembered so long


@attrs.define(eq=False)
class RememberedClients:
    """Writes to the session store, if there is one, once a turn; remembers who is absent."""

    _journal: Journal
    _unsaved: dict[Session, None] = attrs.Factory(dict)
    _stored: set[str] = attrs.Factory(set)  # client ids that the store knows
    _absent: set[str] = attrs.Factory(set)
    _absent_until: float = 0.0
    _nameless: dict[tuple[str | None, frozenset[bytes]], list[str]] = attrs.Factory(dict)  # absent, with assigned ids
    _returned: set[str] = attrs.Factory(set)  # assigned ids whose clients are back under another one

    def __attrs_post_init__(self) -> None:
        """Add to what the journal hands over."""
        self._journal.gather = self._gather

    # ------------------------------------------------------------------ what is stored

    def save(self, session: Session) -> None:
        """Have a session stored at the end of the turn, once however often it changes in between."""
        if self._journal.store is not None:
            self._unsaved[session] = None
            self._journal.wake()

    def end(self, session: Session) -> None:
        """Forget a session that ended."""
        self._unsaved.pop(session, None)
        self.forget(session.client_id)

    def forget(self, client_id: str) -> None:
        """Forget a client, and do not expect it."""
        self._absent.discard(client_id)
        if client_id in self._stored:
            self._stored.discard(client_id)
            self._journal.forget(client_id)

    def _gather(self) -> None:
        """Give the journal what has changed."""
        if self._unsaved:
            unsaved, self._unsaved = self._unsaved, {}
            for session in unsaved:
                self._hand_over(session)

    def _hand_over(self, session: Session) -> None:
        subscriptions = tuple(
            (one.decode(), options.byte, options.identifier) for one, options in session.subscriptions.items()
        )
        if not subscriptions and not session.persistent:
            self.forget(session.client_id)
            return
        is_new = session.client_id not in self._stored
        self._stored.add(session.client_id)
        ends = self._journal.wall(session.ends)
        record = StoredSession(session.client_id, session.user, session.expiry, subscriptions, ends)
        self._journal.save(record, is_new=is_new)

    # ------------------------------------------------------------------ who is absent

    def found(self, record: StoredSession, now: float) -> None:
        """Take note of a record of an earlier life; the client of a clean session is expected for a while."""
        self._stored.add(record.client_id)
        if record.expiry or not record.subscriptions:
            return
        self._absent_until = now + ABSENT_SECONDS
        self._absent.add(record.client_id)
        if record.client_id.startswith(ASSIGNED_ID):
            filters = frozenset(text.encode() for text, _, _ in record.subscriptions)
            self._nameless.setdefault((record.user, filters), []).append(record.client_id)

    def connected(self, client_id: str) -> None:
        """The client with this id is back, or new."""
        self._absent.discard(client_id)

    def subscribed(self, session: Session) -> None:
        """See whether this is a client without an id of its own that is back under another: same user, same filters."""
        if not self._nameless or not session.client_id.startswith(ASSIGNED_ID):
            return
        alike = self._nameless.get((session.user, frozenset(session.subscriptions)))
        if alike:
            former = alike.pop()
            self._returned.add(former)
            self.forget(former)

    def has_returned(self, client_id: str) -> bool:
        """Return whether the client that had this assigned id is back under another."""
        return client_id in self._returned

    def next_timer(self) -> float | None:
        """Return when waiting for the absent ends."""
        return self._absent_until if self._absent else None

    def handle_timer(self, now: float) -> None:
        """Forget the absent when their time is over."""
        if self._absent and now >= self._absent_until:
            for client_id in list(self._absent):
                self.forget(client_id)
            self._nameless.clear()
            self._returned.clear()
