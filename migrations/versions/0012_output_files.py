"""Outputs that are binary or large.

Revision ID: 0012
Revises: 0011
"""

import sqlalchemy as sa
from alembic import op

from migrations.online import alone

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Its foreign key holds the table of results, which is in use.
    with alone():
        op.create_table(
            "output_files",
            sa.Column("result_id", sa.UUID(), nullable=False),
            sa.Column("response", sa.Integer(), autoincrement=False, nullable=False),
            sa.Column("name", sa.Text(), nullable=False),
            sa.Column("element", sa.Integer(), autoincrement=False, nullable=False),
            sa.Column("media_type", sa.Text(), nullable=False),
            sa.Column("data", sa.LargeBinary(), nullable=False),
            sa.ForeignKeyConstraint(
                ["result_id"], ["results.id"], name=op.f("output_files_result_id_fkey"), ondelete="CASCADE"
            ),
            sa.PrimaryKeyConstraint("result_id", "response", "name", "element", name=op.f("output_files_pkey")),
            if_not_exists=True,
        )
        # Not compressed, so that a part of it is read alone.
        op.execute("ALTER TABLE output_files ALTER COLUMN data SET STORAGE EXTERNAL")


def downgrade() -> None:
    op.drop_table("output_files")
