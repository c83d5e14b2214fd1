"""Models that are set aside because they do not answer, and their reloads.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "set_aside_models",
        sa.Column("server", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("dead", sa.Boolean(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("note", sa.Text(), server_default="", nullable=False),
        sa.Column("step", sa.Text(), nullable=True),
        sa.Column("reloader", sa.Text(), nullable=True),
        sa.Column("reload_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reloads", postgresql.ARRAY(sa.DateTime(timezone=True)), server_default="{}", nullable=False),
        sa.PrimaryKeyConstraint("server", "model", name=op.f("set_aside_models_pkey")),
        sa.CheckConstraint("step IN ('unload', 'load')", name=op.f("set_aside_models_step_known")),
    )


def downgrade() -> None:
    op.drop_table("set_aside_models")
