"""A vacuum of the results ends before claims feel what was settled meanwhile.

Revision ID: 0037
Revises: 0036
"""

from alembic import op

from migrations.online import alone

revision = "0037"
down_revision = "0036"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with alone():
        op.execute("ALTER TABLE results SET (autovacuum_vacuum_cost_limit = 2000)")


def downgrade() -> None:
    op.execute("ALTER TABLE results RESET (autovacuum_vacuum_cost_limit)")
