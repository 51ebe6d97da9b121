"""The management API as a part of the gateway: its threads, its socket, and their end."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IListeningPort
from twisted.internet.threads import deferToThreadPool

from coapgw.http.access import AdminToken
from coapgw.http.api import ApiParts, make_table
from coapgw.http.jobs import KeyJobs
from coapgw.http.protocol import ApiFactory
from coapgw.http.threads import BoundedThreads
from coapgw.interfaces import IDeviceKeys, IDeviceRegistry, ILastSeen, ISavings, ITemplates
from coapgw.metrics import HttpCounters

BACKLOG: Final = 500  # connections that wait to be accepted; beyond, the system lets them try again a second later


class ManagementApi:
    """Listens from ``start`` to ``stop``.

    Args:
        reactor: IReactorTCP and IReactorThreads.
        now_ms: milliseconds since the epoch.
        unready: see HealthOperations.
        metrics: see HealthOperations.
    """

    def __init__(
        self,
        reactor: Any,
        token: AdminToken,
        *,
        registry: IDeviceRegistry,
        keys: IDeviceKeys,
        last_seen: ILastSeen,
        templates: ITemplates,
        savings: ISavings,
        now_ms: Callable[[], int],
        unready: Callable[[], Sequence[str]],
        metrics: Callable[[], bytes],
        counters: HttpCounters,
    ) -> None:
        """Put the parts together."""
        self._reactor = reactor
        self._threads = BoundedThreads(reactor)
        self._jobs = KeyJobs(keys, now_ms, os.urandom)
        self._jobs_thread = threading.Thread(target=self._jobs.run, name="coapgw key jobs", daemon=True)
        parts = ApiParts(registry, last_seen, keys, self._jobs, templates, savings, unready, metrics)
        self.factory = ApiFactory(make_table(parts), token, reactor, self._threads.call, counters)
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
        self._threads.start()
        self._jobs_thread.start()

    def stop(self) -> Deferred[None]:
        """Take no more requests; fires when what is being done in threads has ended."""
        if self._port is None:
            return succeed(None)
        self._jobs.stop()
        stopped: Deferred[Any] = maybeDeferred(self._port.stopListening)
        self._port = None
        stopped.addCallback(lambda _: self._threads.stop())
        stopped.addCallback(
            lambda _: deferToThreadPool(self._reactor, self._reactor.getThreadPool(), self._jobs_thread.join)
        )
        stopped.addCallback(lambda _: self.factory.close_all())
        return stopped
