"""Python's garbage collector, in a process that serves while it looks."""

import gc

# Objects made until it looks at the newest: with Python's 700 most of what it sees is still in use.
COLLECT_AFTER = 5000


def collect_rarely() -> None:
    """For the end of a start: what was imported stays, so the collector need not stop all work to look at it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)
