"""node-coap-client and the node-dtls-client below it, in the version of the published sample and in the newest."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.interop.clients.client import INSTALLED, PATIENCE, program
from tests.interop.coaps_server import CoapsServer
from tests.interop.suites import BY_NAME, Suite

MODULES = INSTALLED / "node" / "node_modules"
NAMES = {
    "PSK-AES128-CCM8": "TLS_PSK_WITH_AES_128_CCM_8",
    "PSK-AES128-CCM": "TLS_PSK_WITH_AES_128_CCM",
    "PSK-AES256-CCM8": "TLS_PSK_WITH_AES_256_CCM_8",
    "PSK-AES256-CCM": "TLS_PSK_WITH_AES_256_CCM",
    "PSK-AES128-GCM-SHA256": "TLS_PSK_WITH_AES_128_GCM_SHA256",
    "PSK-AES256-GCM-SHA384": "TLS_PSK_WITH_AES_256_GCM_SHA384",
    "PSK-AES128-CBC-SHA256": "TLS_PSK_WITH_AES_128_CBC_SHA256",
    "PSK-AES128-CBC-SHA": "TLS_PSK_WITH_AES_128_CBC_SHA",
    "PSK-AES256-CBC-SHA": "TLS_PSK_WITH_AES_256_CBC_SHA",
}


def run_script(script: str, module: Path, *arguments: str) -> list[str]:
    """Run one of the scripts of this directory; return the lines it prints; raises ConnectionError if it fails."""
    _version(module)
    command = [program("node", "nodejs"), str(Path(__file__).with_name("node") / script), str(module), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE, check=False)
    if done.returncode != 0:
        raise ConnectionError(done.stderr)
    return done.stdout.splitlines()


class NodeCoapClient:
    """node-coap-client: no choice of suites."""

    suites: Sequence[Suite] = ()
    lacks = "always offers all of node-dtls-client"

    def __init__(self, edition: str) -> None:
        """Take a version: "1.0.9" or "latest"."""
        self.name = f"node-coap-client@{edition}"
        self.module = MODULES / self.name.replace("@", "-")

    def version(self) -> str:
        """Return the version of the package."""
        return _version(self.module)

    def post(self, server: CoapsServer, suite: Suite | None, payloads: Sequence[bytes]) -> list[str]:
        """POST over one association."""
        assert suite is None
        where = (server.host, str(server.port), server.identity, server.key)
        return run_script("coap_post.js", self.module, *where, *(payload.decode() for payload in payloads))


class NodeDtlsClient:
    """The node-dtls-client that a version of node-coap-client uses: sends no extension, repeats nothing, waits 1 s."""

    suites: Sequence[Suite] = tuple(BY_NAME[name] for name in NAMES)
    lacks = "plain PSK only"

    def __init__(self, edition: str) -> None:
        """Take the version of node-coap-client."""
        self.name = f"node-dtls-client of node-coap-client@{edition}"
        above = NodeCoapClient(edition).module
        own = above / "node_modules" / "node-dtls-client"
        self._module = own if own.exists() else MODULES / "node-dtls-client"

    def version(self) -> str:
        """Return the version of the package."""
        return _version(self._module)

    def post(self, server: CoapsServer, suite: Suite | None, payloads: Sequence[bytes]) -> list[str]:
        """POST over one association."""
        where = (server.host, str(server.port), server.identity, server.key, NAMES[suite.name] if suite else "")
        return run_script("dtls_post.js", self._module, *where, *(payload.decode() for payload in payloads))


def _version(module: Path) -> str:
    if not module.exists():
        raise FileNotFoundError(f"{module.name} is missing: tests/interop/clients/install")
    return str(json.loads((module / "package.json").read_text())["version"])
