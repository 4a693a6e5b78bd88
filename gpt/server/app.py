"""The app: every route, around one `Serving`."""

from pathlib import Path

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse

import octavo.gpt
from octavo.gpt.server.api import chat, completions, models, tokens
from octavo.gpt.server.errors import add_handlers
from octavo.gpt.server.gate import Gate
from octavo.gpt.server.serving import Serving

STATIC = Path(__file__).parent / "static"


def make_app(serving: Serving) -> FastAPI:
    """Return an ASGI app that answers for what is served."""
    about = {"title": "Octavo", "version": octavo.gpt.__version__, "description": "OpenAI's API, and vLLM's words."}
    app = FastAPI(**about, docs_url=None, redoc_url=None)  # type: ignore[arg-type]
    app.state.serving = serving
    app.add_middleware(Gate, serving=serving)
    if serving.settings.cors_origin:
        origins = list(serving.settings.cors_origin)
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    add_handlers(app)
    for each in (completions, chat, models, tokens):
        app.include_router(each.router)
    app.state.pages = {_add_file(app, file) for file in STATIC.rglob("*") if file.is_file()}
    return app


def _add_file(app: FastAPI, file: Path) -> str:
    """Serve a file of the page under its name, index.html at `/`, and return that; others keep 404 and 405."""
    name = file.relative_to(STATIC).as_posix()
    path = "/" if name == "index.html" else f"/{name}"

    async def read() -> FileResponse:
        return FileResponse(file, headers={"Cache-Control": "no-cache"})

    app.add_api_route(path, read, include_in_schema=False)
    return path
