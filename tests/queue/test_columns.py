"""A column that is declared reaches every statement and every reader, and comes back as it was."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from types import UnionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints
from uuid import UUID, uuid4

import pytest
from pydantic_core import from_json
from sqlalchemy import ARRAY, Column, Double, MetaData, Table, Text
from sqlalchemy.dialects.postgresql import JSONB

from app.config import Settings
from app.db.engine import open_database
from app.db.ids import uuid7
from app.db.tables.contexts import Prompt
from app.db.tables.declared import columns_of, names_of
from app.db.tables.results import SettledColumns, SubmittedColumns
from app.queue.batch_lines import CONTEXT_COLUMNS, RESULT_COLUMNS, context_line, result_line
from app.queue.columns import CLAIMED, RESULT, SUBMITTED, Columns, sql_type, unnested
from app.queue.store import QueueStore
from app.queue.ticket import Outcome, Settlement, Status, Submission
from app.services.results import GET, LISTED
from app.services.submissions import row_of

NOW = datetime.now(UTC)
# Those whose value is bound by something else than its type.
BOUND: dict[str, Any] = {
    "task": "infer",
    "wish": "kinds:openai",
    "created_at": NOW - timedelta(seconds=1),
    "expires_at": NOW + timedelta(hours=1),
}
SERVERS = [("s", "one", "openai")]
SAMPLES: dict[type, Any] = {str: 'a "text"\\\t\n,{}', int: 3, bool: True, UUID: uuid4(), datetime: NOW, float: 0.5}


def sample(name: str, hint: Any) -> Any:
    """A value that is not the default of the attribute."""
    if name in BOUND:
        return BOUND[name]
    if name in ("id", "context_id"):
        return uuid7()
    kind = next(each for each in get_args(hint) if each is not type(None)) if get_origin(hint) is UnionType else hint
    if kind in SAMPLES:
        return SAMPLES[kind]
    return {"key": SAMPLES[str]} if get_origin(kind) is dict else [sample("", get_args(kind)[0])]


# A context holds one kind of thing, and a task is one of three.
FORMS = ({"inputs": None}, {"content": None, "messages": None})


def filled(declaration: type) -> dict[str, Any]:
    hints = get_type_hints(declaration)
    return {name: sample(name, hints[name]) for name in names_of(declaration)}


def prompts() -> list[Prompt]:
    return [replace(Prompt(**filled(Prompt)), **without) for without in FORMS]


def new_ticket(prompt: Prompt | None = None) -> Submission:
    return Submission(**filled(SubmittedColumns), prompt=prompt or prompts()[0])


@pytest.fixture
async def store(database_url: str) -> Any:
    async with open_database(Settings(database_url=database_url)) as database:
        yield QueueStore(database)


def differing(row: Any, wanted: Any, names: Sequence[str] = ()) -> dict[str, tuple[Any, Any]]:
    """What a row has otherwise than the attributes of `wanted` say."""
    found = {name: _read(row[name], getattr(wanted, name)) for name in names or names_of(type(wanted))}
    return {name: (value, getattr(wanted, name)) for name, value in found.items() if value != getattr(wanted, name)}


def _read(value: Any, wanted: Any) -> Any:
    # This connection has no codec of documents.
    return from_json(value) if isinstance(value, str) and isinstance(wanted, (dict, list)) else value


def test_every_declared_column_is_read_listed_and_answered_with() -> None:
    declared = {*names_of(SubmittedColumns), *names_of(SettledColumns)}
    assert declared <= set(RESULT.split(", "))
    assert declared - {column.name for column in LISTED.columns} == {"request"}
    assert {column.name for column in LISTED.large} == {"parameters", "output", "outputs", "answer"}
    ticket = new_ticket()
    assert differing(row_of(ticket), ticket, SUBMITTED.names) == {}


@pytest.mark.parametrize("prompt", prompts())
async def test_what_a_submit_stores_is_claimed_and_in_the_row(store: QueueStore, rows: Any, prompt: Prompt) -> None:
    ticket = new_ticket(prompt)
    assert await store.submit([ticket]) == {ticket.id}
    assert differing(await rows.fetchrow(GET, ticket.id, ticket.owner_id), ticket, SUBMITTED.names) == {}
    stored = await rows.fetchrow("SELECT * FROM contexts WHERE id = $1", ticket.context_id)
    assert differing(stored, ticket.prompt) == {}
    (claim,) = (await store.claim([(ticket.model, "s", None)], lease_seconds=30, dispatcher="d", named=SERVERS)).claims
    assert {name: getattr(claim, name) for name in CLAIMED.names} == {
        name: getattr(ticket, name) for name in CLAIMED.names
    }
    assert claim.prompt == replace(prompt, metadata=None)


@pytest.mark.parametrize("prompt", prompts())
async def test_a_context_alone_is_stored_as_one_with_its_ticket(store: QueueStore, rows: Any, prompt: Prompt) -> None:
    id_ = uuid7()
    assert await store.create_context(id_, prompt, NOW, None)
    assert differing(await rows.fetchrow("SELECT * FROM contexts WHERE id = $1", id_), prompt) == {}


async def test_what_a_settle_stores_is_in_the_row(store: QueueStore, rows: Any) -> None:
    ticket = new_ticket()
    await store.submit([ticket])
    (claim,) = (await store.claim([(ticket.model, "s", None)], lease_seconds=30, dispatcher="d", named=SERVERS)).claims
    answer = SettledColumns(**filled(SettledColumns))
    end = Settlement(claim.id, claim.token, Status.COMPLETED, Outcome.COMPLETED, "s", answer)
    assert await store.settle([end]) == {claim.id}
    assert differing(await rows.fetchrow(GET, ticket.id, ticket.owner_id), answer) == {}


async def test_the_lines_of_a_batch_are_stored_as_a_submit_stores_them(rows: Any) -> None:
    ticket, prompt = new_ticket(), prompts()[0]
    for table, columns, line in (
        ("contexts", CONTEXT_COLUMNS, context_line(ticket, prompt)),
        ("results", RESULT_COLUMNS, result_line(ticket, uuid4(), 1)),
    ):
        await rows.copy_to_table(table, source=io.BytesIO(line), columns=columns, format="text")
    assert differing(await rows.fetchrow(GET, ticket.id, ticket.owner_id), ticket, SUBMITTED.names) == {}
    stored = await rows.fetchrow("SELECT * FROM contexts WHERE id = $1", ticket.context_id)
    assert differing(stored, prompt) == {}


async def test_a_made_up_column_needs_its_declaration_only(rows: Any) -> None:
    """Documents and arrays are sent as text, whatever they hold."""

    @dataclass
    class Wished:
        kinds: Annotated[list[str] | None, Column(ARRAY(Text))]
        wishes: Annotated[dict[str, Any] | None, Column(JSONB)]
        weight: Annotated[float, Column(Double)]

    table = Table("wished", MetaData(), *columns_of(Wished))
    columns = Columns(table.c)
    await rows.execute(f"CREATE TABLE wished ({', '.join(f'{c.name} {sql_type(c)}' for c in table.c)})")
    wanted = [Wished(['a"b', "c\\d", "{,}", ""], {"x": [1, "\t"]}, 0.5), Wished(None, None, 1.0), Wished([], {}, 2.0)]
    values = zip(*map(columns.values, wanted), strict=True)
    await rows.execute(
        f"INSERT INTO wished ({columns}) SELECT {columns.stored} FROM {unnested(columns.sent, 'g')}", *values
    )
    stored = await rows.fetch("SELECT * FROM wished ORDER BY weight")
    assert [differing(row, each) for row, each in zip(stored, wanted, strict=True)] == [{}, {}, {}]
