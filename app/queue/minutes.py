"""What ended minute by minute, from the sums of closed minutes and what was appended since; see housekeeping.py.

What was submitted is counted by the ids, which begin with the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from app.db.engine import Database
from app.db.ids import lowest_at

# One statement, so that a row that is summed meanwhile is seen once.
_COUNTED = """
SELECT owner_id, minute, model, error_code, tickets, completion_tokens FROM minute_counts
WHERE minute >= $1 {mine}
UNION ALL
SELECT owner_id, minute, model, coalesce(error_code, ''), requests, completion_tokens FROM usage
WHERE minute >= $1 AND day >= ($1 AT TIME ZONE 'UTC')::date {mine}
"""
_SUMS = """
SELECT date_bin($2, minute, $1) AS began, model, error_code, sum(tickets)::int8 AS tickets,
       sum(completion_tokens)::int8 AS tokens
FROM ({counted}) counted GROUP BY 1, 2, 3
"""
OF_ALL = _SUMS.format(counted=_COUNTED.format(mine=""))
_SUBMITTED = """
SELECT date_bin($3, uuid_extract_timestamp(id), 'epoch') AS began, count(*) AS tickets FROM results
WHERE id >= $1 AND id < $2 {mine} GROUP BY 1
"""
SUBMITTED = _SUBMITTED.format(mine="")
SUBMITTED_BY_OWNER = _SUBMITTED.format(mine="AND owner_id = $4")
OF_OWNER = _SUMS.format(counted=_COUNTED.format(mine="AND owner_id = $3"))


class MinuteStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def ended(self, since: datetime, step: timedelta, owner_id: int | None) -> Sequence[Mapping[str, Any]]:
        """Tickets and tokens of answers from `since` on, in steps of whole minutes, by model and error code.

        Without an `owner_id`, those of all owners. The error code of what completed is empty.
        """
        async with self._database.hot() as connection:
            if owner_id is None:
                rows: Sequence[Mapping[str, Any]] = await connection.fetch(OF_ALL, since, step)
            else:
                rows = await connection.fetch(OF_OWNER, since, step, owner_id)
        return rows

    async def submitted(
        self, since: datetime, until: datetime, step: timedelta, owner_id: int | None
    ) -> dict[datetime, int]:
        """Tickets that came between, in steps that begin with 1970, of those still kept; without an `owner_id`, of all.

        Reads an index entry for each.
        """
        values = (lowest_at(since), lowest_at(until), step)
        async with self._database.hot() as connection:
            if owner_id is None:
                rows = await connection.fetch(SUBMITTED, *values)
            else:
                rows = await connection.fetch(SUBMITTED_BY_OWNER, *values, owner_id)
        return {row["began"]: row["tickets"] for row in rows}
