"""A ticket is sent again with other words, another model or other parameters."""

import html
import json
from typing import Any

from playwright.async_api import expect

from app.console.entrance import COOKIE
from app.services.callers import Scope
from app.services.sessions import form_token
from tests.console.conftest import Visit
from tests.console.test_entrance import logged_in
from tests.keys.conftest import MakeKey
from tests.openai.response_kit import WEATHER, emit
from tests.service import Service

TOOL = {"type": "function", "function": {name: WEATHER[name] for name in ("name", "description", "parameters")}}


async def of_ticket(service: Service, id_: str, rows: Any) -> tuple[Any, Any]:
    row = await rows.fetchrow("SELECT * FROM results WHERE id = $1::uuid", id_)
    return row, await rows.fetchrow("SELECT * FROM contexts WHERE id = $1", row["context_id"])


async def test_a_ticket_is_sent_again_with_changes(visit: Visit, rows: Any) -> None:
    prompt = "\n" + emit("before") + "\nand\n"
    parameters = {"temperature": 0.5, "max_tokens": 20, "top_k": 7}
    context = await visit.service.context(prompt, metadata={"source": "test"})
    old = await visit.service.send(context, "chat", parameters=parameters, priority=3)
    await visit.service.settled(old)
    page = await visit.go(f"/console/tickets/{old}")
    await page.click("text=Retry with changes")
    await page.wait_for_url("**/change")
    assert await page.input_value("textarea[name=text]") == prompt
    values = {name: await page.input_value(f"[name={name}]") for name in ("model", "temperature", "max_tokens")}
    assert values == {"model": "chat", "temperature": "0.5", "max_tokens": "20"}
    assert json.loads(await page.input_value("[name=more]"))["top_k"] == 7
    # What is wrong stands beside its field, and what was typed stays.
    await page.fill("[name=max_tokens]", "30")
    await page.fill("[name=text]", emit("after") + "\nand then\n")
    for name, value, said in (
        ("temperature", "9", "less than or equal to 2"),
        ("max_tokens", "many", "no whole number"),
        ("model", "nobody", "nobody"),
        ("more", "{", "no JSON"),
        ("more", '{"wings": 2}', "wings"),
        ("more", '{"stop": ""}', "stop"),
    ):
        kept = await page.input_value(f"[name={name}]")
        await page.fill(f"[name={name}]", value)
        await page.click("button:has-text('Send')")
        await expect(page.locator(f"#fault-{name}")).to_contain_text(said)
        await expect(page.locator("[aria-invalid]")).to_have_count(1)
        assert await page.get_attribute(f"[name={name}]", "aria-describedby") == f"fault-{name}"
        assert await page.input_value(f"[name={name}]") == value
        assert await page.input_value("[name=text]") == emit("after") + "\nand then\n"
        await page.fill(f"[name={name}]", kept)
    await page.click("button:has-text('Send')")
    await expect(page.locator("#answer")).to_contain_text("after")
    new = page.url.rsplit("/", 1)[1]
    row, sent = await of_ticket(visit.service, new, rows)
    assert sent["content"] == emit("after") + "\nand then\n"
    assert json.loads(sent["metadata"]) == {"source": "test", "changed_from": old}
    asked = json.loads(row["parameters"])
    assert (asked["temperature"], asked["max_tokens"], asked["top_k"], row["priority"]) == (0.5, 30, 7, 3)
    await page.click("text=changed from")
    await page.wait_for_url(f"**/console/tickets/{old}")
    # As it is, it is tried again with a link to what it tries again.
    await page.click("button:has-text('Run it again')")
    await page.click("text=run before")
    await page.wait_for_url(f"**/console/tickets/{old}")
    visit.faults = [each for each in visit.faults if "422" not in each and "404" not in each]


async def test_a_chat_keeps_what_the_form_has_no_field_for(visit: Visit, rows: Any) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Where?"}, {"type": "text", "text": "When?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": ""},
        {"role": "user", "content": emit("first")},
    ]
    body = {"model": "chat", "messages": messages, "tools": [TOOL], "max_completion_tokens": 50, "stop": ["END"]}
    answer = await visit.service.client.post("/v1/chat/completions", json=body | {"metadata": {"team": "a"}})
    assert answer.status_code == 200, answer.text
    old = str(await rows.fetchval("SELECT id FROM results"))
    page = await visit.go(f"/console/tickets/{old}")
    await expect(page.locator(".by-assistant").first).to_contain_text("calls weather({})")
    await page.click("text=Retry with changes")
    await page.wait_for_url("**/change")
    texts = page.locator("textarea[name=text]")
    assert [await each.input_value() for each in await texts.all()] == [
        "Be brief.",
        "Where?",
        "When?",
        "",
        emit("first"),
    ]
    assert await page.input_value("[name=max_tokens]") == "50"
    await texts.nth(0).fill("")
    await texts.nth(2).fill("")
    await texts.nth(4).fill(emit("second"))
    await page.click("button:has-text('Send')")
    await expect(page.locator("#answer")).to_contain_text("second")
    row, sent = await of_ticket(visit.service, page.url.rsplit("/", 1)[1], rows)
    said = json.loads(sent["messages"])
    assert [each["role"] for each in said] == ["user", "assistant", "tool", "user"]
    assert (said[0]["content"], said[1]["tool_calls"], said[2]["content"]) == (
        [{"type": "text", "text": "Where?"}],
        [call],
        "",
    )
    asked = json.loads(row["request"])
    assert (asked["tools"][0]["function"]["name"], asked["stop"], asked["max_tokens"]) == ("weather", ["END"], 50)
    assert row["kind"] == "chat.completion"


async def test_each_way_to_ask_for_a_text_can_be_changed(service: Service, rows: Any) -> None:
    said = [{"role": "user", "content": emit("x")}]
    for path, body in (
        ("/v1/completions", {"prompt": emit("x"), "logprobs": 2}),
        ("/v1/chat/completions", {"messages": said, "logprobs": True, "response_format": {"type": "json_object"}}),
        ("/v1/responses", {"input": emit("x"), "max_output_tokens": 40, "tools": [WEATHER], "metadata": {"a": "b"}}),
        ("/v1/messages", {"messages": said, "max_tokens": 40, "thinking": {"type": "enabled", "display": "omitted"}}),
        ("/comparisons/", {"messages": said, "entries": [{"model": "chat", "parameters": {"logprobs": 1}}]}),
    ):
        named = {} if path == "/comparisons/" else {"model": "chat"}
        answer = await service.client.post(path, json=body | named)
        assert answer.status_code < 300, answer.text
        id_ = await rows.fetchval("SELECT id FROM results ORDER BY id DESC LIMIT 1")
        await service.settled(str(id_))
        page = await service.client.get(f"/console/tickets/{id_}/change")
        assert page.status_code == 200, page.text
        more = page.text.split('name="more"')[1].split(">\n", 1)[1].split("</textarea>")[0]
        form = form_token(service.client.cookies[COOKIE])
        data = {"form": form, "model": "chat", "more": html.unescape(more), "text": emit("y")}
        sent = await service.client.post(f"/console/tickets/{id_}/change", data=data)
        assert sent.status_code == 303, (path, sent.text)
        new = await service.settled(sent.headers["location"].rsplit("/", 1)[1])
        assert (new["status"], "y" in new["output"]) == ("completed", True), path


async def test_nobody_changes_what_is_anothers(guarded: Service, make_key: MakeKey) -> None:
    alice, bob = await make_key("alice"), await make_key("bob", scopes=(Scope.READ, Scope.SUBMIT))
    body = {"model": "chat", "prompt": emit("x")}
    headers = {"Authorization": f"Bearer {alice}", "X-Request-Id": "mine"}
    assert (await guarded.client.post("/v1/completions", json=body, headers=headers)).status_code == 200
    found = (await guarded.client.get("/results/", headers=headers)).json()[0]["id"]
    async with logged_in(guarded, bob) as client:
        form = form_token(client.cookies[COOKIE])
        assert (await client.get(f"/console/tickets/{found}/change")).status_code == 404
        answer = await client.post(
            f"/console/tickets/{found}/change", data={"form": form, "model": "chat", "text": "x"}
        )
        assert answer.status_code == 404
