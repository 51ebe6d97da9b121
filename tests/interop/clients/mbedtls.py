"""A small client on mbedTLS (``mbedtls_client.c``): Debian packages the library alone, without its programs.

On Debian's, and on a later one that has Connection IDs as RFC 9146 has them (``install`` builds it).
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.interop.clients.client import INSTALLED, SILENCE, ClientAbsent, compiled, nothing, post_by_lines
from tests.interop.coaps_server import CoapsServer
from tests.interop.suites import SUITES, Suite

NAMES = {
    "PSK-AES128-CCM8": "TLS-PSK-WITH-AES-128-CCM-8",
    "PSK-AES128-CCM": "TLS-PSK-WITH-AES-128-CCM",
    "PSK-AES256-CCM8": "TLS-PSK-WITH-AES-256-CCM-8",
    "PSK-AES256-CCM": "TLS-PSK-WITH-AES-256-CCM",
    "PSK-AES128-GCM-SHA256": "TLS-PSK-WITH-AES-128-GCM-SHA256",
    "PSK-AES256-GCM-SHA384": "TLS-PSK-WITH-AES-256-GCM-SHA384",
    "PSK-AES128-CBC-SHA256": "TLS-PSK-WITH-AES-128-CBC-SHA256",
    "PSK-AES128-CBC-SHA": "TLS-PSK-WITH-AES-128-CBC-SHA",
    "PSK-AES256-CBC-SHA": "TLS-PSK-WITH-AES-256-CBC-SHA",
    "ECDHE-PSK-AES128-CBC-SHA256": "TLS-ECDHE-PSK-WITH-AES-128-CBC-SHA256",
}


class MbedtlsClient:
    """The client of ``mbedtls_client.c``."""

    name = "mbedTLS"
    suites: Sequence[Suite] = SUITES
    lacks = ""

    def __init__(self, first_timeout: float = 1.0) -> None:
        """Repeat a flight or request after *first_timeout* seconds for the first time."""
        self._first_timeout = first_timeout

    def version(self) -> str:
        """Return the version of the library."""
        return subprocess.run([_program()], capture_output=True, text=True, check=True).stdout.strip()

    def post(self, server: CoapsServer, suite: Suite | None, payloads: Sequence[bytes]) -> list[str]:
        """POST over one association; raises ConnectionError with what the library said."""
        codes = post_by_lines(self._command(_program(), server, suite, 12), payloads, nothing)
        if SILENCE in codes:
            raise ConnectionError("no answer")
        return codes

    def _command(
        self, program: Path, server: CoapsServer, suite: Suite | None, tries: int, cid_bytes: int = -1
    ) -> list[str]:
        command = [str(program), server.host, str(server.port), server.identity, server.key]
        command += [NAMES[suite.name] if suite else "any", str(round(self._first_timeout * 1000))]
        return [*command, str(tries), str(cid_bytes)]


class Mbedtls3Client(MbedtlsClient):
    """The same client on mbedTLS 3."""

    name = "mbedTLS 3"

    def __init__(self, first_timeout: float = 0.25, connection_id_bytes: int | None = None) -> None:
        """Ask for a Connection ID, and want one of so many bytes; None: ask for none."""
        super().__init__(first_timeout)
        self._connection_id_bytes = -1 if connection_id_bytes is None else connection_id_bytes

    def version(self) -> str:
        """Return the version of the library."""
        return subprocess.run([_program3()], capture_output=True, text=True, check=True).stdout.strip()

    def with_cid(self, size: int | None) -> Mbedtls3Client:
        """Return one that wants a Connection ID of so many bytes; None: that asks for none."""
        return Mbedtls3Client(self._first_timeout, size)

    def post(self, server: CoapsServer, suite: Suite | None, payloads: Sequence[bytes]) -> list[str]:
        """POST over one association; raises ConnectionError with what the library said."""
        return self.post_between(server, suite, payloads, nothing)

    def post_between(
        self, server: CoapsServer, suite: Suite | None, payloads: Sequence[bytes], between: Callable[[], None]
    ) -> list[str]:
        """POST over one association, calling *between* between two."""
        return post_by_lines(self._command(_program3(), server, suite, 5, self._connection_id_bytes), payloads, between)


def _program3() -> Path:
    built = INSTALLED / "mbedtls3" / "client"
    if not built.exists():
        raise ClientAbsent("mbedTLS 3 is not there: tests/interop/clients/install fetches and builds it")
    return built


def _program() -> Path:
    return compiled("mbedtls_client.c", "libmbedtls-dev", "-lmbedtls", "-lmbedx509", "-lmbedcrypto")
