"""Jobs that set keys: what is kept of them, for how long, and how they end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

import pytest
from twisted.logger import LogEvent, capturedLogs
from zope.interface import implementer
from zope.interface.verify import verifyObject

from coapgw.errors import DeviceNotFound, KeyNotFound, KeyRefused, StorageError
from coapgw.http.jobs import KEPT_FAILURES, KEPT_JOBS, KEPT_MS, KEYS_AT_A_TIME, JobStatus, KeyJobs
from coapgw.http.refusals import JobNotFound
from coapgw.interfaces import IDeviceKeys
from coapgw.model import DeviceKey, KeyFormat, WrittenKey
from tests.unit.registries import START_MS, iccid


@implementer(IDeviceKeys)
class MemoryKeys:
    """Keys in memory, for every device; written "refused" they are refused, and after *works* keys the disk is gone."""

    def __init__(self, works: int = 1_000_000) -> None:
        self.secrets: dict[str, bytes] = {}
        self.works = works
        self.mistake: Exception | None = None
        self.on_set_all: Callable[[], None] = lambda: None

    def get(self, iccid: str) -> DeviceKey:
        if iccid not in self.secrets:
            raise KeyNotFound(iccid)
        return DeviceKey(iccid, self.secrets[iccid], KeyFormat.STRING, True, 1, START_MS, START_MS)

    def set(self, iccid: str, written: str, key_format: KeyFormat) -> DeviceKey:
        if written == "refused":
            raise KeyRefused("not this one")
        self.secrets[iccid] = written.encode()
        return self.get(iccid)

    def set_all(self, wanted: Iterable[WrittenKey]) -> Sequence[DeviceKey | DeviceNotFound | KeyRefused]:
        self.on_set_all()
        if self.mistake is not None:
            raise self.mistake
        outcomes: list[DeviceKey | DeviceNotFound | KeyRefused] = []
        for key in wanted:
            if len(self.secrets) >= self.works:
                raise StorageError("the disk is gone")
            try:
                outcomes.append(self.set(key.iccid, key.written, key.format))
            except KeyRefused as refused:
                outcomes.append(refused)
        return outcomes

    def rotate(self, iccid: str) -> DeviceKey:
        return self.set(iccid, "another", KeyFormat.STRING)

    def bootstrap(self, iccid: str, rotate_after_seconds: int) -> DeviceKey:
        return self.get(iccid)


class Jobs:
    """The jobs, and the time."""

    def __init__(self, keys: MemoryKeys) -> None:
        self.keys, self.now, self.serial = keys, START_MS, 0
        self.jobs = KeyJobs(keys, lambda: self.now, self.random)

    def random(self, size: int) -> bytes:
        self.serial += 1
        return self.serial.to_bytes(size, "big")


@pytest.fixture
def made() -> Jobs:
    return Jobs(MemoryKeys())


def wanted(count: int, written: str = "12345678") -> list[WrittenKey]:
    return [WrittenKey(iccid(number), written) for number in range(count)]


def test_fake_is_what_it_stands_for() -> None:
    assert verifyObject(IDeviceKeys, MemoryKeys())


def test_job_goes_from_scheduled_to_succeeded(made: Jobs) -> None:
    state = made.jobs.submit(wanted(3))
    assert (state.status, state.total, state.created_at) == (JobStatus.SCHEDULED, 3, START_MS)
    made.now += 5
    made.jobs.run_once()
    done = made.jobs.state(state.id)
    assert (done.status, done.succeeded, done.failures) == (JobStatus.SUCCEEDED, 3, ())
    assert (done.created_at, done.updated_at) == (START_MS, START_MS + 5)
    assert len(made.keys.secrets) == 3


def test_progress_can_be_seen(made: Jobs) -> None:
    seen: list[tuple[JobStatus, int]] = []

    def look() -> None:
        (state,) = made.jobs.states()
        seen.append((state.status, state.succeeded))

    made.keys.on_set_all = look
    made.jobs.submit(wanted(2 * KEYS_AT_A_TIME + 1))
    made.jobs.run_once()
    assert seen == [(JobStatus.IN_PROGRESS, n * KEYS_AT_A_TIME) for n in (0, 1, 2)]


def test_disk_that_fails_ends_the_job_and_the_next_one_is_tried(made: Jobs) -> None:
    made.keys.works = KEYS_AT_A_TIME
    first = made.jobs.submit(wanted(KEYS_AT_A_TIME + 10))
    made.jobs.run_once()
    state = made.jobs.state(first.id)
    assert (state.status, state.succeeded, len(state.failures)) == (JobStatus.FAILED, KEYS_AT_A_TIME, 10)
    assert {failure.message for failure in state.failures} == {"the disk is gone"}
    made.keys.works = 1_000_000
    second = made.jobs.submit(wanted(1))
    made.jobs.run_once()
    assert made.jobs.state(second.id).status is JobStatus.SUCCEEDED


@pytest.fixture
def logged() -> Iterator[Sequence[LogEvent]]:
    with capturedLogs() as events:
        yield events


def test_mistake_of_ours_ends_the_job_and_not_the_thread(made: Jobs, logged: Sequence[LogEvent]) -> None:
    made.keys.mistake = RuntimeError("ours")
    state = made.jobs.submit(wanted(5))
    made.jobs.run_once()
    assert made.jobs.state(state.id).status is JobStatus.FAILED
    assert len(logged) == 1


def test_finished_jobs_are_kept_for_a_week(made: Jobs) -> None:
    state = made.jobs.submit(wanted(1))
    made.jobs.run_once()
    made.now += KEPT_MS - 1
    waiting = made.jobs.submit(wanted(1))
    assert [job.id for job in made.jobs.states()] == [waiting.id, state.id]
    made.now += KEPT_MS
    with pytest.raises(JobNotFound):
        made.jobs.state(state.id)
    assert made.jobs.state(waiting.id) == waiting, "what is not finished is kept"


def test_so_many_jobs_are_kept_and_no_more(made: Jobs) -> None:
    for _ in range(KEPT_JOBS + 20):
        made.jobs.submit(wanted(1))
        made.jobs.run_once()
    assert len(made.jobs.states()) < KEPT_JOBS + 1
    assert made.jobs.states()[0].id == made.serial.to_bytes(12, "big").hex()


def test_so_many_failures_are_kept_and_no_more(made: Jobs) -> None:
    keys = wanted(5000)
    made.keys.works = 0
    for _ in range(KEPT_FAILURES // 5000 + 2):
        made.jobs.submit(keys)
        made.jobs.run_once()
    kept = made.jobs.states()
    assert KEPT_FAILURES - 5000 <= sum(len(job.failures) for job in kept) <= KEPT_FAILURES
    assert len(kept[0].failures) == 5000


def test_keys_are_not_kept_when_they_are_set_and_never_shown(made: Jobs) -> None:
    state = made.jobs.submit([WrittenKey(iccid(1), "12345678"), WrittenKey(iccid(2), "refused")])
    assert "12345678" not in repr(made.jobs._jobs)
    made.jobs.run_once()
    assert made.jobs._jobs[state.id].keys == ()


def test_thread_works_until_it_is_stopped(made: Jobs) -> None:
    thread = threading.Thread(target=made.jobs.run)
    thread.start()
    state = made.jobs.submit(wanted(1))
    while made.jobs.state(state.id).status is not JobStatus.SUCCEEDED:
        pass
    made.jobs.stop()
    thread.join(5)
    assert not thread.is_alive()


def test_job_that_is_stopped_is_left_where_it_is(made: Jobs) -> None:
    state = made.jobs.submit(wanted(1))
    made.jobs.stop()
    made.jobs.run()
    assert made.jobs.state(state.id).status is JobStatus.SCHEDULED
    assert made.keys.secrets == {}
