"""A small client on mbedTLS (``mbedtls_client.c``): Debian packages the library alone, without its programs."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.interop.clients.client import PATIENCE, compiled
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
        command = [str(_program()), server.host, str(server.port), server.identity, server.key]
        command += [NAMES[suite.name] if suite else "any", str(round(self._first_timeout * 1000))]
        command += [payload.decode() for payload in payloads]
        done = subprocess.run(command, capture_output=True, text=True, timeout=4 * PATIENCE, check=False)
        if done.returncode != 0:
            raise ConnectionError(done.stderr)
        return done.stdout.split()


def _program() -> Path:
    return compiled("mbedtls_client.c", "libmbedtls-dev", "-lmbedtls", "-lmbedx509", "-lmbedcrypto")
