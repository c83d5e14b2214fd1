"""Models, spending caps and a person for keys; who uploaded a file; the audit log.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations.online import alone

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# Rows are only ever added. The retention alone removes some, through the function, which says up to when.
APPEND_ONLY = (
    """
CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND OLD.created_at < nullif(current_setting('audit.remove_before', true), '')::timestamptz THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'the audit log is append-only: % is refused', TG_OP
        USING ERRCODE = 'insufficient_privilege',
              HINT = 'audit_remove_before(timestamptz) removes what is older than the retention.';
END
$$
""",
    """
CREATE TRIGGER audit_keeps_rows BEFORE UPDATE OR DELETE ON audit
    FOR EACH ROW EXECUTE FUNCTION audit_is_append_only()
""",
    """
CREATE TRIGGER audit_keeps_all BEFORE TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only()
""",
    """
CREATE FUNCTION audit_remove_before(moment timestamptz, most int) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    removed bigint;
BEGIN
    PERFORM set_config('audit.remove_before', moment::text, true);
    DELETE FROM audit WHERE id IN (SELECT id FROM audit WHERE created_at < moment ORDER BY id LIMIT most);
    GET DIAGNOSTICS removed = ROW_COUNT;
    PERFORM set_config('audit.remove_before', '', true);
    RETURN removed;
END
$$
""",
)


def upgrade() -> None:
    with alone():
        for column in (
            sa.Column("person", sa.String(length=200)),
            sa.Column("models", sa.ARRAY(sa.Text())),
            sa.Column("tokens_per_month", sa.BigInteger()),
            sa.Column("dollars_per_day", sa.Double()),
            sa.Column("dollars_per_month", sa.Double()),
            sa.Column("storage_bytes", sa.BigInteger()),
        ):
            op.add_column("api_keys", column, if_not_exists=True)
    with alone():
        op.add_column("files", sa.Column("key_id", sa.UUID()), if_not_exists=True)
    op.create_table(
        "audit",
        sa.Column("id", sa.UUID(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("actor_key_id", sa.UUID(), nullable=True),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.Integer(), nullable=True),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("subject_key_id", sa.UUID(), nullable=True),
        sa.Column("details", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("audit_pkey")),
    )
    op.create_index("audit_age", "audit", ["created_at"], unique=False)
    for statement in APPEND_ONLY:
        op.execute(statement)


def downgrade() -> None:
    op.drop_table("audit")
    op.execute("DROP FUNCTION audit_remove_before(timestamptz, int)")
    op.execute("DROP FUNCTION audit_is_append_only()")
    op.drop_column("files", "key_id")
    for name in ("storage_bytes", "dollars_per_month", "dollars_per_day", "tokens_per_month", "models", "person"):
        op.drop_column("api_keys", name)
