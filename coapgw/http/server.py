"""The management API as a part of the gateway: its threads, its socket, and their end."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from coapgw.http.access import AdminToken
from coapgw.http.api import ApiParts, make_table
from coapgw.http.jobs import KeyJobs
from coapgw.http.protocol import ApiFactory
from coapgw.interfaces import IDeviceKeys, IDeviceRegistry, ILastSeen, ISavings, ITemplates, IWireBytes
from coapgw.metrics import HttpCounters
from coapgw.threads import CallThreads, NotCalled

THREADS: Final = 4
WAITING: Final = 96  # calls that wait for a thread; beyond are those of clients that went away before their answer
BACKLOG: Final = 500  # connections that wait to be accepted; beyond, the system lets them try again a second later


class ManagementApi:
    """Listens from ``start`` to ``stop``.

    Args:
        reactor: IReactorTCP and IReactorFromThreads.
        now_ms: milliseconds since the epoch.
        unready: see HealthOperations.
        metrics: see HealthOperations.
        follow: has the gateway take in what a call changed, before the call is answered; never fails.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        token: AdminToken,
        *,
        registry: IDeviceRegistry,
        keys: IDeviceKeys,
        last_seen: ILastSeen,
        wire_bytes: IWireBytes,
        templates: ITemplates,
        savings: ISavings,
        now_ms: Callable[[], int],
        unready: Callable[[], Sequence[str]],
        metrics: Callable[[], bytes],
        counters: HttpCounters,
        follow: Callable[[], Deferred[None]],
    ) -> None:
        """Put the parts together."""
        self._reactor = reactor
        self._threads = CallThreads(reactor, "coapgw http", THREADS, WAITING)
        self._jobs = KeyJobs(keys, now_ms, os.urandom)
        self._jobs_thread = CallThreads(reactor, "coapgw key jobs")
        parts = ApiParts(registry, last_seen, wire_bytes, keys, self._jobs, templates, savings, unready, metrics)
        self.factory = ApiFactory(make_table(parts), token, reactor, self._threads.call, counters, follow=follow)
        self._port: IListeningPort | None = None

    @property
    def number(self) -> int:
        """The number of the TCP port."""
        assert self._port is not None
        address = self._port.getHost()
        assert isinstance(address, IPv4Address | IPv6Address)
        return address.port

    def start(self, host: str, port: int) -> None:
        """Listen; raises CannotListenError."""
        self._port = self._reactor.listenTCP(port, self.factory, BACKLOG, host)
        self._jobs_thread.call(self._jobs.run).addErrback(self._jobs_ended)

    def stop(self) -> Deferred[None]:
        """Take no more requests; fires when what is being done in threads has ended."""
        self._jobs.stop()
        stopped: Deferred[Any] = succeed(None) if self._port is None else maybeDeferred(self._port.stopListening)
        self._port = None
        stopped.addCallback(lambda _: self._threads.stop())
        stopped.addCallback(lambda _: self._jobs_thread.stop())
        stopped.addCallback(lambda _: self.factory.close_all())
        return stopped

    def _jobs_ended(self, failure: Failure) -> None:
        if not failure.check(NotCalled):  # stopped before it began
            self._log.failure("no keys are set by jobs any more", failure)
