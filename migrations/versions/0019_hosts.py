"""Hosts that follow the queue, and what they cost.

Revision ID: 0019
Revises: 0018
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

STATES = "'wanted', 'creating', 'booting', 'deploying', 'loading', 'ready', 'draining', 'destroying', 'gone', 'failed'"
MOMENT = sa.DateTime(timezone=True)
NOW = sa.text("now()")


def upgrade() -> None:
    op.create_table(
        "capacity_leader",
        sa.Column("id", sa.SmallInteger(), nullable=False),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("until", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("capacity_leader_pkey")),
        sa.CheckConstraint("id = 1", name=op.f("capacity_leader_only_one")),
    )
    op.create_table(
        "pools",
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("models", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("settings", postgresql.JSONB(), nullable=False),
        sa.Column("plan", postgresql.JSONB(), server_default="{}", nullable=False),
        sa.Column("announced", postgresql.JSONB(), server_default="{}", nullable=False),
        sa.Column("seen_at", MOMENT, server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pools_pkey")),
    )
    op.create_table(
        "hosts",
        sa.Column("id", sa.UUID(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("provider_id", sa.Text()),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("offer", sa.Text(), nullable=False),
        sa.Column("machine", sa.Text()),
        sa.Column("gpu", sa.Text()),
        sa.Column("hourly_price", sa.Double(), nullable=False),
        sa.Column("storage_price", sa.Double(), server_default="0", nullable=False),
        sa.Column("spot", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("models", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("revision", sa.Text()),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("progress", sa.Text(), server_default="", nullable=False),
        sa.Column("progress_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("locked", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("asked", sa.Text()),
        sa.Column("failure", sa.Text()),
        sa.Column("failed_at", MOMENT),
        sa.Column("failed_in", sa.Text()),
        sa.Column("server_id", sa.UUID()),
        sa.Column("address", sa.Text()),
        sa.Column("last_request_at", MOMENT),
        sa.Column("generations", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("busy_seconds", sa.Double(), server_default="0", nullable=False),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("state_since", MOMENT, server_default=NOW, nullable=False),
        sa.Column("ready_at", MOMENT),
        sa.Column("ended_at", MOMENT),
        sa.PrimaryKeyConstraint("id", name=op.f("hosts_pkey")),
        sa.UniqueConstraint("label", name=op.f("hosts_label_key")),
        sa.CheckConstraint(f"state IN ({STATES})", name=op.f("hosts_state_known")),
        sa.CheckConstraint(
            "(state IN ('gone', 'failed')) = (ended_at IS NOT NULL)", name=op.f("hosts_ended_has_an_end")
        ),
        sa.CheckConstraint("asked IN ('drain', 'destroy')", name=op.f("hosts_asked_known")),
    )
    op.create_index("hosts_live", "hosts", ["id"], postgresql_where=sa.text("ended_at IS NULL"))
    op.create_index("hosts_failed", "hosts", ["failed_at"], postgresql_where=sa.text("failed_at IS NOT NULL"))
    op.create_table(
        "host_events",
        sa.Column("id", sa.UUID(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("host_id", sa.UUID(), nullable=False),
        sa.Column("at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("progress", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("host_events_pkey")),
        sa.ForeignKeyConstraint(["host_id"], ["hosts.id"], name=op.f("host_events_host_id_fkey"), ondelete="CASCADE"),
    )
    op.create_index("host_events_by_host", "host_events", ["host_id", "id"])
    op.create_table(
        "host_charges",
        sa.Column("host_id", sa.UUID(), nullable=False),
        sa.Column("from_at", MOMENT, nullable=False),
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("hourly_price", sa.Double(), nullable=False),
        sa.Column("until_at", MOMENT),
        sa.PrimaryKeyConstraint("host_id", "from_at", name=op.f("host_charges_pkey")),
        sa.ForeignKeyConstraint(["host_id"], ["hosts.id"], name=op.f("host_charges_host_id_fkey")),
        sa.CheckConstraint("until_at >= from_at", name=op.f("host_charges_ends_after_it_begins")),
    )
    op.create_index("host_charges_open", "host_charges", ["pool"], postgresql_where=sa.text("until_at IS NULL"))
    op.create_index("host_charges_by_end", "host_charges", ["until_at"])


def downgrade() -> None:
    for table in ("host_charges", "host_events", "hosts", "pools", "capacity_leader"):
        op.drop_table(table)
