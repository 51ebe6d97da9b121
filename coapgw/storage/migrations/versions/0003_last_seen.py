"""When devices were last heard."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; nobody was heard yet."""
    op.add_column("devices", sa.Column("last_seen_at", sa.BigInteger))
