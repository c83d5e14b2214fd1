"""The first ticket: one prompt through the API, the dispatcher and the tunnel, to the rented GPU and back."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import httpx

from nvidia_triton.vast.context import Context, Instance
from nvidia_triton.vast.errors import TargetError

PROMPT = "Write a haiku about queues."
SEEN_SECONDS = 60.0
ANSWER_SECONDS = 300.0
WAIT_SECONDS = 30
PAUSE_SECONDS = 0.2


@dataclass(frozen=True)
class Answer:
    """`server` as the attempt names it, `seconds` from sending to reading."""

    text: str
    server: str
    seconds: float


def first_ticket(context: Context, instance: Instance, model: str) -> Answer:
    """Sends the prompt once the service sees the model on the instance's server, and waits for the answer.

    Raises:
        TargetError: the service does not see it, or the ticket failed.
    """
    url = context.settings.api_url
    try:
        with (
            httpx.Client(base_url=url, timeout=WAIT_SECONDS + 10, trust_env=False) as client,
            context.work.waiting() as line,
        ):
            while not _is_seen(client, instance.name, model):
                if line.seconds > SEEN_SECONDS:
                    raise TargetError(
                        f"The service at {url} does not see {model} on {instance.name} after {SEEN_SECONDS:.0f} s. It "
                        "reads its servers from the file in TRITON_SERVERS_FILE: one that `make run` or gpu-up of this "
                        f"checkout started does; `curl {url}/health/ready` shows the servers it knows."
                    )
                line.says(f"waiting until the service sees {model} on {instance.name}", instance.spent)
                context.work.pause(PAUSE_SECONDS)
            return _generate(client, model, line.says)
    except httpx.HTTPError as error:
        raise TargetError(
            f"The API at {url} stopped answering ({type(error).__name__}): start it again with `make gpu-up`."
        ) from None


def _is_seen(client: httpx.Client, name: str, model: str) -> bool:
    servers = client.get("/health/ready").json().get("triton") or []
    return any(each.get("name") == name and model in (each.get("ready_models") or []) for each in servers)


def _generate(client: httpx.Client, model: str, says: Any) -> Answer:
    context_id = _body(client.post("/contexts/", json={"content": PROMPT}))["id"]
    begin = time.monotonic()
    result_id = _body(client.post(f"/models/send/{model}/{context_id}"))["result_id"]
    while time.monotonic() - begin < ANSWER_SECONDS:
        says(f"ticket {result_id} is pending")
        result = _body(client.get(f"/results/{result_id}", headers={"Prefer": f"wait={WAIT_SECONDS}"}))
        if result["status"] == "failed":
            raise TargetError(f"The ticket {result_id} failed: {(result.get('error') or {}).get('message')}")
        if result["status"] == "completed":
            seconds = time.monotonic() - begin
            attempts = _body(client.get(f"/results/{result_id}/attempts"))
            return Answer(str(result["output"]), str(attempts[-1]["server"] if attempts else "?"), seconds)
    raise TargetError(
        f"The ticket {result_id} is still pending after {ANSWER_SECONDS:.0f} s and keeps waiting: "
        f"`curl {client.base_url}results/{result_id}` says why."
    )


def _body(answer: httpx.Response) -> Any:
    if answer.is_error:
        raise TargetError(f"{answer.request.url} answers {answer.status_code}: {answer.text[:300]}")
    return answer.json()
