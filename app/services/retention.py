"""What happens to old results, and how an id that is gone is answered."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from app.db.ids import lowest_at
from app.errors import AppError, Removed


def oldest_kept(days: float) -> UUID:
    """Ids below this one may be gone."""
    return lowest_at(datetime.now(UTC) - timedelta(days=days))


def removed_or(id_: UUID, days: float | None, otherwise: AppError) -> AppError:
    """The error for an id that is not there: an id holds its age, so what the retention took is told from a mistake."""
    if days is not None and id_.version == 7 and id_ < oldest_kept(days):
        return Removed(
            f"{id_} is older than {days:g} days and was removed; RESULT_RETENTION_DAYS keeps results longer."
        )
    return otherwise
