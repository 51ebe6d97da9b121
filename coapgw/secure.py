"""The coaps part of a gateway: what the DTLS fronts of all sockets share, and what goes on over a planned restart."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from twisted.logger import Logger
from twisted.python.failure import Failure

from coapgw.coap.messaging import MessageLayer
from coapgw.config import CoapsSection
from coapgw.dtls.admission import Admission, HandshakeLimits
from coapgw.dtls.association import CipherCache
from coapgw.dtls.cid import ConnectionIds
from coapgw.dtls.front import Front
from coapgw.dtls.hello import Cookies
from coapgw.dtls.openssl import ServerContext
from coapgw.dtls.saved import Located
from coapgw.dtls.table import AssociationLimits, AssociationTable
from coapgw.errors import StorageError
from coapgw.interfaces import ICredentials
from coapgw.metrics import DtlsCounters
from coapgw.net.dtls import SecureLayer
from coapgw.storage.associations import take_associations, write_associations


class SecureCoap:
    """Keys, associations, and who may become one, for every socket in ``coaps.listen``.

    Args:
        config: the section of the configuration.
        data: the data directory, where associations wait for the next start.
    """

    log = Logger()

    def __init__(self, config: CoapsSection, data: Path, credentials: ICredentials) -> None:
        """Begin without associations."""
        self._config = config
        self._data = data
        self._credentials = credentials
        self.counters = DtlsCounters()
        limits = AssociationLimits(
            associations=config.max_associations,
            connections=config.max_cbc_associations,
            idle_seconds=config.idle_seconds,
        )
        self.associations = AssociationTable(limits, credentials.is_current, self.counters)
        handshakes = HandshakeLimits(config.max_handshakes, config.handshakes_per_second)
        self.admission = Admission(handshakes, self.counters)
        self._openssl = ServerContext(credentials.credential, config.mtu)
        self._cookies = Cookies(os.urandom)
        self._ciphers = CipherCache()
        self._connection_ids = ConnectionIds(config.cid_length, config.node, os.urandom) if config.cid_length else None
        self.fronts: list[Front] = []

    @property
    def endpoints(self) -> int:
        """How many CoAP endpoints one socket may have to know."""
        return self._config.max_associations

    def layer(self, messages: MessageLayer, wake: Callable[[], None]) -> SecureLayer:
        """Return what a socket's pump drives: a front, and *messages* behind it."""
        front = Front(
            *(self.associations, self.admission, self._openssl.engine, self._cookies, self._ciphers),
            deliver=messages.receive_datagram,
            forgotten=messages.forget,
            mtu=self._config.mtu,
            connection_ids=self._connection_ids,
            wake=wake,
        )
        self.fronts.append(front)
        return SecureLayer(front, messages)

    def handle_timer(self) -> None:
        """Log what went wrong in a callback; called about once a second."""
        if (problem := self._openssl.take_problem()) is not None:
            self.log.failure("a handshake failed because of an error of ours", failure=Failure(problem))

    # ------------------------------------------------------------------ a planned restart

    def restore(self, ports: Sequence[int]) -> None:
        """Go on with the associations of before a planned restart, those whose devices and sockets are still here.

        Args:
            ports: the numbers of the sockets' ports, in the order of ``coaps.listen``.
        """
        if not self.fronts:
            return
        fronts = self._by_socket(ports)
        try:
            saved = take_associations(self._data, time.monotonic(), _now_ms(), self._ciphers)
        except StorageError as lost:
            self.log.warn("devices need new handshakes: {reason}", reason=str(lost))
            return
        for listener, association in saved:
            if listener in fronts and self._credentials.is_current(association.iccid, association.serial):
                fronts[listener].restore(association)
        if saved:
            restored = self.counters.restored
            self.log.info("{restored} of {saved} DTLS associations go on", restored=restored, saved=len(saved))

    def save(self, ports: Sequence[int]) -> None:
        """Save what can go on after a planned restart; nothing is sealed for it any more.  Say so to the others."""
        fronts = self._by_socket(ports)
        located = [Located(listener, one) for listener, front in fronts.items() for one in front.release()]
        if not located:
            return
        try:
            write_associations(self._data, located, time.monotonic(), _now_ms())
        except StorageError as failed:
            self.log.error("devices will need new handshakes: {reason}", reason=str(failed))

    def _by_socket(self, ports: Sequence[int]) -> dict[str, Front]:
        """Return the fronts by the address and port of their sockets."""
        sockets = zip(self._config.listen, ports, self.fronts, strict=True)
        return {f"{address.host} {port}": front for address, port, front in sockets}


def _now_ms() -> int:
    """Return the milliseconds since the epoch."""
    return time.time_ns() // 1_000_000
