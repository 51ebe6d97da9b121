"""The wiring: what a gateway is made of and how a message passes through it, to be read from top to bottom.

``makeGateway`` gives a ``MultiService`` for any Twisted application.  Nothing is opened before it starts: twistd
becomes a daemon in between, and neither threads nor locks survive that.
"""

from __future__ import annotations

import ipaddress
import json
import os
import resource
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import SystemRandom
from typing import Any, Final

from twisted.application.service import MultiService
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred, succeed
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from txthings.resource import CoAPResource

from coapgw import __version__
from coapgw.coap.messaging import MessageLayer
from coapgw.coap.parameters import MessagingLimits
from coapgw.coap.site import ResourceSite
from coapgw.config import BridgeSection, Config, Engine, MqttMode, PayloadForm
from coapgw.config_values import ListenAddress
from coapgw.errors import ConfigurationInvalid, StorageError
from coapgw.gateway.authorise import DevicesByAddress
from coapgw.gateway.envelope import MessageIds
from coapgw.gateway.resources import make_root
from coapgw.gateway.uplink import Uplink, UplinkSettings
from coapgw.mqtt.access import AccessList, AnonymousPolicy, BrokerUser, PasswordHashRefused
from coapgw.mqtt.bridge import BridgeLink, BridgeSettings
from coapgw.mqtt.broker import Broker, BrokerLimits
from coapgw.mqtt.embedded import EmbeddedLink
from coapgw.mqtt.publisher import Publisher
from coapgw.net.broker_address import BrokerAddress, user_of
from coapgw.net.mqtt import BrokerPump, MqttServerFactory
from coapgw.net.mqtt_bridge import Bridge
from coapgw.net.udp import CoapPort
from coapgw.storage.client_id import kept_client_id
from coapgw.storage.database import open_registry
from coapgw.storage.devices import DeviceRegistry
from coapgw.storage.directory import DeviceDirectory
from coapgw.storage.sessions import SqliteSessionStore
from coapgw.storage.spool import Spool, open_spool

TICK_SECONDS: Final = 1.0
OTHER_FILES: Final = (
    200  # beside MQTT clients: 100 that Twisted accepts at a time before it closes them, databases, sockets
)


def makeGateway(config: Config, reactor: Any = None, *, mount: Mapping[str, CoAPResource] | None = None) -> Gateway:
    """Return the gateway, not started.

    Args:
        config: as ``coapgw.config.load`` returns it.
        reactor: the reactor to run on; the installed one if None.
        mount: txThings resources of the application's own, by their path segment below ``/``.

    Raises:
        ConfigurationInvalid: the configuration asks for what this version does not have.
    """
    if reactor is None:
        from twisted.internet import reactor
    mistakes = [sentence for absent, sentence in _not_built(config) if absent]
    broker_address = None
    if config.mqtt.mode is MqttMode.BRIDGE:
        broker_address = _broker_address(config.mqtt.bridge)
        mistakes += broker_address.mistakes()
    embedded = config.mqtt.embedded
    users = [BrokerUser(user.name, user.password, user.publish, user.subscribe) for user in embedded.users]
    try:
        access = AccessList(users, AnonymousPolicy(embedded.anonymous.value))
    except PasswordHashRefused as refused:
        raise ConfigurationInvalid([*mistakes, f"mqtt.embedded.users: {refused}"]) from None
    if mistakes:
        raise ConfigurationInvalid(mistakes)
    return Gateway(config, reactor, access, mount or {}, broker_address)


def _not_built(config: Config) -> Iterator[tuple[bool, str]]:
    """Yield what a configuration may ask for in vain, and how that is said."""
    yield config.mqtt.embedded.engine is Engine.AMQTT, 'mqtt.embedded.engine: "amqtt" is not in this version yet'


def _broker_address(bridge: BridgeSection) -> BrokerAddress:
    """Return where the bridge's broker is; twistd changes its directory before we read the files."""
    files = {
        name: Path(value).absolute() if (value := getattr(bridge, name)) else None
        for name in ("password_file", "ca_file", "cert_file", "key_file")
    }
    return BrokerAddress.at(bridge.url, verify=bridge.verify, **files)


def _now_ms() -> int:
    """Return the milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def _number(port: IListeningPort) -> int:
    """Return the number of a TCP port."""
    address = port.getHost()
    assert isinstance(address, IPv4Address | IPv6Address)
    return address.port


class Gateway(MultiService):
    """One gateway: its parts are attributes once it has started, in the order a message passes them.

    ``startService`` raises StorageError or CannotListenError if the machine will not let it, with everything closed
    again.
    """

    log = Logger()

    def __init__(
        self,
        config: Config,
        reactor: Any,
        access: AccessList,
        mount: Mapping[str, CoAPResource],
        broker_address: BrokerAddress | None = None,
    ) -> None:
        """Remember what to build; with a *broker_address* a bridge to it instead of the embedded broker."""
        super().__init__()
        self.config = config
        self._data = config.data.absolute()  # twistd changes its directory before it starts us
        self._reactor = reactor
        self._access = access
        self._mount = mount
        self._broker_address = broker_address
        self.bridge: Bridge | None = None
        self._closing: list[Callable[[], object]] = []
        self.coap_ports: list[CoapPort] = []
        self.ports: dict[str, Any] = {}

    # ------------------------------------------------------------------ start

    def startService(self) -> None:
        """Open and connect everything, and listen."""
        try:
            self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._open_storage()
            self._forget_ports()
            self._closing.append(self._forget_ports)
            self.publisher = Publisher(self.spool, self._reactor, self._published)
            if self._broker_address is not None:
                self._build_bridge(self._broker_address)
            else:
                self._build_mqtt()
            self._closing.append(self.publisher.stop)
            self._build_coap()
            self._listen()
        except OSError as refused:
            self._close()
            raise StorageError(f"the data directory {self._data} cannot be used: {refused.strerror}") from None
        except Exception:
            self._close()
            raise
        super().startService()
        self._reactor.callWhenRunning(self._ready)

    def _open_storage(self) -> None:
        """Open what must survive: devices, the spool, MQTT sessions."""
        config = self.config
        registry = open_registry(config.registry.url, self._data)
        self._closing.append(registry.close)
        self.directory = DeviceDirectory(DeviceRegistry(registry, _now_ms).changes_since)
        self.directory.load()
        self.directory.follow(self._reactor).setServiceParent(self)
        self.sessions = SqliteSessionStore(self._data / "broker.db")
        self._closing.append(self.sessions.close)
        self.spool: Spool = open_spool(self._data / "spool.db", self._reactor, config.spool.max_bytes)
        self._closing.append(self.spool.close)

    def _build_mqtt(self) -> None:
        """Build the way out: spool, publisher, link, broker."""
        embedded = self.config.mqtt.embedded
        self.broker = Broker(
            self._access,
            BrokerLimits(
                max_packet=embedded.max_packet,
                max_queue=embedded.max_queue,
                max_connections=self._connections_possible(embedded.max_connections),
                connect_timeout=embedded.connect_timeout,
            ),
            store=self.sessions,
        )
        known_clients = self.broker.restore(self.sessions.load(), time.monotonic())
        self._broker_pump = BrokerPump(self.broker, self._reactor)
        self._closing.append(self._broker_pump.stop)
        self.link: EmbeddedLink | BridgeLink = EmbeddedLink(
            self.broker, self.publisher, time.monotonic, lambda: self.spool.fill
        )
        self.link.hold(known_clients, time.monotonic())
        self._tick_mqtt = self.link.handle_timer

    def _build_bridge(self, address: BrokerAddress) -> None:
        """Build the way out to another broker."""
        bridge = self.config.mqtt.bridge
        settings = BridgeSettings(
            bridge.client_id or kept_client_id(self._data, os.urandom),
            user_of(bridge.url),
            clean_session=bridge.clean_session,
            keepalive=bridge.keepalive,
            window=bridge.window,
            expiry_seconds=bridge.expiry_seconds,
            version=bridge.version,
        )
        self.link = BridgeLink(self.publisher, settings, time.monotonic)
        self.bridge = Bridge(
            self._reactor,
            self.link,
            address,
            random=SystemRandom().random,
            oldest_waiting=lambda: self.publisher.oldest_received,
        )
        self._closing.append(self.bridge.stop)
        self._tick_mqtt = self.bridge.handle_timer

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

    def _build_coap(self) -> None:
        """Build the way in: message layer (one for each socket), resources, uplink."""
        config = self.config
        self.uplink = Uplink(
            self.spool,
            MessageIds(os.urandom),
            time.time,
            UplinkSettings(
                acknowledge=config.uplink.acknowledge,
                max_payload=config.uplink.max_payload,
                topic_prefix=config.mqtt.topic_prefix.encode(),
                raw=config.mqtt.payload is PayloadForm.RAW,
            ),
        )
        self.root = make_root(self.uplink)
        for segment, mounted in self._mount.items():
            self.root.putChild(segment.encode(), mounted)
        self._site = ResourceSite(self.root)
        self._peers = DevicesByAddress(self.directory)
        self._limits = MessagingLimits(endpoints=config.coap.max_endpoints, exchanges=config.coap.max_exchanges)

    def _layer(self, wake: Callable[[], None]) -> MessageLayer:
        return MessageLayer(self._site, self._peers, SystemRandom(), limits=self._limits, wake=wake)

    def _listen(self) -> None:
        """Bind every socket: MQTT first, so that nothing is acknowledged before there is a way out."""
        config, reactor = self.config, self._reactor
        self.coap_ports = []
        brokers = config.mqtt.embedded.listen if self.bridge is None else ()
        self.mqtt_ports = [self._listen_mqtt(address) for address in brokers]
        for address in config.coap.listen:
            host = "127.0.0.1" if address.host == "localhost" else address.host  # Twisted binds UDP to figures only
            port = CoapPort(address.port, host, self._layer, reactor, receive_buffer=config.coap.receive_buffer)
            port.startListening()
            self._closing.append(port.stopListening)
            self.coap_ports.append(port)
        self.publisher.start(self.link)
        if self.bridge is not None:
            self.bridge.start()
        ticking = LoopingCall(self._tick)
        ticking.clock = reactor
        ticking.start(TICK_SECONDS, now=False)
        self._closing.append(ticking.stop)

    def _listen_mqtt(self, address: ListenAddress) -> IListeningPort:
        loopback = address.host == "localhost" or ipaddress.ip_address(address.host).is_loopback
        factory = MqttServerFactory(self._broker_pump, loopback)
        port: IListeningPort = self._reactor.listenTCP(address.port, factory, 1000, address.host)
        self._closing.append(port.stopListening)
        return port

    def _ready(self) -> None:
        """Write ``ports.json`` and say that the gateway is ready."""
        if not self.running:
            return  # stopped before the reactor ran
        self.ports = {
            "coap": [port.number for port in self.coap_ports],
            "coaps": [],
            "mqtt": [_number(port) for port in self.mqtt_ports],
            "http": None,
        }
        try:
            written = self._data / "ports.json.new"
            written.write_text(json.dumps(self.ports))
            written.replace(self._data / "ports.json")
        except OSError as refused:
            self.log.error("ports.json cannot be written: {reason}", reason=refused.strerror)
        self.log.info("coapgw {version} is ready: {ports}", version=__version__, ports=json.dumps(self.ports))
        if self.config.coaps.listen:
            self.log.warn("coaps (DTLS) and the management API are not in this version yet; they do not listen")
        if self.config.limits.device_rate:
            self.log.warn("limits.device_rate is not in this version yet; no device is limited")

    def _forget_ports(self) -> None:
        """Remove ``ports.json``; only ever done by the gateway that has the spool's lock."""
        with suppress(OSError):
            (self._data / "ports.json").unlink(missing_ok=True)

    # ------------------------------------------------------------------ while it runs

    def _published(self, place: int) -> None:
        self.uplink.published(place)

    def _tick(self) -> None:
        """Do what is to be looked at once a second."""
        self.uplink.handle_timer()
        self._tick_mqtt()
        self.spool.look_at_requests()

    # ------------------------------------------------------------------ stop

    @inlineCallbacks
    def stopService(self) -> Generator[Deferred[Any], Any, None]:
        """Take nothing more in, bring what was taken to disk, publish and answer it, then close."""
        if self.running:
            for port in self.coap_ports:
                port.stopReading()
            yield self.spool.flush().addErrback(self._not_closed)
            self.publisher.stop()
            if self.bridge is not None:
                yield self.bridge.drain()
                self.publisher.stop()
            yield self.spool.close()
            for port in self.coap_ports:
                port.flush()
        yield maybeDeferred(super().stopService)
        yield self._close()

    def _close(self) -> Deferred[Any]:
        """Close what was opened, the last first."""
        closing, self._closing = self._closing, []
        done: Deferred[Any] = succeed(None)
        for close in reversed(closing):
            done.addCallback(partial(_call, close))
            done.addErrback(self._not_closed)
        return done

    def _not_closed(self, failure: Failure) -> None:
        self.log.failure("something did not close in order", failure=failure)


def _call(close: Callable[[], object], _: object) -> object:
    return close()
