"""Lists by two filters find their page at once, and the results are vacuumed before claims feel what was settled.

Revision ID: 0023
Revises: 0022
"""

from alembic import op

from migrations.online import add_index, alone

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

FAILED = "status = 'failed'"


def upgrade() -> None:
    add_index("results_failed_by_model", "results", ["model", "owner_id", "id"], where=FAILED)
    add_index("results_failed_by_context", "results", ["context_id", "id"], where=FAILED)
    add_index("files_by_purpose", "files", ["owner_id", "purpose", "id"])
    add_index("batches_by_status", "batches", ["owner_id", "status", "id"])
    with alone():
        op.execute(
            "ALTER TABLE results SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,"
            " vacuum_index_cleanup = on)"
        )


def downgrade() -> None:
    op.execute(
        "ALTER TABLE results RESET (autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold, vacuum_index_cleanup)"
    )
    op.drop_index("batches_by_status", table_name="batches")
    op.drop_index("files_by_purpose", table_name="files")
    op.drop_index("results_failed_by_context", table_name="results")
    op.drop_index("results_failed_by_model", table_name="results")
