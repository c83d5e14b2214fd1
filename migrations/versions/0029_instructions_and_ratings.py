"""Named instructions, and what people think of answers.

Revision ID: 0029
Revises: 0028
"""

import sqlalchemy as sa
from alembic import op

from migrations.online import alone

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None

ANSWER_RATINGS_VIEW = """
CREATE VIEW answer_ratings AS
SELECT v.created_at AS rated_at, o.name AS owner, coalesce(k.person, k.name) AS rated_by, v.rating, v.comment, r.model,
       r.server, coalesce(c.messages -> -1 ->> 'content', c.messages -> -1 -> 'content' #>> '{}', c.content) AS prompt,
       r.output, r.client_reference, r.id AS result_id, c.metadata ->> 'instructions' AS instructions_id
FROM ratings v
JOIN results r ON r.id = v.result_id
LEFT JOIN contexts c ON c.id = r.context_id
LEFT JOIN owners o ON o.id = v.owner_id
LEFT JOIN api_keys k ON k.id = v.key_id
"""


def upgrade() -> None:
    # Its foreign key holds the table of results, which is in use.
    with alone():
        op.create_table(
            "ratings",
            sa.Column("result_id", sa.UUID(), nullable=False),
            sa.Column("owner_id", sa.Integer(), nullable=False),
            sa.Column("key_id", sa.UUID()),
            sa.Column("rating", sa.SmallInteger(), nullable=False),
            sa.Column("comment", sa.Text()),
            sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
            sa.CheckConstraint("rating IN (-1, 1)", name=op.f("ratings_rating")),
            sa.ForeignKeyConstraint(
                ["result_id"], ["results.id"], name=op.f("ratings_result_id_fkey"), ondelete="CASCADE"
            ),
            sa.UniqueConstraint(
                "result_id", "key_id", name=op.f("ratings_result_id_key"), postgresql_nulls_not_distinct=True
            ),
            if_not_exists=True,
        )
    op.create_index("ratings_by_owner", "ratings", ["owner_id", "created_at"])
    op.create_table(
        "instructions",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("owner_id", sa.Integer(), nullable=False),
        sa.Column("key_id", sa.UUID()),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("parent_id", sa.UUID()),
        sa.Column("shared", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["parent_id"], ["instructions.id"], name=op.f("instructions_parent_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("instructions_pkey")),
        sa.UniqueConstraint("owner_id", "name", name=op.f("instructions_owner_id_key")),
    )
    op.create_index("instructions_shared", "instructions", ["id"], postgresql_where=sa.text("shared"))
    op.create_index("instructions_by_parent", "instructions", ["parent_id"])
    op.execute(ANSWER_RATINGS_VIEW)


def downgrade() -> None:
    op.execute("DROP VIEW answer_ratings")
    op.drop_table("instructions")
    op.drop_table("ratings")
