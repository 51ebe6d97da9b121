"""A small client on pion/dtls (``pion/main.go``), the one stack here that has Connection IDs (RFC 9146)."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.interop.clients.client import INSTALLED, PATIENCE, first_number
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

    def post(
        self,
        server: CoapsServer,
        suite: Suite | None,
        payloads: Sequence[bytes],
        between: Callable[[], None] = lambda: None,
    ) -> list[str]:
        """POST over one association, calling *between* between two; raises ConnectionError with what pion said."""
        command = [str(_program()), f"{server.host}:{server.port}", server.identity, server.key]
        command += [str(suite.number if suite else 0), str(self._connection_id_bytes)]
        command += [payload.decode() for payload in payloads]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            codes = [process.stdout.readline().strip()]
            for _ in payloads[1:]:
                between()
                process.stdin.write("\n")
                process.stdin.flush()
                codes.append(process.stdout.readline().strip())
            _, complaint = process.communicate(timeout=PATIENCE)
        if process.returncode != 0:
            raise ConnectionError(complaint)
        return codes


def _program() -> Path:
    built = INSTALLED / "pion" / "pion"
    if not built.exists():
        raise FileNotFoundError("the client on pion is missing: tests/interop/clients/install")
    return built
