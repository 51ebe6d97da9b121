"""``gnutls-cli``: a TLS stack alone, CoAP comes through its stdin."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from tests.interop.clients.client import converse, first_number, program
from tests.interop.coaps_server import CoapsServer
from tests.interop.suites import SUITES, Suite

ALL_SUITES = "NORMAL:-VERS-ALL:+VERS-DTLS1.2:-KX-ALL:+PSK:+ECDHE-PSK"


class GnutlsClient:
    """``gnutls-cli --udp``."""

    name = "gnutls-cli"
    suites: Sequence[Suite] = tuple(suite for suite in SUITES if not suite.name.startswith("ECDHE"))
    lacks = "gnutls-cli 3.7.9 crashes after this handshake, whoever is the server; coap-client-gnutls does not"

    def version(self) -> str:
        """Return GnuTLS's version."""
        command = [program("gnutls-cli", "gnutls-bin"), "--version"]
        return first_number(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    def post(self, server: CoapsServer, suite: Suite | None, payloads: Sequence[bytes]) -> list[str]:
        """POST over one association."""
        priority = f"NONE:+VERS-DTLS1.2:+COMP-NULL:+SIGN-ALL:{suite.gnutls}" if suite else ALL_SUITES
        command = [program("gnutls-cli", "gnutls-bin"), "--udp", f"--logfile={os.devnull}", "--priority", priority]
        command += ["--pskusername", server.identity, "--pskkey", server.key_hex]
        return converse([*command, "-p", str(server.port), server.host], payloads)
