"""What goes wrong between this service and an HTTP server, and what each means for a ticket."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

import httpx
from pydantic_core import from_json

from app.engines.base import FINAL, RETRY, UNKNOWN, WAIT, Disposition, EngineError, presentable, sentence

# A server that asks for a longer pause is asked again after this.
MAX_RETRY_AFTER_SECONDS = 600.0
# Where a server that is full does not say.
FULL_SECONDS = 2.0

_TOO_LONG = re.compile(
    r"maximum context length|context[ _](?:size|length|window)|exceed_context_size|too many tokens|prompt is too long"
    r"|longer than the maximum model length|inputs?`? tokens? \+ `?max_new_tokens|maximum model length"
    r"|`inputs` must have less than",
    re.IGNORECASE,
)
_CANNOT = re.compile(r"(?:is|are) not supported|does(?: not|n't) support|not implemented|unsupported", re.IGNORECASE)
_FULL = re.compile(r"overloaded|rate.?limit|quota|capacity|loading model|too many requests", re.IGNORECASE)

_INCOMPLETE = re.compile(r"incomplete generation", re.IGNORECASE)

ADMIN = "The administrator of this service has to mend that."


def classify_transport(error: Exception) -> EngineError:
    """The error of a call that got no whole answer."""
    raw = f"{type(error).__name__}: {error}"
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.ProxyError):
        return EngineError("server_unreachable", "The server cannot be reached.", WAIT, server_fault=True, raw=raw)
    if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL):
        return EngineError("server_unreachable", "The server's address is none for HTTP.", WAIT, raw=raw)
    if isinstance(error, httpx.LocalProtocolError):
        return EngineError("request_not_sent", "The request could not be put on the wire.", RETRY, raw=raw)
    if isinstance(error, httpx.RemoteProtocolError) and "disconnected" not in raw and "peer closed" not in raw:
        return cannot_be_read("it is not HTTP", raw)
    return EngineError(
        "server_died",
        "The connection to the server broke while the generation ran.",
        RETRY,
        server_fault=True,
        raw=raw,
    )


def cannot_be_read(why: str, raw: str = "") -> EngineError:
    """The server sent something that is no answer."""
    return EngineError(
        "server_error", f"The server's answer cannot be read: {why}.", RETRY, server_fault=True, raw=raw or why
    )


def classify_answer(response: httpx.Response, body: bytes) -> EngineError:
    """The error of an answer that is not 200."""
    text = _message(response, body)
    return classify_status(response.status_code, text, retry_after(response.headers))


def classify_status(status: int, text: str, after: float | None = None) -> EngineError:
    """The error of an HTTP status, or of the same number in an error object; `text` is the server's own."""

    def error(code: str, message: str, disposition: Disposition, *, fault: bool = False) -> EngineError:
        return EngineError(code, message, disposition, server_fault=fault, raw=f"{status} {text}")

    said = sentence(presentable(text))
    # Some answer with 500 for this.
    if _TOO_LONG.search(text) and status in (400, 413, 422, 424, 500):
        return error(
            "prompt_too_long", f"The prompt is too long for the model: shorten it or lower max_tokens. {said}", FINAL
        )
    match status:
        case 401 | 403 | 407:
            return error("server_refused", f"The server refuses this service's credential ({status}). {ADMIN}", FINAL)
        case 402:
            return error("server_refused", f"The server asks for payment ({status}). {ADMIN}", FINAL)
        case 404:
            return error(
                "model_unavailable", f"The server does not have this model or this route ({status}). {ADMIN}", FINAL
            )
        case 405 | 501:
            return error("not_supported_by_model", f"The server cannot do this: {said}", FINAL)
        case 429 | 503 | 529:
            full = error("server_full", "The server is overloaded, or limits how often it is asked.", WAIT)
            full.retry_after = FULL_SECONDS if after is None else after
            return full
        case 408 | 409 | 425:
            return error("server_error", f"The server gave up: {said}", RETRY)
        case 413:
            return error("message_too_large", "The request is larger than the server takes.", FINAL)
    if status in (400, 422, 500) and _CANNOT.search(text):
        return error("not_supported_by_model", f"The server cannot do this: {said}", FINAL)
    if 300 <= status < 400:
        return error("server_refused", f"The server's address redirects to another ({status}). {ADMIN}", FINAL)
    if status < 500 and status != HTTPStatus.FAILED_DEPENDENCY:
        return error("invalid_parameters", f"The server refused the request: {said}", FINAL)
    if status in (HTTPStatus.FAILED_DEPENDENCY, HTTPStatus.INTERNAL_SERVER_ERROR):
        if _INCOMPLETE.search(text):
            return error("stream_ended", "The server ended its answer before it was complete.", RETRY)
        # The second time, the same text is final where the server answers others.
        return EngineError(UNKNOWN, f"The engine failed: {said}", RETRY, server_fault=True, raw=text)
    return error("server_error", f"The server failed ({status}).", RETRY, fault=True)


def classify_in_stream(found: Any) -> EngineError:
    """The error object that came instead of a part of the answer."""
    status = found.get("code") if isinstance(found, dict) else None
    text = _text_of(found) or "no reason given"
    if not (isinstance(status, int) and 400 <= status < 600):
        status = 429 if _FULL.search(text) else 400 if _TOO_LONG.search(text) else 500
    return classify_status(status, text)


def retry_after(headers: httpx.Headers) -> float | None:
    """Seconds, from a number or a date; None where neither is there."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    # Also false for what is no number.
    return min(seconds, MAX_RETRY_AFTER_SECONDS) if seconds >= 0 else None


def _message(response: httpx.Response, body: bytes) -> str:
    """What the server says went wrong: its error object's message, or the first line of a text."""
    kind = response.headers.get("content-type", "")
    try:
        return _text_of(from_json(body)) or HTTPStatus(response.status_code).phrase
    except ValueError:
        pass
    text = body.decode(errors="replace").strip()
    if "html" in kind or text.startswith("<") or not text:
        return f"a page of status {response.status_code}" if text else "no reason given"
    return text


def _text_of(found: Any) -> str:
    """The message within `{"error": {"message"}}`, `{"error": "..."}`, `{"detail"}` or `{"message"}`."""
    for _ in range(3):
        if isinstance(found, str):
            return found
        if not isinstance(found, dict):
            break
        kind = str(found.get("type") or "")
        found = next((found[name] for name in ("error", "message", "detail") if found.get(name)), "")
        if isinstance(found, str) and kind == "exceed_context_size_error":
            return f"{found} ({kind})"
    return ""
