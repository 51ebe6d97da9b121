"""``twistd coapgw`` tells an operator in a sentence what is wrong, and by its exit status whose turn it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from twisted.application.service import IServiceMaker, MultiService, Service, ServiceMaker
from twisted.internet.error import CannotListenError
from twisted.plugin import getPlugins

from coapgw.errors import StorageError
from coapgw.tap import Foreground, Options


class Refusing(Service):
    """A service that cannot start."""

    def __init__(self, reason: Exception) -> None:
        self.reason = reason

    def startService(self) -> None:
        raise self.reason


def test_plugin_is_found_with_one_line_of_description() -> None:
    (maker,) = [maker for maker in getPlugins(IServiceMaker) if maker.tapname == "coapgw"]
    assert isinstance(maker, ServiceMaker)
    assert maker.module == "coapgw.tap"
    assert "\n" not in maker.description


def test_set_may_be_repeated_and_data_wins(tmp_path: Path) -> None:
    options = Options()
    options.parseOptions(["--data", str(tmp_path), "--set", "uplink.max_payload=100", "-s", "mqtt.topic_prefix=here/"])
    assert options.overrides == ["uplink.max_payload=100", "mqtt.topic_prefix=here/"]
    assert options.configuration.data == tmp_path


def test_every_mistake_of_a_configuration_is_told_and_status_is_2(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        Options().parseOptions(["--set", "no.such_key=1", "--set", "uplink.max_payload=many"])
    assert ended.value.code == 2
    told = capfd.readouterr().err
    assert "no" in told
    assert "uplink.max_payload" in told


@pytest.mark.parametrize("arguments", [["--bogus"], ["extra"], ["--config"]])
def test_wrong_options_end_with_status_2(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        Options().parseOptions(arguments)
    assert ended.value.code == 2
    assert capfd.readouterr().err.startswith("twistd coapgw: ")


@pytest.mark.parametrize(
    "reason",
    [StorageError("the spool is in use by another gateway"), CannotListenError("127.0.0.1", 5683, OSError("in use"))],
)
def test_gateway_that_cannot_start_says_so_in_a_line(
    reason: Exception, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pidfile = tmp_path / "twistd.pid"
    pidfile.write_text("1")
    foreground = Foreground(str(pidfile))
    gateway = MultiService()
    gateway.setServiceParent(foreground)
    Refusing(reason).setServiceParent(gateway)
    with pytest.raises(SystemExit) as ended:
        foreground.startService()
    assert ended.value.code == 1
    assert capfd.readouterr().err == f"coapgw cannot start: {reason}\n"
    assert not pidfile.exists()
    assert not foreground.running


def test_other_failures_are_not_hidden() -> None:
    foreground = Foreground(None)
    Refusing(RuntimeError("a mistake of ours")).setServiceParent(foreground)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        foreground.startService()
