"""The REST API of the service, as far as the project uses it."""

import asyncio
import json
import secrets
import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from tests.vast.fake import market
from tests.vast.fake.contract import Contract
from tests.vast.fake.world import API_KEY, NoSuchAsk, Request, World

ONSTART_LIMIT = 4000
LOG_SECONDS = 0.2
CREDIT = 25.0


class ApiError(Exception):
    """Answered as the service does: a code, an error name and a sentence."""

    def __init__(self, status: int, error: str, message: str) -> None:
        super().__init__(message)
        self.content = {"success": False, "error": error, "msg": message}
        self.status = status


class PlainError(Exception):
    """Answered with text that is not JSON."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


def world_of(request: HttpRequest) -> World:
    world: World = request.app.state.world
    return world


WorldOf = Annotated[World, Depends(world_of)]


async def gate(request: HttpRequest, world: WorldOf) -> None:
    """Writes the request down, checks the key, and refuses what the faults say."""
    raw = await request.body()
    try:
        body: Any = json.loads(raw) if raw else None
    except ValueError:
        body = raw.decode(errors="replace")
    path, method = request.url.path, request.method
    if world.faults.away:
        cut(request)
        raise PlainError(503, "cut")
    authorized = request.headers.get("authorization") == f"Bearer {API_KEY}"
    world.requests.append(Request(method, path, dict(request.query_params), body, authorized))
    if not authorized:
        status = world.faults.auth_status if "authorization" in request.headers else 401
        raise ApiError(status, "auth_error", "Invalid user key")
    if world.faults.paths in path:
        if world.faults.takes("rate_limited"):
            raise PlainError(429, "API requests too frequent")
        if world.faults.takes("broken"):
            raise PlainError(500, "Internal Server Error")
        if world.faults.takes("odd"):
            raise PlainError(world.faults.odd_status, world.faults.odd_body)
    kind = f"{method} {''.join(part for part in path if not part.isdigit())}"
    last = world.last_calls.get(kind)
    world.last_calls[kind] = time.monotonic()
    if last is not None and time.monotonic() - last < world.faults.min_interval:
        raise PlainError(429, "API requests too frequent")
    if raw and not isinstance(body, dict):
        raise ApiError(400, "invalid_args", "the body is not a JSON object")


async def json_body(request: HttpRequest) -> dict[str, Any]:
    body = await request.body()
    found: dict[str, Any] = json.loads(body) if body else {}
    return found


def cut(request: HttpRequest) -> None:
    """Ends the connection without an answer."""
    assert request.client is not None
    request.app.state.transports[request.client.port].abort()


Body = Annotated[dict[str, Any], Depends(json_body)]
router = APIRouter(dependencies=[Depends(gate)])
public = APIRouter()


def contract_of(ident: int, world: World) -> Contract:
    found = world.contracts.get(ident)
    if found is None:
        raise ApiError(404, "no_such_instance", f"Instance {ident} not found.")
    return found


@router.post("/api/v0/bundles/")
async def search_offers(request: HttpRequest, body: Body, world: WorldOf) -> dict[str, Any]:
    if request.headers.get("content-type") != "application/json":
        raise ApiError(400, "invalid_args", "Content-Type must be application/json")
    try:
        return {"offers": market.search(world.offers, body)}
    except (market.InvalidQuery, TypeError, ValueError) as error:
        raise ApiError(400, "invalid_args", str(error)) from None


@router.put("/api/v0/asks/{offer_id}/")
async def create(offer_id: int, request: HttpRequest, body: Body, world: WorldOf) -> dict[str, Any]:
    faults = world.faults
    offer = next((each for each in world.offers if each["id"] == offer_id), None)
    _check_create(body, offer)
    if faults.takes("create_unavailable_empty"):
        raise PlainError(503, "Service Temporarily Unavailable")
    if faults.takes("offers_gone"):
        world.withdraw(offer_id)
    if faults.takes("create_refused"):
        return {"success": False, "error": "insufficient_credit", "msg": "Your account lacks credit."}
    unavailable = faults.takes("create_unavailable")
    try:
        contract = world.rent(offer_id, body, withdraw=not unavailable)
    except NoSuchAsk:
        raise ApiError(410, "no_such_ask", f"Instance type by id {offer_id} is not available.") from None
    await asyncio.sleep(faults.create_seconds)
    if unavailable:
        raise PlainError(503, "Service Temporarily Unavailable")
    if faults.takes("create_cut"):
        cut(request)
    return {"success": True, "new_contract": contract.ident}


def _check_create(body: dict[str, Any], offer: market.Row | None) -> None:
    disk, onstart, env = body.get("disk"), body.get("onstart"), body.get("env")
    if not body.get("image") or not isinstance(body["image"], str):
        raise ApiError(400, "invalid_args", "image is required")
    if isinstance(disk, bool) or not isinstance(disk, int | float) or disk <= 0:
        raise ApiError(400, "invalid_args", "disk must be a positive number")
    if offer is not None and disk > offer["disk_space"]:
        raise ApiError(400, "invalid_args", f"disk {disk} is more than the offer's {offer['disk_space']}")
    bid = body.get("price")
    if offer is not None and bid is not None and bid < offer["min_bid"]:
        raise ApiError(400, "invalid_price", f"the bid {bid} is less than the least, {offer['min_bid']}")
    if onstart is not None and (not isinstance(onstart, str) or len(onstart) > ONSTART_LIMIT):
        raise ApiError(400, "invalid_args", f"onstart must be text of at most {ONSTART_LIMIT} characters")
    if env is not None and not isinstance(env, dict):
        raise ApiError(400, "invalid_args", "env must be an object")


@router.get("/api/v0/instances/")
async def list_of_old() -> None:
    raise ApiError(410, "gone", "This endpoint is retired: use /api/v1/instances/.")


@router.get("/api/v1/instances/")
async def list_instances(request: HttpRequest, world: WorldOf) -> dict[str, Any]:
    asked = request.query_params
    try:
        filters = json.loads(asked.get("select_filters") or "{}")
        order = json.loads(asked.get("order_by") or "[]") or [{"col": "id", "dir": "asc"}]
        limit = min(int(asked.get("limit") or 25), 25)
        shown = [] if world.faults.takes("unlisted") else list(world.contracts.values())
        rows = [row for each in shown if market.matches(row := each.row(), filters)]
        for column in reversed(order):
            rows.sort(key=lambda row: row.get(column["col"]) or 0, reverse=column.get("dir") == "desc")
        start = int(asked.get("after_token") or 0)
    except (ValueError, TypeError, KeyError) as error:
        raise ApiError(400, "invalid_args", str(error)) from None
    end = start + limit
    token = str(end) if end < len(rows) else None
    return {"success": True, "instances": rows[start:end], "next_token": token, "total_instances": len(rows)}


@router.get("/api/v0/instances/{ident}/")
async def show_instance(ident: int, world: WorldOf) -> dict[str, Any]:
    contract = world.contracts.get(ident)
    return {"instances": None if contract is None else contract.row()}


@router.put("/api/v0/instances/request_logs/{ident}/")
async def request_logs(ident: int, request: HttpRequest, body: Body, world: WorldOf) -> dict[str, Any]:
    contract = contract_of(ident, world)
    token = secrets.token_hex(8)
    world.results[token] = (time.monotonic() + LOG_SECONDS, contract.logs(int(body.get("tail") or 1000)))
    return {"success": True, "result_url": f"{request.base_url}results/{token}"}


@router.put("/api/v0/instances/{ident}/")
async def change_instance(ident: int, body: Body, world: WorldOf) -> dict[str, Any]:
    contract = contract_of(ident, world)
    if "label" in body:
        contract.label = body["label"]
    elif body.get("state") == "running" and world.faults.takes("start_refused"):
        return {"success": False, "error": "insufficient_credit", "msg": "Your account lacks credit."}
    elif body.get("state") == "running":
        contract.start()
    elif body.get("state") == "stopped":
        await contract.stop()
    else:
        raise ApiError(400, "invalid_args", "state must be running or stopped")
    return {"success": True}


@router.delete("/api/v0/instances/{ident}/")
async def destroy_instance(ident: int, world: WorldOf) -> dict[str, Any]:
    contract_of(ident, world)
    if world.faults.takes("destroy_refused"):
        return {"success": False, "error": "busy", "msg": "The instance cannot be destroyed right now."}
    if not world.faults.takes("destroy_ignored"):
        await world.end(ident)
    return {"success": True}


@router.post("/api/v0/instances/{ident}/ssh/")
async def attach_key(ident: int, body: Body, world: WorldOf) -> dict[str, Any]:
    contract = contract_of(ident, world)
    key = _key(body)
    if key in contract.keys.values():
        return {"success": False, "error": "duplicate", "msg": "SSH key is already associated with the instance."}
    contract.authorize([key])
    return {"success": True, "msg": "SSH key added to instance."}


@router.get("/api/v0/instances/{ident}/ssh/")
async def attached_keys(ident: int, world: WorldOf) -> dict[str, Any]:
    keys = contract_of(ident, world).keys.items()
    return {"success": True, "ssh_keys": [{"id": number, "public_key": key} for number, key in keys]}


@router.post("/api/v0/ssh/")
async def create_key(body: Body, world: WorldOf) -> dict[str, Any]:
    key = _key(body)
    if key in world.account_keys.values():
        raise ApiError(400, "duplicate", "This SSH key exists already.")
    number = 5001 + len(world.account_keys)
    world.account_keys[number] = key
    return {"success": True, "key": {"id": number, "user_id": 1, "public_key": key}}


@router.get("/api/v0/ssh/")
async def list_keys(world: WorldOf) -> list[dict[str, Any]]:
    return [{"id": number, "user_id": 1, "public_key": key} for number, key in world.account_keys.items()]


def _key(body: dict[str, Any]) -> str:
    key = str(body.get("ssh_key") or "").strip()
    if not key.startswith(("ssh-", "ecdsa-", "sk-")):
        raise ApiError(400, "invalid_args", "Invalid ssh public key")
    return key


@router.get("/api/v0/users/current/")
@router.get("/api/v0/users/current")
async def current_user(world: WorldOf) -> dict[str, Any]:
    return {"id": 1, "username": "simulated", "credit": round(CREDIT - world.spent(), 6), "can_pay": True}


@public.get("/api/v0/gpu_names/unique/")
async def gpu_names(world: WorldOf) -> dict[str, Any]:
    return {"success": True, "gpu_names": sorted({offer["gpu_name"] for offer in world.offers})}


@public.get("/results/{token}")
async def result(token: str, world: WorldOf) -> Response:
    """The text of a log, without authentication, once it is there; never at the first look, however late that comes."""
    ready, text = world.results.get(token, (float("inf"), ""))
    looked = token in world.looked
    world.looked.add(token)
    if not looked or time.monotonic() < ready:
        return PlainTextResponse("not ready", status_code=404)
    return PlainTextResponse(text)


def create_app(world: World, *more: APIRouter) -> FastAPI:
    app = FastAPI(title="Simulated Vast.ai", redirect_slashes=False)
    app.state.world = world
    app.state.transports = {}
    for each in (public, router, *more):
        app.include_router(each)

    @app.exception_handler(ApiError)
    async def render(_: HttpRequest, error: ApiError) -> Response:
        return JSONResponse(error.content, status_code=error.status)

    @app.exception_handler(PlainError)
    async def render_plain(_: HttpRequest, error: PlainError) -> Response:
        asked = world.faults.retry_after if error.status == 429 else ""
        return PlainTextResponse(error.text, status_code=error.status, headers={"Retry-After": asked} if asked else {})

    return app
