"""A small client on wolfSSL (``wolfssl_client.c``)."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.interop.clients.client import PATIENCE, compiled
from tests.interop.coaps_server import CoapsServer
from tests.interop.suites import BY_NAME, Suite


class WolfsslClient:
    """The client of ``wolfssl_client.c``."""

    name = "wolfSSL"
    suites: Sequence[Suite] = (BY_NAME["ECDHE-PSK-AES128-CBC-SHA256"],)
    lacks = "Debian builds it without static PSK"

    def version(self) -> str:
        """Return the version of the library."""
        return subprocess.run([_program()], capture_output=True, text=True, check=True).stdout.strip()

    def post(self, server: CoapsServer, suite: Suite | None, payloads: Sequence[bytes]) -> list[str]:
        """POST over one association; raises ConnectionError with what the library said."""
        command = [str(_program()), server.host, str(server.port), server.identity, server.key]
        command += [suite.name if suite else "any", *(payload.decode() for payload in payloads)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        if done.returncode != 0:
            raise ConnectionError(done.stderr)
        return done.stdout.split()


def _program() -> Path:
    return compiled("wolfssl_client.c", "libwolfssl-dev", "-lwolfssl")
