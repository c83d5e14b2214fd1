"""What the routes are tried on: a service with one of everything in it."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import requests
import schemathesis

from nvidia_triton.local.settings import free_ports

# The default, and the most that is asked for with success: what is tried here is the API, not how long engines write.
TOKENS = 16
TOKEN_COUNTS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens")
TOKEN_COUNTS += ("max_new_tokens", "tokens_limit")
# Where requests need not name a model: one that is not there answers, so that nothing is generated at random length.
FACES = ("/tgi", "/protollm", "/api/")
# Right only together with others, or without them, which no schema says; tests/openai has those.
ENTANGLED = ("top_logprobs", "stream_options", "tool_choice", "structured_outputs", "response_format", "text")
ENTANGLED += ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "min_tokens", "best_of", "n")
SETTING, FACTOR = "flex_price_factor", "0.5"
HOST = """
INSERT INTO hosts (pool, provider, label, offer, hourly_price, models, state)
VALUES ('p', 'vast', $1, '1', 0.5, '{chat}', 'ready') RETURNING id
"""


class Stack:
    """A running service with one of everything in it, and a second one to be deleted."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.session = requests.Session()
        self.session.trust_env = False
        self.seen: Counter[tuple[str, int]] = Counter()
        self._kept: dict[str, Any] = {}
        self._spare: dict[str, Any] = {}

    async def fill(self, database: asyncpg.Connection) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=60, trust_env=False) as client:
            self._kept, self._spare = await _one_of_each(client), await _one_of_each(client)
        # Only what rents them makes hosts.
        self._kept["host_id"] = str(await database.fetchval(HOST, uuid4().hex))

    def aim(self, case: schemathesis.Case) -> bool:
        """Has the request name a model and objects that are there; False where it names none."""
        known = self._spare if case.method == "DELETE" else self._kept
        path = {
            name: known.get(f"{case.path}:{name}", known.get(name, value))
            for name, value in case.path_parameters.items()
        }
        body = case.body
        if isinstance(body, dict):
            body = {name: known.get(name, value) for name, value in body.items() if name not in ENTANGLED}
            if case.path in ("/v1/embeddings", "/api/embeddings"):
                body["model"] = "embed"
            if case.path == "/v1/images/generations":
                body |= {"model": "image-rules", "size": "64x48", "num_inference_steps": 1}
            if case.path == "/tokenize":
                body = {name: value for name, value in body.items() if name != "messages"} | {"prompt": "Hi."}
            if case.path == "/comparisons/":
                body = {"content": "Hi.", "entries": [{"model": "chat"}]}
            if case.path.endswith("/pick"):
                body = {"result_id": known["picked_id"]}
            if case.path.startswith("/instructions/"):
                body = _instructions()
            if case.path.startswith("/servers/"):
                body = {"kind": "tgi", "address": _free_address()} if case.method == "POST" else {"hourly_price": 1.0}
            if case.path.startswith("/settings/"):
                body = {"value": FACTOR}
            if case.path.endswith("/complete"):
                body = {"part_ids": [known["part_id"]]}
            if case.path == "/detokenize":
                body["tokens"] = [1, 2, 3]
            if case.path.startswith("/v1/responses"):
                body["input"] = body.get("input") or "Hi."
                # Each is a way to go on, and there is one at most.
                body.pop("conversation", None)
            if case.path.startswith("/v1/conversations"):
                body["items"] = [{"role": "user", "content": "Hi."}]
                if case.path.endswith("{conversation_id}"):
                    del body["items"]
            if case.path.startswith(FACES):
                body["model"] = body.get("model") or known["model"]
            if isinstance(meta := body.get("meta"), dict):
                del body["model"]
                # A job's id with another job is refused.
                meta["model"], body["job_id"] = known["model"], uuid4().hex
            for part in (body, meta, body.get("parameters")):
                for name in TOKEN_COUNTS:
                    if isinstance(part, dict) and isinstance(part.get(name), int):
                        part[name] = min(part[name], TOKENS)
            # Tickets that are made notify whom they name, and names of hosts are made up.
            body.pop("webhook", None)
        if path == case.path_parameters and body == case.body:
            return False
        case.path_parameters, case.body = path, body
        # The same key with another request is refused.
        case.headers.pop("Idempotency-Key", None)
        return True


def _free_address() -> str:
    return f"http://127.0.0.1:{free_ports(1)[0]}/"


def _instructions() -> dict[str, str]:
    return {"name": uuid4().hex, "text": "Be brief."}


async def _one_of_each(client: httpx.AsyncClient) -> dict[str, Any]:
    async def made(method: str, path: str, **given: Any) -> Any:
        answer = await client.request(method, path, **given)
        assert answer.status_code in (200, 201, 202), answer.text
        return answer.json()

    chat = {"model": "chat", "messages": [{"role": "user", "content": "Hi."}]}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": chat}
    text = await made("POST", "/v1/completions", json={"model": "chat", "prompt": "Hi."})
    context = await made("POST", "/contexts/", json={"content": "Hi."})
    webhook = {"url": _free_address()}
    ticket = await made("POST", f"/models/send/chat/{context['id']}", json={"webhook": webhook})
    await made("GET", ticket["status_url"], headers={"Prefer": "wait=30"})
    deliveries = await made("GET", f"{ticket['status_url']}/webhooks")
    file = await made(
        "POST", "/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", json.dumps(line).encode())}
    )
    upload = {"filename": "in.jsonl", "purpose": "batch", "bytes": 1, "mime_type": "application/jsonl"}
    batch = {"input_file_id": file["id"], "endpoint": line["url"], "completion_window": "24h"}
    response = (await made("POST", "/v1/responses", json={"model": "chat", "input": "Hi."}))["id"]
    comparison = await made("POST", "/comparisons/", json={"content": "Hi.", "entries": [{"model": "chat"}]})
    await made("GET", f"/comparisons/{comparison['id']}", headers={"Prefer": "wait=30"})
    item = {"role": "user", "content": "Hi."}
    conversation, other = [await made("POST", "/v1/conversations", json={"items": [item]}) for _ in range(2)]
    items = await made("GET", f"/v1/conversations/{other['id']}/items")
    # Which stay when the others are deleted.
    rated = await made("POST", f"/models/send/chat/{(await made('POST', '/contexts/', json={'content': 'Hi.'}))['id']}")
    judged = await made("POST", "/comparisons/", json={"content": "Hi.", "entries": [{"model": "chat"}]})
    picked = judged["entries"][0]["result_id"]
    for pending in (rated["result_id"], picked):
        await made("GET", f"/results/{pending}", headers={"Prefer": "wait=30"})
    await made("PUT", f"/results/{rated['result_id']}/rating", json={"rating": "good"})
    await made("PUT", f"/comparisons/{judged['id']}/pick", json={"result_id": picked})
    await made("POST", "/v1/images/generations", json={"model": "image-rules", "prompt": "A sunset.", "size": "64x48"})
    (drawn,) = await made("GET", "/results/", params={"model": "image-rules", "limit": 1})
    whole = await made("POST", "/v1/uploads", json=upload | {"bytes": len(json.dumps(line))})
    part = await made("POST", f"/v1/uploads/{whole['id']}/parts", files={"data": json.dumps(line).encode()})
    (triton, *_) = await made("GET", "/servers/")
    await made("PUT", f"/settings/{SETTING}", json={"value": FACTOR})
    return {
        "/results/{result_id}/rating:result_id": rated["result_id"],
        "/comparisons/{comparison_id}/pick:comparison_id": judged["id"],
        "/results/{result_id}/outputs/{name}:result_id": drawn["id"],
        "/results/{result_id}/outputs/{name}:name": "image",
        "/v1/uploads/{upload_id}/complete:upload_id": whole["id"],
        "part_id": part["id"],
        "instructions_id": (await made("POST", "/instructions/", json=_instructions()))["id"],
        "server_id": (await made("POST", "/servers/", json={"kind": "tgi", "address": _free_address()}))["id"],
        "setting": SETTING,
        **{
            f"/servers/{{server_id}}/models/{{model_name}}/{order}:{name}": value
            for order in ("load", "unload")
            for name, value in (("server_id", triton["id"]), ("model_name", "tiny"))
        },
        "conversation_id": conversation["id"],
        # One whose items are there also when the other one is deleted.
        "/v1/conversations/{conversation_id}/items/{item_id}:conversation_id": other["id"],
        "item_id": items["first_id"],
        "context_id": context["id"],
        "comparison_id": comparison["id"],
        "picked_id": picked,
        "result_id": ticket["result_id"],
        "key_id": (await made("POST", "/keys/", json={"name": "somebody"}))["id"],
        "delivery_id": deliveries[0]["id"],
        "model_name": "chat",
        "model": "chat",
        "completion_id": (await made("POST", "/v1/chat/completions", json=chat))["id"],
        "/v1/completions/{completion_id}:completion_id": text["id"],
        "response_id": response,
        "previous_response_id": response,
        "upload_id": (await made("POST", "/v1/uploads", json=upload))["id"],
        "file_id": file["id"],
        "input_file_id": file["id"],
        "batch_id": (await made("POST", "/v1/batches", json=batch))["id"],
    }
