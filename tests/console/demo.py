"""What the screenshots show: a service with tickets of a real small model, and, where no API can make it, rows.

All is made anew each time from the texts and formulas here, in the same order. Rows stand in for what takes weeks
(usage by day), money (rented hosts) or a process that is not started here; each is marked below. Names are those of
programs.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import asyncpg

from app.config import Settings
from app.db.engine import open_database
from app.queue.hosts import LeadersHosts
from app.queue.leader import LeaderStore
from app.queue.pools import LeadersPools
from nvidia_triton.local.settings import ROOT
from tests.conftest import alembic
from tests.postgres_server import start_postgres
from tests.servers import start_triton
from tests.service import Service, eventually, running_api, running_dispatcher

MODEL, LARGE = "demo", "qwen2.5-7b-instruct"
QUESTIONS = (
    "What is the capital of France?",
    "Name three uses of a paper clip.",
    "Write a haiku about queues.",
    "Which planet is the largest?",
    "Explain a mutex to a child.",
    "Translate 'good morning' into Spanish.",
)
KEYS = (
    {"name": "search", "requests_per_minute": 600, "tokens_per_day": 2_000_000, "weight": 2},
    {"name": "support-bot", "pending_limit": 500, "dollars_per_month": 50.0},
    {"name": "nightly-report", "owner": "reports", "models": [MODEL], "expires_in_days": 365},
    {"name": "dashboard", "owner": "reports", "scopes": ["read"]},
)
DAYS = 30

# A model that a server had which has left.
SEEN = "INSERT INTO models (name, version) VALUES ($1, '1')"
# A month of usage, by a formula: weekdays have more.
USAGE = """
INSERT INTO usage (day, owner_id, key_id, model, requests, failures, prompt_tokens, completion_tokens, gpu_seconds,
                   cost)
SELECT d.day, k.owner_id, k.id, m.model, n.requests, n.requests / 60, n.requests * 210, n.requests * 95,
       n.requests * m.seconds, n.requests * m.seconds * 0.42 / 3600
FROM (SELECT (now() AT TIME ZONE 'UTC')::date - n AS day FROM generate_series(1, $1::int) n) d
CROSS JOIN (SELECT id, owner_id, row_number() OVER (ORDER BY id) AS number FROM api_keys) k
CROSS JOIN (VALUES ($2, 0.4), ($3, 2.5)) m(model, seconds)
CROSS JOIN LATERAL (
    SELECT (900 / k.number * CASE WHEN extract(isodow FROM d.day) > 5 THEN 0.35 ELSE 1 END
            * (1 + 0.3 * sin(extract(day FROM d.day)::float8 * k.number)))::bigint AS requests
) n
"""


# The hour before: tickets of the small model, of the same texts, settled at even steps.
HOUR = """
WITH made AS MATERIALIZED (
    SELECT n, now() - age AS at, uuidv7(-age) AS id, uuidv7(-age - interval '5 ms') AS context_id, n % 23 = 9 AS failed
    FROM generate_series(1, 240) n,
         LATERAL (SELECT make_interval(secs => 60 + 14.4 * n + 40 * sin(n::float8 / 9))) a(age)
), prompts AS (
    INSERT INTO contexts (id, owner_id, created_at, content)
    SELECT context_id, 0, at, ($1::text[])[1 + n % array_length($1::text[], 1)] FROM made
)
INSERT INTO results (id, context_id, model, parameters, owner_id, rank, created_at, available_at, started_at,
                     completed_at, status, output, finish_reason, prompt_tokens, completion_tokens, attempt_count,
                     dispatcher, server, error_code, error_message)
SELECT id, context_id, $2, '{"n": 1, "temperature": 0, "max_tokens": 60}', 0, at, at, at, at, at + interval '1.4 s',
       CASE WHEN failed THEN 'failed' ELSE 'completed' END, CASE WHEN NOT failed THEN 'A row of the demo.' END,
       CASE WHEN NOT failed THEN 'stop' END, 20, CASE WHEN failed THEN 0 ELSE 20 + n % 41 END, 1, 'demo', $3,
       CASE WHEN failed THEN 'expired' END, CASE WHEN failed THEN 'It was not run in time.' END
FROM made
"""
# The same hour by the minute, and the day before it, by a formula: tickets that need no more than to have come.
DAY = """
WITH prompt AS (
    INSERT INTO contexts (id, owner_id, content) VALUES (uuidv7(), 0, 'A row of the demo.') RETURNING id
), came AS (
    INSERT INTO results (id, context_id, model, parameters, owner_id, rank, created_at, available_at, started_at,
                         completed_at, status, output, finish_reason, prompt_tokens, completion_tokens, attempt_count,
                         dispatcher)
    SELECT uuidv7(-n * interval '5 minutes'), prompt.id, m.model, '{"n": 1}', 0, at, at, at, at, at, 'completed',
           'A row of the demo.', 'stop', 20, m.tokens, 1, 'the day'
    FROM prompt, generate_series(13, 287) n CROSS JOIN (VALUES ($1, 40), ($2, 95)) m(model, tokens)
    CROSS JOIN LATERAL (SELECT (24 + 14 * sin(n / 40.0 + m.tokens) + 5 * sin(n * 1.7))::int8 AS tickets) t
    CROSS JOIN LATERAL generate_series(1, tickets) CROSS JOIN LATERAL (SELECT now() - n * interval '5 minutes') a(at)
)
INSERT INTO minute_counts (owner_id, minute, model, error_code, tickets, prompt_tokens, completion_tokens)
SELECT 0, date_trunc('minute', completed_at), model, coalesce(error_code, ''), count(*), sum(prompt_tokens),
       sum(completion_tokens)
FROM results WHERE dispatcher = 'demo' GROUP BY 1, 2, 3, 4
UNION ALL
SELECT 0, date_trunc('minute', now()) - n * interval '5 minutes', m.model, '', t.tickets, t.tickets * 20,
       t.tickets * m.tokens
FROM generate_series(13, 287) n CROSS JOIN (VALUES ($1, 40), ($2, 95)) m(model, tokens)
CROSS JOIN LATERAL (SELECT (24 + 14 * sin(n / 40.0 + m.tokens) + 5 * sin(n * 1.7))::int8 AS tickets) t
"""
# A pool and its hosts, as a controller would have them: nothing was rented.
EVENTS = """
UPDATE host_events SET at = at - interval '90 seconds' * (7 - place)
FROM (SELECT id AS event, row_number() OVER (ORDER BY id) AS place FROM host_events WHERE host_id = $1) placed
WHERE id = event
"""
CHARGES = "UPDATE host_charges SET from_at = from_at - interval '95 minutes' WHERE host_id = $1"


class Hook(BaseHTTPRequestHandler):
    """Takes what is sent to /hook, and is broken at any other path."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200 if self.path == "/hook" else 500)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@asynccontextmanager
async def demo_service(directory: Path) -> AsyncIterator[Service]:
    """The service with everything on it that the pages show; it goes on running."""
    postgres = start_postgres(directory / "postgres")
    triton = start_triton(directory / "triton", (MODEL,), ROOT / "models")
    hooks = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    Thread(target=hooks.serve_forever, daemon=True).start()
    try:
        done = alembic(postgres.url, "upgrade", "head")
        assert done.returncode == 0, done.stderr
        settings = Settings(
            database_url=postgres.url,
            triton_urls=(triton.grpc_url,),
            poll_seconds=0.2,
            probe_seconds=0.3,
            webhook_allow_private=True,
            log_level="WARNING",
        )
        async with running_api(settings) as service, running_dispatcher(settings):
            await eventually(lambda: _serves(service), "the model is served")
            await fill(service, f"http://127.0.0.1:{hooks.server_port}")
            yield service
    finally:
        hooks.shutdown()
        triton.stop()
        postgres.stop()


async def _serves(service: Service) -> bool:
    answer = await service.client.get("/models/")
    return any(each["name"] == MODEL and each["state"] == "ready" for each in answer.json())


async def _counted(service: Service) -> bool:
    return (await service.client.get("/console/")).text.count("; submitted") == 2


async def fill(service: Service, hooks: str) -> None:
    await _rows(service.settings.database_url, SEEN, LARGE)
    for key in KEYS:
        answer = await service.client.post("/keys/", json=key)
        assert answer.status_code == 201, answer.text
    await _rows(service.settings.database_url, HOUR, list(QUESTIONS), MODEL, service.settings.triton_urls[0])
    await _rows(service.settings.database_url, DAY, MODEL, LARGE)
    await _tickets(service, hooks)
    await _batch(service)
    await _in_a_browser(service)
    await _hosts(service.settings)
    await _rows(service.settings.database_url, USAGE, DAYS, MODEL, LARGE)
    await eventually(lambda: _counted(service), "the tickets submitted in the last day are counted")


async def _tickets(service: Service, hooks: str) -> None:
    """Chats of the real model, whose answers are the same each time; some fail, and some wait for a larger model."""
    for number, question in enumerate(QUESTIONS * 3):
        hook = {"url": f"{hooks}/hook" if number % 3 else f"{hooks}/broken", "events": ["result.completed"]}
        body: dict[str, Any] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": 60,
            "seed": number,
        }
        if number < 6:
            body["webhook"] = hook
        answer = await service.client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
    # An overlong answer is asked for of a model with a short context: refused by the engine.
    failed = await service.send(model=MODEL, prompt="word " * 20_000)
    await service.settled(failed)
    for question in QUESTIONS[:4]:
        await service.send(model=LARGE, prompt=question, client_reference="evaluation")


async def _batch(service: Service) -> None:
    def line(number: int) -> dict[str, Any]:
        # Two prompts are longer than the model takes.
        text = f"Say the number {number} in French." if number % 7 else "word " * 20_000
        messages = [{"role": "user", "content": text}]
        body = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 16}
        return {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}

    content = "\n".join(json.dumps(line(number)) for number in range(1, 16)).encode()
    files = {"file": ("numbers.jsonl", content)}
    file = (await service.client.post("/v1/files", data={"purpose": "batch"}, files=files)).json()
    batch = await service.client.post(
        "/v1/batches",
        json={"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"},
    )
    assert batch.status_code == 200, batch.text

    async def ended() -> bool:
        found = (await service.client.get(f"/v1/batches/{batch.json()['id']}")).json()
        return found["status"] in ("completed", "failed")

    await eventually(ended, "the batch ends", seconds=120)


async def _in_a_browser(service: Service) -> None:
    """A chat of two messages, and a comparison with a pick, by the console's own forms."""
    client = service.client

    async def send(path: str, **fields: Any) -> str:
        """Sends a form of the page as a browser does; returns the path of the page it leads to."""
        form = re.search(r'name="form" value="(\w+)"', (await client.get(path.partition("?")[0])).text)
        assert form is not None
        answer = await client.post(path.partition("?")[0], data={"form": form[1], **fields})
        assert answer.status_code == 303, answer.text
        return answer.headers["location"].partition("#")[0]

    async def settled() -> bool:
        return not (await client.get("/results/", params={"status": "pending", "model": MODEL})).json()

    asked = {"model": MODEL, "temperature": "0", "max_tokens": "60"}
    chat = await send("/console/chat", message=QUESTIONS[0], **asked)
    await eventually(settled, "the first answer")
    ticket = chat.partition("at=")[2]
    await send(chat, message="And of Spain?", after=ticket, at=ticket, **asked)
    await eventually(settled, "the second answer")
    entries = [{"model": MODEL, "parameters": {"temperature": warmth, "max_tokens": 50}} for warmth in (0, 1.2)]
    body = {"messages": [{"role": "user", "content": QUESTIONS[1]}], "entries": entries}
    compared = await client.post("/comparisons/", json=body)
    assert compared.status_code < 300, compared.text
    await eventually(settled, "the answers compared")


async def _hosts(settings: Settings) -> None:
    async with open_database(settings) as database:
        taken = await LeaderStore(database).take("demo", 3600)
        assert taken is not None
        hosts, pools = LeadersHosts(database, taken.token), LeadersPools(database, taken.token)
        limits = {"max_hosts": 3, "budget": {"day": 12.0, "total": 200.0}}
        await pools.put([{"name": "large", "models": [LARGE], "settings": limits}], {})
        demand = {"model": LARGE, "waiting": 4, "running": 0, "oldest": 61.0}
        rent = {"action": "rent", "reason": "4 tickets wait for " + LARGE}
        await pools.planned({"large": {"demand": [demand], "actions": [rent], "waiting": [], "market": {}}})
        connection = await asyncpg.connect(settings.database_url)
        for label, states in (
            ("large-1", ("creating", "booting", "deploying", "loading", "ready")),
            ("large-2", ("creating", "booting")),
        ):
            host = await hosts.reserve(
                pool="large", provider="vast", label=label, offer="17", machine=label, gpu="RTX 4090",
                hourly_price=0.42, storage_price=0.01, spot=False, models=[LARGE], revision=None,
                reason="tickets wait for " + LARGE,
            )  # fmt: skip
            for state in states:
                await hosts.move(host["id"], state, f"it is {state}")
            await connection.execute(EVENTS, host["id"])
            await connection.execute(CHARGES, host["id"])
        await connection.close()


async def _rows(url: str, statement: str, *arguments: object) -> None:
    """What no API makes; see the head of this file."""
    connection = await asyncpg.connect(url)
    await connection.execute(statement, *arguments)
    await connection.close()


def main() -> None:
    """Serves it until it is interrupted: python -m tests.console.demo."""

    async def serve() -> None:
        with tempfile.TemporaryDirectory(prefix="demo-") as name:
            async with demo_service(Path(name)) as service:
                print(service.client.base_url, flush=True)
                await asyncio.Event().wait()

    os.environ["ENGINE"] = ""
    asyncio.run(serve())


if __name__ == "__main__":
    main()
