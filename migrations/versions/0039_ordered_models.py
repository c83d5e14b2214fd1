"""Models that an admin had a server load are loaded again after its restart.

Revision ID: 0039
Revises: 0038
"""

import sqlalchemy as sa
from alembic import op

from migrations.online import alone

revision = "0039"
down_revision = "0038"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Its foreign key holds the table of servers, which is in use.
    with alone():
        op.create_table(
            "ordered_models",
            sa.Column("server_id", sa.UUID(), nullable=False),
            sa.Column("model", sa.Text(), nullable=False),
            sa.Column("asked_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
            sa.ForeignKeyConstraint(
                ["server_id"],
                ["servers.id"],
                name=op.f("ordered_models_server_id_fkey"),
                onupdate="CASCADE",
                ondelete="CASCADE",
            ),
            sa.PrimaryKeyConstraint("server_id", "model", name=op.f("ordered_models_pkey")),
            if_not_exists=True,
        )


def downgrade() -> None:
    op.drop_table("ordered_models")
