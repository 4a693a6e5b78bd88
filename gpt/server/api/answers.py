"""Answers of completions and chats: what a choice has to say that it has not said yet, usage, streams of events."""

import json
import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event

from octavo.gpt.outputs import CompletionOutput, Logprob, RequestOutput
from octavo.gpt.server.api.protocol import Generation
from octavo.gpt.server.errors import APIError

DONE = format_sse_event(data_str="[DONE]")


@dataclass(frozen=True)
class News:
    """What a choice got since it was last looked at."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None
    stop_reason: int | str | None
    offset: int  # characters of the choice's text before this


@dataclass
class Progress:
    """How much of each choice was seen; choices are numbered over all prompts of a call."""

    n: int
    has_output: bool = True  # False for max_tokens=0, where the one token that was made is kept back
    _seen: dict[int, tuple[int, int, int]] = field(default_factory=dict)  # pieces, tokens, characters

    def news(self, number: int, request: RequestOutput) -> Iterable[News]:
        """Yield what is new in each choice of the prompt of that number."""
        for output in request.outputs:
            index = number * self.n + output.index
            pieces, tokens, characters = self._seen.get(index, (0, 0, 0))
            if tokens < 0:
                continue
            news = self._news(output, index, pieces, tokens, characters)
            now = -1 if output.finished else tokens + len(news.token_ids)
            self._seen[index] = len(output.pieces()), now, characters + len(news.text)
            yield news

    def _news(self, output: CompletionOutput, index: int, pieces: int, tokens: int, characters: int) -> News:
        if not self.has_output:
            return News(index, "", [], output.logprobs and [], output.finish_reason and "length", None, 0)
        logprobs = None if output.logprobs is None else output.logprobs[tokens:]
        text, ids = "".join(output.pieces()[pieces:]), output.token_ids[tokens:]
        return News(index, text, ids, logprobs, output.finish_reason, output.stop_reason, characters)


def usage(requests: Iterable[RequestOutput], has_output: bool = True) -> dict[str, Any]:
    """Return the tokens of a call; a prompt counts once, whatever its number of completions."""
    requests = list(requests)
    prompt = sum(len(request.prompt_token_ids) for request in requests)
    made = sum(len(output.token_ids) for request in requests for output in request.outputs) if has_output else 0
    cached = sum(request.num_cached_tokens or 0 for request in requests)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def head(kind: str, prefix: str, model: str) -> dict[str, Any]:
    """Return what an answer, and every chunk of a streamed one, begins with."""
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


class Usages:
    """The usage of the chunks of a stream, as `stream_options` wants it."""

    def __init__(self, request: Generation, has_output: bool) -> None:
        options = request.stream_options
        self.is_wanted = options is not None and (options.include_usage or options.continuous_usage_stats)
        self._is_continuous = options is not None and options.continuous_usage_stats
        self._has_output = has_output
        self._latest: dict[int, RequestOutput] = {}

    def see(self, number: int, request: RequestOutput) -> None:
        self._latest[number] = request

    def of_chunk(self) -> dict[str, Any]:
        if not self.is_wanted:
            return {}
        return {"usage": usage(self._latest.values(), self._has_output) if self._is_continuous else None}

    def last(self) -> dict[str, Any]:
        return {"choices": [], "usage": usage(self._latest.values(), self._has_output)}


def token_ids(news: News, prompt_ids: Sequence[int], is_first: bool, wanted: bool | None) -> dict[str, Any]:
    """Return a choice's ids where the client wants them: the prompt's once, its own as they come."""
    if not wanted:
        return {}
    return {"token_ids": news.token_ids, **({"prompt_token_ids": list(prompt_ids)} if is_first else {})}


def event_stream(chunks: AsyncGenerator[dict[str, Any], None]) -> StreamingResponse:
    """Return chunks as server-sent events; an error that comes in the middle is the last event before [DONE]."""

    async def events() -> AsyncGenerator[bytes, None]:
        async with aclosing(chunks):
            try:
                async for chunk in chunks:
                    yield _event(chunk)
            except APIError as error:
                yield _event(error.body())
        yield DONE

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


def _event(value: dict[str, Any]) -> bytes:
    """Return an event, in ASCII: some clients take U+0085 or U+2028 in a text for the end of its line."""
    return format_sse_event(data_str=json.dumps(value, separators=(",", ":"), allow_nan=False))
