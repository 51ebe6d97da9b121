"""A thread for calls that block: one after the other, beside those that the reactor's own threads do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

_Result = TypeVar("_Result")


class CallThread:
    """One thread, which is there while there is something to call.

    It takes any number of calls: who asks has a limit of its own.

    Args:
        reactor: in whose thread results are told.
        name: of the thread.
    """

    def __init__(self, reactor: Any, name: str) -> None:
        """Begin with nothing to call."""
        self._reactor = reactor
        self._pool = ThreadPool(0, 1, name)
        self._pool.start()
        self._stopped = False

    def call(self, function: Callable[[], _Result]) -> Deferred[_Result]:
        """Call *function* after those before it; fires with what it returns, or fails with what it raises."""
        ended: Deferred[_Result] = Deferred()
        self._pool.callInThread(self._run, function, ended)
        return ended

    def _run(self, function: Callable[[], _Result], ended: Deferred[_Result]) -> None:
        if self._stopped:
            return
        try:
            result: _Result | Failure = function()
        except Exception:  # noqa: BLE001 - whatever it is, it is for whoever waits
            result = Failure()
        self._reactor.callFromThread(ended.callback, result)

    def stop(self) -> Deferred[None]:
        """Fires when the call under way has ended, at once if none is; those that have not begun never will."""
        self._stopped = True
        if not self._pool.working:
            self._pool.stop()
            return succeed(None)
        ended: Deferred[None] = Deferred()
        threading.Thread(target=self._end, args=(ended,), name="end of calls").start()
        return ended

    def _end(self, ended: Deferred[None]) -> None:
        self._pool.stop()  # blocks, as long as a database may
        self._reactor.callFromThread(ended.callback, None)
