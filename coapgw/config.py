"""The configuration: one frozen tree, read from TOML and ``--set``, with every mistake reported at once.

A key is declared in one place, as a field of one of the sections below: its name, its default, and in its type the
reader that checks it.  ``docs/configuration.md`` and ``etc/coapgw.toml`` explain them all to an operator; a test holds
both against ``known_keys``.
"""

from __future__ import annotations

import enum
import functools
import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import attrs

from coapgw.config_reading import Source, built, file_source, leaves, override_source, record_json
from coapgw.config_text import KeyPath, Unreadable, dotted
from coapgw.config_values import (
    FileName,
    Filter,
    Flag,
    Listen,
    ListenAddress,
    Masked,
    Network,
    NotNegative,
    Positive,
    Rate,
    Wrong,
    bridge_url,
    class_name,
    client_id,
    database_url,
    directory,
    hidden,
    network,
    public_url,
    repr_without_password,
    secret,
    shown,
    table,
    topic_prefix,
    user_name,
    whole,
    without_password,
)
from coapgw.errors import ConfigurationInvalid
from coapgw.model import Acknowledge
from coapgw.mqtt.bridge import BridgeVersion


class MqttMode(enum.Enum):
    """Where messages are published."""

    EMBEDDED = "embedded"
    BRIDGE = "bridge"


class PayloadForm(enum.Enum):
    """What the payload of a published message is."""

    ENVELOPE = "envelope"
    RAW = "raw"


class Engine(enum.Enum):
    """Which embedded broker runs."""

    TWISTED = "twisted"
    AMQTT = "amqtt"


class Anonymous(enum.Enum):
    """Where the embedded broker takes clients without a name."""

    LOOPBACK = "loopback"
    NO = "no"
    YES = "yes"


def bridge_version(value: object) -> BridgeVersion:
    """Read a version of MQTT; the number 5 is taken for its text, which ``--set`` cannot tell from it."""
    try:
        return BridgeVersion("5" if value == 5 and not isinstance(value, bool) else value)
    except ValueError:
        raise Wrong('one of "auto", "5", "3.1.1"') from None


@attrs.frozen
class CoapSection:
    """Plain CoAP; *max_exchanges* bounds the deduplication table, *receive_buffer* is SO_RCVBUF in bytes.

    In *trusted_networks* nobody can forge a source address.
    """

    listen: tuple[Listen, ...] = (ListenAddress("0.0.0.0", 5683),)
    max_endpoints: Positive = 100_000
    max_exchanges: Positive = 4_000_000
    receive_buffer: Annotated[int, whole(4096, 1 << 30)] = 4 << 20
    trusted_networks: tuple[Annotated[Network, network], ...] = ()


@attrs.frozen
class CoapsSection:
    """CoAP over DTLS."""

    listen: tuple[Listen, ...] = (ListenAddress("0.0.0.0", 5684),)
    public_url: Annotated[str, public_url] = ""
    max_handshakes: NotNegative = 1000
    handshakes_per_second: NotNegative = 1000
    max_associations: Positive = 200_000
    max_cbc_associations: Positive = 10_000
    idle_seconds: Positive = 604_800
    mtu: Annotated[int, whole(256, 65507)] = 1280  # from OpenSSL's least to the largest UDP payload over IPv4
    cid_length: Annotated[int, whole(0, 20)] = 6
    node: Annotated[int, whole(0, 255)] = 0


@attrs.frozen
class HttpSection:
    """The management API."""

    listen: Listen = ListenAddress("127.0.0.1", 8080)  # noqa: RUF009 - it is frozen


@attrs.frozen
class MqttUser:
    """A client of the embedded broker that has a name; its filters say what it may do, none: nothing."""

    name: Annotated[str, user_name]
    password: Annotated[str, secret, Masked(hidden)] = attrs.field(repr=False)
    publish: tuple[Filter, ...] = ()
    subscribe: tuple[Filter, ...] = ()


@attrs.frozen
class AmqttPlugin:
    """A plugin of aMQTT's, by its class; its options may hold secrets."""

    name: Annotated[str, class_name]
    options: Annotated[Mapping[str, object], table, Masked(hidden)] = attrs.field(factory=dict, repr=False)


@attrs.frozen
class EmbeddedSection:
    """The broker in this process; *max_packet* in bytes, *max_queue* messages a client, *connect_timeout* seconds.

    *cert_file* and *key_file* are PEM; the key may be in *cert_file* too.  *max_keepalive* is in seconds.
    """

    engine: Engine = Engine.TWISTED
    listen: tuple[Listen, ...] = (ListenAddress("127.0.0.1", 1883),)
    tls_listen: tuple[Listen, ...] = ()
    websocket_listen: tuple[Listen, ...] = ()
    websocket_tls_listen: tuple[Listen, ...] = ()
    cert_file: FileName = ""
    key_file: FileName = ""
    anonymous: Anonymous = Anonymous.LOOPBACK
    users: tuple[MqttUser, ...] = ()
    max_packet: Annotated[int, whole(16, 268_435_460)] = 262_144  # a CONNECT; the largest, MQTT 3.1.1 section 2.2.3
    max_queue: Positive = 10_000
    max_connections: Positive = 10_000
    connect_timeout: Positive = 10
    max_keepalive: Annotated[int, whole(1, 65_535)] = 65_535
    plugins: tuple[AmqttPlugin, ...] = ()


@attrs.frozen
class BridgeSection:
    """Another broker; *url* is empty or begins with ``mqtt:`` or ``mqtts:``.

    Files are PEM; *key_file* may be empty if the key is in *cert_file*.  *window* is in messages, *keepalive* and
    *expiry_seconds* may be 0 for none.
    """

    url: Annotated[str, bridge_url, Masked(without_password)] = attrs.field(default="", repr=repr_without_password)
    version: Annotated[BridgeVersion, bridge_version] = BridgeVersion.AUTO
    client_id: Annotated[str, client_id] = ""
    clean_session: Flag = False
    password_file: FileName = ""
    ca_file: FileName = ""
    cert_file: FileName = ""
    key_file: FileName = ""
    verify: Flag = True
    keepalive: Annotated[int, whole(0, 65_535)] = 60  # MQTT 3.1.1 section 3.1.2.10
    window: Annotated[int, whole(1, 10_000)] = 400
    expiry_seconds: Annotated[int, whole(0, 0xFFFF_FFFF)] = 0  # MQTT 5 section 3.3.2.3.3


@attrs.frozen
class MqttSection:
    """What is published, and where."""

    mode: MqttMode = MqttMode.EMBEDDED
    topic_prefix: Annotated[str, topic_prefix] = ""
    payload: PayloadForm = PayloadForm.ENVELOPE
    embedded: EmbeddedSection = EmbeddedSection()
    bridge: BridgeSection = BridgeSection()


@attrs.frozen
class UplinkSection:
    """Messages of devices; *max_payload* in bytes, block-wise included."""

    acknowledge: Acknowledge = Acknowledge.STORED
    max_payload: Annotated[int, whole(1, 128 << 20)] = 65_536  # in base64 it still has to fit an MQTT packet
    decode_cbor: Flag = True


@attrs.frozen
class SpoolSection:
    """Messages on disk; *max_bytes* of them at most."""

    max_bytes: Positive = 1 << 30


@attrs.frozen
class RegistrySection:
    """The database of devices; an empty *url* is SQLite in the data directory."""

    url: Annotated[str, database_url, Masked(without_password)] = attrs.field(default="", repr=repr_without_password)


@attrs.frozen
class BootstrapSection:
    """How a device gets its key."""

    networks: tuple[Annotated[Network, network], ...] = (
        ipaddress.IPv4Network("0.0.0.0/0"),
        ipaddress.IPv6Network("::/0"),
    )
    terms_accepted: Flag = True
    rotate_after_seconds: NotNegative = 300


@attrs.frozen
class LimitsSection:
    """What one device, and one source network, may send: messages per second, 0 is no limit, and how many at once."""

    device_rate: Rate = 0
    device_burst: NotNegative = 0
    network_rate: Rate = 0
    network_burst: NotNegative = 0


@attrs.frozen
class Config:
    """Everything an operator can decide; *data* is the directory of all that must survive.

    ``load`` makes one and checks it; one that is built by hand is as good as the values it is given.
    """

    data: Annotated[Path, directory] = Path("coapgw-data")
    coap: CoapSection = CoapSection()
    coaps: CoapsSection = CoapsSection()
    http: HttpSection = HttpSection()
    mqtt: MqttSection = MqttSection()
    uplink: UplinkSection = UplinkSection()
    spool: SpoolSection = SpoolSection()
    registry: RegistrySection = RegistrySection()
    bootstrap: BootstrapSection = BootstrapSection()
    limits: LimitsSection = LimitsSection()


def load(path: Path | None, overrides: Sequence[str] = (), data: Path | None = None) -> Config:
    """Return the configuration in the file *path*, or all defaults for None.

    Args:
        path: a TOML file.
        overrides: ``SECTION.KEY=VALUE``, stronger than the file; a later one is stronger than an earlier one.
        data: the data directory, stronger than both.

    Raises ConfigurationInvalid with all mistakes: those of the file by line, those of the overrides in their order,
    then what does not go together.
    """
    openers = [functools.partial(file_source, Config, path)] if path is not None else []
    openers += [functools.partial(override_source, Config, word) for word in overrides]
    values: dict[KeyPath, object] = {}
    sources: list[Source] = []
    mistakes: list[str] = []
    for opened in openers:
        try:
            source = opened()
        except Unreadable as unreadable:
            mistakes.append(str(unreadable))
        else:
            sources.append(source)
            mistakes += source.read_into(values)
    if data is not None:
        values["data",] = data
    config = built(Config, (), values)
    if len(sources) == len(openers):  # otherwise what is missing may be in what could not be read
        mistakes += _contradictions(config, sources)
    if mistakes:
        raise ConfigurationInvalid(mistakes)
    return config


def known_keys() -> tuple[str, ...]:
    """Return every key there is, dotted, in the order of the documentation."""
    return tuple(dotted(path) for path in leaves(Config))


def as_json(config: Config) -> dict[str, object]:
    """Return the tree as JSON objects: text, numbers and lists as the file would have them, secrets masked."""
    return record_json(config)


def _contradictions(config: Config, sources: Sequence[Source]) -> Iterator[str]:
    """Yield a sentence for each set of keys that do not go together, unless one of them is wrong by itself."""
    for keys, sentence in _disagreements(config):
        paths: list[KeyPath] = [tuple(key.split(".")) for key in keys]
        if any(source.complained(path) for source in sources for path in paths):
            continue
        blamed = ((source, path) for path in paths for source in reversed(sources) if path in source.given)
        source, path = next(blamed, (None, paths[0]))
        yield f"{source.places(path)[1] if source else dotted(path)}: {sentence}"


def _disagreements(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the keys that disagree, the one to blame first, and why."""
    mqtt = config.mqtt
    if mqtt.mode is MqttMode.BRIDGE and not mqtt.bridge.url:
        yield ("mqtt.mode", "mqtt.bridge.url"), '"bridge" needs mqtt.bridge.url, the address of a broker'
    yield from _bridge_disagreements(mqtt.bridge)
    names = [user.name for user in mqtt.embedded.users]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield ("mqtt.embedded.users",), f"two users are called {shown(name)}"
    yield from _listens_twice({"coap.listen": config.coap.listen, "coaps.listen": config.coaps.listen})
    tcp: dict[str, Sequence[ListenAddress]] = {"http.listen": (config.http.listen,)}
    if mqtt.mode is MqttMode.EMBEDDED:
        yield from _embedded_disagreements(mqtt.embedded)
        for name in ("listen", "tls_listen", "websocket_listen", "websocket_tls_listen"):
            tcp[f"mqtt.embedded.{name}"] = getattr(mqtt.embedded, name)
    yield from _listens_twice(tcp)


def _embedded_disagreements(broker: EmbeddedSection) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield what does not go together in the broker's listeners."""
    for name in ("tls_listen", "websocket_tls_listen"):
        if getattr(broker, name) and not broker.cert_file:
            yield (f"mqtt.embedded.{name}", "mqtt.embedded.cert_file"), "TLS needs mqtt.embedded.cert_file"
    if broker.plugins and broker.engine is not Engine.AMQTT:
        yield ("mqtt.embedded.plugins", "mqtt.embedded.engine"), 'plugins need mqtt.embedded.engine = "amqtt"'
    if broker.key_file and not broker.cert_file:
        yield ("mqtt.embedded.key_file", "mqtt.embedded.cert_file"), "a key needs mqtt.embedded.cert_file"


def _bridge_disagreements(bridge: BridgeSection) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield what does not go together in the way to another broker."""
    user, _, password = bridge.url.rpartition("@")[0].partition("://")[2].partition(":")
    if bridge.password_file and password:
        yield ("mqtt.bridge.password_file", "mqtt.bridge.url"), "mqtt.bridge.url holds a password already"
    elif bridge.password_file and not user:
        yield ("mqtt.bridge.password_file", "mqtt.bridge.url"), "a password needs a user name in mqtt.bridge.url"
    if bridge.key_file and not bridge.cert_file:
        yield ("mqtt.bridge.key_file", "mqtt.bridge.cert_file"), "a key needs its certificate in mqtt.bridge.cert_file"
    if not bridge.url.startswith("mqtts:"):
        for name in ("ca_file", "cert_file", "key_file"):
            if getattr(bridge, name):
                yield (f"mqtt.bridge.{name}", "mqtt.bridge.url"), 'only a mqtt.bridge.url of "mqtts://…" uses TLS'
                return
    elif bridge.ca_file and not bridge.verify:
        yield ("mqtt.bridge.verify", "mqtt.bridge.ca_file"), "mqtt.bridge.ca_file is of no use if nothing is verified"


def _listens_twice(listens: Mapping[str, Sequence[ListenAddress]]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the keys that give one address, with a port that is not 0, twice."""
    taken: dict[ListenAddress, str] = {}
    for key, addresses in listens.items():
        for address in addresses:
            if address.port and address in taken:
                by = taken[address]
                yield (key, by), f"{address} is there twice" if by == key else f"{address} is in {by} and in {key}"
            taken[address] = key
