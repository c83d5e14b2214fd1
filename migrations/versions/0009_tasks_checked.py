"""The rows that were there before 0008 are checked too.

Revision ID: 0009
Revises: 0008
"""

from alembic import op

from migrations.online import alone

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

CHECKS = {
    "results_task_known": "results",
    "results_completed_has_output": "results",
    "contexts_says_something": "contexts",
}


def upgrade() -> None:
    with alone():
        for name, table in CHECKS.items():
            op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}")


def downgrade() -> None:
    """Nothing: what is checked stays so."""
