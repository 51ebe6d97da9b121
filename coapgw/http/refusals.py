"""What is wrong with a request before the registry, the keys or anything else has seen it.

``http/api.py`` alone gives these, and the rest of the error tree, their HTTP status.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

from coapgw.errors import CoapgwError, PeerError


@attrs.frozen
class Mistake:
    """One thing that is wrong: the *field* (``"keys[3].deviceId"``, "" for the whole body) and a *message*.

    The message never holds the value: it may be a key.
    """

    field: str
    message: str


class RequestInvalid(PeerError):
    """A body or a query that is not what the operation asks for."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        """Take every mistake, one at least."""
        self.mistakes: Sequence[Mistake] = tuple(mistakes)
        first = self.mistakes[0]
        super().__init__(f"{first.field}: {first.message}" if first.field else first.message)


class PathUnknown(PeerError):
    """Nothing is at this path."""

    def __init__(self) -> None:
        """The path is not repeated: it may be anything."""
        super().__init__("there is nothing here; /v1/openapi.json says what is where")


class MethodRefused(PeerError):
    """A path that has other methods."""

    def __init__(self, allowed: Sequence[str]) -> None:
        """Name what is *allowed*."""
        super().__init__(f"this path takes {', '.join(allowed)}")
        self.allowed = tuple(allowed)


class TokenRefused(PeerError):
    """No bearer token, or a wrong one."""


class BodyTooLarge(PeerError):
    """A body over the limit of its operation."""

    def __init__(self, limit_bytes: int) -> None:
        """Name the limit."""
        super().__init__(f"a body here has {limit_bytes} bytes at most")
        self.limit_bytes = limit_bytes


class TooSlow(PeerError):
    """A request that did not arrive in time."""


class JobNotFound(PeerError):
    """No job has this id, or it is forgotten."""

    def __init__(self) -> None:
        """The id is not repeated."""
        super().__init__("no such job; a finished job is kept for a while, and none over a restart")


class TooBusy(CoapgwError):
    """More waits to be done than may wait."""

    def __init__(self, reason: str, retry_seconds: int = 1) -> None:
        """Say what is too much, and when it is worth another try."""
        super().__init__(reason)
        self.retry_seconds = retry_seconds


class NotReady(CoapgwError):
    """The gateway takes no messages at the moment."""

    def __init__(self, reasons: Sequence[str]) -> None:
        """Take a sentence for each of the *reasons*."""
        super().__init__("; ".join(reasons))
        self.reasons = tuple(reasons)
