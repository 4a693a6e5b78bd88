"""Errors as OpenAI's API has them: `{"error": {"message", "type", "param", "code"}}`, the message one clear line."""

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from octavo.gpt.engine import QueueFullError
from octavo.gpt.engine_thread import EngineClosedError
from octavo.gpt.quoting import one_line, quoted

RETRY_AFTER = 1  # seconds after which a client may ask again
TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class APIError(Exception):
    """An answer that says what is wrong; `param` names the field of the request at fault."""

    def __init__(self, message: str, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = one_line(message), status, param, code

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = {"Retry-After": str(RETRY_AFTER)} if self.status == 503 else None
        return JSONResponse(self.body(), self.status, headers)


@contextmanager
def answered(fields: Iterable[str] = ()) -> Any:
    """Give what the engine raises its status: 400 for a ValueError, 503 where there is no room or no engine now,
    501 where a package that it needs is not installed.

    fields: names of the request, of which a message that begins with one is about that one.
    """
    try:
        yield
    except ValueError as error:
        first = str(error).partition(" ")[0].partition("[")[0]
        raise APIError(str(error), param=first if first in fields else None) from None
    except QueueFullError as error:
        raise APIError(str(error), 503, code="queue_full") from None
    except ImportError as error:
        raise APIError(str(error), 501) from None
    except EngineClosedError as error:
        raise APIError(str(error), 503, code="shutting_down") from None


def _of_validation(error: RequestValidationError) -> APIError:
    """Say the first thing that is wrong with a body's fields."""
    first = error.errors()[0]
    place = [str(each) for each in first["loc"] if each not in ("body", "query", "path")]
    name = one_line(".".join(place), 80)
    if first["type"] == "json_invalid":
        return APIError(f"the body is no JSON: {first['ctx']['error']}")
    if first["type"] == "extra_forbidden":
        return APIError(f"{name} is not known here", param=name)
    if not name:
        return APIError("the body must be a JSON object, sent as application/json")
    shown = "" if first["type"] == "missing" else f", not {quoted(first['input'])}"
    return APIError(f"{name}: {first['msg'][:1].lower()}{first['msg'][1:]}{shown}", param=place[0])


def add_handlers(app: FastAPI) -> None:
    """Have the app answer every error in OpenAI's form."""
    handlers: dict[Any, Callable[[Any], APIError]] = {
        APIError: lambda error: error,
        RequestValidationError: _of_validation,
        HTTPException: lambda error: APIError(str(error.detail), error.status_code),
        Exception: lambda error: APIError("the server failed to answer this", 500),
    }
    for kind, convert in handlers.items():

        async def handle(request: Request, error: Exception, convert: Callable = convert) -> JSONResponse:
            return convert(error).response()

        app.add_exception_handler(kind, handle)
