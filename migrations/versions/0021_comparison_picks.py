"""Which answer of a comparison somebody found the best.

Revision ID: 0021
Revises: 0020
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

PICKS_VIEW = """
CREATE VIEW picks AS
SELECT p.created_at AS picked_at, o.name AS owner, coalesce(k.person, k.name) AS picked_by, p.model AS picked,
       p.server AS picked_server, p.models, p.servers, coalesce(c.content, c.messages::text) AS prompt, p.comparison_id,
       p.result_id
FROM comparison_picks p
LEFT JOIN owners o ON o.id = p.owner_id
LEFT JOIN api_keys k ON k.id = p.key_id
LEFT JOIN contexts c ON c.id = p.context_id
"""


def upgrade() -> None:
    op.create_table(
        "comparison_picks",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("owner_id", sa.Integer(), nullable=False),
        sa.Column("comparison_id", sa.UUID(), nullable=False),
        sa.Column("key_id", sa.UUID()),
        sa.Column("context_id", sa.UUID(), nullable=False),
        sa.Column("result_id", sa.UUID()),
        sa.Column("models", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("servers", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("model", sa.Text()),
        sa.Column("server", sa.Text()),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("comparison_picks_pkey")),
        sa.UniqueConstraint(
            "comparison_id",
            "key_id",
            name=op.f("comparison_picks_comparison_id_key"),
            postgresql_nulls_not_distinct=True,
        ),
    )
    op.create_index("comparison_picks_by_owner", "comparison_picks", ["owner_id", "id"])
    op.execute(PICKS_VIEW)


def downgrade() -> None:
    op.execute("DROP VIEW picks")
    op.drop_table("comparison_picks")
