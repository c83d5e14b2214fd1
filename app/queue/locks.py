"""Advisory locks of Postgres, each held by the one process that does a job of which one is enough."""

MIGRATION = 8887001
RETENTION = 8887002
EVENTS = 8887003
BATCHES = 8887004
USAGE = 8887005
