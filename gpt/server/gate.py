"""Gate: what every call passes: the key, whether calls are taken now, a client that leaves, a line in the log."""

import asyncio
import json
import secrets
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.gpt.quoting import escaped, one_line
from octavo.gpt.server.errors import APIError
from octavo.gpt.server.serving import Serving

OPEN = "/health", "/version"  # what needs neither a key nor a model
LEFT = 499  # the status in the log of a call whose client left, as nginx has it


class Gate:
    """ASGI middleware around the routes of one `Serving`."""

    def __init__(self, app: ASGIApp, serving: Serving, log: Callable[[dict[str, Any]], None] | None = None) -> None:
        self._app, self._serving, self._log = app, serving, log or (_no_line if serving.settings.quiet else log_line)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), LEFT

        async def noting(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        self._serving.num_open += 1
        try:
            refusal = self._refusal(Request(scope))
            if refusal is not None:
                await refusal.response()(scope, receive, noting)
            else:
                await _until_client_leaves(self._app, scope, self._limited(receive), noting)
        finally:
            self._serving.num_open -= 1
            self._log(_facts(scope, status, time.perf_counter() - started))

    def _limited(self, receive: Receive) -> Receive:
        """Return `receive` for bodies that are not longer than they may be."""
        size, most = 0, self._serving.settings.max_body

        async def receiving() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > most:
                raise HTTPException(413, f"the body is longer than this server's limit of {most} bytes")
            return message

        return receiving

    def _refusal(self, request: Request) -> APIError | None:
        if request.url.path in OPEN or request.method == "OPTIONS" or request.url.path in request.app.state.pages:
            return None
        if not self._has_key(request.headers.get("authorization", "")):
            return APIError("this server wants a key: Authorization: Bearer KEY", 401, code="invalid_api_key")
        if self._serving.is_stopping:
            return APIError("the server is stopping", 503, code="shutting_down")
        return None if self._serving.is_ready else APIError("the model is being loaded", 503, code="loading")

    def _has_key(self, header: str) -> bool:
        keys = self._serving.settings.api_key
        kind, _, given = header.partition(" ")
        is_right = [secrets.compare_digest(given.strip().encode(), key.encode()) for key in keys]
        return not keys or (kind.lower() == "bearer" and any(is_right))


async def _until_client_leaves(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Run the app; where its client leaves before the answer is complete, cancel it."""
    has_body, has_left = asyncio.Event(), asyncio.Event()

    async def receiving() -> Message:
        if has_body.is_set():
            await has_left.wait()
            return {"type": "http.disconnect"}
        message = await receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            has_body.set()
        return message

    async def watch() -> None:
        await has_body.wait()
        while (await receive())["type"] != "http.disconnect":
            pass

    answering, watching = asyncio.ensure_future(app(scope, receiving, send)), asyncio.ensure_future(watch())
    try:
        await asyncio.wait([answering, watching], return_when=asyncio.FIRST_COMPLETED)
    finally:
        is_done = answering.done()
        for task in (answering, watching):
            task.cancel()
        await asyncio.gather(answering, watching, return_exceptions=True)
    if is_done:
        answering.result()


def _facts(scope: Scope, status: int, seconds: float) -> dict[str, Any]:
    client = scope.get("client") or ("",)
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "client": client[0],
        "method": scope["method"],
        "path": one_line(scope["path"], 200),
        "status": status,
        "seconds": round(seconds, 4),
    }


def _no_line(facts: dict[str, Any]) -> None:
    """Say nothing."""


def log_line(facts: dict[str, Any]) -> None:
    """Write a line of JSON to standard error, all printable ASCII: nobody's request draws on the terminal."""
    print(escaped(json.dumps(facts)), file=sys.stderr, flush=True)
