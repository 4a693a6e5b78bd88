"""What the server is and holds: /v1/models, /version, /health, /metrics."""

import asyncio
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

import octavo.gpt
from octavo.gpt.server.api.routes import Asked
from octavo.gpt.server.errors import APIError
from octavo.gpt.server.serving import Serving

router = APIRouter()


@router.get("/v1/models")
async def models(serving: Asked) -> dict[str, Any]:
    """List the model, and the adapters that may be named in its place."""
    return {"object": "list", "data": [_model(serving, name) for name in (serving.model_name, *serving.adapters)]}


@router.get("/v1/models/{name:path}")
async def model(name: str, serving: Asked) -> dict[str, Any]:
    """Describe one of them."""
    return _model(serving, serving.model_and_adapter(name)[0])


def _model(serving: Serving, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": serving.created,
        "owned_by": "octavo",
        "root": serving.model_name,
        "parent": None if name == serving.model_name else serving.model_name,
        "max_model_len": serving.llm.config.max_model_len,
    }


@router.get("/version")
async def version() -> dict[str, str]:
    """Return the version of Octavo."""
    return {"version": octavo.gpt.__version__}


@router.get("/health")
async def health(serving: Asked) -> JSONResponse:
    """Answer 200 while requests are taken, 503 while the model is being loaded and while the server stops."""
    if not serving.is_ready:
        raise APIError("the server is stopping" if serving.is_stopping else "the model is being loaded", 503)
    return JSONResponse({"status": "ok"})


@router.get("/metrics")
async def metrics(serving: Asked) -> Response:
    """Return counts and times for Prometheus."""
    stats = await asyncio.to_thread(serving.async_llm.stats)
    text = serving.metrics.text(serving.model_name, stats, serving.llm.config.num_blocks)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
