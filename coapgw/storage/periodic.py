"""What the message path notes in memory and a thread writes down a minute later."""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from coapgw.errors import StorageError

WRITE_SECONDS: Final = 60.0  # a gateway that is killed forgets what was noted in this time

T = TypeVar("T", bound=Sized)

CallInThread: TypeAlias = "Callable[[Callable[[], None]], Deferred[None]]"
"""Calls a function that blocks somewhere else; the Deferred fires here."""


class Noted(Protocol[T]):
    """Notes that are to be written down."""

    def take(self) -> T:
        """Return what was noted since the last ``take``; in the reactor's thread, and ``write`` comes next."""

    def put_back(self) -> None:
        """Note again what ``take`` returned, because it could not be written; in the reactor's thread."""

    def write(self, taken: T) -> None:
        """Write down what ``take`` returned; blocks, any thread may call.  Raises StorageError."""


class PeriodicWriter(Service):
    """Writes down once a minute, and at the end, what was noted; a registry that fails is logged once.

    Args:
        what: is written, as the subject of a sentence: "when devices were last heard is", "counts are".
        reactor: gives the time, and threads unless *call_in_thread* does.
        call_in_thread: where writing happens, which may block.
    """

    _log = Logger()

    def __init__(self, noted: Noted[Any], what: str, reactor: Any, call_in_thread: CallInThread | None = None) -> None:
        """Begin with ``startService``."""
        self._noted = noted
        self._what = what
        self._reactor = reactor
        self._call_in_thread = call_in_thread or self._call_in_pool
        self._loop = LoopingCall(self._write)
        self._loop.clock = reactor
        self._writing: Deferred[None] | None = None
        self._failing = False

    def startService(self) -> None:
        """Begin to write."""
        super().startService()
        self._loop.start(WRITE_SECONDS, now=False)

    def stopService(self) -> Deferred[None]:
        """Write down the rest; fires when that is done."""
        super().stopService()
        if self._loop.running:
            self._loop.stop()
        if self._writing is None:
            return self._write()
        rest: Deferred[None] = Deferred()
        self._writing.addBoth(lambda _: self._write().chainDeferred(rest))
        return rest

    def _write(self) -> Deferred[None]:
        """Write, elsewhere, what was noted; never fails.  The loop waits for it before it writes again."""
        taken = self._noted.take()
        if not taken:
            return succeed(None)
        writing = self._call_in_thread(lambda: self._noted.write(taken))
        self._writing = writing
        writing.addCallbacks(self._written, self._failed)
        return writing

    def _written(self, _: object) -> None:
        self._writing = None
        if self._failing:
            self._failing = False
            self._log.info("{what} written again", what=self._what)

    def _failed(self, failure: Failure) -> None:
        self._writing = None
        self._noted.put_back()
        if self._failing:
            return
        self._failing = True
        if failure.check(StorageError):
            self._log.error("{what} not written: {why}", what=self._what, why=failure.getErrorMessage())
        else:
            self._log.failure("{what} not written", failure, what=self._what)

    def _call_in_pool(self, write: Callable[[], None]) -> Deferred[None]:
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), write)
