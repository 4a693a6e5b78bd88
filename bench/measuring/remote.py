"""A server of OpenAI's API over HTTP, as the load generator asks it: Octavo's own, vLLM's, llama.cpp's."""

import json
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import httpx2

from octavo.bench.measuring.load_generator import Served
from octavo.bench.measuring.workloads import Request
from octavo.gpt.quoting import one_line

UNKNOWN = -1  # stands for a token whose id the server does not tell
BUSY = 429, 503  # the server takes no more now


class Remote:
    """One server; ValueError in one line where it cannot be reached, or answers with an error."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx2.Limits(max_connections=None)
        try:
            self.client = httpx2.AsyncClient(
                base_url=self.url, headers=headers, limits=limits, timeout=httpx2.Timeout(None, connect=10.0)
            )
        except (httpx2.InvalidURL, httpx2.HTTPError) as error:
            raise ValueError(f"url {one_line(url, 80)} is none: {error}") from None
        self.model = ""

    async def connect(self) -> None:
        """Ask for the name of the model that is served."""
        try:
            answer = await self.client.get("/v1/models")
        except httpx2.HTTPError as error:
            raise ValueError(f"{self.url}: {one_line(str(error) or type(error).__name__, 200)}") from None
        if answer.status_code != 200:
            raise self._error(answer.status_code, answer.content)
        try:
            self.model = str(answer.json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError):
            raise ValueError(f"{self.url}/v1/models names no model: {one_line(answer.text, 200)}") from None

    async def ask(self, request: Request, served: Served) -> None:
        """One request, greedy; what came is noted as it comes. A server that takes no more leaves it without times."""
        body = {
            "model": self.model, "prompt": request.prompt, "max_tokens": request.new_tokens, "temperature": 0,
            "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True,
        }  # fmt: skip
        try:
            async with self.client.stream("POST", "/v1/completions", json=body) as answer:
                if answer.status_code in BUSY:
                    return
                if answer.status_code != 200:
                    raise self._error(answer.status_code, await answer.aread())
                async for event in _events(answer):
                    self._note(json.loads(event), served)
        except (httpx2.HTTPError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.url}: {one_line(str(error) or type(error).__name__, 200)}") from None
        if not served.times:
            raise ValueError(f"{self.url}: a request ended without a token")

    def _note(self, chunk: dict[str, Any], served: Served) -> None:
        """Tokens of one event have one time. What the server counts beyond what was seen came with the last of it."""
        now = time.perf_counter()
        if "error" in chunk:
            raise ValueError(f"{self.url}: {one_line(json.dumps(chunk['error']), 200)}")
        for choice in chunk.get("choices") or []:
            ids: Sequence[int] | None = choice.get("token_ids")
            served.tokens += ids if ids is not None else [UNKNOWN] * bool(choice.get("text"))
        usage = chunk.get("usage") or {}
        served.prompt_tokens = usage.get("prompt_tokens", served.prompt_tokens)
        served.tokens += [UNKNOWN] * (usage.get("completion_tokens", 0) - len(served.tokens))
        served.times += [served.times[-1] if usage and served.times else now] * (len(served.tokens) - len(served.times))

    async def close(self) -> None:
        await self.client.aclose()

    def _error(self, status: int, content: bytes) -> ValueError:
        return ValueError(f"{self.url} answered {status}: {one_line(content.decode('utf-8', 'replace'), 200)}")


async def _events(answer: httpx2.Response) -> AsyncGenerator[bytes, None]:
    """The data of each event but the last. Lines end at newlines alone: a text may hold what else ends lines."""
    left = b""
    async for piece in answer.aiter_bytes():
        *lines, left = (left + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:") and line[5:].strip() != b"[DONE]":
                yield line[5:]
