"""libcoap's command line client, over OpenSSL and over GnuTLS.

It has no option for the suite.  Over GnuTLS the system-wide configuration leaves one to it; over OpenSSL, which has no
such setting for a list that a program sets itself, a preloaded object does (``offer_one_suite.c``).
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.interop.clients.client import compiled, first_number, program
from tests.interop.coaps_server import CoapsServer
from tests.interop.suites import SUITES, Suite

# Terms of gnutls_priority: what is disabled so that nothing but the wanted suite is left.
KEY_EXCHANGES = ("PSK", "ECDHE-PSK")
CIPHERS = ("AES-128-CCM-8", "AES-128-CCM", "AES-256-CCM-8", "AES-256-CCM", "AES-128-GCM", "AES-256-GCM", "AES-128-CBC")
OTHER_CIPHERS = ("AES-256-CBC", "CHACHA20-POLY1305", "CAMELLIA-128-GCM", "CAMELLIA-256-GCM")
ABSENT: Mapping[str, tuple[str, ...]] = {"openssl": (), "gnutls": ("PSK-AES256-CCM8",)}
MACS = ("SHA1", "SHA256", "SHA384")


class LibcoapClient:
    """``coap-client-openssl`` or ``coap-client-gnutls``."""

    def __init__(self, stack: str) -> None:
        """Take the name of a TLS stack that libcoap was built with."""
        self.name = f"coap-client-{stack}"
        self.suites: Sequence[Suite] = tuple(suite for suite in SUITES if suite.name not in ABSENT[stack])
        self.lacks = "not in the priority string that libcoap gives GnuTLS"
        self._offering = {"openssl": _openssl_offers, "gnutls": _gnutls_offers}[stack]

    def version(self) -> str:
        """Return libcoap's version."""
        command = [program(self.name, "libcoap3-bin")]  # without a URI it explains itself
        return first_number(subprocess.run(command, capture_output=True, text=True, check=False).stderr)

    def post(self, server: CoapsServer, suite: Suite | None, payloads: Sequence[bytes]) -> list[str]:
        """POST the first payload as often as there are payloads: a second apart, over one association."""
        command = [program(self.name, "libcoap3-bin"), "-v", "6", "-B", "10", "-m", "post", "-e", payloads[0].decode()]
        command += ["-G", str(len(payloads)), "-u", server.identity, "-k", server.key]
        command += [f"coaps://{server.host}:{server.port}/"]
        with self._offering(suite) as environment:
            done = subprocess.run(
                command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=30, check=False
            )
        codes = re.findall(r"^v:1 t:ACK c:(\d\.\d\d)", done.stdout + done.stderr, re.MULTILINE)
        assert codes, done.stdout + done.stderr
        return codes


@contextmanager
def _openssl_offers(suite: Suite | None) -> Iterator[Mapping[str, str]]:
    if suite is None:
        yield {}
        return
    shim = compiled("offer_one_suite.c", "gcc", "-shared", "-fPIC", "-ldl")
    yield {"LD_PRELOAD": str(shim), "OFFER_ONE_SUITE": f"{suite.name}:@SECLEVEL=0"}


@contextmanager
def _gnutls_offers(suite: Suite | None) -> Iterator[Mapping[str, str]]:
    if suite is None:
        yield {}
        return
    wanted = suite.gnutls.split(":")
    lines = ["[overrides]"]
    lines += [f"tls-disabled-kx = {name}" for name in KEY_EXCHANGES if f"+{name}" not in wanted]
    lines += [f"tls-disabled-cipher = {name}" for name in CIPHERS + OTHER_CIPHERS if f"+{name}" not in wanted]
    lines += [f"tls-disabled-mac = {name}" for name in MACS if f"+{name}" not in wanted]
    with tempfile.TemporaryDirectory() as directory:
        configuration = Path(directory, "gnutls.conf")
        configuration.write_text("\n".join(lines) + "\n")
        yield {"GNUTLS_SYSTEM_PRIORITY_FILE": str(configuration)}
