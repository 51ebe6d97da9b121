"""Keys at rest: AES-256-GCM under a key of this machine's, in a file of its own (``keys.key``).

A sealed secret is a nonce of 12 random bytes, the ciphertext, and a tag of 16 bytes (NIST SP 800-38D).  The tag covers
whose secret it is too, so that one cannot be put in another's place.  The registry knows the fingerprint of the file
that seals its keys; another file, or none, is refused before anything is sealed with it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Connection, delete, insert, select

from coapgw.errors import StorageError
from coapgw.model import KeyFormat
from coapgw.storage.database import RegistryDatabase, make_directory
from coapgw.storage.tables import device_keys, key_seal

FILE_NAME: Final = "keys.key"
KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
_FINGERPRINT_OF: Final = b"coapgw device keys"
_FINGERPRINT_DIGITS: Final = 32
_WIDER: Final = 0o177  # every permission but reading and writing by the owner


class KeySeal:
    """Seals and unseals the keys of devices; any thread may call.

    Args:
        key: 32 bytes.
        place: the file they are from, for a sentence.
    """

    def __init__(self, key: bytes, place: str) -> None:
        """Use *key*."""
        self._cipher = AESGCM(key)
        self.fingerprint = hmac.digest(key, _FINGERPRINT_OF, hashlib.sha256).hex()[:_FINGERPRINT_DIGITS]
        self.place = place

    def seal(self, secret: bytes, iccid: str, key_format: KeyFormat, serial: int) -> bytes:
        """Return *secret* sealed as the key of one device, with one serial."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, secret, _owner(iccid, key_format, serial))

    def unseal(self, sealed: bytes, iccid: str, key_format: KeyFormat, serial: int) -> bytes:
        """Return the secret.  Raises StorageError if it was sealed otherwise, or is damaged."""
        try:
            return self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _owner(iccid, key_format, serial))
        except (InvalidTag, ValueError):
            raise StorageError(f"the key of device {iccid} cannot be unsealed with {self.place}") from None

    def expect_ours(self, connection: Connection) -> None:
        """Raise StorageError unless the registry's keys are sealed with this file."""
        if connection.execute(select(key_seal.c.fingerprint)).scalar() != self.fingerprint:
            raise StorageError(_other_file(self.place))


def _owner(iccid: str, key_format: KeyFormat, serial: int) -> bytes:
    """Return what the tag covers beside the secret."""
    return f"{iccid} {key_format.value} {serial}".encode()


def open_seal(data: Path, database: RegistryDatabase) -> KeySeal:
    """Return the seal of the registry's keys; make its file in the directory *data* if no key was ever sealed.

    Several processes may do so at once.  Raises StorageError if there are sealed keys and the file is missing, is
    another one, or may be read by others.
    """
    path = data / FILE_NAME
    with database.reading() as connection:
        known = _known(connection)
    if known.in_use and not _exists(path):
        raise StorageError(
            f"{path}, which unseals the keys of devices, is missing: put it back from where you keep a copy; "
            "without it those keys are lost (see docs/security.md)"
        )
    key = _read(path) if _exists(path) else _make(path)
    seal = KeySeal(key, str(path))
    if known.fingerprint != seal.fingerprint:
        _claim(database, seal)
    return seal


class _Known(NamedTuple):
    """What the registry knows of the file that seals its keys; *in_use*: there are such keys."""

    fingerprint: str | None
    in_use: bool


def _known(connection: Connection) -> _Known:
    fingerprint = connection.execute(select(key_seal.c.fingerprint)).scalar()
    return _Known(fingerprint, connection.execute(select(device_keys.c.iccid).limit(1)).first() is not None)


def _claim(database: RegistryDatabase, seal: KeySeal) -> None:
    """Note that keys are sealed with this file from now on.  Raises StorageError if some are, with another."""
    with database.writing() as (connection, _):
        known = _known(connection)
        if known.in_use and known.fingerprint != seal.fingerprint:
            raise StorageError(_other_file(seal.place))
        connection.execute(delete(key_seal))
        connection.execute(insert(key_seal), {"fingerprint": seal.fingerprint})


def _other_file(place: str) -> str:
    return (
        f"{place} is not the file that seals the keys of devices: put that one back "
        "(gateways that share a registry need copies of one file, see docs/security.md)"
    )


# ---------------------------------------------------------------------- the file


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from None


def _read(path: Path) -> bytes:
    """Return the key in the file.  Raises StorageError if it is none, or not the owner's alone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            mode = os.fstat(descriptor).st_mode
            key = file.read(KEY_BYTES + 1) if stat.S_ISREG(mode) else b""
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from None
    if stat.S_IMODE(mode) & _WIDER:
        raise StorageError(f"{path} has mode {stat.S_IMODE(mode):04o}: it may not be wider than 0600 (chmod 600)")
    if len(key) != KEY_BYTES:
        raise StorageError(f"{path} is no key file: {KEY_BYTES} bytes are needed")
    return key


def _make(path: Path) -> bytes:
    """Make the file with a new key, on disk when this returns; return the key that is in it then.

    It appears whole, under a name of its own first, and never takes another's place.
    """
    make_directory(path.parent)
    new = path.with_name(f"{path.name}.{secrets.token_hex(8)}.new")
    try:
        with open(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):  # somebody else was quicker
            os.link(new, path)
        os.unlink(new)
        _sync_directory(path.parent)
    except OSError as error:
        with suppress(OSError):
            os.unlink(new)
        raise StorageError(f"{path} cannot be made: {error.strerror}") from None
    return _read(path)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
