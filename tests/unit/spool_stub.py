"""A spool that commits when it is told to, for tests of what is around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer
from zope.interface.verify import verifyObject

from coapgw.errors import SpoolFailing, StorageError
from coapgw.interfaces import Answer, ISpool
from coapgw.model import Introduction, Outgoing, Spooled


@implementer(ISpool)
class SpoolStub:
    """Keeps everything in lists."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Spooled, Answer | None]] = []
        self.rows: list[Spooled] = []
        self.settled: list[int] = []
        self.dead: list[tuple[Spooled, str]] = []
        self.introduced: set[tuple[str, int]] = set()
        self.refuse: StorageError | None = None
        self.read_fails = False
        self.reads: list[tuple[int, int]] = []
        self.hold_reads: list[Callable[[], None]] | None = None
        self._followers: list[Callable[[Sequence[Spooled]], None]] = []
        self._place = 0
        verifyObject(ISpool, self)

    def append(
        self,
        message: Outgoing,
        stored: Answer | None,
        introduction: Introduction | None = None,
        event: Outgoing | None = None,
    ) -> int:
        if self.refuse is not None:
            raise self.refuse
        if introduction is not None:
            self.introduced.add((introduction.iccid, introduction.born))
            self._place += 1
            self.waiting.append((Spooled(self._place, *introduction.lifecycle), None))
        self._place += 1
        place = self._place
        self.waiting.append((Spooled(place, *message), stored))
        if event is not None:
            self._place += 1
            self.waiting.append((Spooled(self._place, *event), None))
        return place

    def commit(self, failure: StorageError | None = None) -> None:
        """Have what waits committed, or fail."""
        waiting, self.waiting = self.waiting, []
        if not waiting:
            return
        if failure is None:
            messages = [message for message, _ in waiting]
            self.rows += messages
            for take in self._followers:
                take(messages)
        for _, stored in waiting:
            if stored is not None:
                stored(failure)

    def is_introduced(self, iccid: str, born: int) -> bool:
        return (iccid, born) in self.introduced

    def follow(self, take: Callable[[Sequence[Spooled]], None]) -> None:
        self._followers.append(take)

    def read(self, after: int, limit: int) -> Deferred[list[Spooled]]:
        self.reads.append((after, limit))
        if self.read_fails:
            return fail(SpoolFailing("the disk is away"))
        rows = [row for row in self.rows if row.place > after][:limit]
        if self.hold_reads is None:
            return succeed(rows)
        result: Deferred[list[Spooled]] = Deferred()
        self.hold_reads.append(lambda: result.callback(rows))
        return result

    def settle(self, places: Iterable[int]) -> None:
        self.settled += places
        gone = set(self.settled)
        self.rows = [row for row in self.rows if row.place not in gone]

    def set_aside(self, message: Spooled, reason: str) -> None:
        self.dead.append((message, reason))
        self.settle([message.place])

    def last_place(self) -> int:
        return self._place


def messages(spool: SpoolStub, count: int, iccid: str = "8988280666000000017") -> None:
    """Commit *count* messages in one group."""
    for number in range(count):
        spool.append(Outgoing(1, iccid, f"id-{number}", b"topic", b"%d" % number), None)
    spool.commit()
