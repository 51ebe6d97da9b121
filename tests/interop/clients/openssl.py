"""``openssl s_client``: a TLS stack alone, CoAP comes through its stdin."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from tests.interop.clients.client import converse, first_number, program
from tests.interop.coaps_server import CoapsServer
from tests.interop.suites import SUITES, Suite


class OpensslClient:
    """``openssl s_client -dtls1_2``."""

    name = "openssl s_client"
    suites: Sequence[Suite] = SUITES
    lacks = ""

    def version(self) -> str:
        """Return OpenSSL's version."""
        openssl = program("openssl", "openssl")
        return first_number(subprocess.run([openssl, "version"], capture_output=True, text=True, check=True).stdout)

    def post(self, server: CoapsServer, suite: Suite | None, payloads: Sequence[bytes]) -> list[str]:
        """POST over one association."""
        command = [program("openssl", "openssl"), "s_client", "-dtls1_2", "-quiet"]
        command += ["-connect", f"{server.host}:{server.port}", "-psk_identity", server.identity]
        command += ["-psk", server.key_hex, "-cipher", f"{suite.name if suite else 'PSK'}:@SECLEVEL=0"]
        return converse(command, payloads)
