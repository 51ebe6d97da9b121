"""A small client on pion/dtls (``pion/main.go``), which has Connection IDs (RFC 9146)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tests.interop.clients.client import INSTALLED, first_number, nothing, post_by_lines
from tests.interop.coaps_server import CoapsServer
from tests.interop.suites import SUITES, Suite

MODULE = Path(__file__).with_name("pion") / "go.mod"
ABSENT = ("PSK-AES256-CCM", "PSK-AES256-GCM-SHA384", "PSK-AES128-CBC-SHA", "PSK-AES256-CBC-SHA")


class PionClient:
    """The client of ``pion/main.go``."""

    name = "pion"
    suites: Sequence[Suite] = tuple(suite for suite in SUITES if suite.name not in ABSENT)
    lacks = "pion does not have them"

    def __init__(self, connection_id_bytes: int | None = None) -> None:
        """Ask for a Connection ID, and want one of so many bytes; None: ask for none."""
        self._connection_id_bytes = -1 if connection_id_bytes is None else connection_id_bytes

    def version(self) -> str:
        """Return the version that it was built with."""
        _program()
        return first_number(MODULE.read_text().partition("require github.com/pion/dtls/v3")[2])

    def with_cid(self, size: int | None) -> PionClient:
        """Return one that wants a Connection ID of so many bytes; None: that asks for none."""
        return PionClient(size)

    def post(self, server: CoapsServer, suite: Suite | None, payloads: Sequence[bytes]) -> list[str]:
        """POST over one association; raises ConnectionError with what pion said."""
        return self.post_between(server, suite, payloads, nothing)

    def post_between(
        self, server: CoapsServer, suite: Suite | None, payloads: Sequence[bytes], between: Callable[[], None]
    ) -> list[str]:
        """POST over one association, calling *between* between two; raises ConnectionError with what pion said."""
        command = [str(_program()), f"{server.host}:{server.port}", server.identity, server.key]
        command += [str(suite.number if suite else 0), str(self._connection_id_bytes)]
        return post_by_lines(command, payloads, between)


def _program() -> Path:
    built = INSTALLED / "pion" / "pion"
    if not built.exists():
        raise FileNotFoundError("the client on pion is missing: tests/interop/clients/install")
    return built
