"""`service_tier: "flex"`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.config import Settings
from app.db.engine import Database
from app.queue.ticket import FLEX_PRIORITY
from tests.servers import RunningTriton
from tests.service import running_api, running_dispatcher

CHAT: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": "Tell me."}], "max_tokens": 20}
RESPONSE: dict[str, Any] = {"model": "chat", "input": "Tell me.", "max_output_tokens": 20}


async def test_it_yields_says_so_and_costs_less(
    make_settings: Callable[..., Settings], triton: RunningTriton, database: Database, tmp_path: Path
) -> None:
    servers = tmp_path / "servers.json"
    servers.write_text(json.dumps({"servers": [{"url": triton.grpc_url, "hourly_price": 3600}]}))
    settings = make_settings(triton_urls=[], triton_servers_file=str(servers), flex_price_factor=0.25)
    async with running_api(settings) as service, running_dispatcher(settings):
        tiers = {}
        for path, body in (("chat/completions", CHAT), ("responses", RESPONSE)):
            for tier in ("flex", "auto"):
                asked = body | {"service_tier": tier}
                answer = (await service.client.post(f"/v1/{path}", json=asked)).json()
                streamed = (await service.client.post(f"/v1/{path}", json=asked | {"stream": True})).text
                tiers[path, tier] = answer["service_tier"]
                assert f'"service_tier":"{answer["service_tier"]}"' in streamed
        assert tiers == {
            (path, tier): shown
            for path in ("chat/completions", "responses")
            for tier, shown in (("flex", "flex"), ("auto", "default"))
        }
        assert "service_tier" not in (await service.client.post("/v1/chat/completions", json=CHAT)).json()
        rows = (await service.client.get("/results/")).json()
        assert sorted(row["priority"] for row in rows) == [FLEX_PRIORITY] * 4 + [0] * 5
    async with database.hot() as connection:
        spent = await connection.fetch(
            "SELECT r.priority, a.gpu_seconds, a.cost FROM attempts a JOIN results r ON r.id = a.result_id"
        )
    assert len(spent) == 9
    for each in spent:
        assert each["cost"] == pytest.approx(each["gpu_seconds"] * (0.25 if each["priority"] else 1))
