"""Devices, what became of removed ones, and the counter that orders changes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the first tables."""
    op.create_table(
        "devices",
        sa.Column("iccid", sa.String(20), primary_key=True),
        sa.Column("imsi", sa.String(15)),
        sa.Column("ip", sa.String(45)),
        sa.Column("name", sa.String(64)),
        sa.Column("status", sa.String(8), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("ip", name="devices_ip_once"),
        sa.CheckConstraint("status IN ('ACTIVE', 'INACTIVE')", name="devices_status_known"),
    )
    op.create_index("devices_by_version", "devices", ["version"])
    op.create_table(
        "devices_removed",
        sa.Column("iccid", sa.String(20), primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
    )
    op.create_index("devices_removed_by_version", "devices_removed", ["version"])
    version = op.create_table("registry_version", sa.Column("n", sa.BigInteger, nullable=False))
    op.bulk_insert(version, [{"n": 0}])
