"""mqtt/publisher.py: everything, in order, bounded in memory, and gone from disk only when settled."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from zope.interface import implementer
from zope.interface.verify import verifyObject

from coapgw.interfaces import IBrokerLink, IDelivery
from coapgw.model import Spooled
from coapgw.mqtt.publisher import MEMORY_LIMIT, READ_LIMIT, RETRY_SECONDS, Publisher
from tests.unit.spool_stub import SpoolStub, messages


@implementer(IBrokerLink)
class LinkStub:
    """Takes *room* messages."""

    def __init__(self, room: int = 1 << 60) -> None:
        self.room = room
        self.delivered: list[Spooled] = []
        verifyObject(IBrokerLink, self)

    def ready(self) -> bool:
        return self.room > 0

    def deliver(self, message: Spooled) -> None:
        assert self.room > 0
        self.room -= 1
        self.delivered.append(message)

    @property
    def places(self) -> list[int]:
        return [message.place for message in self.delivered]


def _publisher(spool: SpoolStub, link: LinkStub) -> tuple[Publisher, Clock, list[int]]:
    clock, accepted = Clock(), list[int]()
    publisher = Publisher(spool, clock, accepted.append)
    verifyObject(IDelivery, publisher)
    publisher.start(link)
    return publisher, clock, accepted


def test_what_is_committed_is_delivered_in_order_from_memory() -> None:
    spool, link = SpoolStub(), LinkStub()
    _publisher(spool, link)
    for _ in range(5):
        messages(spool, 3)
    assert link.places == list(range(1, 16))
    assert spool.reads == []


def test_what_was_there_before_comes_first() -> None:
    spool, link = SpoolStub(), LinkStub()
    messages(spool, 12_345)
    _publisher(spool, link)
    messages(spool, 5)
    assert link.places == list(range(1, 12_351))


def test_nothing_is_delivered_while_the_link_is_not_ready_and_everything_after() -> None:
    spool, link = SpoolStub(), LinkStub(room=2)
    publisher, _, _ = _publisher(spool, link)
    messages(spool, 5)
    assert link.places == [1, 2]
    assert publisher.backlog
    link.room = 1 << 60
    publisher.resume()
    assert link.places == [1, 2, 3, 4, 5]
    assert not publisher.backlog


def test_a_backlog_stays_on_disk_beyond_the_limit_of_memory() -> None:
    spool, link = SpoolStub(), LinkStub(room=0)
    publisher, _, _ = _publisher(spool, link)
    for _ in range(100):
        messages(spool, 1000)
    assert len(publisher._ready) <= MEMORY_LIMIT
    while len(link.delivered) < 100_000:
        link.room = 777
        publisher.resume()
        assert len(publisher._ready) <= MEMORY_LIMIT + READ_LIMIT
    assert link.places == list(range(1, 100_001))
    messages(spool, 1)
    link.room = 1
    publisher.resume()
    assert link.places[-1] == 100_001


def test_commits_during_a_read_are_neither_lost_nor_doubled() -> None:
    spool, link = SpoolStub(), LinkStub()
    messages(spool, 10)
    spool.hold_reads = []
    _publisher(spool, link)
    messages(spool, 5)  # committed after the read was made
    spool.hold_reads.pop(0)()
    while spool.hold_reads:
        spool.hold_reads.pop(0)()
    messages(spool, 5)
    assert link.places == list(range(1, 21))


def test_places_of_a_failed_commit_are_passed_over() -> None:
    spool, link = SpoolStub(), LinkStub(room=0)
    publisher, _, _ = _publisher(spool, link)
    for _ in range(30):
        messages(spool, 1000)
    spool._place += 50  # a group that failed
    messages(spool, 1)
    link.room = 1 << 60
    publisher.resume()
    assert link.places == [*range(1, 30_001), 30_051]


def test_settled_messages_are_handed_over_together() -> None:
    spool, link = SpoolStub(), LinkStub()
    publisher, clock, accepted = _publisher(spool, link)
    messages(spool, 3)
    for place in link.places:
        publisher.accepted(place)
        publisher.settled(place)
    assert accepted == [1, 2, 3]
    assert spool.settled == []
    clock.advance(0)
    assert spool.settled == [1, 2, 3]


def test_a_read_that_fails_is_tried_again() -> None:
    spool, link = SpoolStub(), LinkStub()
    messages(spool, 3)
    spool.read_fails = True
    _, clock, _ = _publisher(spool, link)
    assert link.places == []
    spool.read_fails = False
    clock.advance(RETRY_SECONDS)
    assert link.places == [1, 2, 3]


def test_a_spool_that_stays_unreadable_is_logged_once_until_it_could_be_read() -> None:
    spool, link = SpoolStub(), LinkStub()
    messages(spool, 3)
    spool.read_fails = True
    with capturedLogs() as logged:
        _, clock, _ = _publisher(spool, link)
        clock.pump([RETRY_SECONDS] * 10)
        assert len(logged) == 1
        spool.read_fails = False
        clock.advance(RETRY_SECONDS)
    assert link.places == [1, 2, 3]
    assert len(logged) == 1


def test_stopping_leaves_no_read_to_be_tried_again() -> None:
    spool, link = SpoolStub(), LinkStub()
    messages(spool, 1)
    spool.read_fails = True
    publisher, clock, _ = _publisher(spool, link)
    publisher.stop()
    assert clock.getDelayedCalls() == []


def test_after_stop_nothing_is_delivered_and_nothing_settled_is_forgotten() -> None:
    spool, link = SpoolStub(), LinkStub()
    publisher, _, _ = _publisher(spool, link)
    messages(spool, 1)
    publisher.settled(1)
    publisher.stop()
    messages(spool, 1)
    assert link.places == [1]
    assert spool.settled == [1]
