"""What made each answer: the server, its engine and model, and the parameters it was sent.

Revision ID: 0015
Revises: 0014
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations.online import alone

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

FORMER_VIEW = """
CREATE OR REPLACE VIEW history AS
SELECT
    r.id AS result_id,
    r.context_id,
    r.model,
    r.status,
    r.client_reference,
    r.priority,
    coalesce(c.content, c.messages::text, c.inputs::text) AS prompt,
    c.metadata,
    r.output,
    r.finish_reason,
    r.parameters,
    r.prompt_tokens,
    r.completion_tokens,
    r.error_code,
    r.error_message,
    r.created_at,
    r.started_at,
    r.completed_at,
    r.started_at - r.created_at AS waited,
    r.completed_at - r.started_at AS ran,
    r.attempt_count,
    a.number AS attempt,
    a.server,
    a.outcome AS attempt_outcome,
    a.error_code AS attempt_error_code,
    a.started_at AS attempt_started_at,
    a.ended_at AS attempt_ended_at
FROM results r
JOIN contexts c ON c.id = r.context_id
LEFT JOIN attempts a ON a.result_id = r.id
"""
HISTORY_VIEW = FORMER_VIEW.replace(
    "    a.ended_at AS attempt_ended_at\n",
    """    a.ended_at AS attempt_ended_at,
    a.provenance->>'server' AS server_name,
    a.provenance->>'kind' AS server_kind,
    a.provenance->>'engine_version' AS engine_version,
    a.provenance->>'model_revision' AS model_revision,
    a.provenance->'parameters' AS sent_parameters
""",
)


def upgrade() -> None:
    for table in ("results", "attempts"):
        with alone():
            op.add_column(table, sa.Column("provenance", postgresql.JSONB()), if_not_exists=True)
    op.execute(HISTORY_VIEW)


def downgrade() -> None:
    op.execute("DROP VIEW history")
    op.execute(FORMER_VIEW)
    op.drop_column("attempts", "provenance")
    op.drop_column("results", "provenance")
