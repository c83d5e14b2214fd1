"""Retry, removal and waiting over HTTP."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
from tritonclient.grpc import aio

from app.config import Settings
from app.db.engine import Database
from app.db.ids import lowest_at, uuid7
from app.dispatch.janitor import Retention
from app.queue.store import QueueStore
from tests.api.test_bad_input import check_problem
from tests.servers import start_triton
from tests.service import Service, eventually, running_api, running_dispatcher


async def test_a_retry_is_a_new_ticket_and_the_old_one_stays(service: Service) -> None:
    old = await service.settled(
        await service.send(prompt="word " * 400, parameters={"seed": 3}, priority=2, client_reference="r")
    )
    answer = await service.client.post(f"/results/{old['id']}/retry")
    assert answer.status_code == 202
    ticket = answer.json()
    assert ticket["retry_of"] == old["id"] != ticket["result_id"]
    fresh = await service.settled(ticket["result_id"])
    for name in ("context_id", "model", "parameters", "priority", "client_reference"):
        assert fresh[name] == old[name]
    assert fresh["retry_of"] == old["id"]
    assert await service.result(old["id"]) == old


async def test_a_retry_takes_an_idempotency_key(api: Service) -> None:
    id_ = await api.send()
    await api.client.post(f"/results/{id_}/cancel")
    answers = [await api.client.post(f"/results/{id_}/retry", headers={"Idempotency-Key": "once"}) for _ in range(2)]
    assert answers[0].json() == answers[1].json()


async def test_a_pending_result_is_not_retried(api: Service) -> None:
    id_ = await api.send()
    check_problem(await api.client.post(f"/results/{id_}/retry"), 409, "result_pending", "cancel")


async def test_the_life_of_a_retry_is_as_long_as_the_old_one(api: Service) -> None:
    id_ = await api.send(expires_in=500)
    await api.client.post(f"/results/{id_}/cancel")
    ticket = (await api.client.post(f"/results/{id_}/retry")).json()
    fresh = await api.result(ticket["result_id"])
    life = datetime.fromisoformat(fresh["expires_at"]) - datetime.fromisoformat(fresh["created_at"])
    assert abs(life.total_seconds() - 500) < 1


async def test_a_context_is_deleted_with_its_results_unless_some_are_pending(service: Service) -> None:
    context = await service.context()
    done = await service.settled(await service.send(context, parameters={"max_tokens": 2}))
    waiting = await service.send(context, model="slow", parameters={"max_tokens": 3000, "ignore_eos": True})
    check_problem(await service.client.delete(f"/contexts/{context}"), 409, "context_in_use", waiting)
    assert await service.result(done["id"]) == done
    await service.client.post(f"/results/{waiting}/cancel")
    await service.settled(waiting)
    assert (await service.client.delete(f"/contexts/{context}")).status_code == 204
    check_problem(await service.client.get(f"/results/{done['id']}"), 404, "result_not_found")
    check_problem(await service.client.delete(f"/contexts/{context}"), 404, "context_not_found")


async def test_the_retention_removes_what_is_old_and_final(
    make_settings: Callable[..., Settings], database: Database, store: QueueStore
) -> None:
    async with running_api(make_settings(result_retention_days=2)) as api:
        now = datetime.now(UTC)
        connection = await asyncpg.connect(api.settings.database_url)

        async def stored(age: timedelta, status: str) -> tuple[str, str]:
            context, result = (lowest_at(now - age).int + uuid7().int % 2**64 for _ in range(2))
            ids = [type(uuid7())(int=value | 7 << 76 | 1 << 63) for value in (context, result)]
            await connection.execute("INSERT INTO contexts (id, content) VALUES ($1, 'x')", ids[0])
            await connection.execute(
                "INSERT INTO results (id, context_id, model, parameters, status, completed_at, error_code,"
                " error_message) VALUES ($1, $2, 'm', '{}', $3::text, CASE WHEN $3 = 'failed' THEN $4::timestamptz END,"
                " 'x', 'x')",
                ids[1],
                ids[0],
                status,
                now - age,
            )
            return str(ids[0]), str(ids[1])

        old = await stored(timedelta(days=3), "failed")
        waiting = await stored(timedelta(days=3), "pending")
        young = await stored(timedelta(days=1), "failed")
        await Retention(store).remove_old(2)
        await connection.close()
        check_problem(await api.client.get(f"/contexts/{old[0]}"), 410, "removed", "2 days")
        check_problem(await api.client.get(f"/results/{old[1]}"), 410, "removed")
        check_problem(await api.client.get(f"/results/{uuid7()}"), 404, "result_not_found")
        for context, result in (waiting, young):
            assert (await api.client.get(f"/contexts/{context}")).status_code == 200
            assert (await api.client.get(f"/results/{result}")).status_code == 200


async def test_a_queued_result_tells_its_place(api: Service) -> None:
    context = await api.context()
    first, second = await api.send(context), await api.send(context)
    urgent = await api.send(context, priority=9)
    await api.send(context, model="noop")

    async def seen() -> bool:
        return (await api.result(first))["waiting"]["reason"] == "queued"

    await eventually(seen, "the API knows the fleet")
    positions = {id_: (await api.result(id_))["waiting"]["position"] for id_ in (first, second, urgent)}
    assert positions == {urgent: 1, first: 2, second: 3}
    assert all(result["waiting"] is None for result in (await api.client.get("/results/")).json())


async def test_a_position_beyond_a_thousand_is_not_counted_on(api: Service, store: QueueStore) -> None:
    context = await api.context()
    connection = await asyncpg.connect(api.settings.database_url)
    await connection.execute(
        "INSERT INTO results (id, context_id, model, parameters)"
        " SELECT gen_random_uuid(), $1::uuid, 'tiny', '{}' FROM generate_series(1, 1500)",
        context,
    )
    await connection.close()
    assert (await api.result(await api.send(context)))["waiting"]["position"] == 1001


async def test_what_a_result_waits_for_is_told(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    server = start_triton(tmp_path, ("tiny",))
    try:
        settings = make_settings(triton_urls=(server.grpc_url,))
        async with running_api(settings) as service, running_dispatcher(settings):
            id_ = await service.send(prompt="[[sim:error=x]]")

            async def reason() -> str | None:
                waiting = (await service.result(id_))["waiting"]
                return waiting and waiting["reason"]

            async def backs_off() -> bool:
                return await reason() == "backoff"

            await eventually(backs_off, "backoff")
            server.kill()

            async def no_server() -> bool:
                return await reason() == "no_server"

            await eventually(no_server, "no_server")
    finally:
        server.kill()


async def test_a_model_that_loads_is_told_apart_from_one_that_is_gone(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    server = start_triton(tmp_path, ("tiny",))
    try:
        settings = make_settings(triton_urls=(server.grpc_url,))
        async with (
            running_api(settings) as service,
            running_dispatcher(settings),
            aio.InferenceServerClient(server.grpc_url) as raw,
        ):
            loading = asyncio.create_task(raw.load_model("slow-load"))

            async def known() -> bool:
                return "slow-load" in [model["name"] for model in (await service.client.get("/models/")).json()]

            await eventually(known, "the model loads")
            id_ = await service.send(model="slow-load", parameters={"max_tokens": 2})

            async def told() -> bool:
                return (await service.result(id_))["waiting"]["reason"] == "model_loading"

            await eventually(told, "model_loading", 2)
            await loading
            assert (await service.settled(id_))["attempt_count"] == 1
    finally:
        server.kill()
