"""The administrator's token: made once, in a file of its own, compared in constant time."""

from __future__ import annotations

import hmac
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from twisted.logger import Logger

from coapgw.errors import StorageError
from coapgw.http.refusals import TokenRefused

FILE_NAME: Final = "admin.token"
TOKEN_BYTES: Final = 32  # random ones, written as hexadecimal digits
LEAST_CHARACTERS: Final = 16  # of a token that an operator wrote there
FILE_BYTES: Final = 4096

_log = Logger()


class AdminToken:
    """Knows the token and nothing that shows it."""

    def __init__(self, token: bytes) -> None:
        """Accept *token*."""
        self._token = token

    def expect(self, authorization: bytes | None) -> None:
        """Raise TokenRefused unless the Authorization field holds the token (RFC 6750 section 2.1)."""
        if authorization is None:
            raise TokenRefused("a bearer token is needed: Authorization: Bearer TOKEN, from the file admin.token")
        scheme, _, token = authorization.strip().partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self._token):
            raise TokenRefused("the bearer token is not the one in the file admin.token")


def open_token(data: Path, random: Callable[[int], bytes] = os.urandom) -> AdminToken:
    """Return the token in ``admin.token`` of the directory *data*; make one, durably, if there is none.

    Raises:
        StorageError: it cannot be made or read, or holds no token.
    """
    path = data / FILE_NAME
    try:
        if not path.exists():
            _make(path, random(TOKEN_BYTES).hex().encode() + b"\n")
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            token = file.read(FILE_BYTES).strip()
    except OSError as error:
        raise StorageError(f"the token of the management API {path} cannot be used: {error.strerror}") from None
    if len(token) < LEAST_CHARACTERS or not token.isascii() or len(token.split()) != 1:
        raise StorageError(
            f"the token of the management API {path} is no token of {LEAST_CHARACTERS} characters or more; "
            "remove the file to have one made"
        )
    if mode & 0o077:
        _log.warn("{path} can be read by others (mode {mode}); chmod 600 it", path=str(path), mode=f"{mode:04o}")
    return AdminToken(token)


def _make(path: Path, content: bytes) -> None:
    """Write a file that is whole, on disk and readable by its owner only, or not there."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    new.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


__all__ = ["AdminToken", "open_token"]
