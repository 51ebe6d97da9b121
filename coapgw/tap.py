"""``twistd coapgw``: options, and the way from them to the gateway.

twistd reads this module only once somebody asks for ``coapgw``, and after it has installed the reactor that was asked
for; so the reactor, and what imports it, is imported in here no earlier than in ``makeService``.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from twisted.application.service import MultiService
from twisted.internet.defer import maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.python import usage

from coapgw.config import Config, load
from coapgw.errors import ConfigurationInvalid, StorageError

EXIT_REFUSED = 1  # the machine would not let us: disk, lock, address in use
EXIT_USAGE = 2  # the operator has to change something: options, configuration


class Options(usage.Options):
    """The options of ``twistd coapgw``; ``configuration`` is set once they are parsed."""

    synopsis = "[options]"
    longdesc = "Devices' messages come in over CoAP, are committed to disk and published to MQTT."
    optParameters = (
        ["config", "c", None, "TOML configuration; without it, defaults.", Path],
        ["data", "d", None, "Directory for everything that must survive; wins over the file.", Path],
    )

    def __init__(self) -> None:
        """Begin with no overrides."""
        super().__init__()
        self.overrides: list[str] = []
        self.configuration: Config

    def opt_set(self, assignment: str) -> None:
        """Override a key of the configuration: SECTION.KEY=VALUE, a TOML value or a word; may be repeated."""
        self.overrides.append(assignment)

    opt_s = opt_set

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse *options*; exit with status 2 if they are wrong (twistd itself would say 1)."""
        try:
            super().parseOptions(options)
        except usage.UsageError as mistake:
            refuse(f"twistd coapgw: {mistake}", EXIT_USAGE)

    def postOptions(self) -> None:
        """Read the configuration, so that mistakes end twistd before it does anything else."""
        try:
            self.configuration = load(self["config"], self.overrides, self["data"])
        except ConfigurationInvalid as invalid:
            refuse("\n".join(invalid.mistakes), EXIT_USAGE)


def refuse(sentence: str, status: int) -> NoReturn:
    """End the process with one plain message for the operator, past the log if there is one already."""
    (sys.__stderr__ or sys.stderr).write(sentence + "\n")
    raise SystemExit(status)


class Foreground(MultiService):
    """The gateway as ``twistd -n`` runs it: what keeps it from starting is told in a sentence, not in a traceback."""

    def __init__(self, pidfile: str | None) -> None:
        """Take the *pidfile* that twistd wrote and, when we end the process, would leave behind."""
        super().__init__()
        self._pidfile = pidfile

    def privilegedStartService(self) -> None:
        """Start what needs privileges; exit with status 1 if the machine will not let us."""
        self._start(super().privilegedStartService)

    def startService(self) -> None:
        """Start the rest; exit with status 1 if the machine will not let us."""
        self._start(super().startService)

    def _start(self, start: Callable[[], object]) -> None:
        try:
            start()
        except (StorageError, CannotListenError) as refused:
            maybeDeferred(self.stopService)  # what has started may hold threads that would keep the process alive
            if self._pidfile:
                with suppress(OSError):
                    os.unlink(self._pidfile)
            refuse(f"coapgw cannot start: {refused}", EXIT_REFUSED)


def heed_one_signal() -> None:
    """Let the first SIGINT or SIGTERM stop the reactor, and the later ones do nothing.

    Twisted stops a reactor twice if it is told so twice, and logs the traceback of the second time.
    """
    heeded: list[int] = []
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        stop = signal.getsignal(signal_number)
        if not callable(stop):  # ignored, as by nohup; or nobody's
            continue

        def heed(number: int, frame: FrameType | None, stop: Callable[[int, FrameType | None], object] = stop) -> None:
            if not heeded:
                heeded.append(number)
                stop(number, frame)

        signal.signal(signal_number, heed)


def makeService(options: Options) -> MultiService:
    """Return the gateway for these options, not started; exit with status 1 or 2 if it cannot be built.

    twistd becomes a daemon only afterwards: nothing here may open a database or start a thread.
    """
    from twisted.internet import reactor

    from coapgw.service import makeGateway

    try:
        gateway: MultiService = makeGateway(options.configuration, reactor)
    except ConfigurationInvalid as invalid:
        refuse("\n".join(invalid.mistakes), EXIT_USAGE)
    except StorageError as refused:
        refuse(f"coapgw cannot start: {refused}", EXIT_REFUSED)
    reactor.callLater(0, heed_one_signal)  # once the reactor has its own
    if options.parent is None or not options.parent["nodaemon"]:
        return gateway  # a daemon's exception is passed by twistd to the process that waits for it
    foreground = Foreground(options.parent["pidfile"])
    gateway.setServiceParent(foreground)
    return foreground
