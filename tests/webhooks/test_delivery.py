"""Webhooks as a receiver meets them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from standardwebhooks import Webhook

from app.config import Settings
from tests.conftest import ROOT
from tests.docs.test_docs import blocks
from tests.service import Process, Service, eventually, running_api, running_dispatcher
from tests.webhooks.receiver import Receiver

QUICK = {"max_tokens": 3, "ignore_eos": True}


async def secret(service: Service) -> str:
    answer = await service.client.get("/webhooks/secret")
    assert answer.status_code == 200, answer.text
    return str(answer.json()["secret"])


async def deliveries(service: Service, result_id: str) -> list[dict[str, Any]]:
    answer = await service.client.get(f"/results/{result_id}/webhooks")
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()
    return found


async def ended(service: Service, result_id: str) -> dict[str, Any]:
    async def there() -> Any:
        found = await deliveries(service, result_id)
        return found and found[0]["status"] != "pending" and found[0]

    found: dict[str, Any] = await eventually(there, "the delivery ends")
    return found


async def tried(service: Service, result_id: str, tries: int = 1) -> dict[str, Any]:
    """The delivery once a try has failed and the next one is not due."""

    async def there() -> Any:
        found = await deliveries(service, result_id)
        return found and found[0]["tries"] >= tries and found[0]["last_error"] and found[0]

    found: dict[str, Any] = await eventually(there, "a try fails")
    return found


async def hurry(connection: Any) -> None:
    """Moves what waits for its next try to now; claims that are under way are not touched by the wait of a test."""
    await connection.execute(
        "UPDATE webhook_deliveries SET due_at = now(), last_error = NULL "
        "WHERE due_at IS NOT NULL AND last_error IS NOT NULL"
    )


async def test_a_completed_result_is_announced_as_the_api_shows_it(hooked: Service, receiver: Receiver) -> None:
    id_ = await hooked.send(webhook={"url": f"{receiver.url}/ok"}, parameters=QUICK)
    [hook] = await receiver.has(1)
    documented: dict[str, Any] = {}
    exec(blocks((ROOT / "docs" / "webhooks.md").read_text(), "python")[1], documented)
    event = documented["receive"](await secret(hooked), hook.body, hook.headers)
    assert (event["type"], event["data"]) == ("result.completed", await hooked.result(id_))
    assert event["timestamp"] == event["data"]["completed_at"]
    assert (hook.headers["content-type"], hook.headers["host"]) == ("application/json", receiver.url[7:])
    delivery = await ended(hooked, id_)
    assert (delivery["id"], delivery["status"], delivery["tries"]) == (hook.id, "delivered", 1)
    assert (delivery["last_error"], delivery["next_try_at"]) == (None, None)
    assert delivery["delivered_at"]


async def test_failed_cancelled_and_expired_results_are_announced(hook_settings: Settings, receiver: Receiver) -> None:
    async with running_api(hook_settings) as service:
        webhook = {"url": f"{receiver.url}/ok", "events": ["result.failed"]}
        failed = await service.send(prompt="word " * 400, webhook=webhook)
        cancelled = await service.send(webhook=webhook)
        await service.client.post(f"/results/{cancelled}/cancel")
        expired = await service.send(webhook=webhook, expires_in=0.001)
        running = await service.send(model="slow", webhook=webhook, parameters={"max_tokens": 3000, "ignore_eos": True})
        completed = await service.send(webhook=webhook, parameters=QUICK)
        async with running_dispatcher(hook_settings):

            async def runs() -> bool:
                return (await service.result(running))["phase"] == "running"

            await eventually(runs, "it runs")
            await service.client.post(f"/results/{running}/cancel")
            hooks = await receiver.has(4)
            await service.settled(completed)
    codes = {hook.event["data"]["id"]: hook.event["data"]["error"]["code"] for hook in hooks}
    assert codes == {failed: "prompt_too_long", cancelled: "cancelled", expired: "expired", running: "cancelled"}
    assert {hook.event["type"] for hook in hooks} == {"result.failed"}


async def test_a_retry_of_the_result_is_announced_too(hooked: Service, receiver: Receiver) -> None:
    id_ = await hooked.send(webhook={"url": f"{receiver.url}/ok"}, parameters=QUICK)
    await hooked.settled(id_)
    again = (await hooked.client.post(f"/results/{id_}/retry")).json()["result_id"]
    hooks = await receiver.has(2)
    assert {hook.event["data"]["id"] for hook in hooks} == {id_, again}


async def test_a_refused_delivery_is_tried_again_under_the_same_id(
    hooked: Service, receiver: Receiver, connection: Any
) -> None:
    id_ = await hooked.send(webhook={"url": f"{receiver.url}/fail/2"}, parameters=QUICK)
    waits = await tried(hooked, id_)
    assert (waits["status"], waits["last_error"]) == ("pending", "The receiver answered 500.")
    pause = await connection.fetchval("SELECT extract(epoch FROM due_at - now())::float8 FROM webhook_deliveries")
    assert pause <= 5
    await hurry(connection)
    await tried(hooked, id_, 2)
    pause = await connection.fetchval("SELECT extract(epoch FROM due_at - now())::float8 FROM webhook_deliveries")
    assert 200 < pause <= 300
    await hurry(connection)
    delivery = await ended(hooked, id_)
    assert (delivery["status"], delivery["tries"]) == ("delivered", 3)
    hooks = receiver.at("/fail/2")
    assert {hook.id for hook in hooks} == {delivery["id"]}
    signer = Webhook(await secret(hooked))
    assert [signer.verify(hook.body, hook.headers)["data"]["id"] for hook in hooks] == [id_] * 3


async def test_the_first_pause_ends_by_itself(hooked: Service, receiver: Receiver) -> None:
    id_ = await hooked.send(webhook={"url": f"{receiver.url}/fail/1"}, parameters=QUICK)
    assert (await ended(hooked, id_))["tries"] == 2


async def test_410_ends_it_and_a_redirect_is_not_followed(hooked: Service, receiver: Receiver) -> None:
    gone = await hooked.send(webhook={"url": f"{receiver.url}/status/410"}, parameters=QUICK)
    moved = await hooked.send(webhook={"url": f"{receiver.url}/redirect"}, parameters=QUICK)
    delivery = await ended(hooked, gone)
    assert (delivery["status"], delivery["tries"], delivery["next_try_at"]) == ("given_up", 1, None)
    assert "410" in delivery["last_error"]
    assert "redirects are not followed" in (await tried(hooked, moved))["last_error"]
    assert not receiver.at("/ok")


async def test_retry_after_is_waited_for_within_a_day(hooked: Service, receiver: Receiver, connection: Any) -> None:
    ids = [
        await hooked.send(webhook={"url": f"{receiver.url}/busy/{seconds}"}, parameters=QUICK)
        for seconds in ("1", "1200", "99999999", "soon")
    ]
    for id_ in ids:
        await tried(hooked, id_)
    query = "SELECT extract(epoch FROM due_at - now())::float8 FROM webhook_deliveries WHERE result_id = $1"
    short, long, bounded, unreadable = [await connection.fetchval(query, UUID(id_)) for id_ in ids]
    assert short <= 5
    assert 1000 < long <= 1200
    assert 86_000 < bounded <= 86_400
    assert unreadable <= 5


async def test_it_is_given_up_after_the_last_try_or_72_hours(
    hooked: Service, receiver: Receiver, connection: Any
) -> None:
    last = await hooked.send(webhook={"url": f"{receiver.url}/status/500"}, parameters=QUICK)
    old = await hooked.send(webhook={"url": f"{receiver.url}/status/501"}, parameters=QUICK)
    await tried(hooked, last)
    await tried(hooked, old)
    await connection.execute("UPDATE webhook_deliveries SET tries = 9 WHERE result_id = $1", UUID(last))
    await connection.execute(
        "UPDATE webhook_deliveries SET give_up_at = now() + interval '2 seconds' WHERE result_id = $1", UUID(old)
    )
    await hurry(connection)
    delivery = await ended(hooked, last)
    assert (delivery["status"], delivery["tries"]) == ("given_up", 10)
    assert (await ended(hooked, old))["status"] == "given_up"

    answer = await hooked.client.post(f"/results/{last}/webhooks/{delivery['id']}/redeliver")
    assert (answer.status_code, answer.json()["status"], answer.json()["tries"]) == (202, "pending", 0)
    hooks = await receiver.has(3, "/status/500")
    assert {hook.id for hook in hooks} == {delivery["id"]}


async def test_a_receiver_that_dribbles_an_endless_body_has_answered(hooked: Service, receiver: Receiver) -> None:
    id_ = await hooked.send(webhook={"url": f"{receiver.url}/flood"}, parameters=QUICK)
    assert (await ended(hooked, id_))["status"] == "delivered"


async def test_a_large_result_is_announced_without_its_output(
    hooked: Service, receiver: Receiver, connection: Any
) -> None:
    id_ = await hooked.send(webhook={"url": f"{receiver.url}/ok"}, parameters=QUICK, client_reference="large")
    await receiver.has(1)
    await ended(hooked, id_)
    await connection.execute("UPDATE results SET output = repeat('x', 300000)")
    [delivery] = await deliveries(hooked, id_)
    await hooked.client.post(f"/results/{id_}/webhooks/{delivery['id']}/redeliver")
    event = (await receiver.has(2))[1].event
    assert event["omitted"] == ["output", "outputs", "parameters"]
    assert (event["data"]["output"], event["data"]["client_reference"]) == (None, "large")


async def test_a_removed_result_is_not_announced(hook_settings: Settings, receiver: Receiver) -> None:
    async with running_api(hook_settings) as service:
        context = await service.context()
        id_ = await service.send(context, webhook={"url": f"{receiver.url}/ok"})
        await service.client.post(f"/results/{id_}/cancel")
        assert (await service.client.delete(f"/contexts/{context}")).status_code == 204
        marker = await service.send(webhook={"url": f"{receiver.url}/ok"})
        await service.client.post(f"/results/{marker}/cancel")
        async with running_dispatcher(hook_settings):
            await ended(service, marker)
        assert [hook.event["data"]["id"] for hook in receiver.hooks] == [marker]
        assert (await service.client.get(f"/results/{id_}/webhooks")).status_code == 404


async def test_after_a_rotation_both_secrets_sign(hooked: Service, receiver: Receiver) -> None:
    old = await secret(hooked)
    answer = await hooked.client.post("/webhooks/secret/rotate")
    assert answer.status_code == 200
    new = answer.json()["secret"]
    assert new != old
    assert await secret(hooked) == new
    await hooked.send(webhook={"url": f"{receiver.url}/ok"}, parameters=QUICK)
    [hook] = await receiver.has(1)
    for each in (old, new):
        assert Webhook(each).verify(hook.body, hook.headers)["type"] == "result.completed"


async def test_a_dispatcher_killed_before_it_delivered_loses_nothing(
    hook_settings: Settings, receiver: Receiver, connection: Any, tmp_path: Path
) -> None:
    """Settled, and under way to a receiver that does not answer, when the process dies."""
    async with running_api(hook_settings) as service:
        ids = [await service.send(webhook={"url": f"{receiver.url}/hang"}, parameters=QUICK) for _ in range(3)]
        async with Process("app.worker", hook_settings, tmp_path / "log") as process:
            first = await receiver.has(3, "/hang", 40)
            for id_ in ids:
                await service.settled(id_)
            process.kill()
        receiver.released.set()
        # The lease of the dead one ends.
        moved = await connection.execute("UPDATE webhook_deliveries SET due_at = now() WHERE due_at > now()")
        assert moved == "UPDATE 3"
        async with running_dispatcher(hook_settings):
            done = [await ended(service, id_) for id_ in ids]
    assert {each["status"] for each in done} == {"delivered"}
    assert {each["id"] for each in done} == {hook.id for hook in first}
    assert {hook.event["data"]["id"] for hook in receiver.at("/hang")[3:]} == set(ids)


async def test_a_dispatcher_that_stops_gives_its_deliveries_back(hook_settings: Settings, receiver: Receiver) -> None:
    async with running_api(hook_settings) as service:
        id_ = await service.send(webhook={"url": f"{receiver.url}/hang"}, parameters=QUICK)
        async with running_dispatcher(hook_settings):
            await receiver.has(1, "/hang")
        receiver.released.set()
        [waits] = await deliveries(service, id_)
        assert (waits["status"], waits["tries"], waits["last_error"]) == ("pending", 0, None)
        async with running_dispatcher(hook_settings):
            assert (await ended(service, id_))["tries"] == 1


async def test_a_hanging_host_holds_up_neither_tickets_nor_other_hosts(hooked: Service, receiver: Receiver) -> None:
    hanging = {"url": f"{receiver.url}/hang"}
    ids = await asyncio.gather(*(hooked.send(webhook=hanging, parameters=QUICK) for _ in range(60)))
    for id_ in ids:
        await hooked.settled(id_)

    async def all_it_may() -> bool:
        return receiver.hanging >= 8

    await eventually(all_it_may, "the host has all that it may have")
    # Another host, by its name.
    other = {"url": f"{receiver.url.replace('127.0.0.1', 'localhost')}/ok"}
    more = await asyncio.gather(*(hooked.send(webhook=other, parameters=QUICK) for _ in range(40)))
    done = [await hooked.settled(id_) for id_ in more]
    hooks = await receiver.has(40)
    assert {hook.event["data"]["id"] for hook in hooks} == {each["id"] for each in done}
    assert receiver.hanging < 60


async def test_strangers_see_no_deliveries(hooked: Service, receiver: Receiver, connection: Any) -> None:
    id_ = await hooked.send(webhook={"url": f"{receiver.url}/ok"}, parameters=QUICK)
    delivery = await ended(hooked, id_)
    await connection.execute("UPDATE results SET owner_id = 7")
    for method, path in (("GET", ""), ("POST", f"/{delivery['id']}/redeliver")):
        answer: httpx.Response = await hooked.client.request(method, f"/results/{id_}/webhooks{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "result_not_found")
    await connection.execute("UPDATE results SET owner_id = 0")
    answer = await hooked.client.post(f"/results/{id_}/webhooks/{id_}/redeliver")
    assert (answer.status_code, answer.json()["code"]) == (404, "delivery_not_found")
