"""Energy Saver templates, and what translating came to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make two tables; nothing was translated yet."""
    op.create_table(
        "templates",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("status", sa.String(8), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.CheckConstraint("status IN ('ACTIVE', 'INACTIVE')", name="templates_status_known"),
    )
    op.create_table(
        "translations",
        sa.Column("day", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("iccid", sa.String(20), primary_key=True),
        sa.Column("messages", sa.BigInteger, nullable=False),
        sa.Column("payload_bytes", sa.BigInteger, nullable=False),
        sa.Column("document_bytes", sa.BigInteger, nullable=False),
    )
