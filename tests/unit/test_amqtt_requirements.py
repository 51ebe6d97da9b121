"""What is said where aMQTT cannot be the embedded broker, and what it gets of the configuration where it can."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

import pytest
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.testing import MemoryReactorClock

from coapgw.config import as_json, load
from coapgw.errors import ConfigurationInvalid
from coapgw.outlets.amqtt import InAmqtt
from coapgw.outlets.amqtt_requirements import VERSIONS, is_known, missing_package, wrong_reactor
from coapgw.service import makeGateway
from coapgw.storage.awaited_clients import FILE_NAME, AwaitedClients

ROOT = Path(__file__).resolve().parents[2]


def test_the_versions_are_those_of_the_extra() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    (first, last) = (f"{major}.{minor}" for major, minor in VERSIONS)
    asked = f"amqtt >= {first}, < {last}"
    assert setup["options.extras_require"]["amqtt"].split("\n") == ["", asked]
    assert asked in (ROOT / "requirements" / "test.in").read_text().splitlines()


@pytest.mark.parametrize(
    ("version", "known"), [("0.12.0", True), ("0.12.9rc1", True), ("0.11.3", False), ("0.13.0", False), ("1.0", False)]
)
def test_other_versions_are_not_tried(version: str, known: bool) -> None:
    assert is_known(version) is known


def test_the_package_is_there_for_the_tests() -> None:
    assert missing_package() is None


def test_another_reactor_is_named_with_what_to_do() -> None:
    told = wrong_reactor(MemoryReactorClock())
    assert told is not None
    assert "MemoryReactorClock" in told
    assert "twistd --reactor=asyncio coapgw" in told


def test_every_mistake_is_told_at_once() -> None:
    settings = ["mqtt.embedded.engine=amqtt", "mqtt.embedded.users=[{name='a', password='$7$no$hash'}]"]
    with pytest.raises(ConfigurationInvalid) as invalid:
        makeGateway(load(None, settings), MemoryReactorClock())
    told = invalid.value.mistakes
    assert len(told) == 2
    assert "mqtt.embedded.users" in told[0]
    assert "asyncio" in told[1]


@pytest.mark.parametrize(
    ("plugins", "users", "told"),
    [
        ("[{name='tests.unit.amqtt_plugins.NoOdd'}]", "[{name='a', password='b'}]", None),
        ("[{name='tests.unit.amqtt_plugins.OneWord', options={word='x'}}]", "[]", None),
        (
            "[{name='tests.unit.amqtt_plugins.OneWord', options={word='x'}}]",
            "[{name='a', password='b'}]",
            "users beside",
        ),
        ("[{name='tests.unit.amqtt_plugins.OneWord', options={word=1}}]", "[]", "options"),
        ("[{name='pathlib.Path'}]", "[]", "no plugin"),
    ],
)
def test_plugins_are_looked_at_before_the_start(plugins: str, users: str, told: str | None) -> None:
    settings = ["mqtt.embedded.engine=amqtt", f"mqtt.embedded.plugins={plugins}", f"mqtt.embedded.users={users}"]
    reactor = object.__new__(AsyncioSelectorReactor)  # of which only the class is looked at
    mistakes = InAmqtt(load(None, settings).mqtt.embedded, reactor).mistakes()
    assert bool(mistakes) == (told is not None)
    assert all(told is not None and told in mistake for mistake in mistakes)


def test_plugins_belong_to_amqtt_and_their_options_are_not_shown() -> None:
    plugins = "mqtt.embedded.plugins=[{name='a.B', options={password='secret'}}]"
    with pytest.raises(ConfigurationInvalid, match="plugins need"):
        load(None, [plugins])
    config = load(None, [plugins, "mqtt.embedded.engine=amqtt"])
    assert "secret" not in str(as_json(config)) + repr(config)


def test_nothing_of_it_is_imported_unless_it_is_chosen() -> None:
    code = "import sys, coapgw.service, coapgw.cli.main\nprint([name for name in sys.modules if 'amqtt' in name])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.strip("[]\n").replace("'", "").split(", ")) == {
        "coapgw.outlets.amqtt",
        "coapgw.outlets.amqtt_requirements",
    }


def test_clients_are_awaited_after_a_restart(tmp_path: Path) -> None:
    assert AwaitedClients(tmp_path).read() == set()
    kept = AwaitedClients(tmp_path)
    kept.write({"one", "two"})
    assert AwaitedClients(tmp_path).read() == {"one", "two"}
    (tmp_path / FILE_NAME).unlink()
    kept.write({"two", "one"})  # nothing new: not written
    assert AwaitedClients(tmp_path).read() == set()


@pytest.mark.parametrize("content", [b"", b"{}", b'["a", 1', b"\xff", b"null"])
def test_a_file_that_is_none_awaits_nobody(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    assert AwaitedClients(tmp_path).read() == set()


def test_a_file_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    AwaitedClients(tmp_path / "missing").write({"one"})
