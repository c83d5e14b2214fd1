"""`X-Request-Id` on every answer: the client's own where it is one that can be shown, else a new one."""

import re
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = b"x-request-id"
_PRESENTABLE = re.compile(rb"[\x21-\x7e]{1,200}")


class RequestId:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == HEADER), b"")
        id_ = given if _PRESENTABLE.fullmatch(given) else b"req_" + uuid4().hex.encode()
        # What fails behind all middleware is answered outside of this one.
        scope.setdefault("state", {})["request_id"] = id_.decode()

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (HEADER, id_)]
            await send(message)

        await self._app(scope, receive, marked)
