"""Threads for what blocks: few of them, few calls waiting for one, and an end that nobody has to wait for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from coapgw.errors import CoapgwError

T = TypeVar("T")


class NotCalled(CoapgwError):
    """A call that was not made: too many wait already, or there will be no more of them."""

    retry_seconds = 1


class CallThreads:
    """Calls functions in threads of its own, which are there while there is something to call.

    With one thread, calls are made one after the other, in their order.

    Args:
        reactor: IReactorFromThreads: results are told in its thread.
        name: of the threads.
        threads: how many at most.
        waiting: calls beyond those that run; None for any number, if who asks has a limit of its own.
    """

    def __init__(self, reactor: Any, name: str, threads: int = 1, waiting: int | None = None) -> None:
        """Begin with nothing to call."""
        self._reactor = reactor
        self._limit = None if waiting is None else threads + waiting
        self._calls = 0
        self._pool = ThreadPool(0, threads, name)
        self._pool.start()
        self._stopped: Deferred[None] | None = None

    def call(self, function: Callable[[], T]) -> Deferred[T]:
        """Call *function* in a thread; fires with what it returns, or fails with what it raises, or with NotCalled."""
        if self._stopped is not None or (self._limit is not None and self._calls >= self._limit):
            return fail(NotCalled(f"{self._calls} calls are being worked on"))
        self._calls += 1
        ended: Deferred[T] = Deferred()
        self._pool.callInThread(self._run, function, ended)
        return ended

    def stop(self) -> Deferred[None]:
        """Fire when the calls under way have ended; those that have not begun never will, and fail with NotCalled."""
        if self._stopped is None:
            self._stopped = Deferred()
            self._end_if_idle()
        return self._stopped

    def _run(self, function: Callable[[], T], ended: Deferred[T]) -> None:
        """Make a call; in a thread."""
        try:
            if self._stopped is not None:
                raise NotCalled("the gateway is stopping")
            tell: Callable[[], object] = _telling(ended.callback, function())
        except Exception:  # noqa: BLE001 - whatever it is, it is for whoever waits
            tell = _telling(ended.errback, Failure())
        self._reactor.callFromThread(self._ended, tell)

    def _ended(self, tell: Callable[[], object]) -> None:
        """Take the result of a call; in the reactor's thread."""
        self._calls -= 1
        tell()
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        if self._stopped is not None and not self._stopped.called and not self._calls:
            self._pool.stop()  # the threads have nothing to do: they are gone at once
            self._stopped.callback(None)


def _telling(tell: Callable[[Any], object], outcome: object) -> Callable[[], object]:
    return lambda: tell(outcome)
