"""Tickets that wish for servers.

Revision ID: 0014
Revises: 0013
"""

import sqlalchemy as sa
from alembic import op

from migrations.online import add_index, alone, replace_index

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

PENDING = "status = 'pending'"


def upgrade() -> None:
    with alone():
        op.add_column("results", sa.Column("wish", sa.Text(), server_default="", nullable=False), if_not_exists=True)
    add_index("results_claim_by_wish", "results", ["model", "wish", "owner_id", "rank", "id"], where=PENDING)
    replace_index("results_claim", "results_claim_by_wish")


def downgrade() -> None:
    add_index("results_claim_without", "results", ["model", "owner_id", "rank", "id"], where=PENDING)
    replace_index("results_claim", "results_claim_without")
    op.drop_column("results", "wish")
