"""The configuration: defaults, every kind of mistake with its place, secrets, and the pages that explain it."""

from __future__ import annotations

import ipaddress
import json
import re
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coapgw.config import (
    Anonymous,
    Config,
    EmbeddedSection,
    Engine,
    MqttMode,
    MqttSection,
    MqttUser,
    PayloadForm,
    as_json,
    known_keys,
    load,
)
from coapgw.config_values import ListenAddress
from coapgw.errors import ConfigurationInvalid
from coapgw.model import Acknowledge

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "etc" / "coapgw.toml"
PAGE = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
Write: TypeAlias = Callable[[str | bytes], Path]
PASSWORD = "hunter2-S3CRET"


def mistakes_of(path: Path | None, *overrides: str) -> list[str]:
    with pytest.raises(ConfigurationInvalid) as caught:
        load(path, overrides)
    return caught.value.mistakes


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write ``x.toml`` into the directory the test runs in, so that sentences begin with ``x.toml``."""
    monkeypatch.chdir(tmp_path)

    def write_file(text: str | bytes) -> Path:
        Path("x.toml").write_bytes(text.encode() if isinstance(text, str) else text)
        return Path("x.toml")

    return write_file


def leaf(config: object, key: str) -> object:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def plain(config: Config, key: str) -> object:
    value: object = as_json(config)
    for name in key.split("."):
        assert isinstance(value, dict)
        value = value[name]
    return value


# Defaults and the pages that show them


def test_without_file_everything_has_its_default() -> None:
    assert load(None) == Config()


def test_the_shipped_file_shows_every_key_and_loads_to_the_defaults() -> None:
    assert load(SHIPPED) == Config()
    document: object = tomllib.loads(SHIPPED.read_text(encoding="utf-8"))
    for key in known_keys():
        value = document
        for name in key.split("."):
            assert isinstance(value, dict)
            assert name in value, key
            value = value[name]
        assert value == plain(Config(), key)


def test_the_shipped_file_explains_every_key() -> None:
    previous = ""
    for line in SHIPPED.read_text(encoding="utf-8").splitlines():
        if re.match(r"\w+ = ", line):
            assert previous.startswith("# "), line
        previous = line


def test_the_page_lists_every_key_with_its_default_and_no_other() -> None:
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| `([^`]*)` \|", PAGE, re.MULTILINE))
    assert list(rows) == list(known_keys())
    for key, default in rows.items():
        assert tomllib.loads(f"value = {default}")["value"] == plain(Config(), key), key


def test_the_pages_example_of_users_loads(write: Write) -> None:
    example, _ = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    users = load(write(example)).mqtt.embedded.users
    assert [user.name for user in users] == ["dashboard", "backend"]
    assert users[0].publish == ()


def test_the_pages_example_of_mistakes_is_what_is_said(write: Write) -> None:
    _, example = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (said,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    found = mistakes_of(write(example), "coaps.cid_length=21")
    assert "\n".join(found).replace("x.toml", "coapgw.toml") + "\n" == said


def test_a_key_has_the_same_name_in_the_tree() -> None:
    for key in known_keys():
        leaf(Config(), key)
    assert len(known_keys()) == len(set(known_keys())) > 30


# What is taken


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("data=/var/lib/coapgw", "data", Path("/var/lib/coapgw")),
        ('coap.listen=["127.0.0.1:0"]', "coap.listen", (ListenAddress("127.0.0.1", 0),)),
        ('coap.listen=["[::]:5683"]', "coap.listen", (ListenAddress("::", 5683),)),
        ('coap.listen=["[0:0::1]:5"]', "coap.listen", (ListenAddress("::1", 5),)),
        ('coap.listen=["[fe80::1%eth0]:5"]', "coap.listen", (ListenAddress("fe80::1%eth0", 5),)),
        ('coap.listen=["localhost:65535"]', "coap.listen", (ListenAddress("localhost", 65535),)),
        ("coap.listen=[]", "coap.listen", ()),
        ("coap.listen=[ ] # none", "coap.listen", ()),
        ("coap.max_exchanges=1_000", "coap.max_exchanges", 1000),
        ("coap.max_endpoints=0x10", "coap.max_endpoints", 16),
        ("coaps.public_url=coaps://gw.example.net:5684", "coaps.public_url", "coaps://gw.example.net:5684"),
        ("coaps.public_url=coaps://[2001:db8::1]", "coaps.public_url", "coaps://[2001:db8::1]"),
        ("coaps.max_handshakes=0", "coaps.max_handshakes", 0),
        ("coaps.cid_length=20", "coaps.cid_length", 20),
        ("coaps.mtu=256", "coaps.mtu", 256),
        ("http.listen=[::1]:8080", "http.listen", ListenAddress("::1", 8080)),
        ('mqtt.mode="embedded"', "mqtt.mode", MqttMode.EMBEDDED),
        ("mqtt.payload=raw", "mqtt.payload", PayloadForm.RAW),
        ("mqtt.topic_prefix=", "mqtt.topic_prefix", ""),
        ("mqtt.topic_prefix=fleet/a=b/", "mqtt.topic_prefix", "fleet/a=b/"),
        ("mqtt.topic_prefix='42'", "mqtt.topic_prefix", "42"),
        ("mqtt.topic_prefix=Gerät/", "mqtt.topic_prefix", "Gerät/"),
        ("mqtt.embedded.anonymous=no", "mqtt.embedded.anonymous", Anonymous.NO),
        ("mqtt.embedded={anonymous='yes'}", "mqtt.embedded.anonymous", Anonymous.YES),
        ("mqtt.embedded.engine=amqtt", "mqtt.embedded.engine", Engine.AMQTT),
        ("mqtt.bridge.url=mqtts://u:p%40@[::1]:8883/", "mqtt.bridge.url", "mqtts://u:p%40@[::1]:8883/"),
        ("uplink.acknowledge=published", "uplink.acknowledge", Acknowledge.PUBLISHED),
        ("registry.url=sqlite:///x.db", "registry.url", "sqlite:///x.db"),
        ("registry.url=postgresql+psycopg://h/d", "registry.url", "postgresql+psycopg://h/d"),
        ('bootstrap.networks=["10.0.0.1"]', "bootstrap.networks", (ipaddress.ip_network("10.0.0.1/32"),)),
        ("bootstrap.terms_accepted=false", "bootstrap.terms_accepted", False),
        ("limits.device_rate=0.5", "limits.device_rate", 0.5),
        ("limits.device_rate=7", "limits.device_rate", 7),
        ("limits.network_rate=0.5", "limits.network_rate", 0.5),
        ('coap.trusted_networks=["10.0.0.0/8"]', "coap.trusted_networks", (ipaddress.ip_network("10.0.0.0/8"),)),
    ],
)
def test_a_right_value_is_taken(override: str, key: str, value: object) -> None:
    config = load(None, [override])
    assert leaf(config, key) == value
    section, _, _ = key.partition(".")
    assert attrs.evolve(config, **{section: getattr(Config(), section)}) == Config()  # and nothing else has changed


def test_the_order_of_strength_is_data_option_later_set_earlier_set_file(write: Write) -> None:
    path = write('data = "file"\nspool.max_bytes = 1\nuplink.max_payload = 1\n')
    config = load(path, ["spool.max_bytes=2", "spool.max_bytes=3", "data=set"], Path("option"))
    assert (config.data, config.spool.max_bytes, config.uplink.max_payload) == (Path("option"), 3, 1)


def test_a_set_section_leaves_the_files_other_keys(write: Write) -> None:
    embedded = load(write("[mqtt.embedded]\nmax_queue = 5"), ["mqtt.embedded={max_packet=99}"]).mqtt.embedded
    assert (embedded.max_queue, embedded.max_packet) == (5, 99)


def test_the_same_port_is_no_contradiction_if_it_is_chosen_or_of_another_protocol() -> None:
    load(None, ['coap.listen=["127.0.0.1:0", "127.0.0.1:0"]', "http.listen=0.0.0.0:5683"])
    load(None, ["mqtt.mode=bridge", "mqtt.bridge.url=mqtt://h", "http.listen=127.0.0.1:1883"])


def test_a_byte_order_mark_and_crlf_are_taken(write: Write) -> None:
    assert load(write(b"\xef\xbb\xbf[spool]\r\nmax_bytes = 5\r\n")).spool.max_bytes == 5


# What is refused: one value at a time

LISTEN = 'expected an address and port such as "127.0.0.1:5683" or "[::]:5683", got '
BRIDGE = 'expected mqtt://user:password@host:1883 or mqtts://…, or "", got text that is not shown; '


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("coap.listne=[]", "--set coap.listne=…: no such key; did you mean coap.listen?"),
        ("mqtt.anonymous=no", "--set mqtt.anonymous=…: no such key; did you mean mqtt.embedded.anonymous?"),
        ("max_bytes=5", "--set max_bytes=…: no such key; did you mean spool.max_bytes?"),
        ("zzz=5", "--set zzz=…: no such key"),
        ("data.x=5", "--set data.x=…: no such key; did you mean data?"),
        ("=5", "--set =…: no such key"),
        ("coap..listen=5", "--set coap..listen=…: no such key; did you mean coap.listen?"),
        ("coap.listen", "--set coap.listen…: expected SECTION.KEY=VALUE"),
        ("", "--set …: expected SECTION.KEY=VALUE"),
        ("coap=5", "--set coap=…: expected a table of keys, got a whole number"),
        ("data=''", '--set data=…: expected the name of a directory, got ""'),
        ("data=5", "--set data=…: expected the name of a directory, got 5"),
        ("mqtt.embedded.max_queue=many", "expected a whole number, at least 1, got \"many\""),
        ("mqtt.embedded.max_queue=true", "expected a whole number, at least 1, got true"),
        ("mqtt.embedded.max_queue=1.0", "expected a whole number, at least 1, got 1.0"),
        ("mqtt.embedded.max_queue=0", "expected a whole number, at least 1, got 0"),
        ("mqtt.embedded.max_queue=-1", "expected a whole number, at least 1, got -1"),
        ("mqtt.embedded.max_queue=[]", "expected a whole number, at least 1, got a list"),
        ("mqtt.embedded.max_queue={}", "expected a whole number, at least 1, got a table"),
        ("mqtt.embedded.max_queue=2026-11-23", "expected a whole number, at least 1, got a date or time"),
        ("mqtt.embedded.max_queue=0x" + "f" * 9999, "at least 1, got a number out of all bounds"),
        ("coaps.cid_length=21", "expected a whole number from 0 to 20, got 21"),
        ("coaps.mtu=255", "expected a whole number from 256 to 65507, got 255"),
        ("coaps.max_handshakes=-1", "expected a whole number, at least 0, got -1"),
        ("coap.receive_buffer=0", "expected a whole number from 4096 to 1073741824, got 0"),
        ("limits.device_rate=nan", "expected a number, at least 0, got nan"),
        ("limits.device_rate=inf", "expected a number, at least 0, got inf"),
        ("limits.device_rate=-0.1", "expected a number, at least 0, got -0.1"),
        ("limits.device_rate=true", "expected a number, at least 0, got true"),
        ("bootstrap.terms_accepted=1", "expected true or false, got 1"),
        ("bootstrap.terms_accepted=True", 'expected true or false, got "True"'),
        ("mqtt.mode=both", 'expected one of "embedded", "bridge", got "both"'),
        ("mqtt.embedded.anonymous=false", 'expected one of "loopback", "no", "yes", got false'),
        ("http.listen=8080", LISTEN + "8080"),
        ("http.listen=127.0.0.1", LISTEN + '"127.0.0.1"; the port is missing'),
        ("http.listen=127.0.0.1:", LISTEN + '"127.0.0.1:"; a port is a number from 0 to 65535'),
        ("http.listen=127.0.0.1:65536", LISTEN + '"127.0.0.1:65536"; a port is a number from 0 to 65535'),
        ("http.listen=127.0.0.1:-1", LISTEN + '"127.0.0.1:-1"; a port is a number from 0 to 65535'),
        ("http.listen=127.0.0.1:٣", LISTEN + '"127.0.0.1:٣"; a port is a number from 0 to 65535'),
        ("http.listen=:80", LISTEN + '":80"; the host is an IP address in figures, or localhost'),
        ("http.listen=x.org:80", LISTEN + '"x.org:80"; the host is an IP address in figures, or localhost'),
        ("http.listen=::1:80", LISTEN + '"::1:80"; an IPv6 address, and only one, stands in brackets'),
        ("http.listen=[1.2.3.4]:80", LISTEN + '"[1.2.3.4]:80"; an IPv6 address, and only one, stands in brackets'),
        ("coap.listen=127.0.0.1:5683", 'expected a list, got "127.0.0.1:5683"'),
        (
            "coap.listen=[127.0.0.1:5683]",
            'expected a list, got "[127.0.0.1:5683]"; where a shell takes the quotes away, put the whole word in single'
            " quotes",
        ),
        ("coap.listen=[5]", f"--set coap.listen=…: coap.listen[0]: {LISTEN}5"),
        ('mqtt.topic_prefix="a/#"', 'without "+" and "#", at most 1024 bytes, got "a/#"'),
        ('mqtt.topic_prefix="a\\u0000"', 'got "a\\u0000"; it holds NUL or what is no UTF-8'),
        ("mqtt.topic_prefix=a\udcff", 'got "a\\udcff"; it holds NUL or what is no UTF-8'),
        ("mqtt.topic_prefix=" + "ä" * 513, f'at most 1024 bytes, got "{"ä" * 60}…"'),
        ("mqtt.topic_prefix=42", "got 42"),
        ("coaps.public_url=https://x", 'expected a URL such as "coaps://gateway.example.net:5684", or "", got "https://x"'),
        ("coaps.public_url=coaps://x,y", "printable ASCII, no space, no comma"),
        ("coaps.public_url=coaps://x:0", "it needs a host, no port 0, and no blanks"),
        ("coaps.public_url=coaps://", "it needs a host, no port 0, and no blanks"),
        ("mqtt.bridge.url=http://x", BRIDGE + "the scheme is mqtt or mqtts"),
        ("mqtt.bridge.url=x:1883", BRIDGE + "it needs a host, no port 0, and no blanks"),
        ("mqtt.bridge.url=mqtt://x/topic", BRIDGE + "nothing follows the port"),
        ("mqtt.bridge.url=mqtt://x:70000", BRIDGE + "host or port is malformed"),
        ("mqtt.bridge.url=mqtt://[x", BRIDGE + "host or port is malformed"),
        ("mqtt.bridge.url=mqtt://:p@x", BRIDGE + "a password needs a user name"),
        ("mqtt.bridge.url=5", 'got a whole number that is not shown'),
        ("registry.url=coapgw.db", 'expected a database URL such as "postgresql+psycopg://user:password@host/name"'),
        ('bootstrap.networks=["10.1.0.0/8"]', 'got "10.1.0.0/8"; this is an address in 10.0.0.0/8'),
        ('bootstrap.networks=["10.0.0.0/33"]', 'bootstrap.networks[0]: expected a network such as "10.0.0.0/8"'),
        ("bootstrap.networks=[10]", "got 10"),
        ("mqtt.embedded.users=[1]", "users[0]: expected a table with name, password, publish, subscribe, got a whole"),
        ("mqtt.embedded.users=x", "--set mqtt.embedded.users=…: expected a list of tables, got text"),
        ('mqtt.embedded.users=[{password="x"}]', "mqtt.embedded.users[0]: name is missing"),
        ('mqtt.embedded.users=[{name="", password="x"}]', "users[0].name: expected 1 to 256 printable characters"),
        ('mqtt.embedded.users=[{name="x", password=""}]', "password: expected text that is not empty"),
        ('mqtt.embedded.users=[{name="x", password="x", publish=["a+"]}]', 'users[0].publish[0]: expected an MQTT'),
        ('mqtt.embedded.users=[{name="x", password="x", publish=[""]}]', 'got ""; it has 1 to 65535 bytes'),
        ('mqtt.embedded.users=[{name="x", password="x"}, {name="x", password="y"}]', 'two users are called "x"'),
        ("mqtt.mode=bridge", '--set mqtt.mode=…: "bridge" needs mqtt.bridge.url, the address of a broker'),
        ('coap.listen=["127.0.0.1:5", "127.0.0.1:5"]', "--set coap.listen=…: 127.0.0.1:5 is there twice"),
        ('coap.listen=["0.0.0.0:5684"]', "--set coap.listen=…: 0.0.0.0:5684 is in coap.listen and in coaps.listen"),
        ("http.listen=127.0.0.1:1883", "127.0.0.1:1883 is in http.listen and in mqtt.embedded.listen"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_sentence(override: str, sentence: str) -> None:
    (mistake,) = mistakes_of(None, override)
    assert sentence in mistake
    assert mistake.startswith("--set ")
    assert mistake.isprintable()


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        ("[coap\n", ["x.toml:1: Expected ']' at the end of a table declaration, column 6"]),
        ("a = 1\na = 2\nb = 3", ["x.toml:2: Cannot overwrite a value, column 6"]),
        ("[coap]\nlisten = [\n", ["x.toml:2: Invalid value (at end of document)"]),
        ("spool.max_bytes = " + "9" * 5000, ["x.toml: a number has too many digits"]),
        ("a = " + "[" * 5000, ["x.toml: nested too deeply"]),
        (b"[coap]\n# \xff\n", ["x.toml:2: not UTF-8: byte 0xff"]),
        (b"#" * 1_100_000, ["x.toml: too large, a configuration has at most 1048576 bytes"]),
        ("coap = 5", ["x.toml:1: coap: expected a table of keys, got a whole number"]),
        ("\n[cop]\nlisten = []", ["x.toml:2: cop: no such key; did you mean coap?"]),
        ("[coap]\n'a b\u202e' = 1", ['x.toml:2: coap."a b\\u202e": no such key']),
        ("[[coap]]\nlisten = []", ["x.toml:1: coap: expected a table of keys, got a list"]),
        (
            "# first\n\nspool.max_bytes = 0 # none\n[uplink]\n\n# more\n"
            "max_payload = [\n 1,\n]\nacknowledge = '''\n'''\n",
            [
                "x.toml:3: spool.max_bytes: expected a whole number, at least 1, got 0",
                "x.toml:7: uplink.max_payload: expected a whole number from 1 to 134217728, got a list",
                'x.toml:10: uplink.acknowledge: expected one of "stored", "published", "received", got ""',
            ],
        ),
        (
            "[[mqtt.embedded.users]]\nname='a'\npassword='b'\n[mqtt]\nmode='bridge'\n"
            "[[mqtt.embedded.users]]\nname=5\npassword=6\n",
            [
                "x.toml:7: mqtt.embedded.users[1].name: expected 1 to 256 printable characters, got 5",
                "x.toml:8: mqtt.embedded.users[1].password: expected text, got a whole number that is not shown",
                'x.toml:5: mqtt.mode: "bridge" needs mqtt.bridge.url, the address of a broker',
            ],
        ),
    ],
)
def test_a_mistake_in_a_file_has_its_line(write: Write, text: str | bytes, mistakes: list[str]) -> None:
    assert mistakes_of(write(text)) == mistakes


def test_files_that_cannot_be_read_are_mistakes(tmp_path: Path) -> None:
    assert mistakes_of(tmp_path / "none.toml") == [f"{tmp_path}/none.toml: cannot be read: No such file or directory"]
    assert mistakes_of(tmp_path) == [f"{tmp_path}: cannot be read: Is a directory"]
    assert mistakes_of(Path("a\0b")) == ['"a\\u0000b": not the name of a file']
    assert mistakes_of(Path("/dev/zero")) == ["/dev/zero: too large, a configuration has at most 1048576 bytes"]


def test_every_mistake_is_reported_at_once_in_order(write: Write) -> None:
    path = write("http.listen = 1\ncoap.listen = ['a', 'b']\nx = 1\n")
    found = mistakes_of(path, "coap.max_endpoints=0", "z", "y=1", "mqtt.mode=bridge")
    assert [mistake.split(": ")[0] for mistake in found] == [
        "x.toml:1", "x.toml:2", "x.toml:2", "x.toml:3", "--set coap.max_endpoints=…", "--set z…", "--set y=…",
    ]  # fmt: skip
    assert len(mistakes_of(Path("missing.toml"), "coap.max_endpoints=0", "y=1")) == 3


def test_what_is_wrong_by_itself_contradicts_nothing(write: Write) -> None:
    assert len(mistakes_of(write("mqtt.mode = 'bridge'\nmqtt.bridge.url = 'http://x'"))) == 1
    assert len(mistakes_of(write("mqtt.bridge = 'mqtt://x'"), "mqtt.mode=bridge")) == 1
    assert len(mistakes_of(Path("missing.toml"), "mqtt.mode=bridge")) == 1  # the missing file may have the URL


# Secrets


@pytest.mark.parametrize(
    "override",
    [
        f"mqtt.bridge.url=http://u:{PASSWORD}@x",
        f"mqtt.bridge.url=mqtt://u:{PASSWORD}/@x",
        f"mqtt.bridge.url=mqtt://u:{PASSWORD}@x:99999",
        f"mqtt.bridge.url=mqtt://u:{PASSWORD}#@x",
        f"mqtt.bridge.url=mqtt://u:{PASSWORD}@[x",
        f"mqtt.bridge=mqtt://u:{PASSWORD}@x",
        f"mqtt=mqtt://u:{PASSWORD}@x",
        f"mqtt.bridge.url:mqtt://u:{PASSWORD}@x",
        f"mqtt.bridge.url mqtt://u:{PASSWORD}=@x",
        f"mqtt.bridge.ulr=mqtt://u:{PASSWORD}@x",
        f"registry.url=//u:{PASSWORD}@x",
        f"mqtt.embedded.users={PASSWORD}",
        f'mqtt.embedded.users=["{PASSWORD}"]',
        f'mqtt.embedded.users=[{{name="x", password=["{PASSWORD}"]}}]',
        f'mqtt.embedded.users=[{{name="x", password="{PASSWORD}\\u0000"}}]',
        f'mqtt.embedded.users=[{{name="x", pasword="{PASSWORD}"}}]',
        f'mqtt.embedded.users=[{{name="", password="{PASSWORD}"}}]',
        f'mqtt.embedded.users={{name="x", password="{PASSWORD}"}}',
    ],
)
def test_no_mistake_shows_a_password(override: str) -> None:
    assert PASSWORD not in "\n".join(mistakes_of(None, override))


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        (f"mqtt://u:{PASSWORD}@x:1", "mqtt://u:***@x:1"),
        (f"mqtt://{PASSWORD}@x", "mqtt://***@x"),
        (f"mqtt://u:{PASSWORD}%2F@x", "mqtt://u:***@x"),
        ("mqtt://x:1", "mqtt://x:1"),
        ("", ""),
    ],
)
def test_a_bridges_password_is_masked(url: str, masked: str) -> None:
    config = load(None, [f"mqtt.bridge.url={url}"])
    assert config.mqtt.bridge.url == url
    assert plain(config, "mqtt.bridge.url") == masked
    assert repr(masked) in repr(config)
    assert PASSWORD not in repr(config)


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        (f"postgresql://u:{PASSWORD}@h/d", "postgresql://u:***@h/d"),
        (f"postgresql://u:a@{PASSWORD}/?@h/d", "postgresql://u:***@h/d"),
        (f"postgresql://h/d?user=u&password={PASSWORD}", "postgresql://h/d?user=***&password=***"),
        ("sqlite:////var/lib/x.db", "sqlite:////var/lib/x.db"),
    ],
)
def test_a_databases_password_is_masked(url: str, masked: str) -> None:
    config = load(None, [f"registry.url={url}"])
    assert config.registry.url == url
    assert plain(config, "registry.url") == masked
    assert PASSWORD not in repr(config)


def test_a_users_password_is_in_neither_repr_nor_json() -> None:
    user = MqttUser("dashboard", PASSWORD, subscribe=("#",))
    config = Config(mqtt=MqttSection(embedded=EmbeddedSection(users=(user,))))
    assert PASSWORD not in repr(config)
    assert plain(config, "mqtt.embedded.users") == [
        {"name": "dashboard", "password": "***", "publish": [], "subscribe": ["#"]}
    ]


def test_json_of_a_configuration_is_json_and_loads_again(write: Write) -> None:
    tree = json.loads(json.dumps(as_json(Config())))
    del tree["mqtt"], tree["data"]
    lines = [f"{name}.{key} = {json.dumps(value)}" for name, keys in tree.items() for key, value in keys.items()]
    assert load(write("\n".join(lines))) == Config()


# Whatever comes, it is a Config or ConfigurationInvalid

# Values and statements that get past the TOML parser, and their fragments, which mostly do not.
VALUES = st.one_of(
    st.sampled_from(
        ["[]", "{}", '""', "0", "1", "-1", "true", "nan", "1979-05-27", '["#"]', '["::/0"]', "[[1], {a=1}]"]
    ),
    st.sampled_from(['"127.0.0.1:0"', '["[::1]:0"]', '[{name="a", password="b"}]', '"bridge"', '"mqtt://h"']),
    st.sampled_from(["[\n1, # ,\n2]", '"""\n[coap]\n"""']),
    st.text(max_size=20).map(json.dumps),
)
NAMES = st.one_of(
    st.sampled_from(known_keys()),
    st.sampled_from(["coap", "mqtt", "mqtt.embedded", "mqtt.embedded.users", "listen", "name", "password"]),
    st.text("ab.'\" =", max_size=6),
)
STATEMENTS = st.one_of(
    st.builds("{} = {}".format, NAMES, VALUES),
    st.builds("[{}]".format, NAMES),
    st.builds("[[{}]]".format, NAMES),
    st.sampled_from(["# comment, with = signs,", "", "   "]),
)
DOCUMENTS = st.one_of(st.lists(STATEMENTS, max_size=6).map("\n".join), st.text(max_size=60))


def config_or_mistakes(content: bytes, overrides: list[str]) -> tuple[Config | None, list[str]]:
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(content)
        file.flush()
        try:
            return load(Path(file.name), overrides), []
        except ConfigurationInvalid as invalid:
            return None, invalid.mistakes


@settings(max_examples=100, deadline=None)
@given(DOCUMENTS, st.lists(st.one_of(st.builds("{}={}".format, NAMES, VALUES), st.text(max_size=20)), max_size=3))
def test_any_text_is_a_config_or_invalid(document: str, overrides: list[str]) -> None:
    config, mistakes = config_or_mistakes(document.encode("utf-8", "surrogatepass"), overrides)
    assert (config is None) is bool(mistakes)
    assert all(mistake.isprintable() for mistake in mistakes)
    if config is not None:
        json.dumps(as_json(config))


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_config_or_invalid(content: bytes) -> None:
    config, mistakes = config_or_mistakes(content, [])
    assert (config is None) is bool(mistakes)
    assert all(mistake.isprintable() for mistake in mistakes)
