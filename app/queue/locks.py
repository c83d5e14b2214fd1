"""Advisory locks of Postgres, each held by the one process that does a job of which one is enough."""

MIGRATION = 8887001
RETENTION = 8887002
EVENTS = 8887003
BATCHES = 8887004
USAGE = 8887005
# While a budget is looked at before a host is charged to it.
BUDGET = 8887006

# The first of two numbers, the second is an owner: while the size of its files is looked at before one is added.
STORAGE = 8887
