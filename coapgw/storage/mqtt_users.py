"""Users of the embedded broker that ``coapgw mqtt-user`` has added: a JSON file, replaced as a whole.

It holds hashes of passwords, and rules.  The users of the configuration are not in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import attrs

from coapgw.errors import StorageError
from coapgw.mqtt.access import BrokerUser

NAME: Final = "mqtt-users.json"
SIZE_LIMIT: Final = 64 << 20  # bytes that are read


def read_users(path: Path) -> list[BrokerUser]:
    """Return the users in the file at *path*, none if there is no file.  Raises StorageError."""
    try:
        with path.open("rb") as file:
            content = file.read(SIZE_LIMIT)
    except FileNotFoundError:
        return []
    except OSError as refused:
        raise StorageError(f"{path} cannot be read: {refused.strerror}") from None
    try:
        return [_user(one) for one in json.loads(content)["users"]]
    except (ValueError, KeyError, TypeError):
        raise StorageError(f"{path} is not what coapgw mqtt-user has written") from None


def _user(record: dict[str, object]) -> BrokerUser:
    name, password = record["name"], record["password"]
    if not isinstance(name, str) or not isinstance(password, str) or not password.startswith("$7$"):
        raise TypeError
    return BrokerUser(name, password, _filters(record["publish"]), _filters(record["subscribe"]))


def _filters(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise TypeError
    return tuple(value)


@contextlib.contextmanager
def changing_users(path: Path) -> Iterator[list[BrokerUser]]:
    """Yield the list of users, and write it when the block ends; one at a time.  Raises StorageError."""
    with _locked(path.with_suffix(".lock")):
        users = read_users(path)
        yield users
        _write(path, users)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as refused:
        raise StorageError(f"{path} cannot be opened: {refused.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _write(path: Path, users: Sequence[BrokerUser]) -> None:
    content = json.dumps({"users": [attrs.asdict(user) for user in users]}, indent=1)
    new = path.with_suffix(".new")
    try:
        with open(os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as refused:
        raise StorageError(f"{path} cannot be written: {refused.strerror}") from None


@attrs.define(eq=False)
class UsersFile:
    """The file, as a running gateway follows it.

    Args:
        changed: called with the users when the file is not what it was; may raise StorageError.
    """

    path: Path
    changed: Callable[[Sequence[BrokerUser]], None]
    _seen: tuple[int, ...] = ()

    def look(self) -> None:
        """See whether the file has changed; called about once a second.  Raises StorageError, once for each change."""
        try:
            status = self.path.stat()
        except OSError:
            stamp: tuple[int, ...] = ()
        else:
            stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
        if stamp != self._seen:
            self._seen = stamp
            self.changed(read_users(self.path))


__all__ = ["NAME", "UsersFile", "changing_users", "read_users"]
