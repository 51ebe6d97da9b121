"""What aMQTT logs, counted and summed up.

It logs a line for every connection and every mistake of a client, some with what the client has sent, and leaves
exceptions to asyncio's log.  Strangers could fill a disk with that, or bring secrets into it.  So its lines are
counted; once a minute there is one of ours that says from where in aMQTT how many came.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any, Final

import amqtt
from twisted.logger import Logger

from coapgw.metrics import AmqttCounters

REPORT_SECONDS: Final = 60.0
SHOWN: Final = 5  # places in aMQTT that one line names
_ITS_FILES: Final = str(Path(amqtt.__file__).parent)
_LOGGERS: Final = ("amqtt", "transitions", "websockets")


class Complaints(logging.Handler):
    """Takes aMQTT's log, and the exceptions that its tasks leave behind."""

    log = Logger()

    def __init__(self, counters: AmqttCounters) -> None:
        """Count in ``counters.complaints``."""
        super().__init__(logging.WARNING)
        self._counters = counters
        self._places: Counter[str] = Counter()
        self._reported: float | None = None
        self._loop: Any = None
        self._former: Any = None
        self._loggers: list[tuple[logging.Logger, int, bool]] = []

    def listen(self, loop: Any) -> None:
        """Take them from now on; *loop* is asyncio's."""
        for name in _LOGGERS:
            logger = logging.getLogger(name)
            self._loggers.append((logger, logger.level, logger.propagate))
            logger.addHandler(self)
            logger.setLevel(logging.WARNING)
            logger.propagate = False
        self._loop = loop
        self._former = loop.get_exception_handler()
        loop.set_exception_handler(self._left_behind)

    def stop(self) -> None:
        """Leave them to others again."""
        for logger, level, propagate in self._loggers:
            logger.removeHandler(self)
            logger.setLevel(level)
            logger.propagate = propagate
        self._loggers.clear()
        if self._loop is not None:
            self._loop.set_exception_handler(self._former)
            self._loop = None

    def emit(self, record: logging.LogRecord) -> None:
        """Count a line; what it says may be a client's."""
        self._count(f"{record.name}.{record.funcName}")

    def note(self, doing: str, failed: BaseException) -> None:
        """Count an exception that came out of aMQTT."""
        self._count(f"{doing}: {type(failed).__name__}")

    def report(self, now: float) -> None:
        """Sum up what has come, once a minute; called about once a second."""
        if self._places and (self._reported is None or now - self._reported >= REPORT_SECONDS):
            places = ", ".join(f"{place} {count}" for place, count in self._places.most_common(SHOWN))
            self.log.warn("aMQTT complained {count} times: {places}", count=self._places.total(), places=places)
            self._places.clear()
            self._reported = now

    def _count(self, place: str) -> None:
        self._counters.complaints += 1
        self._places[place] += 1  # as many as there are lines in aMQTT

    def _left_behind(self, loop: Any, context: dict[str, Any]) -> None:
        failed = context.get("exception")
        if isinstance(failed, BaseException) and _is_its(failed):
            self.note("a task", failed)
        elif self._former is not None:
            self._former(loop, context)
        else:
            loop.default_exception_handler(context)


def _is_its(failed: BaseException) -> bool:
    """Return whether an exception passed through aMQTT."""
    if type(failed).__module__.partition(".")[0] == "amqtt":
        return True
    traceback = failed.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename.startswith(_ITS_FILES):
            return True
        traceback = traceback.tb_next
    return False
