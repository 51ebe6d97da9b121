"""aiocoap on tinydtls, by way of the PyPI package DTLSSocket: no other registry has tinydtls."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.interop.clients.client import INSTALLED
from tests.interop.coaps_server import CoapsServer
from tests.interop.suites import BY_NAME, Suite

VERSIONS = "from importlib.metadata import version as v; print(v('aiocoap') + ' on DTLSSocket ' + v('DTLSSocket'))"


class TinydtlsClient:
    """``tinydtls/post.py``, in an environment of its own."""

    name = "aiocoap on tinydtls"
    suites: Sequence[Suite] = (BY_NAME["PSK-AES128-CCM8"],)
    lacks = "tinydtls has one PSK suite"

    def version(self) -> str:
        """Return both versions."""
        return subprocess.run([_python(), "-c", VERSIONS], capture_output=True, text=True, check=True).stdout.strip()

    def post(self, server: CoapsServer, suite: Suite | None, payloads: Sequence[bytes]) -> list[str]:
        """POST over one association."""
        command = [str(_python()), str(Path(__file__).with_name("tinydtls") / "post.py"), server.host, str(server.port)]
        command += [server.identity, server.key, *(payload.decode() for payload in payloads)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        codes = done.stdout.split()
        if len(codes) != len(payloads):
            raise ConnectionError(done.stderr)
        return codes


def _python() -> Path:
    python = INSTALLED / "tinydtls" / "bin" / "python"
    if not python.exists():
        raise FileNotFoundError("aiocoap on tinydtls is missing: tests/interop/clients/install")
    return python
