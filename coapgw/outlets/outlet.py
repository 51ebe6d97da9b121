"""The way out of a gateway, whatever it is: what ``service`` asks of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from coapgw.http.metrics_page import CounterGroup, Gauge
from coapgw.interfaces import IBrokerLink
from coapgw.mqtt.publisher import Publisher


class Outlet(Protocol):
    """Where a gateway's messages go; opened, listening, started, drained and stopped in this order."""

    @property
    def link(self) -> IBrokerLink:
        """What the publisher gives messages to; once it is open."""

    def mistakes(self) -> list[str]:
        """Return what the configuration has wrong, a sentence each."""

    def open(self, data: Path, reactor: Any, publisher: Publisher, fill: Callable[[], float]) -> None:
        """Build what it consists of.

        Args:
            data: the data directory.
            publisher: told how messages fare.
            fill: how full the spool is, 0 to 1.

        Raises:
            StorageError: what it keeps on disk cannot be read.
        """

    def listen(self) -> None:
        """Bind its sockets, if it has any.  Raises CannotListenError."""

    def start(self) -> None:
        """Begin; the publisher has its link by now."""

    def handle_timer(self) -> None:
        """Do what is to be looked at once a second."""

    def drain(self) -> Deferred[None]:
        """Fire when what was delivered has been acknowledged, or soon; the publisher gives nothing more."""

    def stop(self) -> Deferred[None]:
        """Close everything; fires when that is done."""

    def port_numbers(self) -> Sequence[int]:
        """Return the TCP ports it listens on, in the order of the configuration."""

    def counters(self) -> Sequence[CounterGroup]:
        """Return what it counts."""

    def gauges(self) -> Sequence[Gauge]:
        """Return what can be read off it."""
