"""The statements that a ticket waits for, with arguments that find and change nothing.

Run so, they are planned before a ticket comes: that takes Postgres many times as long as to run them.
"""

from __future__ import annotations

import re
from typing import Any

from app.queue import slots
from app.queue.statements.claim import CLAIM, CLAIM_ONLY
from app.queue.statements.settle import SETTLE
from app.queue.statements.submit import SUBMIT_UNFLUSHED


def _of_nothing(statement: str) -> tuple[str, list[Any]]:
    """With an empty array for each parameter."""
    return statement, [()] * max(map(int, re.findall(r"\$(\d+)", statement)))


SUBMITTING = [_of_nothing(SUBMIT_UNFLUSHED)]
DISPATCHING = [
    (CLAIM_ONLY, ["", "", 0.0, "", (), 0, ()]),
    (CLAIM, [(), (), 0.0, "", (), (), (), (), 0, (), (), (), (), (), ()]),
    _of_nothing(SETTLE[False, False]),
    _of_nothing(slots.END),
]
