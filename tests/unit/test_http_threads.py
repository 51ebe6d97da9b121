"""Threads for what blocks: few, and with few calls waiting."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.python.threadpool import ThreadPool

from coapgw.http.refusals import TooBusy
from coapgw.http.threads import BoundedThreads
from tests.unit.test_spool import ThreadClock


class Reactor(ThreadClock):
    """A clock, calls from threads, and a pool."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = ThreadPool(0, 1)
        self.pool.start()

    def getThreadPool(self) -> ThreadPool:
        return self.pool


@pytest.fixture
def reactor() -> Any:
    made = Reactor()
    yield made
    made.pool.stop()


def after(event: threading.Event, number: int) -> int:
    event.wait(10)
    return number


def test_calls_beyond_the_limit_are_refused_and_room_comes_back(reactor: Reactor) -> None:
    threads = BoundedThreads(reactor, threads=2, waiting=3)
    threads.start()
    go_on = threading.Event()
    results: list[object] = []
    refused: list[object] = []
    for number in range(7):
        called: Any = threads.call(partial(after, go_on, number))
        called.addCallbacks(results.append, lambda failure: refused.append(failure.type))
    assert refused == [TooBusy, TooBusy]
    assert results == []
    go_on.set()
    reactor.until(lambda: len(results) == 5)
    assert sorted(results) == [0, 1, 2, 3, 4]  # type: ignore[type-var]  # they are numbers
    last: Any = threads.call(lambda: "there is room")
    last.addCallback(results.append)
    reactor.until(lambda: results[-1] == "there is room")
    stopped: Any = threads.stop()
    reactor.until(lambda: stopped.called)


def test_nothing_is_taken_after_the_end_and_what_was_taken_is_done(reactor: Reactor) -> None:
    threads = BoundedThreads(reactor, threads=1)
    threads.start()
    done: list[object] = []
    for number in range(3):
        called: Any = threads.call(partial(int, number))
        called.addCallback(done.append)
    stopped: Any = threads.stop()
    late: list[object] = []
    refused: Any = threads.call(lambda: 1)
    refused.addErrback(lambda failure: late.append(failure.type))
    assert late == [TooBusy]
    reactor.until(lambda: stopped.called and len(done) == 3)
    assert isinstance(reactor, Clock)


def test_what_a_call_raises_is_told(reactor: Reactor) -> None:
    threads = BoundedThreads(reactor)
    threads.start()
    told: list[object] = []
    called: Any = threads.call(lambda: 1 // 0)
    called.addErrback(lambda failure: told.append(failure.type))
    reactor.until(lambda: told)
    assert told == [ZeroDivisionError]
    stopped: Any = threads.stop()
    reactor.until(lambda: stopped.called)
