"""Vectors of the questions asked in chats. It needs no extension of Postgres; the search by meaning does.

Revision ID: 0035
Revises: 0034
"""

import sqlalchemy as sa
from alembic import op

from migrations.online import alone

revision = "0035"
down_revision = "0034"
branch_labels = None
depends_on = None

UNNOTICED = "noticed_at IS NULL OR noticed_at < used_at"


def upgrade() -> None:
    # Its foreign key holds the table of results, which is in use.
    with alone():
        op.create_table(
            "question_vectors",
            sa.Column("result_id", sa.UUID(), nullable=False),
            sa.Column("owner_id", sa.Integer(), nullable=False),
            sa.Column("chat_id", sa.UUID(), nullable=False),
            sa.Column("model", sa.Text(), nullable=False),
            sa.Column("vector", sa.ARRAY(sa.REAL())),
            sa.Column("ticket_id", sa.UUID()),
            sa.Column("place", sa.SmallInteger()),
            sa.Column("tries", sa.SmallInteger(), server_default="0", nullable=False),
            sa.ForeignKeyConstraint(
                ["result_id"], ["results.id"], name=op.f("question_vectors_result_id_fkey"), ondelete="CASCADE"
            ),
            sa.PrimaryKeyConstraint("result_id", name=op.f("question_vectors_pkey")),
            if_not_exists=True,
        )
    op.create_index("question_vectors_by_owner", "question_vectors", ["model", "owner_id"])
    op.create_index(
        "question_vectors_wanted",
        "question_vectors",
        ["owner_id", "result_id"],
        postgresql_where=sa.text("vector IS NULL AND tries < 3"),
    )
    op.create_index(
        "question_vectors_by_ticket",
        "question_vectors",
        ["ticket_id"],
        postgresql_where=sa.text("ticket_id IS NOT NULL"),
    )
    op.add_column("chats", sa.Column("noticed_at", sa.DateTime(timezone=True)))
    op.create_index("chats_unnoticed", "chats", ["used_at"], postgresql_where=sa.text(UNNOTICED))


def downgrade() -> None:
    op.drop_index("chats_unnoticed", table_name="chats")
    op.drop_column("chats", "noticed_at")
    op.drop_table("question_vectors")
