"""Users of the broker that were added: the file, the command line tool, and a broker that follows."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from coapgw.cli.main import main
from coapgw.errors import StorageError
from coapgw.mqtt.access import AccessList, AnonymousPolicy, BrokerUser, PasswordHashRefused, hashed
from coapgw.mqtt.broker import Broker
from coapgw.mqtt.packets import ConnAck, Connect, Publish, Subscribe
from coapgw.storage.mqtt_users import NAME, UsersFile, read_users
from tests.unit.mqtt_peers import Peer, connected

Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run the tool on a data directory, the password in a file."""

    def run(*arguments: str, password: str | None = None) -> int:
        if password is not None:
            (tmp_path / "secret").write_text(password + "\nsecond line\n")
            arguments = (*arguments, "--password-file", str(tmp_path / "secret"))
        return main(["--data", str(tmp_path / "data"), "mqtt-user", *arguments])

    return run


def stored(tmp_path: Path) -> Sequence[BrokerUser]:
    return read_users(tmp_path / "data" / NAME)


def test_a_user_is_added_listed_changed_and_removed(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("add", "anna", "--subscribe", "a/#", "--subscribe", "b", "--publish", "c", password="pässword") == 0
    (anna,) = stored(tmp_path)
    assert (anna.name, anna.publish, anna.subscribe) == ("anna", ("c",), ("a/#", "b"))
    assert AccessList([anna]).authenticate("anna", "pässword".encode(), False) is not None
    assert "pässword" not in (tmp_path / "data" / NAME).read_text()
    assert (tmp_path / "data" / NAME).stat().st_mode & 0o777 == 0o600
    assert run("passwd", "anna", password="other") == 0
    (anna,) = stored(tmp_path)
    assert AccessList([anna]).authenticate("anna", b"other", False) is not None
    capsys.readouterr()
    assert run("list", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "users": [{"name": "anna", "publish": ["c"], "subscribe": ["a/#", "b"], "source": "added"}]
    }
    assert run("remove", "anna") == 0
    assert stored(tmp_path) == []


def test_the_password_may_come_from_standard_input(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    piped = tmp_path / "piped"
    piped.write_bytes(b"secret\n")
    monkeypatch.setattr("coapgw.cli.mqtt_user.read_stdin", piped.read_bytes)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert run("add", "anna") == 0
    assert AccessList(stored(tmp_path)).authenticate("anna", b"secret", False) is not None


class Terminal(io.StringIO):
    """Standard input where a person sits."""

    def isatty(self) -> bool:
        return True


def test_nobody_waits_for_who_types_a_password(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def type_it(prompt: str) -> str:
        with contextlib.suppress(FileNotFoundError), (tmp_path / "data" / NAME).with_suffix(".lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return "secret"

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(getpass, "getpass", type_it)
    assert run("add", "anna") == 0
    assert run("add", "berta") == 0
    assert run("passwd", "anna") == 0


def test_a_terminal_that_ends_instead_of_a_password_is_a_sentence(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def end(prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(getpass, "getpass", end)
    assert run("add", "anna") == 1
    assert "no password was given" in capsys.readouterr().err
    assert stored(tmp_path) == []


def test_refusals_are_sentences(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("add", "anna", password="x") == 0
    assert run("add", "anna", password="y") == 1
    assert run("add", "", password="y") == 1
    assert run("add", "berta", password="") == 1
    assert run("remove", "nobody") == 1
    assert run("passwd", "nobody", password="y") == 1
    assert run("add", "carla", "--publish", "a/#/b", password="y") == 2
    assert run("add", "dora", "--password-file", str(tmp_path / "none")) == 1
    said = capsys.readouterr().err
    assert "there is a user anna already" in said
    assert "there is no user nobody" in said
    assert len(stored(tmp_path)) == 1


def test_users_of_the_configuration_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--data", str(tmp_path), "--set", "mqtt.embedded.users=[{name='anna',password='x'}]", "mqtt-user"]
    (tmp_path / "secret").write_text("x")
    assert main([*command, "add", "anna", "--password-file", str(tmp_path / "secret")]) == 1
    assert main([*command, "remove", "anna"]) == 1
    assert "configuration" in capsys.readouterr().err
    assert main([*command, "list"]) == 0
    assert "anna  publish: nothing  subscribe: nothing  (configuration)" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "[]", '{"users": [1]}', '{"users": [{"name": "a", "password": "plain"}]}'])
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / NAME).write_text(content)
    with pytest.raises(StorageError, match="is not what coapgw mqtt-user has written"):
        read_users(tmp_path / NAME)


def test_the_file_is_read_when_it_changes(run: Run, tmp_path: Path) -> None:
    told: list[list[str]] = []
    file = UsersFile(tmp_path / "data" / NAME, lambda users: told.append([user.name for user in users]))
    file.look()
    run("add", "anna", password="x")
    file.look()
    file.look()
    (tmp_path / "data" / NAME).write_text("broken")
    with pytest.raises(StorageError):
        file.look()
    file.look()
    (tmp_path / "data" / NAME).unlink()
    file.look()
    assert told == [["anna"], []]


# ---------------------------------------------------------------------- a broker that follows


def user(name: str, password: str = "p", *subscribe: str) -> BrokerUser:
    return BrokerUser(name, hashed(password.encode(), b"salt"), (), subscribe)


def test_only_those_who_changed_are_told() -> None:
    access = AccessList([user("same"), user("gone"), user("changed")])
    assert access.replace([user("same"), user("changed", "other"), user("new")]) == {"gone", "changed"}
    assert access.authenticate("changed", b"p", True) is None
    assert access.authenticate("changed", b"other", True) is not None
    assert access.authenticate("gone", b"p", True) is None
    with pytest.raises(PasswordHashRefused):
        access.replace([BrokerUser("new", "$7$nonsense")])
    assert access.authenticate("new", b"p", True) is not None


def test_who_has_proven_a_password_proves_it_again_cheaply_but_no_other() -> None:
    access = AccessList([user("u")])
    for _ in range(1000):  # ten seconds and more, if each took as long as the first
        assert access.authenticate("u", b"p", True) is not None
    assert access.authenticate("u", b"P", True) is None
    assert access.authenticate("u", None, True) is None


def test_a_user_that_goes_or_changes_loses_its_connections_and_what_it_may_not_have() -> None:
    access = AccessList([user("u", "p", "a", "b"), user("gone", "p", "#")], AnonymousPolicy.LOOPBACK)
    broker = Broker(access)
    changed = connected(broker, "c", (b"a", 1), (b"b", 1), clean=False, user="u", password=b"p")
    gone = connected(broker, "g", (b"a", 1), clean=False, user="gone", password=b"p")
    connected(broker, "away", (b"a", 1), clean=False, user="gone", password=b"p").lose()
    other = connected(broker, "o", (b"a", 1))
    broker.access_changed(access.replace([user("u", "p", "b")]))
    assert not changed.is_open
    assert not gone.is_open
    assert sorted(broker.sessions) == ["c", "o"]
    other.send(Publish(b"a", b"1"), Publish(b"b", b"2", 1, packet_id=1))
    again = Peer(broker).send(Connect("c", False, user="u", password=b"p"))
    answer, *messages = again.receive()
    assert answer == ConnAck(True, 0)
    assert [message.payload for message in messages if isinstance(message, Publish)] == [b"2"]
    assert other.send(Subscribe(2, ((b"b", 0),))).is_open
