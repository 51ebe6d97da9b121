"""Frozen values that every room understands; no CoAP, HTTP, SQL or MQTT words."""

from __future__ import annotations

import enum
import ipaddress
import re
from typing import NamedTuple

import attrs

from coapgw.errors import DeviceRefused, KeyRefused

ICCID_DIGITS = range(18, 21)  # ITU-T E.118: up to 19 digits and a check digit; published devices have 18 to 20
IMSI_DIGITS = 15  # 3GPP TS 23.003 section 2.2
NAME_LIMIT = 64  # characters
KEY_CHARACTERS = range(8, 257)  # of a key as it is written; OpenSSL 1.1.1 takes 256 bytes, later ones 512
_KEY_STRING = re.compile(r"[!-+\--~](?:[ -+\--~]*[!-+\--~])?")  # printable ASCII but the comma, no space at the ends
_KEY_HEX = re.compile(r"(?:[0-9A-Fa-f]{2})+")


class DeviceStatus(enum.Enum):
    """Whether a device is served."""

    ACTIVE = "ACTIVE"
    INACTIVE = "INACTIVE"


@attrs.frozen
class Device:
    """A SIM.

    Args:
        iccid: 18 to 20 digits, the device id everywhere.
        imsi: 15 digits, if known.
        ip: source address on the operator's network in its canonical text form; no two devices share one.
        name: up to 64 characters, for people.
        status: an INACTIVE device is treated like an unknown one.
        created_at: milliseconds since the epoch; with the ICCID it names one life of a device.
        updated_at: milliseconds since the epoch.
    """

    iccid: str
    imsi: str | None = None
    ip: str | None = None
    name: str | None = None
    status: DeviceStatus = DeviceStatus.ACTIVE
    created_at: int = 0
    updated_at: int = 0


def checked_iccid(value: str) -> str:
    """Return *value* if it is an ICCID; raise DeviceRefused."""
    if not (value.isascii() and value.isdigit() and len(value) in ICCID_DIGITS):
        raise DeviceRefused("iccid", value, "an ICCID has 18 to 20 digits")
    return value


def checked_imsi(value: str) -> str:
    """Return *value* if it is an IMSI; raise DeviceRefused."""
    if not (value.isascii() and value.isdigit() and len(value) == IMSI_DIGITS):
        raise DeviceRefused("imsi", value, "an IMSI has 15 digits")
    return value


def checked_ip(value: str) -> str:
    """Return the canonical text form of the IPv4 or IPv6 address *value*; raise DeviceRefused.

    An IPv4-mapped IPv6 address means the IPv4 address in it.
    """
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        raise DeviceRefused("ip", value, "not an IPv4 or IPv6 address") from None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise DeviceRefused("ip", value, "an address with a zone names an interface, not a device")
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
    return str(address)


def checked_name(value: str) -> str:
    """Return *value* if it may be a device's name; raise DeviceRefused."""
    if not 1 <= len(value) <= NAME_LIMIT or not value.isprintable():
        raise DeviceRefused("name", value, f"a name has 1 to {NAME_LIMIT} printable characters")
    return value


def checked_status(value: str) -> DeviceStatus:
    """Return the status that *value* names; raise DeviceRefused."""
    try:
        return DeviceStatus(value)
    except ValueError:
        raise DeviceRefused("status", value, "ACTIVE or INACTIVE") from None


class KeyFormat(enum.Enum):
    """How a person writes a key: the characters themselves, or their bytes in hexadecimal."""

    STRING = "STRING"
    HEX = "HEX"


@attrs.frozen
class DeviceKey:
    """A device's pre-shared key, with what is known of it.

    Args:
        secret: the bytes that DTLS uses.
        format: how it was written when it was set, and is written when it is shown.
        by_user: whether a person chose it; such a key is never replaced by a bootstrap.
        serial: differs between any two keys that a device ever had.
        created_at: of the device's first key, milliseconds since the epoch.
        updated_at: of this key, milliseconds since the epoch.
    """

    iccid: str
    secret: bytes = attrs.field(repr=False)
    format: KeyFormat
    by_user: bool
    serial: int
    created_at: int
    updated_at: int

    @property
    def written(self) -> str:
        """The key as it is shown and bootstrapped: its characters, or lower case hexadecimal digits."""
        return self.secret.decode("ascii") if self.format is KeyFormat.STRING else self.secret.hex()


@attrs.frozen
class WrittenKey:
    """A key that a person has chosen for a device, as *written* in *format*; not checked yet."""

    iccid: str
    written: str = attrs.field(repr=False)
    format: KeyFormat = KeyFormat.STRING


def checked_secret(written: str, key_format: KeyFormat) -> bytes:
    """Return the bytes of the key that is *written* in *key_format*; raise KeyRefused.

    A STRING is printable ASCII, for which bytes another character stands depends on who reads it; and without commas,
    for it is a field of the bootstrap answer.
    """
    if len(written) not in KEY_CHARACTERS:
        raise KeyRefused(f"{KEY_CHARACTERS[0]} to {KEY_CHARACTERS[-1]} characters are needed, not {len(written)}")
    if key_format is KeyFormat.HEX:
        if not _KEY_HEX.fullmatch(written):
            raise KeyRefused("HEX is an even number of hexadecimal digits")
        return bytes.fromhex(written)
    if not _KEY_STRING.fullmatch(written):
        raise KeyRefused("only printable ASCII characters without commas and without spaces at the ends; else use HEX")
    return written.encode("ascii")


class Credential(NamedTuple):
    """What a DTLS handshake needs to know of an active device; *serial* is that of its key."""

    iccid: str
    secret: bytes
    serial: int

    def __repr__(self) -> str:
        """Leave the secret out."""
        return f"Credential(iccid={self.iccid!r}, serial={self.serial})"


class WireBytes(NamedTuple):
    """UDP payload that a device sent over DTLS, and was sent, in bytes."""

    received: int
    sent: int


class TemplateStatus(enum.Enum):
    """Whether a template translates payloads."""

    ACTIVE = "ACTIVE"
    INACTIVE = "INACTIVE"


PROTOCOL = "COAP"  # the one there is; a template is for some of them


@attrs.frozen
class StoredTemplate:
    """An Energy Saver template; times in milliseconds since the epoch."""

    template_id: str
    name: str
    text: str
    status: TemplateStatus
    created_at: int
    updated_at: int


class Saved(NamedTuple):
    """What translating came to: messages, and their bytes before and after."""

    messages: int = 0
    payload_bytes: int = 0
    document_bytes: int = 0


class Savings(NamedTuple):
    """What translating came to in a number of days, and in as many days before."""

    now: Saved
    before: Saved


class Translated(NamedTuple):
    """A payload as compact UTF-8 JSON, and (longitude, latitude) as text if it has both."""

    document: bytes
    location: tuple[str, str] | None


class Acknowledge(enum.Enum):
    """When a device is told that its message arrived: on disk, with the broker, or here."""

    STORED = "stored"
    PUBLISHED = "published"
    RECEIVED = "received"


class Outgoing(NamedTuple):
    """A message for MQTT, before it has a place in the spool.

    A NamedTuple, because one is made per message and goes into SQL as it is.

    Args:
        received: milliseconds since the epoch.
        iccid: the device it came from.
        message_id: ``1-<8 hex>-<24 hex>``, unique.
        topic: MQTT topic, UTF-8, prefix included.
        payload: MQTT payload.
    """

    received: int
    iccid: str
    message_id: str
    topic: bytes
    payload: bytes


class Spooled(NamedTuple):
    """An Outgoing with its place in the spool: *place* grows by one a message and never repeats."""

    place: int
    received: int
    iccid: str
    message_id: str
    topic: bytes
    payload: bytes


class Introduction(NamedTuple):
    """A device's first message: *lifecycle* is stored before it, in the same commit, once in the device's life.

    *born* is ``Device.created_at``: a device that was removed and added again begins a new life.
    """

    iccid: str
    born: int
    lifecycle: Outgoing
