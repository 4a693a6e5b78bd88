"""POST /v1/completions: texts or token ids go on, whole or as a stream."""

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from octavo.gpt.outputs import RequestOutput
from octavo.gpt.prompts import as_list
from octavo.gpt.server.api import logprobs
from octavo.gpt.server.api.answers import News, Progress, Usages, event_stream, head, token_ids, usage
from octavo.gpt.server.api.logprobs import Step
from octavo.gpt.server.api.protocol import CompletionRequest
from octavo.gpt.server.api.routes import Asked
from octavo.gpt.server.errors import APIError
from octavo.gpt.server.serving import Outputs, Serving, Work

router = APIRouter()


@router.post("/v1/completions")
async def completions(request: CompletionRequest, serving: Asked) -> Response:
    """Complete each prompt `n` times."""
    work, answer = await _work(request, serving), _Answer(request, serving)
    start = head("text_completion", "cmpl", work.model)
    if request.stream:
        return event_stream(answer.chunks(start, await serving.started(work)))
    requests = await serving.finished(work)
    choices = [answer.choice(news, each) for i, each in enumerate(requests) for news in answer.progress.news(i, each)]
    return JSONResponse({**start, "choices": choices, "usage": usage(requests, answer.progress.has_output)})


async def _work(request: CompletionRequest, serving: Serving) -> Work:
    model, adapter = serving.model_and_adapter(request.model)
    if request.best_of not in (None, request.n or 1):
        raise APIError(f"best_of ({request.best_of}) is not supported: leave it out", param="best_of")
    own: dict[str, Any] = {"logprobs": request.logprobs}
    if request.echo and request.logprobs is not None:
        own["prompt_logprobs"] = request.logprobs
    if request.max_tokens == 0:
        own["max_tokens"] = 1
    params = serving.params(request, {}, **own)
    return Work(
        model, await serving.encoded(as_list(request.prompt), params, request.add_special_tokens), params, adapter
    )


class _Answer:
    """Choices of one call, in the order in which they have something to say."""

    def __init__(self, request: CompletionRequest, serving: Serving) -> None:
        self._request = request
        self._namer = logprobs.Namer(serving.llm, request.return_tokens_as_token_ids)
        self.progress = Progress(request.n or 1, request.max_tokens != 0)
        self._echoed: dict[int, int] = {}  # characters of the prompt that a choice began with

    async def chunks(self, start: dict[str, Any], outputs: Outputs) -> AsyncGenerator[dict[str, Any], None]:
        usages = Usages(self._request, self.progress.has_output)
        try:
            async for number, request in outputs:
                usages.see(number, request)
                for news in self.progress.news(number, request):
                    if news.text or news.logprobs or news.finish_reason:
                        yield {**start, "choices": [self.choice(news, request)], **usages.of_chunk()}
        finally:
            await outputs.aclose()
        if usages.is_wanted:
            yield {**start, **usages.last()}

    def choice(self, news: News, request: RequestOutput) -> dict[str, Any]:
        is_first = news.index not in self._echoed
        prompt = (request.prompt or "") if self._request.echo else ""
        text = (prompt if is_first else "") + news.text
        self._echoed.setdefault(news.index, len(prompt))
        extras = token_ids(news, request.prompt_token_ids, is_first, self._request.return_token_ids)
        if is_first and self._request.prompt_logprobs is not None:
            extras["prompt_logprobs"] = logprobs.of_prompt(request.prompt_logprobs)
        return {
            "index": news.index,
            "text": text,
            "logprobs": self._logprobs(news, request, is_first),
            "finish_reason": news.finish_reason,
            "stop_reason": news.stop_reason,
            **extras,
        }

    def _logprobs(self, news: News, request: RequestOutput, is_first: bool) -> dict[str, Any] | None:
        if news.logprobs is None or self._request.logprobs is None:
            return None
        ids, steps, offset = news.token_ids, list[Step](news.logprobs), self._echoed[news.index] + news.offset
        if self._request.echo and is_first:
            ids, steps, offset = request.prompt_token_ids + ids, [*(request.prompt_logprobs or []), *steps], 0
        return logprobs.of_completion(ids, steps, self._request.logprobs, offset, self._namer)
