"""Threads for what blocks, few of them, and with few calls waiting for one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from coapgw.http.refusals import TooBusy

THREADS: Final = 4
WAITING: Final = 96  # calls that wait for a thread; beyond are those of clients that went away before their answer

T = TypeVar("T")


class BoundedThreads:
    """Calls functions in threads of its own.

    Args:
        reactor: IReactorFromThreads, IReactorThreads.
        threads: made when they are needed.
        waiting: calls beyond those that run.
    """

    def __init__(self, reactor: Any, threads: int = THREADS, waiting: int = WAITING) -> None:
        """No thread is there before ``start``."""
        self._reactor = reactor
        self._limit = threads + waiting
        self._calls = 0
        self._pool = ThreadPool(0, threads, "coapgw http")

    def start(self) -> None:
        """Begin to take calls."""
        self._pool.start()

    def call(self, function: Callable[[], T]) -> Deferred[T]:
        """Call *function* in a thread; the Deferred fires here.  Fails with TooBusy."""
        if self._calls >= self._limit:
            return fail(TooBusy(f"{self._calls} requests are being worked on"))
        self._calls += 1
        called: Deferred[T] = deferToThreadPool(self._reactor, self._pool, function)
        return called.addBoth(self._called)

    def stop(self) -> Deferred[None]:
        """Take no calls any more; fires when those that were taken have ended."""
        self._limit = 0
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), self._pool.stop)

    def _called(self, result: Any) -> Any:
        self._calls -= 1
        return result
