"""Words and properties find final tickets: a row for each, which a dispatcher makes some seconds after its end.

Revision ID: 0034
Revises: 0033
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TSVECTOR

from migrations.online import add_index

revision = "0034"
down_revision = "0033"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # In the order of their ends, so that those of a long history get their rows too.
    add_index("results_by_end", "results", ["completed_at", "id"], where="completed_at IS NOT NULL")
    op.create_table(
        "ticket_words",
        sa.Column("result_id", sa.UUID(), nullable=False),
        sa.Column("words", TSVECTOR(), nullable=False),
        sa.ForeignKeyConstraint(
            ["result_id"], ["results.id"], name=op.f("ticket_words_result_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("result_id", name=op.f("ticket_words_pkey")),
    )
    op.create_index(
        "ticket_words_words",
        "ticket_words",
        ["words"],
        postgresql_using="gin",
        postgresql_with={"gin_pending_list_limit": "512"},
    )
    op.create_table(
        "ticket_words_progress",
        sa.Column("one", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("result_id", sa.UUID(), nullable=False),
        sa.CheckConstraint("one", name=op.f("ticket_words_progress_one_row")),
        sa.PrimaryKeyConstraint("one", name=op.f("ticket_words_progress_pkey")),
    )
    op.execute(
        "INSERT INTO ticket_words_progress (completed_at, result_id)"
        " VALUES ('-infinity', '00000000-0000-0000-0000-000000000000')"
    )


def downgrade() -> None:
    op.drop_table("ticket_words_progress")
    op.drop_table("ticket_words")
    op.drop_index("results_by_end", table_name="results")
