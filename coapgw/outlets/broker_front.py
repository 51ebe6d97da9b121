"""What clients of the embedded broker meet, whichever engine is behind it: listeners, limits and users."""

from __future__ import annotations

import ipaddress
import resource
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import ServerFactory
from twisted.logger import Logger

from coapgw.config import EmbeddedSection
from coapgw.config_values import ListenAddress
from coapgw.errors import StorageError
from coapgw.mqtt.access import AccessList, AnonymousPolicy, BrokerUser, PasswordHashRefused
from coapgw.mqtt.broker import BrokerLimits
from coapgw.net.mqtt import BrokerPump, MqttServerFactory
from coapgw.net.pem_files import CredentialsUnusable
from coapgw.net.tls_server import ServerCertificate
from coapgw.storage.mqtt_users import NAME as USERS_FILE
from coapgw.storage.mqtt_users import UsersFile

BACKLOG: Final = 1000  # connections the system accepts for us before we do
OTHER_FILES: Final = 300  # beside MQTT clients: 100 that Twisted accepts before it closes them, 100 of HTTP, databases


class BrokerFront:
    """The listeners of a broker, and its users.

    Attributes:
        mistakes: what the configuration has wrong, a sentence each; with any, nothing else may be asked.
        access: the users of the configuration, and since ``follow_users`` those of ``coapgw mqtt-user``.
    """

    log = Logger()

    def __init__(self, config: EmbeddedSection) -> None:
        """Read the users' passwords and rules, and the certificate."""
        self._config = config
        self.mistakes: list[str] = []
        self._certificate: ServerCertificate | None = None
        if config.cert_file:
            cert_file, key_file = (
                Path(name).absolute() if name else None for name in (config.cert_file, config.key_file)
            )
            assert cert_file is not None
            try:
                self._certificate = ServerCertificate(cert_file, key_file, time.monotonic)
            except CredentialsUnusable as unusable:
                self.mistakes.append(f"mqtt.embedded: {unusable}")
        self._users = [BrokerUser(user.name, user.password, user.publish, user.subscribe) for user in config.users]
        try:
            self.access = AccessList(self._users, AnonymousPolicy(config.anonymous.value))
        except PasswordHashRefused as refused:
            self.mistakes.append(f"mqtt.embedded.users: {refused}")
        self._ports: list[IListeningPort] = []

    # ------------------------------------------------------------------ limits

    def limits(self) -> BrokerLimits:
        """Return what clients may cost."""
        config = self._config
        return BrokerLimits(
            max_packet=config.max_packet,
            max_queue=config.max_queue,
            max_connections=self._connections_possible(config.max_connections),
            connect_timeout=config.connect_timeout,
            max_keepalive=config.max_keepalive,
        )

    def _connections_possible(self, asked: int) -> int:
        """Return how many clients the files that this process may open leave room for; ask for more files before."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = asked + OTHER_FILES
        if soft == resource.RLIM_INFINITY or soft >= needed:
            return asked
        with suppress(OSError, ValueError):
            granted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (granted, hard))
            soft = granted
        if soft >= needed:
            return asked
        possible = max(1, soft - OTHER_FILES)
        self.log.warn(
            "the system grants {soft} open files: {possible} MQTT clients instead of mqtt.embedded.max_connections = "
            "{asked}; raise the limit (ulimit -n, LimitNOFILE=)",
            soft=soft,
            possible=possible,
            asked=asked,
        )
        return possible

    # ------------------------------------------------------------------ listeners

    def listen(self, pump: BrokerPump, reactor: Any) -> None:
        """Listen on every address of the configuration.  Raises CannotListenError."""
        config = self._config
        for address in config.listen:
            self._listen(reactor, address, MqttServerFactory(pump, _is_loopback(address)))
        for address in config.tls_listen:
            self._listen(reactor, address, MqttServerFactory(pump, _is_loopback(address)), self._certificate)
        for address in config.websocket_listen:
            self._listen(reactor, address, self._websocket(address, pump, reactor))
        for address in config.websocket_tls_listen:
            self._listen(reactor, address, self._websocket(address, pump, reactor), self._certificate)

    def _websocket(self, address: ListenAddress, pump: BrokerPump, reactor: Any) -> ServerFactory:
        from coapgw.net.mqtt_websocket import MqttWebSocketFactory

        seconds = float(self._config.connect_timeout)
        factory: ServerFactory = MqttWebSocketFactory(pump, _is_loopback(address), reactor, seconds)
        return factory

    def _listen(
        self,
        reactor: Any,
        address: ListenAddress,
        factory: ServerFactory,
        certificate: ServerCertificate | None = None,
    ) -> None:
        if certificate is None:
            port = reactor.listenTCP(address.port, factory, BACKLOG, address.host)
        else:
            port = reactor.listenSSL(address.port, factory, certificate, BACKLOG, address.host)
        self._ports.append(port)

    @inlineCallbacks
    def stop_listening(self) -> Generator[Deferred[Any], Any, None]:
        """Close the listeners, the last first."""
        ports, self._ports = self._ports, []
        for port in reversed(ports):
            yield maybeDeferred(port.stopListening)

    def port_numbers(self) -> Sequence[int]:
        """Return the TCP ports of the listeners, in the order of the configuration."""
        return [_number(port) for port in self._ports]

    # ------------------------------------------------------------------ users

    def follow_users(self, data: Path, changed: Callable[[set[str]], None]) -> None:
        """Take the users that ``coapgw mqtt-user`` has added, too.  Raises StorageError.

        *changed* is told the names of users that are gone or not what they were.
        """
        self._changed = changed
        self._users_file = UsersFile(data / USERS_FILE, self._take_users)
        self._users_file.look()

    def look_at_users(self) -> None:
        """Follow users that come and go; called about once a second."""
        try:
            self._users_file.look()
        except StorageError as unusable:
            self.log.error("the MQTT users stay as they are: {reason}", reason=str(unusable))

    def _take_users(self, added: Sequence[BrokerUser]) -> None:
        """Take the users of the configuration, and those that were *added*.  Raises StorageError."""
        configured = {user.name for user in self._users}
        try:
            changed = self.access.replace([*self._users, *(user for user in added if user.name not in configured)])
        except PasswordHashRefused as refused:
            raise StorageError(str(refused)) from None
        if changed:
            self._changed(changed)


def _is_loopback(address: ListenAddress) -> bool:
    return address.host == "localhost" or ipaddress.ip_address(address.host).is_loopback


def _number(port: IListeningPort) -> int:
    """Return the number of a TCP port."""
    address = port.getHost()
    assert isinstance(address, IPv4Address | IPv6Address)
    return address.port
