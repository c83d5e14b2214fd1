"""`/`, `/docs` and `/redoc`; their scripts and styles come from here, not from the internet."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.exceptions import HTTPException

from app.api.assets import asset_response
from app.api.dependencies import root_of
from app.api.security import OPEN, GuardedRoute

ASSETS = Path(str(files("fastapi_offline"))) / "static"
SCRIPT, STYLE, REDOC, ICON = "swagger-ui-bundle.js", "swagger-ui.css", "redoc.standalone.js", "favicon.png"
A_DAY = {"Cache-Control": "public, max-age=86400"}
# The browser refuses what the scripts ask for elsewhere, as ReDoc does for the picture in its footer, which then is
# left out. ReDoc's search runs in a worker made from a blob.
ONLY_FROM_HERE = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; worker-src blob:; frame-ancestors 'none'"
}

router = APIRouter(route_class=GuardedRoute, dependencies=[OPEN], include_in_schema=False)


@router.get("/")
async def index(request: Request) -> Response:
    """A browser is sent to the console; other clients get links."""
    root = root_of(request)
    if "text/html" in request.headers.get("accept", ""):
        return RedirectResponse(f"{root}/console/", 302)
    paths = {
        "console": "/console/",
        "docs": "/docs",
        "openapi": "/openapi.json",
        "health": "/health/ready",
        "openai": "/v1",
    }
    links = {name: root + path for name, path in paths.items()}
    return JSONResponse({"title": request.app.title, "version": request.app.version, "links": links})


@router.get("/docs")
async def docs(request: Request) -> Response:
    root = root_of(request)
    page = get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title=f"{request.app.title}: API",
        swagger_js_url=f"{root}/docs/assets/{SCRIPT}",
        swagger_css_url=f"{root}/docs/assets/{STYLE}",
        swagger_favicon_url=f"{root}/docs/assets/{ICON}",
        # Else it sends the document's address to a checker elsewhere.
        swagger_ui_parameters={"validatorUrl": None},
    )
    page.headers.update(ONLY_FROM_HERE)
    return page


@router.get("/redoc")
async def redoc(request: Request) -> Response:
    root = root_of(request)
    page = get_redoc_html(
        openapi_url=f"{root}/openapi.json",
        title=f"{request.app.title}: API",
        redoc_js_url=f"{root}/docs/assets/{REDOC}",
        redoc_favicon_url=f"{root}/docs/assets/{ICON}",
        with_google_fonts=False,
    )
    page.headers.update(ONLY_FROM_HERE)
    return page


@router.get("/docs/assets/{name}")
async def asset(name: str) -> Response:
    if name not in (SCRIPT, STYLE, REDOC, ICON):
        raise HTTPException(404)
    return asset_response(ASSETS / name, A_DAY)
