"""Many keys at once: taken at once, set one after the other in a thread of their own.

Jobs live in memory: what a restart interrupts is set as far as it came, and posting the job again does no harm.
"""

from __future__ import annotations

import enum
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import attrs
from twisted.logger import Logger

from coapgw.errors import StorageError
from coapgw.http.refusals import JobNotFound, TooBusy
from coapgw.interfaces import IDeviceKeys
from coapgw.model import DeviceKey, WrittenKey

WAITING_KEYS: Final = 50_000  # ten full jobs; some 20 MB
KEPT_JOBS: Final = 1_000
KEPT_FAILURES: Final = 100_000  # of all jobs together; some 20 MB
KEPT_MS: Final = 7 * 24 * 3600 * 1000
RETRY_SECONDS: Final = 10  # 5000 keys take about that long
ID_BYTES: Final = 12
KEYS_AT_A_TIME: Final = 500  # in one transaction: everybody else who writes waits for it


class JobStatus(enum.Enum):
    """How far a job is; FAILED if any key of it could not be set."""

    SCHEDULED = "SCHEDULED"
    IN_PROGRESS = "IN_PROGRESS"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


class KeyFailure(NamedTuple):
    """A key that was not set."""

    iccid: str
    message: str


@attrs.frozen
class JobState:
    """A job at one moment; times in milliseconds since the epoch."""

    id: str
    status: JobStatus
    created_at: int
    updated_at: int
    total: int
    succeeded: int = 0
    failures: Sequence[KeyFailure] = ()


@attrs.define
class _Job:
    state: JobState
    keys: Sequence[WrittenKey]


class KeyJobs:
    """The jobs of one gateway; any thread may call, ``run`` is for the one thread that does the work.

    Args:
        keys: where they are set.
        now_ms: milliseconds since the epoch.
        random: gives random bytes, for ids.
    """

    _log = Logger()

    def __init__(self, keys: IDeviceKeys, now_ms: Callable[[], int], random: Callable[[int], bytes]) -> None:
        """Begin without jobs."""
        self._keys = keys
        self._now_ms = now_ms
        self._random = random
        self._changed = threading.Condition(threading.RLock())
        self._jobs: dict[str, _Job] = {}  # in the order they came
        self._waiting: deque[_Job] = deque()
        self._waiting_keys = 0
        self._stopping = False

    def submit(self, keys: Sequence[WrittenKey]) -> JobState:
        """Take a job; return it as it begins.  Raises TooBusy."""
        with self._changed:
            if self._waiting_keys + len(keys) > WAITING_KEYS:
                raise TooBusy(f"{self._waiting_keys} keys wait to be set", RETRY_SECONDS)
            now = self._now_ms()
            self._forget(now)
            state = JobState(self._random(ID_BYTES).hex(), JobStatus.SCHEDULED, now, now, len(keys))
            job = self._jobs[state.id] = _Job(state, keys)
            self._waiting.append(job)
            self._waiting_keys += len(keys)
            self._changed.notify()
            return state

    def states(self) -> Sequence[JobState]:
        """Return every job that is known, the newest first."""
        with self._changed:
            self._forget(self._now_ms())
            return [job.state for job in reversed(self._jobs.values())]

    def state(self, job_id: str) -> JobState:
        """Return one job.  Raises JobNotFound."""
        with self._changed:
            self._forget(self._now_ms())
            if job_id not in self._jobs:
                raise JobNotFound
            return self._jobs[job_id].state

    def run(self) -> None:
        """Work until told to stop."""
        while (job := self._next()) is not None:
            self._work(job)

    def run_once(self) -> None:
        """Do what waits."""
        while self._waiting:
            self._work(self._waiting.popleft())

    def stop(self) -> None:
        """Have ``run`` return when the key it is setting is set."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def _next(self) -> _Job | None:
        with self._changed:
            while not (self._waiting or self._stopping):
                self._changed.wait()
            return None if self._stopping else self._waiting.popleft()

    def _work(self, job: _Job) -> None:
        """Set the keys of a job; a mistake of ours ends the job, not the thread."""
        keys, job.keys = job.keys, ()
        self._note(job, status=JobStatus.IN_PROGRESS)
        failures: list[KeyFailure] = []
        try:
            self._set_all(job, keys, failures)
        except Exception:  # noqa: BLE001 - the pump of jobs
            self._log.failure("a job that sets keys failed")
            failures.append(KeyFailure(keys[0].iccid, "the job failed; the log of the gateway says why"))
        with self._changed:
            self._waiting_keys -= len(keys)
            if not self._stopping:
                status = JobStatus.FAILED if failures else JobStatus.SUCCEEDED
                self._note(job, status=status, failures=tuple(failures))

    def _set_all(self, job: _Job, keys: Sequence[WrittenKey], failures: list[KeyFailure]) -> None:
        """Set *keys*, some at a time, until the database fails: then the others would only wait for it as well."""
        for start in range(0, len(keys), KEYS_AT_A_TIME):
            some = keys[start : start + KEYS_AT_A_TIME]
            if self._stopping:
                return
            try:
                outcomes = self._keys.set_all(some)
            except StorageError as failure:
                failures.extend(KeyFailure(key.iccid, str(failure)) for key in keys[start:])
                return
            for key, outcome in zip(some, outcomes, strict=True):
                if not isinstance(outcome, DeviceKey):
                    failures.append(KeyFailure(key.iccid, str(outcome)))
            self._note(job, succeeded=start + len(some) - len(failures), failures=tuple(failures))

    def _note(self, job: _Job, **changes: object) -> None:
        with self._changed:
            job.state = attrs.evolve(job.state, updated_at=self._now_ms(), **changes)  # type: ignore[arg-type]

    def _forget(self, now: int) -> None:
        """Forget finished jobs that are too old, or too many."""
        failures = sum(len(job.state.failures) for job in self._jobs.values())
        for job_id, job in list(self._jobs.items()):
            state = job.state
            if state.status in (JobStatus.SCHEDULED, JobStatus.IN_PROGRESS):
                continue
            if state.updated_at + KEPT_MS > now and len(self._jobs) < KEPT_JOBS and failures <= KEPT_FAILURES:
                return
            del self._jobs[job_id]
            failures -= len(state.failures)
