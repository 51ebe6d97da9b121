"""The cipher suites coapgw speaks, under every name that clients call them by."""

from __future__ import annotations

import attrs


@attrs.frozen
class Suite:
    """One suite: OpenSSL's name, its number (IANA TLS Cipher Suites), and the terms of a GnuTLS priority string."""

    name: str
    number: int
    gnutls: str

    @property
    def is_aead(self) -> bool:
        """Tell whether the records carry an AEAD tag and no MAC."""
        return "CCM" in self.name or "GCM" in self.name


SUITES = (
    Suite("PSK-AES128-CCM8", 0xC0A8, "+PSK:+AES-128-CCM-8:+AEAD"),
    Suite("PSK-AES128-CCM", 0xC0A4, "+PSK:+AES-128-CCM:+AEAD"),
    Suite("PSK-AES256-CCM8", 0xC0A9, "+PSK:+AES-256-CCM-8:+AEAD"),
    Suite("PSK-AES256-CCM", 0xC0A5, "+PSK:+AES-256-CCM:+AEAD"),
    Suite("PSK-AES128-GCM-SHA256", 0x00A8, "+PSK:+AES-128-GCM:+AEAD"),
    Suite("PSK-AES256-GCM-SHA384", 0x00A9, "+PSK:+AES-256-GCM:+AEAD"),
    Suite("PSK-AES128-CBC-SHA256", 0x00AE, "+PSK:+AES-128-CBC:+SHA256"),
    Suite("PSK-AES128-CBC-SHA", 0x008C, "+PSK:+AES-128-CBC:+SHA1"),
    Suite("PSK-AES256-CBC-SHA", 0x008D, "+PSK:+AES-256-CBC:+SHA1"),
    Suite("ECDHE-PSK-AES128-CBC-SHA256", 0xC037, "+ECDHE-PSK:+AES-128-CBC:+SHA256:+GROUP-ALL"),
)
BY_NAME = {suite.name: suite for suite in SUITES}
BY_NUMBER = {suite.number: suite for suite in SUITES}
