"""Saved DTLS associations between two runs: two files in the data directory, used once.

``associations`` is sealed (``dtls/saved.py``) with the key in ``associations.key``; one is worth nothing without the
other.  The key is written last and deleted first, each time durably, so that a crash at any point leaves associations
either to exactly one next run, or to none.  Everything here blocks; the caller holds the lock on the data directory
that an open spool has.
"""

from __future__ import annotations

import contextlib
import gc
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from random import SystemRandom
from typing import Final

from coapgw.dtls.association import CipherCache
from coapgw.dtls.errors import SavedRefused
from coapgw.dtls.saved import KEY_BYTES, Located, restore, save_in_chunks
from coapgw.errors import StorageError

FILE_NAME: Final = "associations"
KEY_NAME: Final = "associations.key"
MAX_AGE_SECONDS: Final = 3600  # a restart takes seconds; what is older may be a copy, and devices have moved on
_UNFINISHED: Final = ".new"


def write_associations(directory: Path, associations: Iterable[Located], now: float, now_ms: int) -> None:
    """Save *associations* for the next run, in place of what is there.  None of them may seal any more.

    Args:
        now: by the clock of ``last_heard``, seconds.
        now_ms: milliseconds since the epoch.

    Raises:
        StorageError: they could not be written; then there are none for the next run.
    """
    key = secrets.token_bytes(KEY_BYTES)
    try:
        _forget(directory)
        _write(directory, FILE_NAME, save_in_chunks(associations, now, now_ms, key))
        _write(directory, KEY_NAME, [key])
    except OSError as error:
        with contextlib.suppress(OSError):
            _forget(directory)
        raise StorageError(f"the associations were not saved in {directory}: {error.strerror}") from None


def take_associations(
    directory: Path, now: float, now_ms: int, ciphers: CipherCache, max_age_seconds: float = MAX_AGE_SECONDS
) -> list[Located]:
    """Return what the last run saved, if it did, after having made sure that nobody ever will again.

    Args:
        now: by the clock that ``last_heard`` is to have, seconds.
        now_ms: milliseconds since the epoch.
        ciphers: shared by all of them.
        max_age_seconds: those that were saved longer ago are given up.

    Raises:
        StorageError: they cannot be used, or what was saved cannot be deleted; one goes on without them.
    """
    try:
        key = _read(directory / KEY_NAME)
        saved = b"" if key is None else _read(directory / FILE_NAME)
        if key is not None:
            os.unlink(directory / KEY_NAME)  # of several, one succeeds
            _sync(directory)
        _forget(directory)
    except OSError as error:
        raise StorageError(f"the saved associations in {directory} are not used: {error.strerror}") from None
    if key is None:
        return []
    if saved is None or len(key) != KEY_BYTES:
        raise StorageError(f"the saved associations in {directory} are not used: a file is missing or cut short")
    collecting = gc.isenabled()
    gc.disable()  # walking the first ones again and again would take as long as all the rest
    try:
        return restore(
            saved, now_ms, round(max_age_seconds * 1000), key, now=now, ciphers=ciphers, random=SystemRandom()
        )
    except SavedRefused as refused:
        raise StorageError(f"the saved associations in {directory} are not used: {refused}") from None
    finally:
        if collecting:
            gc.enable()


def _forget(directory: Path) -> None:
    """Delete what there is, finished or not, keys first, durably.  Raises OSError."""
    for name in (KEY_NAME, KEY_NAME + _UNFINISHED, FILE_NAME, FILE_NAME + _UNFINISHED):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(directory / name)
            _sync(directory)


def _write(directory: Path, name: str, pieces: Iterable[bytes]) -> None:
    """Write a new file that only we may read; it gets its name when it is whole on the disk.  Raises OSError."""
    unfinished = directory / (name + _UNFINISHED)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(unfinished, flags, 0o600), "wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    os.rename(unfinished, directory / name)
    _sync(directory)


def _read(path: Path) -> bytes | None:
    """Return what a file holds, None if there is none.  Raises OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def _sync(directory: Path) -> None:
    """Make the names in a directory durable.  Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
