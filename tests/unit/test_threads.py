"""Threads for what blocks: order, results, a limit, and an end that blocks nobody."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import pytest

from coapgw.threads import CallThreads, NotCalled
from tests.unit.test_spool import ThreadClock


@pytest.fixture
def reactor() -> ThreadClock:
    return ThreadClock()


def after(event: threading.Event, number: int) -> int:
    event.wait(10)
    return number


def finish(threads: CallThreads, reactor: ThreadClock) -> None:
    stopped = threads.stop()
    reactor.until(lambda: stopped.called)


def test_one_thread_makes_calls_in_their_order_and_they_are_told_in_the_reactors_thread(reactor: ThreadClock) -> None:
    told: list[tuple[int, threading.Thread]] = []
    threads = CallThreads(reactor, "test")

    def call(number: int) -> tuple[int, threading.Thread]:
        return number, threading.current_thread()

    for number in range(5):
        threads.call(partial(call, number)).addCallback(told.append)
    assert told == []
    reactor.until(lambda: len(told) == 5)
    assert [number for number, _ in told] == list(range(5))
    assert {where for _, where in told}.isdisjoint({threading.current_thread()})
    finish(threads, reactor)


def test_what_a_call_raises_is_for_whoever_waits(reactor: ThreadClock) -> None:
    threads, told = CallThreads(reactor, "test"), []
    threads.call(lambda: 1 // 0).addErrback(lambda failure: told.append(failure.type))
    reactor.until(lambda: told)
    assert told == [ZeroDivisionError]
    finish(threads, reactor)


def test_calls_beyond_the_limit_are_refused_and_room_comes_back(reactor: ThreadClock) -> None:
    threads = CallThreads(reactor, "test", threads=2, waiting=3)
    go_on = threading.Event()
    results: list[object] = []
    refused: list[object] = []
    for number in range(7):
        called: Any = threads.call(partial(after, go_on, number))
        called.addCallbacks(results.append, lambda failure: refused.append(failure.type))
    assert refused == [NotCalled, NotCalled]
    assert results == []
    go_on.set()
    reactor.until(lambda: len(results) == 5)
    assert sorted(results) == [0, 1, 2, 3, 4]  # type: ignore[type-var]  # they are numbers
    last: Any = threads.call(lambda: "there is room")
    last.addCallback(results.append)
    reactor.until(lambda: results[-1] == "there is room")
    finish(threads, reactor)


def test_stopping_blocks_nobody_waits_for_the_call_under_way_and_fails_the_others(reactor: ThreadClock) -> None:
    threads = CallThreads(reactor, "test")
    begun, go_on = threading.Event(), threading.Event()
    results: list[object] = []

    def first() -> str:
        begun.set()
        go_on.wait(10)
        return "first"

    threads.call(first).addCallback(results.append)
    threads.call(lambda: results.append("called")).addErrback(lambda failure: results.append(failure.type))
    assert begun.wait(10)
    stopped = threads.stop()  # the event is not set: this would wait for it for ever
    assert not stopped.called
    threads.call(lambda: results.append("called")).addErrback(lambda failure: results.append(failure.type))
    assert results == [NotCalled]
    go_on.set()
    reactor.until(lambda: stopped.called)
    assert results == [NotCalled, "first", NotCalled]
    assert threads.stop().called


def test_threads_that_have_nothing_to_do_stop_at_once_whether_a_reactor_runs_or_not(reactor: ThreadClock) -> None:
    assert CallThreads(reactor, "test").stop().called
    used = CallThreads(reactor, "test")
    done: list[object] = []
    used.call(lambda: 1).addCallback(done.append)
    reactor.until(lambda: done)
    assert used.stop().called
