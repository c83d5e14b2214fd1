"""Ratings have ids, which lists of them go by.

Revision ID: 0030
Revises: 0029
"""

import sqlalchemy as sa
from alembic import op

revision = "0030"
down_revision = "0029"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A default that differs from row to row would write the table anew.
    op.add_column("ratings", sa.Column("id", sa.UUID()))
    op.alter_column("ratings", "id", server_default=sa.text("uuidv7()"))
    op.execute("UPDATE ratings SET id = uuidv7()")
    op.create_primary_key(op.f("ratings_pkey"), "ratings", ["id"])
    op.drop_index("ratings_by_owner", table_name="ratings")
    op.create_index("ratings_by_owner", "ratings", ["owner_id", "id"])


def downgrade() -> None:
    op.drop_index("ratings_by_owner", table_name="ratings")
    op.create_index("ratings_by_owner", "ratings", ["owner_id", "created_at"])
    op.drop_constraint(op.f("ratings_pkey"), "ratings")
    op.drop_column("ratings", "id")
