"""The spool: messages on their way to MQTT, on disk before their devices are told so.

One writer thread owns the file.  What the reactor's turn brought is handed to it at the end of the turn, and it takes
all that waits at once: a group commit whose size follows the load.  The results come back with one call a commit.
"""

from __future__ import annotations

import enum
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from coapgw.errors import SpoolDamaged, SpoolFailing, SpoolFull, StorageError
from coapgw.interfaces import Answer, ISpool
from coapgw.metrics import Histogram, SpoolCounters
from coapgw.model import Introduction, Outgoing, Spooled
from coapgw.storage.dead_letters import DeadLetter, Request, Wish
from coapgw.storage.spool_file import OVERHEAD_BYTES, SpoolFile, open_or_replace, runs

GROUP_LIMIT: Final = 2_000  # messages in one transaction: some 10 ms
WAITING_MESSAGES: Final = 100_000  # appended, but not on disk yet; beyond either the disk is too slow for what comes
WAITING_BYTES: Final = 64 << 20
GATHER_SECONDS: Final = 0.001  # from one group to the next: a commit costs the same CPU whatever is in it
SETTLE_SECONDS: Final = 0.1  # how long deletions wait for a commit to travel with
CALM_SECONDS: Final = 5.0  # without a failure, then the log says that it works again
RETRY_SECONDS: Final = 1.0  # until deletions that failed are tried again, if no commit takes them along before
_made: Final = tuple.__new__  # what a NamedTuple's own __new__ calls, at half the price

T = TypeVar("T")

Followers: TypeAlias = "list[Callable[[Sequence[Spooled]], None]]"


@attrs.define
class Group:
    """What one turn of the reactor wants of the writer."""

    messages: list[Spooled] = attrs.field(factory=list)
    stored: list[Answer | None] = attrs.field(factory=list)
    introduced: list[tuple[str, int]] = attrs.field(factory=list)
    settled: list[int] = attrs.field(factory=list)
    set_aside: list[DeadLetter] = attrs.field(factory=list)
    buried: list[int] = attrs.field(factory=list)
    size: int = 0


@attrs.define
class Read:
    """A read that the writer is asked for."""

    after: int
    limit: int
    result: Deferred[list[Spooled]]


class Look(enum.Enum):
    """A job without particulars: see what an operator wants done with dead letters."""

    REQUESTS = "requests"


class Nothing(enum.Enum):
    """That no job waits, as opposed to None, which ends the writer."""

    WAITS = "waits"


Job: TypeAlias = Group | Read | Look
"""What the writer is asked to do."""


class Reactor(Protocol):
    """What is used of a reactor."""

    def callLater(self, delay: float, callable: Callable[..., object], *args: object) -> IDelayedCall:  # noqa: A002
        """As IReactorTime."""

    def seconds(self) -> float:
        """As IReactorTime."""

    def callFromThread(self, callable: Callable[..., object], *args: object) -> None:  # noqa: A002
        """As IReactorFromThreads."""


@implementer(ISpool)
class Spool:
    """The spool of one gateway.

    Args:
        file: opened; the spool closes it.
        max_bytes: of messages not settled yet, ``spool.max_bytes``.
        start_writer: given the writer's work, has it done in a thread; tests do it themselves.
        clock: seconds since the epoch.
    """

    log = Logger()

    def __init__(
        self,
        file: SpoolFile,
        reactor: Any,
        max_bytes: int,
        *,
        counters: SpoolCounters | None = None,
        start_writer: Callable[[Callable[[], None]], Callable[[], None]] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Start the writer."""
        self._reactor: Reactor = reactor
        self._max_bytes = max_bytes
        self.counters = counters or SpoolCounters()
        self.commit_times = Histogram()
        self.storing_times = Histogram()
        self._place = file.first_place - 1
        self._introduced = file.introduced()
        self._bytes = file.held_bytes
        self._file = file
        self._clock = clock
        self._looking = False
        self._waiting_bytes = 0
        self._waiting_messages = 0
        self._refused_size = OVERHEAD_BYTES  # no message is smaller
        self._group = Group()
        self._handing_over = False
        self._gather_until = 0.0
        self._settle_call: IDelayedCall | None = None
        self._followers: Followers = []
        self._closed: Deferred[None] | None = None
        self._last_error: str | None = None
        self._readable = True
        self._told: set[str] = set()  # errors logged since it last worked for a while
        self._calm_call: IDelayedCall | None = None
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._writer = Writer(file, self._jobs, reactor.callFromThread, self)
        self._join = (start_writer or _in_thread)(self._writer.run)

    # ------------------------------------------------------------------ in

    def append(
        self,
        message: Outgoing,
        stored: Answer | None,
        introduction: Introduction | None = None,
        event: Outgoing | None = None,
    ) -> int:
        """Take a message to be committed with the next group; see ISpool."""
        size = len(message.topic) + len(message.payload) + OVERHEAD_BYTES
        if introduction is not None:
            size += len(introduction.lifecycle.topic) + len(introduction.lifecycle.payload) + OVERHEAD_BYTES
        if event is not None:
            size += len(event.topic) + len(event.payload) + OVERHEAD_BYTES
        waiting = self._waiting_bytes + size
        if self._bytes + waiting > self._max_bytes:
            self._refused_size = min(size, self._max_bytes)  # what never fits does not keep it full
            raise SpoolFull(f"the spool holds {self._bytes + waiting - size} bytes of {self._max_bytes}")
        if waiting > WAITING_BYTES or self._waiting_messages >= WAITING_MESSAGES:
            raise SpoolFull("more is waiting to be written than memory may hold")
        if self._closed is not None:
            raise SpoolFailing("the spool is closed")
        self._waiting_bytes = waiting
        group = self._group
        place = self._place
        if introduction is not None:
            place += 1
            group.messages.append(Spooled(place, *introduction.lifecycle))
            group.stored.append(None)
            group.introduced.append((introduction.iccid, introduction.born))
            self._introduced.add((introduction.iccid, introduction.born))
        place += 1
        self._waiting_messages += 1 + (introduction is not None) + (event is not None)
        group.messages.append(_made(Spooled, (place, *message)))
        group.stored.append(stored)
        self._place = place
        if event is not None:
            self._place += 1
            group.messages.append(Spooled(self._place, *event))
            group.stored.append(None)
        group.size += size
        if not self._handing_over:
            self._handing_over = True
            self._reactor.callLater(max(0.0, self._gather_until - self._reactor.seconds()), self._hand_over)
        return place

    def is_introduced(self, iccid: str, born: int) -> bool:
        """Return whether this life of the device has had its introduction."""
        return (iccid, born) in self._introduced

    def settle(self, places: Iterable[int]) -> None:
        """Delete messages with the next commit, or soon."""
        settled = self._group.settled
        before = len(settled)
        settled.extend(places)
        self.counters.settled += len(settled) - before
        self._settle_in(SETTLE_SECONDS)

    def set_aside(self, message: Spooled, reason: str) -> None:
        """Keep a message as a dead letter, with the next commit or soon."""
        self._group.settled.append(message.place)
        self._group.set_aside.append(DeadLetter(*message, reason, int(self._clock() * 1000)))
        self._settle_in(SETTLE_SECONDS)

    def _settle_in(self, seconds: float) -> None:
        """Hand over what is to be deleted in so many seconds, unless that happens anyway."""
        if not self._handing_over and self._settle_call is None and self._closed is None:
            self._settle_call = self._reactor.callLater(seconds, self._settle_now)

    def _settle_now(self) -> None:
        self._settle_call = None
        self._hand_over()

    def _hand_over(self) -> None:
        """Give the writer what this turn brought."""
        self._handing_over = False
        group = self._group
        if group.messages or group.settled or group.buried:
            self._gather_until = self._reactor.seconds() + GATHER_SECONDS
            self._group = Group()
            self._jobs.put(group)

    # ------------------------------------------------------------------ out

    def follow(self, take: Callable[[Sequence[Spooled]], None]) -> None:
        """Hand every committed group to *take* from now on."""
        self._followers.append(take)

    def read(self, after: int, limit: int) -> Deferred[list[Spooled]]:
        """Read committed messages from behind the place *after*."""
        if self._closed is not None:
            return fail(SpoolFailing("the spool is closed"))
        result: Deferred[list[Spooled]] = Deferred()
        self._jobs.put(Read(after, limit, result))
        return result

    def last_place(self) -> int:
        """Return the highest place ever given."""
        return self._place

    def committed(self, groups: Sequence[Group], size: int, failure: StorageError | None) -> None:
        """Take the result of a commit and the *size* of what is on disk now; in the reactor's thread."""
        self._bytes = size
        for group in groups:
            self._waiting_bytes -= group.size
            self._waiting_messages -= len(group.messages)
            if failure is not None:
                self._introduced.difference_update(group.introduced)
                self._group.settled.extend(group.settled)
                self._group.set_aside.extend(group.set_aside)
        if failure is not None and self._group.settled:
            self._settle_in(RETRY_SECONDS)  # a full spool takes nothing in, so no message may ever come to do it
        self.counters.failed_commits += failure is not None
        self._note_health(failure)
        for group in groups:
            if not group.messages:
                continue
            if failure is None:
                for take in self._followers:
                    with self.log.failuresHandled("a follower of the spool failed"):  # devices get their answers
                        take(group.messages)
            for stored in group.stored:
                if stored is not None:
                    stored(failure)
            if failure is None:
                self._note_times(group)

    def _note_times(self, group: Group) -> None:
        """Count how long devices have waited; messages of a group came within a few milliseconds."""
        now = int(self._clock() * 1000)
        answered = zip(group.messages, group.stored, strict=True)
        waited = Counter([message.received for message, stored in answered if stored is not None])
        for received, times in waited.items():
            self.storing_times.observe(max(0, now - received) / 1000, times)

    def look_at_requests(self) -> None:
        """Do what an operator wants done with dead letters; called about once a second."""
        if not self._looking and self._closed is None:
            self._looking = True
            self._jobs.put(Look.REQUESTS)

    def requested(self, requests: Sequence[Request]) -> None:
        """Take what the writer found; in the reactor's thread.  What fails is asked for again at the next look."""
        self._looking = False
        if not requests or self._closed is not None:
            return
        group = self._group
        for letter, wish in requests:
            group.buried.append(letter.place)
            if wish is Wish.REQUEUE:
                self._place += 1
                group.messages.append(letter.message._replace(place=self._place))
                group.stored.append(None)
                self._waiting_messages += 1
        self._hand_over()  # before the next look
        self.look_at_requests()

    def was_read(self, result: Deferred[list[Spooled]], messages: list[Spooled] | StorageError) -> None:
        """Take the result of a read; in the reactor's thread."""
        was_readable, self._readable = self._readable, not isinstance(messages, StorageError)
        if isinstance(messages, StorageError):
            self.counters.failed_reads += 1
            self._tell(messages, "subscribers wait")
            result.errback(messages)
        else:
            if not was_readable:
                self._expect_calm()
            result.callback(messages)

    def was_replaced(self, aside: Path) -> None:
        """Take note that the file was damaged and is another one now; in the reactor's thread."""
        self.counters.replaced += 1
        self.log.error(
            "the spool {path} was damaged: it is {aside} now, and an empty one takes its place; what waited in it is "
            "not published unless somebody recovers it (docs/reliability.md)",
            path=self._file.path,
            aside=aside,
        )

    # ------------------------------------------------------------------ health and end

    def is_healthy(self) -> bool:
        """Whether the last commit went well."""
        return self._last_error is None

    def is_readable(self) -> bool:
        """Whether the last read went well; if not, devices are served, and their messages wait on disk."""
        return self._readable

    def is_full(self) -> bool:
        """Whether the message that was refused last, or any message if none was, would be refused now."""
        waiting = self._waiting_bytes + self._refused_size
        too_much_waits = waiting > WAITING_BYTES or self._waiting_messages >= WAITING_MESSAGES
        return too_much_waits or self._bytes + waiting > self._max_bytes

    @property
    def messages(self) -> int:
        """How many messages are on disk and not settled, as far as the writer has come."""
        return self._file.messages

    @property
    def bytes(self) -> int:
        """Bytes of what is on disk, dead letters included."""
        return self._bytes

    @property
    def fill(self) -> float:
        """How full it is, 0 to 1: messages not settled, on disk and waiting to be."""
        return (self._bytes + self._waiting_bytes) / self._max_bytes

    def _note_health(self, failure: StorageError | None) -> None:
        """Log each way it fails once, and once that it works again: a disk that is nearly full does both in turn."""
        if failure is None:
            if self._last_error is not None:
                self._last_error = None
                self._expect_calm()
            return
        self._last_error = str(failure)
        self._tell(failure, "devices get 5.03")

    def _tell(self, failure: StorageError, consequence: str) -> None:
        """Log a failure, once; a mistake of our own with its traceback."""
        self._cancel_calm()
        error = str(failure)
        if error in self._told:
            return
        self._told.add(error)
        message = "{error}; {consequence} until it works again"
        if failure.__cause__ is None:
            self.log.error(message, error=error, consequence=consequence)
        else:
            self.log.failure(message, Failure(failure.__cause__), error=error, consequence=consequence)

    def _expect_calm(self) -> None:
        if self._closed is None and self._calm_call is None:
            self._calm_call = self._reactor.callLater(CALM_SECONDS, self._calm)

    def _calm(self) -> None:
        self._calm_call = None
        self._told.clear()
        self.log.info("the spool works again")

    def _cancel_calm(self) -> None:
        if self._calm_call is not None:
            self._calm_call.cancel()
            self._calm_call = None

    def flush(self) -> Deferred[list[Spooled]]:
        """Bring what was appended to disk; fires when that is done, and answered."""
        self._hand_over()
        return self.read(self._place, 1)

    def close(self) -> Deferred[None]:
        """Finish what was appended; fires when all of it is on disk, answered, and the file is closed."""
        if self._closed is None:
            self._closed = Deferred()
            if self._settle_call is not None:
                self._settle_call.cancel()
                self._settle_call = None
            self._cancel_calm()
            self._hand_over()
            self._jobs.put(None)
        return self._closed

    def finished(self) -> None:
        """Take note that the writer has ended; in the reactor's thread."""
        self._join()
        if self._closed is not None and not self._closed.called:
            self._closed.callback(None)


class Writer:
    """What the writer thread does: take all that waits, commit it, report; read when asked; tidy up when idle.

    Args:
        report: ``callFromThread``: has something called in the reactor's thread, in the order of the calls.
        spool: told the results.
    """

    def __init__(
        self, file: SpoolFile, jobs: SimpleQueue[Job | None], report: Callable[..., None], spool: Spool
    ) -> None:
        """Begin with ``run``."""
        self._file = file
        self._jobs = jobs
        self._report = report
        self._spool = spool

    def run(self) -> None:
        """Work until told to end, by None."""
        job = self._next()
        while job is not None:
            if not isinstance(job, Group):
                self._read(job) if isinstance(job, Read) else self._look()
                job = self._next()
                continue
            groups, size = [job], len(job.messages)
            following = self._waiting()
            while isinstance(following, Group) and size < GROUP_LIMIT:
                groups.append(following)
                size += len(following.messages)
                following = self._waiting()
            self._commit(groups)
            job = self._next() if following is Nothing.WAITS else following
        try:
            self._file.close(self._spool.last_place())
        finally:
            self._report(self._spool.finished)

    def _waiting(self) -> Job | Nothing | None:
        """Return the next job if one waits."""
        try:
            return self._jobs.get_nowait()
        except Empty:
            return Nothing.WAITS

    def _next(self) -> Job | None:
        """Return the next job; while there is none, tidy up."""
        while True:
            job = self._waiting()
            if not isinstance(job, Nothing):
                return job
            if self._attempt(self._file.tidy) is not True:  # if it failed, the next commit will say so
                return self._jobs.get()

    def _commit(self, groups: list[Group]) -> None:
        begun = time.perf_counter()
        done = self._attempt(lambda: self._commit_all(groups))
        counters = self._spool.counters
        counters.commits += 1
        self._spool.commit_times.observe(time.perf_counter() - begun)
        failure = done if isinstance(done, StorageError) else None
        if isinstance(done, int):
            counters.committed += done
        self._report(self._spool.committed, groups, self._file.held_bytes, failure)

    def _commit_all(self, groups: list[Group]) -> int:
        """Commit *groups* in one transaction; return how many messages that are.  Raises StorageError."""
        messages = groups[0].messages if len(groups) == 1 else [m for group in groups for m in group.messages]
        introduced = [pair for group in groups for pair in group.introduced]
        settled = runs(place for group in groups for place in group.settled)
        set_aside = [letter for group in groups for letter in group.set_aside]
        buried = [place for group in groups for place in group.buried]
        self._file.commit(messages, introduced, settled, set_aside, buried)
        return len(messages)

    def _look(self) -> None:
        found = self._attempt(self._file.requests)
        # If it failed, the next commit will say so.
        self._report(self._spool.requested, [] if isinstance(found, StorageError) else found)

    def _read(self, job: Read) -> None:
        self._report(self._spool.was_read, job.result, self._attempt(lambda: self._file.read(job.after, job.limit)))

    def _attempt(self, act: Callable[[], T]) -> T | StorageError:
        """Do something with the file; return what comes of it, or why it failed.

        A mistake of our own is a failure like that of a disk: a writer that ended would leave devices without answers.
        """
        try:
            return act()
        except SpoolDamaged as damaged:
            return self._attempt_anew(act, damaged)
        except StorageError as refused:
            return refused
        except Exception as mistake:  # noqa: BLE001 - whatever it is, devices are to be told
            failure = SpoolFailing(f"the spool failed by a mistake of its own ({type(mistake).__name__})")
            failure.__cause__ = mistake
            return failure

    def _attempt_anew(self, act: Callable[[], T], damaged: SpoolDamaged) -> T | StorageError:
        """Have another file in the place of the damaged one, and try once more."""
        try:
            self._report(self._spool.was_replaced, self._file.replace(self._spool.last_place()))
            return act()
        except StorageError:
            return damaged


def open_spool(path: Path, reactor: Any, max_bytes: int, counters: SpoolCounters | None = None) -> Spool:
    """Open the spool at *path* and start its writer.  Raises StorageError."""
    file, aside = open_or_replace(path, time.time_ns() // 1_000_000)
    spool = Spool(file, reactor, max_bytes, counters=counters)
    if aside is not None:
        spool.was_replaced(aside)
    return spool


def _in_thread(run: Callable[[], None]) -> Callable[[], None]:
    """Run the writer in a thread of its own; return what waits for its end."""
    thread = threading.Thread(target=run, name="coapgw spool", daemon=True)
    thread.start()
    return thread.join
