"""Alerts by name: RFC 5246 section 7.2, and RFC 4279 section 2 for the one of pre-shared keys."""

from __future__ import annotations

from typing import Final

CLOSE_NOTIFY: Final = 0
FATAL: Final = 2

NAMES: Final = {
    0: "close_notify",
    10: "unexpected_message",
    20: "bad_record_mac",
    21: "decryption_failed",
    22: "record_overflow",
    30: "decompression_failure",
    40: "handshake_failure",
    42: "bad_certificate",
    43: "unsupported_certificate",
    44: "certificate_revoked",
    45: "certificate_expired",
    46: "certificate_unknown",
    47: "illegal_parameter",
    48: "unknown_ca",
    49: "access_denied",
    50: "decode_error",
    51: "decrypt_error",
    70: "protocol_version",
    71: "insufficient_security",
    80: "internal_error",
    86: "inappropriate_fallback",
    90: "user_canceled",
    100: "no_renegotiation",
    110: "unsupported_extension",
    112: "unrecognized_name",
    115: "unknown_psk_identity",
    120: "no_application_protocol",
}

KEY_ALERTS: Final = frozenset((20, 21, 51, 115))
"""What servers say when identity and key do not go together: each says something else, or nothing."""


def alert_name(description: int) -> str:
    """Return the name of an alert, or its number."""
    return NAMES.get(description, f"alert {description}")
