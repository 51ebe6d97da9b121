"""What a broker says with one byte: return codes of MQTT 3.1.1 and reason codes of MQTT 5, and what a bridge does then.

Below 0x80 all is well, apart from the return codes 1 to 5 of a 3.1.1 CONNACK.
"""

from __future__ import annotations

from typing import Final

NO_SUBSCRIBERS: Final = 0x10  # of a PUBLISH: accepted, and nobody wanted it
FAILURE: Final = 0x80  # and above (MQTT 5 section 2.4)

UNSPECIFIED_ERROR: Final = 0x80
MALFORMED_PACKET: Final = 0x81
PROTOCOL_ERROR: Final = 0x82
IMPLEMENTATION_ERROR: Final = 0x83
UNSUPPORTED_VERSION: Final = 0x84
NOT_AUTHORISED: Final = 0x87
TOPIC_NAME_INVALID: Final = 0x90
PACKET_ID_IN_USE: Final = 0x91
PACKET_TOO_LARGE: Final = 0x95
QUOTA_EXCEEDED: Final = 0x97
PAYLOAD_FORMAT_INVALID: Final = 0x99

FINAL_REFUSALS: Final = frozenset((NOT_AUTHORISED, TOPIC_NAME_INVALID, PACKET_TOO_LARGE, PAYLOAD_FORMAT_INVALID))
"""Of a message: the same message would be refused again.  Any other refusal may pass, and is tried again."""

_NAMES: Final = {
    0x01: "it does not know this version of MQTT",  # 3.1.1, table 3.1
    0x02: "it does not take this client id",
    0x03: "it is not available",
    0x04: "wrong user name or password",
    0x05: "not authorised",
    UNSPECIFIED_ERROR: "unspecified error",  # MQTT 5, table 2-6
    MALFORMED_PACKET: "malformed packet",
    PROTOCOL_ERROR: "protocol error",
    IMPLEMENTATION_ERROR: "implementation specific error",
    UNSUPPORTED_VERSION: "it does not know this version of MQTT",
    0x85: "it does not take this client id",
    0x86: "wrong user name or password",
    NOT_AUTHORISED: "not authorised",
    0x88: "it is not available",
    0x89: "it is busy",
    0x8A: "banned",
    0x8B: "it is shutting down",
    0x8C: "it wants another way of authentication",
    0x8D: "it heard nothing for too long",
    0x8E: "another client has connected with the same client id",
    0x8F: "topic filter invalid",
    TOPIC_NAME_INVALID: "topic name invalid",
    PACKET_ID_IN_USE: "packet identifier in use",
    0x92: "packet identifier unknown",
    0x93: "more in flight than it takes",
    0x94: "topic alias invalid",
    PACKET_TOO_LARGE: "packet too large",
    0x96: "too many messages in too short a time",
    QUOTA_EXCEEDED: "quota exceeded",
    0x98: "an administrator closed the connection",
    PAYLOAD_FORMAT_INVALID: "payload format invalid",
    0x9A: "it does not retain messages",
    0x9B: "it does not take this QoS",
    0x9C: "it wants another server to be used",
    0x9D: "it has moved to another server",
    0x9E: "it has no shared subscriptions",
    0x9F: "too many connections in too short a time",
    0xA0: "it limits how long a connection lasts",
    0xA1: "it has no subscription identifiers",
    0xA2: "it has no wildcard subscriptions",
}


def refusal(code: int) -> str:
    """Return a *code* in words, for an operator, with its number."""
    return f"{_NAMES.get(code, 'a reason it alone knows')} (0x{code:02x})"
