"""Hosts that their provider took away; the ledger outlives its hosts.

Revision ID: 0027
Revises: 0026
"""

import sqlalchemy as sa
from alembic import op

from migrations.online import alone

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with alone():
        op.add_column(
            "hosts", sa.Column("taken", sa.Boolean(), server_default="false", nullable=False), if_not_exists=True
        )
    with alone():
        op.execute("ALTER TABLE host_charges DROP CONSTRAINT IF EXISTS host_charges_host_id_fkey")


def downgrade() -> None:
    op.execute("DELETE FROM host_charges c WHERE NOT EXISTS (SELECT FROM hosts h WHERE h.id = c.host_id)")
    op.create_foreign_key(op.f("host_charges_host_id_fkey"), "host_charges", "hosts", ["host_id"], ["id"])
    op.drop_column("hosts", "taken")
