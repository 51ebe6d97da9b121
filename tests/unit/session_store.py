"""A session store in memory, which commits when a test says so."""

from __future__ import annotations

from collections.abc import Callable

from zope.interface import implementer

from coapgw.interfaces import (
    ISessionStore,
    SessionChanges,
    StoredClaim,
    StoredMessage,
    StoredSession,
    StoredState,
    Written,
)


@implementer(ISessionStore)
class RememberedSessions:
    """What is committed is in the dicts; with *is_slow*, ``commit`` is the test's to call.

    The next group has the *outcome*.
    """

    def __init__(self, *, is_slow: bool = False) -> None:
        self.is_slow = is_slow
        self.sessions: dict[str, StoredSession] = {}
        self.messages: dict[int, StoredMessage] = {}
        self.claims: dict[int, StoredClaim] = {}
        self.received: set[tuple[str, int]] = set()
        self.retained: dict[bytes, StoredMessage] = {}
        self.waiting: list[tuple[SessionChanges, Callable[[Written], None]]] = []
        self.groups = 0
        self.outcome = Written.YES
        self.has_refused = False

    def load(self) -> StoredState:
        return StoredState(
            list(self.sessions.values()),
            list(self.messages.values()),
            list(self.claims.values()),
            list(self.received),
            list(self.retained.values()),
        )

    def add(self, *sessions: StoredSession) -> None:
        self.sessions.update((one.client_id, one) for one in sessions)

    def write(self, changes: SessionChanges, done: Callable[[Written], None]) -> None:
        self.waiting.append((changes, done))
        if not self.is_slow:
            self.commit()

    def commit(self) -> None:
        waiting, self.waiting = self.waiting, []
        for changes, done in waiting:
            self.groups += 1
            outcome, self.outcome = self.outcome, Written.YES
            if outcome is Written.LOST:
                self._lose()
            elif outcome is Written.YES:
                self._apply(changes)
            else:
                self.has_refused = True
            done(outcome)

    def _lose(self) -> None:
        for table in (self.sessions, self.messages, self.claims, self.received, self.retained):
            table.clear()

    def _apply(self, changes: SessionChanges) -> None:
        for client_id in changes.ended:
            self.sessions.pop(client_id, None)
            self.claims = {serial: one for serial, one in self.claims.items() if one.client_id != client_id}
            self.received = {one for one in self.received if one[0] != client_id}
        self.sessions.update(changes.sessions)
        assert not self.messages.keys() & changes.messages.keys()
        assert not self.claims.keys() & changes.claims.keys()
        self.messages.update(changes.messages)
        self.claims.update(changes.claims)
        for serial, packet_id in changes.sent.items():
            if serial in self.claims or not self.has_refused:
                self.claims[serial] = self.claims[serial]._replace(packet_id=packet_id)
        for serial in changes.half_done:
            if serial in self.claims or not self.has_refused:
                self.claims[serial] = self.claims[serial]._replace(number=None)
        for serial in changes.paid:
            self.claims.pop(serial, None)
        for number in changes.dropped:
            if number in self.messages or not self.has_refused:
                del self.messages[number]
        for one, is_unreleased in changes.received.items():
            self.received.add(one) if is_unreleased else self.received.discard(one)
        for topic, message in changes.retained.items():
            if message is None:
                self.retained.pop(topic, None)
            else:
                self.retained[topic] = message
