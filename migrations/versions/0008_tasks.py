"""What a ticket asks is a task; contexts hold a text, the messages of a chat, or tensors.

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations.online import alone, fill, replace_check

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

HISTORY_VIEW = """
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

FORMER_VIEW = HISTORY_VIEW.replace("coalesce(c.content, c.messages::text, c.inputs::text)", "c.content")
FORMER_CHECK = "status <> 'completed' OR (output IS NOT NULL AND finish_reason IS NOT NULL AND error_code IS NULL)"


def upgrade() -> None:
    with alone():
        op.add_column(
            "results", sa.Column("task", sa.Text(), server_default="generate", nullable=False), if_not_exists=True
        )
        op.add_column("results", sa.Column("answer", postgresql.JSONB()), if_not_exists=True)
        op.add_column("contexts", sa.Column("inputs", postgresql.JSONB()), if_not_exists=True)
        op.alter_column("contexts", "content", nullable=True)
        # Not compressed from now on, so that a claim knows what they come to without reading them.
        for table, column in (("contexts", "messages"), ("contexts", "inputs"), ("results", "request")):
            op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET STORAGE EXTERNAL")
    replace_check("results", "results_task_known", "task IN ('generate', 'embed', 'infer')")
    replace_check(
        "results",
        "results_completed_has_output",
        "status <> 'completed' OR (error_code IS NULL AND CASE task WHEN 'infer' THEN answer IS NOT NULL"
        " ELSE output IS NOT NULL AND finish_reason IS NOT NULL END)",
    )
    replace_check("contexts", "contexts_says_something", "(num_nonnulls(content, messages) > 0) = (inputs IS NULL)")
    # A process of the version before makes such rows until it ends: the claim knows them by their parameters.
    fill("results", "task = 'embed'", "kind = 'embedding' AND task = 'generate'")
    op.execute(HISTORY_VIEW)


def downgrade() -> None:
    op.execute("DROP VIEW history")
    op.execute(FORMER_VIEW)
    op.drop_constraint("contexts_says_something", "contexts")
    # Chats and tensors are unknown to the version before; what it reads of them is their JSON text.
    op.execute("UPDATE contexts SET content = coalesce(messages::text, inputs::text) WHERE content IS NULL")
    op.alter_column("contexts", "content", nullable=False)
    op.drop_column("contexts", "inputs")
    op.execute("ALTER TABLE contexts ALTER COLUMN messages SET STORAGE EXTENDED")
    op.execute("ALTER TABLE results ALTER COLUMN request SET STORAGE EXTENDED")
    op.drop_constraint("results_task_known", "results")
    op.drop_constraint("results_completed_has_output", "results")
    op.execute(
        "UPDATE results SET output = answer::text, finish_reason = 'stop' WHERE task = 'infer' AND answer IS NOT NULL"
    )
    op.drop_column("results", "answer")
    op.drop_column("results", "task")
    op.create_check_constraint("results_completed_has_output", "results", FORMER_CHECK)
