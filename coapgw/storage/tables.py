"""The registry's tables as this version reads and writes them; ``migrations`` brings a database here."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

REVISION: Final = "0004"
"""The last migration; a database that says so needs none."""

REVISION_TABLE: Final = "registry_revision"
"""Where a database says which migration it is at; not Alembic's usual name, so that a database can be shared."""

metadata: Final = MetaData()

devices: Final = Table(
    "devices",
    metadata,
    Column("iccid", String(20), primary_key=True),
    Column("imsi", String(15)),
    Column("ip", String(45)),  # the longest text form of an IPv6 address
    Column("name", String(64)),
    Column("status", String(8), nullable=False),
    Column("created_at", BigInteger, nullable=False),  # milliseconds since the epoch
    Column("updated_at", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),  # of the transaction that wrote the row last
    Column("last_seen_at", BigInteger),  # its own matter: writing it changes neither version nor updated_at
    UniqueConstraint("ip", name="devices_ip_once"),
    CheckConstraint("status IN ('ACTIVE', 'INACTIVE')", name="devices_status_known"),
    Index("devices_by_version", "version"),
)

devices_removed: Final = Table(
    "devices_removed",
    metadata,
    Column("iccid", String(20), primary_key=True),
    Column("version", BigInteger, nullable=False),  # of the transaction that removed it last
    Index("devices_removed_by_version", "version"),
)

device_keys: Final = Table(
    "device_keys",
    metadata,
    Column("iccid", String(20), ForeignKey("devices.iccid", name="device_keys_device"), primary_key=True),
    Column("sealed", LargeBinary, nullable=False),  # as storage.sealing writes it
    Column("format", String(6), nullable=False),
    Column("by_user", Boolean, nullable=False),
    Column("serial", BigInteger, nullable=False),  # the version of the transaction that wrote the secret
    Column("created_at", BigInteger, nullable=False),  # of the device's first key, milliseconds since the epoch
    Column("updated_at", BigInteger, nullable=False),  # of this key
    Column("bootstrapped_at", BigInteger),  # when the device last asked for this key; changes no serial
    CheckConstraint("format IN ('STRING', 'HEX')", name="device_keys_format_known"),
    Index("device_keys_by_serial", "serial"),
)

key_seal: Final = Table("key_seal", metadata, Column("fingerprint", String(32), nullable=False))
"""At most one row: which key file seals what is in ``device_keys``."""

templates: Final = Table(
    "templates",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("text", Text, nullable=False),
    Column("status", String(8), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    CheckConstraint("status IN ('ACTIVE', 'INACTIVE')", name="templates_status_known"),
)

translations: Final = Table(
    "translations",
    metadata,
    Column("day", BigInteger, primary_key=True, autoincrement=False),  # since the epoch, UTC
    Column("iccid", String(20), primary_key=True),  # of a device that may be gone by now
    Column("messages", BigInteger, nullable=False),
    Column("payload_bytes", BigInteger, nullable=False),
    Column("document_bytes", BigInteger, nullable=False),
)

registry_version: Final = Table("registry_version", metadata, Column("n", BigInteger, nullable=False))
"""One row: how many transactions have written.  Each begins by adding one, which makes writers wait for each other: the
order of versions is the order of commits, and who has read up to *n* has missed nothing below it."""
