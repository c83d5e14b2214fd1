"""Pools as people write them, under `pools` and `budget` of one file or several; each wrong key is named."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.capacity.plan import Budget, Pool
from nvidia_triton.checked_yaml import UnusableFile, problems, read

Dollars = Annotated[float, Field(gt=0, lt=1_000_000)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)


class BudgetDefinition(Part):
    """Dollars in an hour, a day and a month (UTC), and in all."""

    hour: Dollars | None = None
    day: Dollars | None = None
    month: Dollars | None = None
    total: Dollars | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("must hold at least one of hour, day, month and total")
        return self

    def budget(self) -> Budget:
        return Budget(self.hour, self.day, self.month, self.total)


class PoolDefinition(Part):
    """`min` and `max` count hosts. `query` changes the file's own query for offers; `settings` are the provider's."""

    name: Name
    models: tuple[str, ...] = Field(min_length=1)
    provider: Name = "vast"
    settings: dict[str, Any] = Field(default_factory=dict)
    query: dict[str, Any] = Field(default_factory=dict)
    min: int = Field(0, ge=0, le=1000)
    max: int = Field(1, ge=1, le=1000)
    target_wait: float = Field(60, gt=0, le=30 * 86400)
    idle_minutes: float | None = Field(None, gt=0, le=7 * 1440)
    boot_deadline_minutes: float = Field(45, gt=0, le=1440)
    max_price: float = Field(0.8, gt=0, lt=1000)
    budget: BudgetDefinition | None = None
    interruptible: bool = False
    vram: float = Field(0, ge=0, le=10_000)
    slots: int = Field(16, ge=1, le=10_000)
    tokens_per_second: float = Field(1000, gt=0)
    startup_minutes: float = Field(10, gt=0, le=1440)

    @model_validator(mode="after")
    def _can_work(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is more than max ({self.max}): raise max or lower min")
        if len(set(self.models)) < len(self.models):
            raise ValueError("a model is there twice: name each once")
        if self.startup_minutes >= self.boot_deadline_minutes:
            raise ValueError(
                f"boot_deadline_minutes ({self.boot_deadline_minutes:g}) must be more than startup_minutes "
                f"({self.startup_minutes:g}), else every host is given up before it is ready"
            )
        budget = self.budget.budget() if self.budget else Budget()
        hour = self.min * self.max_price
        for span, limit, least in (("hour", budget.hour, hour), ("day", budget.day, 24 * hour)):
            if limit is not None and limit < least:
                raise ValueError(
                    f"budget.{span} (${limit:.2f}) is less than `min` hosts cost at max_price (${least:.2f}): "
                    "lower min or raise the budget"
                )
        return self

    def pool(self) -> Pool:
        return Pool(
            name=self.name,
            models=self.models,
            provider=self.provider,
            min_hosts=self.min,
            max_hosts=self.max,
            target_wait=self.target_wait,
            idle_minutes=self.idle_minutes,
            boot_deadline=self.boot_deadline_minutes * 60,
            max_price=self.max_price,
            budget=self.budget.budget() if self.budget else Budget(),
            interruptible=self.interruptible,
            vram=self.vram,
            slots=self.slots,
            tokens_per_second=self.tokens_per_second,
            startup=self.startup_minutes * 60,
        )


class _File(BaseModel):
    """The other keys of the file are the instance definition's."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True, allow_inf_nan=False)

    pools: tuple[PoolDefinition, ...] = ()
    budget: BudgetDefinition | None = None


@dataclass(frozen=True)
class PoolEntry:
    """A pool, the file it stands in, and what its provider is to know."""

    pool: Pool
    file: Path
    settings: dict[str, Any]
    query: dict[str, Any]


@dataclass(frozen=True)
class Pools:
    """All pools of all files, and the budget over all of them."""

    entries: tuple[PoolEntry, ...]
    budget: Budget

    @property
    def pools(self) -> tuple[Pool, ...]:
        return tuple(entry.pool for entry in self.entries)


def load_pools(paths: Sequence[Path]) -> Pools:
    """Files without pools give none.

    Raises:
        UnusableFile: a file cannot be read, or a key, a name or a model in it cannot be used; each is named.
    """
    entries: list[PoolEntry] = []
    budget: BudgetDefinition | None = None
    for path in paths:
        try:
            file = _File.model_validate(read(path))
        except ValidationError as error:
            raise UnusableFile(f"{path.name} has keys that cannot be used:\n{problems(error)}") from None
        if file.budget and budget:
            raise UnusableFile(f"{path.name}: `budget` is over all pools and stands in another file too: keep one.")
        budget = file.budget or budget
        entries += [PoolEntry(each.pool(), path, each.settings, each.query) for each in file.pools]
    _refuse_twice(entries)
    return Pools(tuple(entries), budget.budget() if budget else Budget())


def _refuse_twice(entries: Sequence[PoolEntry]) -> None:
    names: set[str] = set()
    models: dict[str, str] = {}
    for entry in entries:
        pool = entry.pool
        if pool.name in names:
            raise UnusableFile(f"{entry.file.name}: there are two pools named {pool.name}: rename one.")
        names.add(pool.name)
        for model in pool.models:
            if model in models:
                raise UnusableFile(
                    f"{entry.file.name}: {model} is in the pools {models[model]} and {pool.name}, and work is counted "
                    "once: keep it in one."
                )
            models[model] = pool.name
