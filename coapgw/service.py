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
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from random import SystemRandom
from typing import Any, Final

import attrs
from twisted.application.service import MultiService
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred, succeed
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from txthings.resource import CoAPResource

from coapgw import __version__
from coapgw.coap.blockwise import BlockwiseLimits, BlockwiseSite
from coapgw.coap.front import FrontSite
from coapgw.coap.messaging import MessageLayer, Site
from coapgw.coap.observing import ObserveSite
from coapgw.coap.parameters import MessagingLimits
from coapgw.coap.site import ResourceSite
from coapgw.config import Config, Engine, MqttMode, PayloadForm
from coapgw.config_values import ListenAddress
from coapgw.errors import ConfigurationInvalid, StorageError
from coapgw.gateway.authorise import DevicesByAddress, DevicesByAssociation
from coapgw.gateway.bootstrap import Bootstrap, BootstrapSettings
from coapgw.gateway.envelope import MessageIds
from coapgw.gateway.rate import DeviceRates, NetworkRates
from coapgw.gateway.resources import make_root
from coapgw.gateway.sources import RatedSite, TrustedNetworks
from coapgw.gateway.uplink import Uplink, UplinkSettings
from coapgw.http.access import open_token
from coapgw.http.metrics_page import CounterGroup, Gauge, MetricsPage
from coapgw.http.server import ManagementApi
from coapgw.metrics import HttpCounters, SourceCounters
from coapgw.mqtt.access import AccessList, AnonymousPolicy, BrokerUser, PasswordHashRefused
from coapgw.mqtt.broker import Broker, BrokerLimits
from coapgw.mqtt.embedded import EmbeddedLink
from coapgw.mqtt.publisher import Publisher
from coapgw.net.dtls import SecureLayer
from coapgw.net.mqtt import BrokerPump, MqttServerFactory
from coapgw.net.udp import CoapPort, Layer, local_hosts
from coapgw.secure import SecureCoap
from coapgw.storage.call_thread import CallThread
from coapgw.storage.credentials import DeviceCredentials
from coapgw.storage.database import open_registry
from coapgw.storage.devices import DeviceRegistry
from coapgw.storage.directory import DeviceDirectory
from coapgw.storage.keys import DeviceKeys
from coapgw.storage.last_seen import LastSeen, LastSeenWriter
from coapgw.storage.sealing import open_seal
from coapgw.storage.sessions import SqliteSessionStore
from coapgw.storage.spool import Spool, open_spool

TICK_SECONDS: Final = 1.0
COAPS_PORT: Final = 5684  # RFC 7252 section 6.2: what a coaps URL means where nothing listens here
OTHER_FILES: Final = 300  # beside MQTT clients: 100 that Twisted accepts before it closes them, 100 of HTTP, databases


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
    embedded = config.mqtt.embedded
    users = [BrokerUser(user.name, user.password, user.publish, user.subscribe) for user in embedded.users]
    try:
        access = AccessList(users, AnonymousPolicy(embedded.anonymous.value))
    except PasswordHashRefused as refused:
        raise ConfigurationInvalid([*mistakes, f"mqtt.embedded.users: {refused}"]) from None
    if mistakes:
        raise ConfigurationInvalid(mistakes)
    return Gateway(config, reactor, access, mount or {})


def _not_built(config: Config) -> Iterator[tuple[bool, str]]:
    """Yield what a configuration may ask for in vain, and how that is said."""
    yield config.mqtt.mode is MqttMode.BRIDGE, 'mqtt.mode: "bridge" is not in this version yet, only "embedded"'
    yield config.mqtt.embedded.engine is Engine.AMQTT, 'mqtt.embedded.engine: "amqtt" is not in this version yet'


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

    def __init__(self, config: Config, reactor: Any, access: AccessList, mount: Mapping[str, CoAPResource]) -> None:
        """Remember what to build."""
        super().__init__()
        self.config = config
        self._data = config.data.absolute()  # twistd changes its directory before it starts us
        self._reactor = reactor
        self._access = access
        self._mount = mount
        self._closing: list[Callable[[], object]] = []
        self.coap_ports: list[CoapPort] = []
        self.coaps_ports: list[CoapPort] = []
        self.ports: dict[str, Any] = {}

    # ------------------------------------------------------------------ start

    def startService(self) -> None:
        """Open and connect everything, and listen."""
        try:
            self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._open_storage()
            self._forget_ports()
            self._closing.append(self._forget_ports)
            self._build_mqtt()
            self._build_coap()
            self.secure = SecureCoap(self.config.coaps, self._data, self.credentials)
            self.directory.subscribe(self.secure.associations.devices_changed)
            self._build_http()
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
        """Open what must survive: devices, their keys, the spool, MQTT sessions."""
        config = self.config
        registry = open_registry(config.registry.url, self._data)
        self._closing.append(registry.close)
        self.registry = DeviceRegistry(registry, _now_ms)
        self.directory = DeviceDirectory(self.registry.changes_since)
        seal = open_seal(self._data, registry)
        self.keys = DeviceKeys(registry, seal, _now_ms)
        self.credentials = DeviceCredentials(self.directory, seal)
        self.directory.load()
        self._follower = self.directory.follow(self._reactor)
        self.last_seen = LastSeen(registry)
        for part in (self._follower, LastSeenWriter(self.last_seen, self._reactor)):
            part.setServiceParent(self)
            self._closing.append(part.disownServiceParent)  # another start makes others
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
        self.publisher = Publisher(self.spool, self._reactor, self._published)
        self._closing.append(self.publisher.stop)
        self.link = EmbeddedLink(self.broker, self.publisher, time.monotonic, lambda: self.spool.fill)
        self.link.hold(known_clients, time.monotonic())

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
        limits = config.limits
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
            heard=self.last_seen.heard,
            rates=DeviceRates(limits.device_rate, limits.device_burst, time.monotonic) if limits.device_rate else None,
        )
        thread = CallThread(self._reactor, "coapgw bootstrap")
        self._closing.append(thread.stop)
        self.bootstrap = Bootstrap(
            self.keys,
            thread.call,
            BootstrapSettings(
                networks=config.bootstrap.networks,
                terms_accepted=config.bootstrap.terms_accepted,
                rotate_after_seconds=config.bootstrap.rotate_after_seconds,
                public_url=config.coaps.public_url,
            ),
            lambda: self.coaps_ports[0].number if self.coaps_ports else COAPS_PORT,
            time.monotonic,
            # A device that asked over DTLS loses its association with its old key: the answer leaves before that.
            learn=lambda key: self._reactor.callLater(0, self.credentials.learn, key),
        )
        self.root = make_root(self.uplink, self.bootstrap)
        for segment, mounted in self._mount.items():
            self.root.putChild(segment.encode(), mounted)
        tree = ResourceSite(self.root)
        self._blockwise = BlockwiseSite(tree, BlockwiseLimits(body_bytes=config.uplink.max_payload))
        self._site: Site = FrontSite(ObserveSite(self._blockwise, tree))
        self._source_counters = SourceCounters()
        if limits.network_rate:
            rates = NetworkRates(limits.network_rate, limits.network_burst, time.monotonic)
            self._site = RatedSite(self._site, rates, self._source_counters)
        self._trusted = TrustedNetworks(config.coap.trusted_networks)
        self.layers: list[MessageLayer] = []
        self._secure_layers: list[MessageLayer] = []
        self._limits = MessagingLimits(endpoints=config.coap.max_endpoints, exchanges=config.coap.max_exchanges)

    def _layer(self, wake: Callable[[], None], local_host: Callable[[Hashable], str]) -> MessageLayer:
        peers = DevicesByAddress(self.directory)
        layer = MessageLayer(
            *(self._site, peers, SystemRandom()),
            limits=self._limits,
            wake=wake,
            local_host=local_host,
            is_proven=self._trusted.contains,
        )
        self.layers.append(layer)
        return layer

    def _secure_layer(self, wake: Callable[[], None], local_host: Callable[[Hashable], str]) -> SecureLayer:
        messages = MessageLayer(
            *(self._site, DevicesByAssociation(self.directory), SystemRandom()),
            limits=attrs.evolve(self._limits, endpoints=self.secure.endpoints),
            wake=wake,
            local_host=lambda association: local_host(getattr(association, "address", None)),
            siblings=self._secure_layers,
        )
        self.layers.append(messages)
        self._secure_layers.append(messages)
        return self.secure.layer(messages, wake)

    def _build_http(self) -> None:
        """Build the management API."""
        self.http_counters = HttpCounters()
        self.api = ManagementApi(
            self._reactor,
            open_token(self._data),
            registry=self.registry,
            keys=self.keys,
            last_seen=self.last_seen,
            now_ms=_now_ms,
            unready=self.unready,
            metrics=self._metrics_page(),
            counters=self.http_counters,
        )
        self._closing.append(self.api.stop)

    def _metrics_page(self) -> MetricsPage:
        """Return the page of every counter; a new room of the house is a line here."""
        groups = (
            CounterGroup("coap", lambda: [layer.counters for layer in self.layers]),
            CounterGroup("blockwise", lambda: [self._blockwise.counters]),
            CounterGroup("source", lambda: [self._source_counters]),
            CounterGroup("udp", lambda: [port.counters for port in self.coap_ports + self.coaps_ports]),
            CounterGroup("dtls", lambda: [self.secure.counters]),
            CounterGroup("bootstrap", lambda: [self.bootstrap.counters]),
            CounterGroup("uplink", lambda: [self.uplink.counters]),
            CounterGroup("spool", lambda: [self.spool.counters]),
            CounterGroup("mqtt", lambda: [self.broker.counters]),
            CounterGroup("http", lambda: [self.http_counters]),
        )
        gauges = (
            Gauge("ready", lambda: not self.unready()),
            Gauge("dtls_associations", lambda: len(self.secure.associations)),
            Gauge("dtls_half_open", lambda: self.secure.admission.half_open),
            Gauge("observations", lambda: sum(len(layer.notifications) for layer in self.layers)),
            Gauge("devices", lambda: len(self.directory)),
            Gauge("spool_fill_ratio", lambda: self.spool.fill),
            Gauge("mqtt_clients", lambda: self.broker.connected_clients),
            Gauge("mqtt_sessions", lambda: len(self.broker.sessions)),
        )
        return MetricsPage(groups, gauges)

    def unready(self) -> Sequence[str]:
        """Return what keeps the gateway from taking messages, a sentence each; nothing if nothing does."""
        obstacles = {
            "the gateway is stopping": not self.running,
            "the spool is full": self.spool.is_full(),
            "the disk refuses the spool's commits": not self.spool.is_healthy(),
            "the device registry cannot be read": not self._follower.is_healthy(),
        }
        return [sentence for sentence, holds in obstacles.items() if holds]

    def _listen(self) -> None:
        """Bind every socket: MQTT first, so that nothing is acknowledged before there is a way out; HTTP last."""
        config, reactor = self.config, self._reactor
        self.mqtt_ports = [self._listen_mqtt(address) for address in config.mqtt.embedded.listen]
        self.coap_ports = [self._listen_udp(address, self._layer) for address in config.coap.listen]
        self.coaps_ports = [self._listen_udp(address, self._secure_layer) for address in config.coaps.listen]
        self.secure.restore([port.number for port in self.coaps_ports])
        self.publisher.start(self.link)
        self.api.start(config.http.listen.host, config.http.listen.port)
        ticking = LoopingCall(self._tick)
        ticking.clock = reactor
        ticking.start(TICK_SECONDS, now=False)
        self._closing.append(ticking.stop)

    def _listen_udp(self, address: ListenAddress, make_layer: Callable[..., Layer]) -> CoapPort:
        host = "127.0.0.1" if address.host == "localhost" else address.host  # Twisted binds UDP to figures only
        make = partial(make_layer, local_host=local_hosts(host))
        buffer = self.config.coap.receive_buffer
        port = CoapPort(address.port, host, make, self._reactor, receive_buffer=buffer)
        port.startListening()
        self._closing.append(port.stopListening)
        return port

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
            "coaps": [port.number for port in self.coaps_ports],
            "mqtt": [_number(port) for port in self.mqtt_ports],
            "http": self.api.number,
        }
        try:
            written = self._data / "ports.json.new"
            written.write_text(json.dumps(self.ports))
            written.replace(self._data / "ports.json")
        except OSError as refused:
            self.log.error("ports.json cannot be written: {reason}", reason=refused.strerror)
        self.log.info("coapgw {version} is ready: {ports}", version=__version__, ports=json.dumps(self.ports))

    def _forget_ports(self) -> None:
        """Remove ``ports.json``; only ever done by the gateway that has the spool's lock."""
        with suppress(OSError):
            (self._data / "ports.json").unlink(missing_ok=True)

    # ------------------------------------------------------------------ while it runs

    def _published(self, place: int) -> None:
        self.uplink.published(place)

    def _tick(self) -> None:
        """Do what is to be looked at once a second."""
        self.secure.handle_timer()
        self.uplink.handle_timer()
        self.link.handle_timer()

    # ------------------------------------------------------------------ stop

    @inlineCallbacks
    def stopService(self) -> Generator[Deferred[Any], Any, None]:
        """Take nothing more in, bring what was taken to disk, publish and answer it, then close."""
        if self.running:
            for port in self.coap_ports + self.coaps_ports:
                port.stopReading()
            yield self.spool.flush().addErrback(self._not_closed)
            self.publisher.stop()
            yield self.spool.close()
            for port in self.coap_ports + self.coaps_ports:
                port.flush()
            self.secure.save([port.number for port in self.coaps_ports])
            for port in self.coaps_ports:
                port.flush()  # the farewells to those that cannot go on
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
