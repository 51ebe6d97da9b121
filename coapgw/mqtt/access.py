"""Who may connect to the embedded broker, and what for.

Passwords are compared in constant time, and every attempt costs as much as the most expensive user's, whether the user
is known or not.
"""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import hmac
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

import attrs

from coapgw.errors import CoapgwError
from coapgw.mqtt.topics import compiled_filter, covered_by_any

OWN_ITERATIONS: Final = 10_000  # of passwords that we hash
FAILURES_LIMIT: Final = 20  # wrong passwords of a host in FAILURE_SECONDS; each takes 5 to 10 ms of everybody's time
FAILURE_SECONDS: Final = 10.0
FAILED_HOSTS: Final = 10_000  # remembered
ITERATION_LIMIT: Final = 20_000  # of PBKDF2: about 10 ms of the reactor's time for each attempt to log in
_PBKDF2: Final = re.compile(r"\$7\$([1-9][0-9]{0,8})\$([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+)")
_SHA512: Final = re.compile(r"\$6\$([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+)")


class PasswordHashRefused(CoapgwError):
    """A user's password begins like a hash and is none; the hash itself is not shown."""

    def __init__(self, user: str, reason: str) -> None:
        """Name the *user*, for an operator."""
        super().__init__(f"password of MQTT user {user!r}: {reason}")
        self.user = user
        self.reason = reason


class AnonymousPolicy(enum.Enum):
    """Where clients without a name are taken."""

    LOOPBACK = "loopback"
    NO = "no"
    YES = "yes"


@attrs.frozen
class BrokerUser:
    """A user as configured; *publish* and *subscribe* are topic filters: none of them nothing, None everything.

    *password* is plain, or a line's second field of mosquitto_passwd: ``$7$iterations$salt$hash`` (PBKDF2-HMAC-SHA512)
    or ``$6$salt$hash`` (SHA-512 of password and salt).
    """

    name: str
    password: str = attrs.field(repr=False)
    publish: Sequence[str] | None = None
    subscribe: Sequence[str] | None = None


@attrs.frozen
class Permissions:
    """What a client may do; made once per user."""

    publish_filters: tuple[bytes, ...] | None = None
    subscribe_filters: tuple[bytes, ...] | None = None
    _publish_matches: tuple[Callable[[bytes], object], ...] = attrs.field(init=False, eq=False, repr=False)

    @_publish_matches.default
    def _compile(self) -> tuple[Callable[[bytes], object], ...]:
        return tuple(compiled_filter(one).fullmatch for one in self.publish_filters or ())

    def may_publish(self, topic: bytes) -> bool:
        """Return whether a message on *topic* is allowed."""
        return self.publish_filters is None or any(matches(topic) for matches in self._publish_matches)

    def may_subscribe(self, topic_filter: bytes) -> bool:
        """Return whether *topic_filter* lies within one of the allowed ones, so that nothing else can be delivered."""
        return self.subscribe_filters is None or covered_by_any(self.subscribe_filters, topic_filter)


class Authenticator(Protocol):
    """Decides who a client is; answers at once, raises nothing."""

    def authenticate(
        self, user: str | None, password: bytes | None, loopback: bool, host: str = "", now: float = 0.0
    ) -> Permissions | None:
        """Return what a client may do, or None if it is not who it says; *loopback* tells of the listener.

        *host*, if it is known, is where it comes from, and *now* when, in seconds.
        """

    def permissions_of(self, user: str | None) -> Permissions | None:
        """Return what a user may do now, None if there is no such user any more; for sessions that are restored."""


@attrs.frozen
class _Secret:
    """A salted digest of a password; *iterations* of PBKDF2, 0 for one SHA-512."""

    salt: bytes
    digest: bytes = attrs.field(repr=False)
    iterations: int = 0

    def fits(self, password: bytes) -> bool:
        if self.iterations:
            digest = hashlib.pbkdf2_hmac("sha512", password, self.salt, self.iterations)
        else:
            digest = hashlib.sha512(password + self.salt).digest()
        return hmac.compare_digest(digest, self.digest)


def _secret(user: str, password: str) -> _Secret:
    """Read a configured password.  Raises PasswordHashRefused."""
    if not password.startswith(("$6$", "$7$")):
        salt = os.urandom(12)
        return _Secret(salt, hashlib.sha512(password.encode() + salt).digest())
    iterations = 0
    if found := _PBKDF2.fullmatch(password):
        iterations = int(found[1])
        if iterations > ITERATION_LIMIT:
            raise PasswordHashRefused(user, f"{iterations} iterations, at most {ITERATION_LIMIT} are taken")
    else:
        found = _SHA512.fullmatch(password)
    if found is None:
        raise PasswordHashRefused(user, "neither $7$iterations$salt$hash nor $6$salt$hash")
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in found.groups()[-2:])
    except binascii.Error:
        raise PasswordHashRefused(user, "salt or hash is no base64") from None
    if len(digest) != hashlib.sha512().digest_size:
        raise PasswordHashRefused(user, "the hash has not the 64 bytes of SHA-512")
    return _Secret(salt, digest, iterations)


def hashed(password: bytes, salt: bytes) -> str:
    """Return what is stored of a password: ``$7$iterations$salt$hash``."""
    digest = hashlib.pbkdf2_hmac("sha512", password, salt, OWN_ITERATIONS)
    return f"$7${OWN_ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


EVERYTHING: Final = Permissions()


class AccessList:
    """The users, and the rule for clients without a name.

    Raises PasswordHashRefused when made.
    """

    def __init__(self, users: Iterable[BrokerUser] = (), anonymous: AnonymousPolicy = AnonymousPolicy.LOOPBACK) -> None:
        """Take the users; their names are unique."""
        self._anonymous = anonymous
        self._nobody = _Secret(os.urandom(12), os.urandom(64))
        self._key = os.urandom(32)
        self._users: dict[str, BrokerUser] = {}
        self._failures: dict[str, int] = {}  # wrong passwords by host, until the time below
        self._failures_end = -math.inf
        self.replace(users)

    def replace(self, users: Iterable[BrokerUser]) -> set[str]:
        """Take other users; return the names of those that are gone or not what they were.

        Raises PasswordHashRefused, in which case all is as before.
        """
        users = list(users)
        secrets = {user.name: _secret(user.name, user.password) for user in users}
        before, self._users = self._users, {user.name: user for user in users}
        self._secrets = secrets
        self._permissions = {user.name: Permissions(_filters(user.publish), _filters(user.subscribe)) for user in users}
        self._most_iterations = max((secret.iterations for secret in secrets.values()), default=0)
        self._proven: set[bytes] = set()
        return {name for name, user in before.items() if self._users.get(name) != user}

    def authenticate(
        self, user: str | None, password: bytes | None, loopback: bool, host: str = "", now: float = 0.0
    ) -> Permissions | None:
        """Return what a client may do, or None; also to a host that has failed too often lately."""
        if user is None:
            allowed = self._anonymous is AnonymousPolicy.YES
            return EVERYTHING if allowed or (loopback and self._anonymous is AnonymousPolicy.LOOPBACK) else None
        proof = self._proof(user, password or b"")
        if (
            proof in self._proven and password is not None
        ):  # ten thousand clients that come back at once must not cost a minute
            return self._permissions.get(user)
        if host and self._has_failed_often(host, now):
            return None
        secret = self._secrets.get(user, self._nobody)
        fits = secret.fits(password or b"") and password is not None
        missing = self._most_iterations - secret.iterations
        if missing:
            hashlib.pbkdf2_hmac("sha512", password or b"", secret.salt, missing)
        permissions = self._permissions.get(user) if fits else None
        if permissions is not None:
            self._proven.add(proof)  # at most one for each user
        elif host and (host in self._failures or len(self._failures) < FAILED_HOSTS):
            self._failures[host] = self._failures.get(host, 0) + 1
        return permissions

    def _has_failed_often(self, host: str, now: float) -> bool:
        if now >= self._failures_end:
            self._failures_end = now + FAILURE_SECONDS
            self._failures.clear()
        return self._failures.get(host, 0) >= FAILURES_LIMIT

    def _proof(self, user: str, password: bytes) -> bytes:
        """Return what stands for a password in memory, of no use to anybody without our key."""
        return hmac.digest(self._key, len(user.encode()).to_bytes(4, "big") + user.encode() + password, "sha256")

    def permissions_of(self, user: str | None) -> Permissions | None:
        """Return what a user may do now."""
        if user is None:
            return None if self._anonymous is AnonymousPolicy.NO else EVERYTHING
        return self._permissions.get(user)


def host_of(peer: str) -> str:
    """Return the host of a peer's address, as the glue writes it: ``host port=number``."""
    return peer.partition(" port=")[0]


def _filters(filters: Sequence[str] | None) -> tuple[bytes, ...] | None:
    return None if filters is None else tuple(one.encode() for one in filters)
