"""The wiring: what a gateway is made of and how a message passes through it, to be read from top to bottom.

``makeGateway`` gives a ``MultiService`` for any Twisted application.  Nothing is opened before it starts: twistd
becomes a daemon in between, and neither threads nor locks survive that.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Generator, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from random import SystemRandom
from typing import Any, Final

import attrs
from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred, DeferredList, inlineCallbacks, maybeDeferred, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from txthings.resource import CoAPResource

from coapgw import __version__
from coapgw.coap.blockwise import BlockwiseLimits, BlockwiseSite
from coapgw.coap.codec import MESSAGE_PARTS
from coapgw.coap.front import FrontSite
from coapgw.coap.messaging import MessageLayer, Site
from coapgw.coap.observing import ObserveSite
from coapgw.coap.parameters import MessagingLimits
from coapgw.coap.site import ResourceSite
from coapgw.coap.tally import TalliedSite
from coapgw.config import Config, Engine, MqttMode, PayloadForm
from coapgw.config_values import ListenAddress
from coapgw.energysaver.cbor import decode_cbor, decode_senml_cbor
from coapgw.errors import ConfigurationInvalid, StorageError
from coapgw.gateway.authorise import DevicesByAddress, DevicesByAssociation
from coapgw.gateway.bootstrap import Bootstrap, BootstrapSettings
from coapgw.gateway.envelope import MessageIds
from coapgw.gateway.rate import DeviceRates, NetworkRates
from coapgw.gateway.resources import make_root
from coapgw.gateway.sources import RatedSite, TrustedNetworks
from coapgw.gateway.uplink import Uplink, UplinkSettings
from coapgw.http.access import open_token
from coapgw.http.metrics_page import CounterGroup, Gauge, Labelled, MetricsPage
from coapgw.http.server import ManagementApi
from coapgw.interfaces import ITranslator
from coapgw.metrics import HttpCounters, SourceCounters
from coapgw.mqtt.publisher import Publisher
from coapgw.net.dtls import SecureLayer
from coapgw.net.udp import CoapPort, Layer, local_hosts
from coapgw.outlets.amqtt import InAmqtt
from coapgw.outlets.bridge import ToBroker
from coapgw.outlets.outlet import Outlet
from coapgw.outlets.own_broker import InProcess
from coapgw.secure import SecureCoap
from coapgw.storage.credentials import DeviceCredentials
from coapgw.storage.database import open_registry
from coapgw.storage.devices import DeviceRegistry
from coapgw.storage.directory import DeviceDirectory
from coapgw.storage.follower import RegistryFollower
from coapgw.storage.keys import DeviceKeys
from coapgw.storage.last_seen import LastSeen
from coapgw.storage.periodic import PeriodicWriter
from coapgw.storage.savings import TranslationCounts
from coapgw.storage.sealing import open_seal
from coapgw.storage.spool import Spool, open_spool
from coapgw.storage.templates import ActiveTemplate, TemplateRegistry
from coapgw.threads import CallThreads

TICK_SECONDS: Final = 1.0
DECODERS: Final = {60: decode_cbor, 112: decode_senml_cbor}  # by Content-Format: application/cbor, senml+cbor
COAPS_PORT: Final = 5684  # RFC 7252 section 6.2: what a coaps URL means where nothing listens here


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
    mqtt = config.mqtt
    outlet: Outlet
    if mqtt.mode is MqttMode.BRIDGE:
        outlet = ToBroker(mqtt.bridge)
    elif mqtt.embedded.engine is Engine.AMQTT:
        outlet = InAmqtt(mqtt.embedded, reactor)
    else:
        outlet = InProcess(mqtt.embedded)
    if mistakes := outlet.mistakes():
        raise ConfigurationInvalid(mistakes)
    return Gateway(config, reactor, outlet, mount or {})


def _now_ms() -> int:
    """Return the milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class Gateway(MultiService):
    """One gateway: its parts are attributes once it has started, in the order a message passes them.

    ``startService`` raises StorageError or CannotListenError if the machine will not let it, with everything closed
    again.
    """

    log = Logger()

    def __init__(self, config: Config, reactor: Any, outlet: Outlet, mount: Mapping[str, CoAPResource]) -> None:
        """Remember what to build."""
        super().__init__()
        self.config = config
        self._data = config.data.absolute()  # twistd changes its directory before it starts us
        self._reactor = reactor
        self.outlet = outlet
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
            self.publisher = Publisher(self.spool, self._reactor, self._published)
            self._closing.append(self.outlet.stop)
            self.outlet.open(self._data, self._reactor, self.publisher, lambda: self.spool.fill)
            self._closing.append(self.publisher.stop)
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
        registry = self._registry_database = open_registry(config.registry.url, self._data)
        self._closing.append(registry.close)
        self.registry = DeviceRegistry(registry, _now_ms)
        self.directory = DeviceDirectory(self.registry.changes_since)
        seal = open_seal(self._data, registry)
        self.keys = DeviceKeys(registry, seal, _now_ms)
        self.credentials = DeviceCredentials(self.directory, seal)
        self.directory.load()
        self._follower = RegistryFollower(self.directory, "devices", self._reactor)
        self.last_seen = LastSeen(registry)
        self._run(self._follower)
        self._run(PeriodicWriter(self.last_seen, "when devices were last heard is", self._reactor))
        self.spool: Spool = open_spool(self._data / "spool.db", self._reactor, config.spool.max_bytes)
        self._closing.append(self.spool.close)

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
        self._build_templates()
        thread = CallThreads(self._reactor, "coapgw bootstrap")
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
        self.root = make_root(self.uplink, self.bootstrap, DECODERS if config.uplink.decode_cbor else {})
        for segment, mounted in self._mount.items():
            self.root.putChild(segment.encode(), mounted)
        self._resources = ResourceSite(self.root)
        self._blockwise = BlockwiseSite(self._resources, BlockwiseLimits(body_bytes=config.uplink.max_payload))
        self._site: Site = FrontSite(ObserveSite(self._blockwise, self._resources))
        self._source_counters = SourceCounters()
        if limits.network_rate:
            rates = NetworkRates(limits.network_rate, limits.network_burst, time.monotonic)
            self._site = RatedSite(self._site, rates, self._source_counters)
        self._site = self._answers = TalliedSite(self._site, self.root)
        self._trusted = TrustedNetworks(config.coap.trusted_networks)
        self.layers: list[MessageLayer] = []
        self._secure_layers: list[MessageLayer] = []
        self._limits = MessagingLimits(endpoints=config.coap.max_endpoints, exchanges=config.coap.max_exchanges)

    def _build_templates(self) -> None:
        """Have the uplink translate with the template that is active, and count what that comes to."""
        self.templates = TemplateRegistry(self._registry_database, _now_ms)
        self.savings = TranslationCounts(self._registry_database, _now_ms)
        self.uplink.count = self.savings.count
        active = ActiveTemplate(self._registry_database, self._translate_with)
        active.load()
        self._templates_follower = RegistryFollower(active, "templates", self._reactor)
        self._run(self._templates_follower)
        self._run(PeriodicWriter(self.savings, "counts of translations are", self._reactor))

    def _translate_with(self, template: ITranslator | None) -> None:
        self.uplink.translator = template

    def _run(self, part: Service) -> None:
        """Have *part* run while the gateway does."""
        part.setServiceParent(self)
        self._closing.append(part.disownServiceParent)  # another start makes others

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
            wire_bytes=self.secure.associations.traffic,
            templates=self.templates,
            savings=self.savings,
            now_ms=_now_ms,
            unready=self.unready,
            metrics=self._metrics_page(),
            counters=self.http_counters,
            follow=self._follow_registry,
        )
        self._closing.append(self.api.stop)

    def _follow_registry(self) -> Deferred[None]:
        """Take in at once what the management API changed; others' changes are seen within a second."""
        devices, templates = self._follower.look_now(), self._templates_follower.look_now()
        return DeferredList([devices, templates]).addCallback(lambda _: None)

    def _metrics_page(self) -> MetricsPage:
        """Return the page of every counter; a new room of the house is a line here."""
        groups = (
            CounterGroup("coap", lambda: [self._resources.counters, *(layer.counters for layer in self.layers)]),
            CounterGroup("blockwise", lambda: [self._blockwise.counters]),
            CounterGroup("source", lambda: [self._source_counters]),
            CounterGroup("udp", lambda: [port.look_at_kernel() for port in self.coap_ports + self.coaps_ports]),
            CounterGroup("dtls", lambda: [self.secure.counters]),
            CounterGroup("bootstrap", lambda: [self.bootstrap.counters]),
            CounterGroup("uplink", lambda: [self.uplink.counters]),
            CounterGroup("spool", lambda: [self.spool.counters]),
            CounterGroup("http", lambda: [self.http_counters]),
            *self.outlet.counters(),
        )
        gauges = (
            Gauge("ready", lambda: not self.unready()),
            Gauge("dtls_associations", lambda: len(self.secure.associations)),
            Gauge("dtls_associations_with_cid", lambda: len(self.secure.associations.by_cid)),
            Gauge("dtls_half_open", lambda: self.secure.admission.half_open),
            Gauge("observations", lambda: sum(len(layer.notifications) for layer in self.layers)),
            Gauge("devices", lambda: len(self.directory)),
            Gauge("spool_fill_ratio", lambda: self.spool.fill),
            Gauge("spool_messages", lambda: self.spool.messages),
            Gauge("spool_bytes", lambda: self.spool.bytes),
            Gauge("publisher_oldest_seconds", lambda: self.publisher.oldest_seconds),
            *self.outlet.gauges(),
        )
        histograms = {
            "uplink_stored_seconds": self.spool.storing_times,
            "spool_commit_seconds": self.spool.commit_times,
            "publisher_delay_seconds": self.publisher.delays,
        }
        labelled = (
            Labelled("coap_answers", ("resource", "code"), self._answers.answered),
            Labelled("coap_malformed", ("part",), self._malformed),
        )
        return MetricsPage(groups, gauges, histograms, labelled)

    def _malformed(self) -> Iterable[tuple[str, int]]:
        """Return how many datagrams are no CoAP, by the part that is wrong."""
        return [(part, sum(layer.malformed[part] for layer in self.layers)) for part in MESSAGE_PARTS]

    def unready(self) -> Sequence[str]:
        """Return what keeps the gateway from taking messages, a sentence each; nothing if nothing does."""
        obstacles = {
            "the gateway is stopping": not self.running,
            "the spool is full": self.spool.is_full(),
            "the disk refuses the spool's commits": not self.spool.is_healthy(),
            "the spool cannot be read: messages wait on disk": not self.spool.is_readable(),
            "the device registry cannot be read": not self._follower.is_healthy(),
        }
        return [sentence for sentence, holds in obstacles.items() if holds]

    def _listen(self) -> None:
        """Bind every socket: MQTT first, so that nothing is acknowledged before there is a way out; HTTP last."""
        config, reactor = self.config, self._reactor
        self.outlet.listen()
        self.coap_ports = [self._listen_udp(address, self._layer) for address in config.coap.listen]
        self.coaps_ports = [self._listen_udp(address, self._secure_layer) for address in config.coaps.listen]
        self.secure.restore([port.number for port in self.coaps_ports])
        self.publisher.start(self.outlet.link)
        self.outlet.start()
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

    def _ready(self) -> None:
        """Write ``ports.json`` and say that the gateway is ready."""
        if not self.running:
            return  # stopped before the reactor ran
        self.ports = {
            "coap": [port.number for port in self.coap_ports],
            "coaps": [port.number for port in self.coaps_ports],
            "mqtt": self.outlet.port_numbers(),
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
        self._resources.handle_timer(time.monotonic())
        self.outlet.handle_timer()
        self.spool.look_at_requests()

    # ------------------------------------------------------------------ stop

    @inlineCallbacks
    def stopService(self) -> Generator[Deferred[Any], Any, None]:
        """Take nothing more in, bring what was taken to disk, publish and answer it, then close."""
        if self.running:
            for port in self.coap_ports + self.coaps_ports:
                port.stopReading()
            yield self.spool.flush().addErrback(self._not_closed)
            self.publisher.stop()
            yield self.outlet.drain()
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
