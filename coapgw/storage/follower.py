"""How what is in memory follows the registry's database, whoever writes there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from coapgw.errors import StorageError

STALE_SECONDS: Final = 30.0  # a look that takes this long is not coming back soon
POLL_SECONDS: Final = 0.25  # a change shall be seen within a second, also on a machine that is busy

News = TypeVar("News")

CallInThread: TypeAlias = Callable[[Callable[[], News | None]], "Deferred[News | None]"]
"""Calls a function that blocks somewhere else; the Deferred fires here."""


class Image(Protocol[News]):
    """A part of the registry in memory."""

    def read(self) -> News | None:
        """Return what ``apply`` has not seen yet; blocks, called from another thread.  Raises StorageError."""

    def apply(self, changes: News, /) -> None:
        """Take in what ``read`` returned; in the reactor's thread."""


class RegistryFollower(Service, Generic[News]):
    """Looks into the registry now and then, with one look at a time, and has an image take in what is new.

    A registry that fails is logged once and looked at again; the image stays as it was.
    """

    _log = Logger()

    def __init__(
        self,
        image: Image[News],
        what: str,
        reactor: Any,
        call_in_thread: CallInThread[News] | None = None,
        interval: float = POLL_SECONDS,
    ) -> None:
        """Keep *image* up to date.

        Args:
            what: is in it, in the plural.
            reactor: gives the time, and threads unless *call_in_thread* does.
            call_in_thread: where reading happens, which may block.
            interval: seconds between looks at the registry.
        """
        self._image = image
        self._what = what
        self._call_in_thread = call_in_thread or _pool_of(reactor)
        self._interval = interval
        self._loop = LoopingCall(self._look)
        self._loop.clock = reactor
        self._looking: Deferred[None] | None = None
        self._wanted: list[Deferred[None]] = []
        self._failing = False
        self._clock = reactor
        self._looked_at = reactor.seconds()

    def is_healthy(self) -> bool:
        """Whether the last look at the registry went well, and was not too long ago."""
        return not self._failing and self._clock.seconds() - self._looked_at < STALE_SECONDS

    def startService(self) -> None:
        """Begin to look."""
        super().startService()
        self._loop.start(self._interval, now=True)

    def stopService(self) -> Deferred[None]:
        """Look no more; fires when a look that is under way has ended."""
        super().stopService()
        if self._loop.running:
            self._loop.stop()
        if self._looking is None:
            return succeed(None)
        ended: Deferred[None] = Deferred()
        self._looking.addBoth(lambda _: ended.callback(None))
        return ended

    def look_now(self) -> Deferred[None]:
        """Take in what is in the registry by now; fires when that is done, or cannot be.  Never fails."""
        if not self.running:
            return succeed(None)
        ended: Deferred[None] = Deferred()
        self._wanted.append(ended)
        if self._looking is None:
            self._look_for_who_waits()
        return ended

    def _look(self) -> Deferred[None]:
        """Read, elsewhere, and apply, here; never fails.  The loop waits for it before it looks again."""
        if self._looking is not None:
            return succeed(None)  # somebody wanted it at once
        looking = self._call_in_thread(self._image.read).addCallback(self._seen).addErrback(self._failed)
        self._looking = looking
        return looking.addBoth(self._looked)

    def _seen(self, changes: News | None) -> None:
        if self._failing:
            self._failing = False
            self._log.info("{what} are read from the registry again", what=self._what)
        if changes is not None and self.running:
            self._image.apply(changes)

    def _failed(self, failure: Failure) -> None:
        if self._failing:
            return
        self._failing = True
        if failure.check(StorageError):
            self._log.error("{what} stay as they were: {reason}", what=self._what, reason=failure.getErrorMessage())
        else:
            self._log.failure("{what} stay as they were", failure, what=self._what)

    def _looked(self, _: object) -> None:
        self._looking = None
        self._looked_at = self._clock.seconds()
        if self._wanted:
            self._look_for_who_waits()  # the look that ended may have read before they came

    def _look_for_who_waits(self) -> None:
        wanted, self._wanted = self._wanted, []
        looked = self._look() if self.running else succeed(None)
        looked.addCallback(lambda _: _fire(wanted))


def _fire(waiting: list[Deferred[None]]) -> None:
    for one in waiting:
        one.callback(None)


def _pool_of(reactor: Any) -> CallInThread[News]:
    """Return a CallInThread that uses the threads of *reactor*, which has none before it runs."""

    def call_in_thread(read: Callable[[], News | None]) -> Deferred[News | None]:
        return deferToThreadPool(reactor, reactor.getThreadPool(), read)

    return call_in_thread
