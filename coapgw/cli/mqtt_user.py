"""``coapgw mqtt-user …``: who may use the embedded broker; a running gateway follows within a second."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from pathlib import Path
from typing import Final

import attrs

from coapgw.cli.output import Output, read_stdin
from coapgw.config import Config
from coapgw.config_values import Wrong, topic_filter
from coapgw.errors import CoapgwError
from coapgw.mqtt.access import BrokerUser, hashed
from coapgw.storage.mqtt_users import NAME, changing_users, read_users

SALT_BYTES: Final = 12
NAME_LIMIT: Final = 256  # bytes
PASSWORD_LIMIT: Final = 65_535  # bytes, MQTT section 3.1.3.5


class UserRefused(CoapgwError):
    """There is such a user, or there is none, or it cannot be one."""


def add_verbs(parser: argparse.ArgumentParser, leaf: argparse.ArgumentParser) -> None:
    """Add the verbs to the *parser* of ``coapgw mqtt-user``; *leaf* has the options that each of them takes."""
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    about = "Add a user; the password is asked for, or the first line of standard input."
    adding = verbs.add_parser("add", help=about, description=about, parents=[leaf], allow_abbrev=False)
    adding.add_argument("name", metavar="NAME")
    for verb in ("publish", "subscribe"):
        adding.add_argument(
            f"--{verb}",
            type=_filter,
            action="append",
            default=[],
            metavar="FILTER",
            help=f"topics it may {verb} to; may be repeated; without it, none",
        )
    _add_password(adding)
    adding.set_defaults(run=add)
    about = "List the users and what they may do."
    listing = verbs.add_parser("list", help=about, description=about, parents=[leaf], allow_abbrev=False)
    listing.set_defaults(run=show_list)
    about = "Remove a user; its connections are closed, its sessions end."
    removing = verbs.add_parser("remove", help=about, description=about, parents=[leaf], allow_abbrev=False)
    removing.add_argument("name", metavar="NAME")
    removing.set_defaults(run=remove)
    about = "Give a user another password; its connections are closed."
    changing = verbs.add_parser("passwd", help=about, description=about, parents=[leaf], allow_abbrev=False)
    changing.add_argument("name", metavar="NAME")
    _add_password(changing)
    changing.set_defaults(run=change_password)


def _add_password(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--password-file", type=Path, metavar="FILE", help="its first line is the password")


def _filter(text: str) -> str:
    try:
        return topic_filter(text)
    except Wrong as wrong:
        raise argparse.ArgumentTypeError(str(wrong)) from None


def add(asked: argparse.Namespace, config: Config, output: Output) -> int:
    """Add a user.  Raises UserRefused, StorageError."""
    name = asked.name
    if not name or len(name.encode()) > NAME_LIMIT or not name.isprintable():
        raise UserRefused(f"a user has a name of 1 to {NAME_LIMIT} printable bytes")
    if any(user.name == name for user in config.mqtt.embedded.users):
        raise UserRefused(f"{name} is a user of the configuration, mqtt.embedded.users")
    _refuse_second(name, read_users(config.data / NAME))
    password = hashed(_password(asked.password_file), os.urandom(SALT_BYTES))
    with changing_users(config.data / NAME) as users:
        _refuse_second(name, users)
        users.append(BrokerUser(name, password, tuple(asked.publish), tuple(asked.subscribe)))
    output.result([f"{name} was added"], {"name": name, "publish": asked.publish, "subscribe": asked.subscribe})
    return 0


def show_list(asked: argparse.Namespace, config: Config, output: Output) -> int:
    """List the users of the configuration and those that were added.  Raises StorageError."""
    users = [(user, "configuration") for user in config.mqtt.embedded.users]
    found = [*((user.name, user.publish, user.subscribe, source) for user, source in users)]
    found += [
        (user.name, tuple(user.publish or ()), tuple(user.subscribe or ()), "added")
        for user in read_users(config.data / NAME)
    ]
    lines = [
        f"{name}  publish: {' '.join(publish) or 'nothing'}  subscribe: {' '.join(subscribe) or 'nothing'}  ({source})"
        for name, publish, subscribe, source in found
    ]
    value = [
        {"name": name, "publish": list(publish), "subscribe": list(subscribe), "source": source}
        for name, publish, subscribe, source in found
    ]
    output.result(lines or ["no users"], {"users": value})
    return 0


def remove(asked: argparse.Namespace, config: Config, output: Output) -> int:
    """Remove a user.  Raises UserRefused, StorageError."""
    with changing_users(config.data / NAME) as users:
        del users[_find(asked.name, config, users)]
    output.result([f"{asked.name} was removed"], {"name": asked.name})
    return 0


def change_password(asked: argparse.Namespace, config: Config, output: Output) -> int:
    """Give a user another password.  Raises UserRefused, StorageError."""
    _find(asked.name, config, read_users(config.data / NAME))
    password = hashed(_password(asked.password_file), os.urandom(SALT_BYTES))
    with changing_users(config.data / NAME) as users:
        at = _find(asked.name, config, users)
        users[at] = attrs.evolve(users[at], password=password)
    output.result([f"{asked.name} has another password"], {"name": asked.name})
    return 0


def _refuse_second(name: str, users: list[BrokerUser]) -> None:
    if any(user.name == name for user in users):
        raise UserRefused(f"there is a user {name} already; see coapgw mqtt-user passwd and remove")


def _find(name: str, config: Config, users: list[BrokerUser]) -> int:
    for at, user in enumerate(users):
        if user.name == name:
            return at
    if any(user.name == name for user in config.mqtt.embedded.users):
        raise UserRefused(f"{name} is a user of the configuration, mqtt.embedded.users: change it there")
    raise UserRefused(f"there is no user {name}")


def _password(file: Path | None) -> bytes:
    """Return the password: of a file, of whoever sits at the terminal, or of standard input.  Raises UserRefused."""
    if file is not None:
        try:
            content = file.read_bytes()
        except OSError as refused:
            raise UserRefused(f"{file} cannot be read: {refused.strerror}") from None
    elif sys.stdin is not None and sys.stdin.isatty():
        try:
            content = getpass.getpass("Password: ").encode()
            again = getpass.getpass("Again: ").encode()
        except EOFError:
            raise UserRefused("no password was given") from None
        if again != content:
            raise UserRefused("the two passwords differ")
    else:
        try:
            content = read_stdin()
        except OSError as refused:
            raise UserRefused(f"standard input cannot be read: {refused.strerror}") from None
    password = content.splitlines()[0] if content.strip() else b""
    if not password or len(password) > PASSWORD_LIMIT:
        raise UserRefused("the first line is the password, and it is empty or too long")
    return password
