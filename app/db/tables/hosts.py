"""Hosts that are rented and given back as the queue needs them; see docs/capacity.md."""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    SmallInteger,
    String,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID

from app.db.tables.base import Moment, metadata

# One row: which process decides. Each leader has another token, and what it writes names it.
capacity_leader = Table(
    "capacity_leader",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    # Part of every host's label, so that services that share an account leave each other's hosts alone.
    Column("service", Text, nullable=False),
    Column("holder", Text, nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("until", Moment, nullable=False),
    # Over all pools, for people: dollars by `hour`, `day`, `month` and `total`.
    Column("budget", JSONB, nullable=False, server_default="{}"),
    CheckConstraint("id = 1", name="only_one"),
)

# What the leader reads in its definitions, and what it last decided; gone with the definition.
pools = Table(
    "pools",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("models", ARRAY(Text), nullable=False),
    # Limits and budgets, for people.
    Column("settings", JSONB, nullable=False),
    # {"actions", "reasons", "demand", "provider"}: what was decided, and why.
    Column("plan", JSONB, nullable=False, server_default="{}"),
    # Of no use any more: see budget_alerts.
    Column("announced", JSONB, nullable=False, server_default="{}"),
    Column("seen_at", Moment, nullable=False, server_default=func.now()),
)

STATES = (
    *("wanted", "creating", "booting", "deploying", "loading", "ready", "draining", "destroying"),
    *("gone", "failed"),
)

hosts = Table(
    "hosts",
    metadata,
    Column("id", UUID, primary_key=True, server_default=text("uuidv7()")),
    Column("pool", Text, nullable=False),
    Column("provider", Text, nullable=False),
    # What the provider calls it; null until a create was answered, or its label was found.
    Column("provider_id", Text),
    Column("label", Text, nullable=False, unique=True),
    Column("offer", Text, nullable=False),
    Column("machine", Text),
    Column("gpu", Text),
    # Dollars an hour while it runs, and while it is stopped.
    Column("hourly_price", Double, nullable=False),
    Column("storage_price", Double, nullable=False, server_default="0"),
    # The provider may take it back at any moment.
    Column("spot", Boolean, nullable=False, server_default="false"),
    Column("models", ARRAY(Text), nullable=False),
    # Where the models' weights are from.
    Column("revision", Text),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False, server_default=""),
    # What it does within its state, and since when that is said.
    Column("progress", Text, nullable=False, server_default=""),
    Column("progress_at", Moment, nullable=False, server_default=func.now()),
    # Exempt from scaling down.
    Column("locked", Boolean, nullable=False, server_default="false"),
    # `drain` or `destroy`, asked for by an admin; the leader carries it out.
    Column("asked", Text),
    Column("failure", Text),
    Column("failed_at", Moment),
    # The state in which it failed.
    Column("failed_in", Text),
    # Its machine is to blame for that, and not what was to run there.
    Column("machine_failed", Boolean, nullable=False, server_default="true"),
    # Its provider took it away.
    Column("taken", Boolean, nullable=False, server_default="false"),
    # Its row in `servers`, and the address there.
    Column("server_id", UUID),
    Column("address", Text),
    Column("last_request_at", Moment),
    Column("generations", BigInteger, nullable=False, server_default="0"),
    Column("completion_tokens", BigInteger, nullable=False, server_default="0"),
    # In which it had work.
    Column("busy_seconds", Double, nullable=False, server_default="0"),
    # In which most of its slots were taken, what it did then, and when it was last seen so.
    Column("full_seconds", Double, nullable=False, server_default="0"),
    Column("full_tokens", BigInteger, nullable=False, server_default="0"),
    Column("full_at", Moment),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    Column("state_since", Moment, nullable=False, server_default=func.now()),
    Column("ready_at", Moment),
    Column("ended_at", Moment),
    CheckConstraint(f"state IN ({', '.join(repr(state) for state in STATES)})", name="state_known"),
    CheckConstraint("(state IN ('gone', 'failed')) = (ended_at IS NOT NULL)", name="ended_has_an_end"),
    CheckConstraint("asked IN ('drain', 'destroy')", name="asked_known"),
    Index("hosts_live", "id", postgresql_where=text("ended_at IS NULL")),
    Index("hosts_failed", "failed_at", postgresql_where=text("failed_at IS NOT NULL")),
)

host_events = Table(
    "host_events",
    metadata,
    Column("id", UUID, primary_key=True, server_default=text("uuidv7()")),
    Column("host_id", UUID, ForeignKey("hosts.id", ondelete="CASCADE"), nullable=False),
    Column("at", Moment, nullable=False, server_default=func.now()),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False, server_default=""),
    Column("progress", Text, nullable=False, server_default=""),
    Index("host_events_by_host", "host_id", "id"),
)

# The ledger: what a host costs from when to when. A charge begins before its host is asked for.
host_charges = Table(
    "host_charges",
    metadata,
    # Its row may be gone: what it cost stays.
    Column("host_id", UUID, primary_key=True),
    Column("from_at", Moment, primary_key=True),
    Column("pool", Text, nullable=False),
    Column("hourly_price", Double, nullable=False),
    # Null while it goes on.
    Column("until_at", Moment),
    CheckConstraint("until_at >= from_at", name="ends_after_it_begins"),
    Index("host_charges_open", "pool", postgresql_where=text("until_at IS NULL")),
    Index("host_charges_by_end", "until_at"),
)

# What was said of budgets. `pool` is empty for the one over all pools, `period` says which hour, day or month (UTC); a
# budget that was changed is told of anew.
budget_alerts = Table(
    "budget_alerts",
    metadata,
    Column("pool", Text, primary_key=True),
    Column("span", Text, primary_key=True),
    Column("period", Text, primary_key=True),
    # Percent.
    Column("level", SmallInteger, primary_key=True, autoincrement=False),
    # Dollars.
    Column("most", Double, primary_key=True, autoincrement=False),
    Column("spent", Double, nullable=False),
    Column("at", Moment, nullable=False, server_default=func.now()),
)
