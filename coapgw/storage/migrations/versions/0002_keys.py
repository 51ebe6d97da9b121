"""Devices' pre-shared keys, and which file seals them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables of keys."""
    op.create_table(
        "device_keys",
        sa.Column("iccid", sa.String(20), sa.ForeignKey("devices.iccid", name="device_keys_device"), primary_key=True),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("format", sa.String(6), nullable=False),
        sa.Column("by_user", sa.Boolean, nullable=False),
        sa.Column("serial", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("bootstrapped_at", sa.BigInteger),
        sa.CheckConstraint("format IN ('STRING', 'HEX')", name="device_keys_format_known"),
    )
    op.create_index("device_keys_by_serial", "device_keys", ["serial"])
    op.create_table("key_seal", sa.Column("fingerprint", sa.String(32), nullable=False))
