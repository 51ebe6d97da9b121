"""A thread for calls that block: their order, their results, and its end."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from coapgw.storage.call_thread import CallThread


class Reactor:
    """Keeps what threads hand to its own, until a test takes it."""

    def __init__(self) -> None:
        self._handed: queue.Queue[tuple[Callable[..., object], tuple[Any, ...]]] = queue.Queue()

    def callFromThread(self, function: Callable[..., object], *arguments: Any) -> None:
        self._handed.put((function, arguments))

    def turn(self) -> None:
        function, arguments = self._handed.get(timeout=10)
        function(*arguments)

    def is_idle(self) -> bool:
        return self._handed.empty()


def test_calls_are_made_one_after_the_other_and_told_in_the_reactors_thread() -> None:
    reactor = Reactor()
    told: list[tuple[int, threading.Thread]] = []
    thread = CallThread(reactor, "test")

    def call(number: int) -> tuple[int, threading.Thread]:
        return number, threading.current_thread()

    for number in range(5):
        thread.call(partial(call, number)).addCallback(told.append)
    for _ in range(5):
        reactor.turn()
    thread.stop()
    assert [number for number, _ in told] == list(range(5))
    assert {where for _, where in told}.isdisjoint({threading.current_thread()})


def test_what_a_call_raises_is_for_whoever_waits() -> None:
    reactor, told = Reactor(), []
    thread = CallThread(reactor, "test")
    thread.call(lambda: 1 // 0).addErrback(lambda failure: told.append(failure.type))
    reactor.turn()
    thread.stop()
    assert told == [ZeroDivisionError]


def test_stopping_waits_for_the_call_under_way_and_drops_the_others() -> None:
    reactor, called = Reactor(), []
    thread = CallThread(reactor, "test")
    begun, released = threading.Event(), threading.Event()

    def first() -> None:
        begun.set()
        released.wait(10)
        called.append("first")

    thread.call(first)
    thread.call(lambda: called.append("second"))
    assert begun.wait(10)
    stopped = thread.stop()
    ended: list[object] = []
    stopped.addCallback(ended.append)
    assert ended == []  # and nobody has waited for it here
    released.set()
    reactor.turn()
    reactor.turn()
    assert ended == [None]
    assert called == ["first"]
    assert reactor.is_idle()


def test_thread_that_was_never_used_stops() -> None:
    assert CallThread(Reactor(), "test").stop().called
