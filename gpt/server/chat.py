"""POST /v1/chat/completions: the assistant's next message, whole or as a stream."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from octavo.gpt.outputs import RequestOutput
from octavo.gpt.server import logprobs
from octavo.gpt.server.answers import News, Progress, Usages, event_stream, head, token_ids, usage
from octavo.gpt.server.errors import APIError, answered
from octavo.gpt.server.protocol import ChatRequest
from octavo.gpt.server.routes import Asked
from octavo.gpt.server.serving import Outputs, Serving, Work

router = APIRouter()

DEFAULTS = {"max_tokens": None}  # of the API: as many tokens as the context holds


@router.post("/v1/chat/completions")
async def chat_completions(request: ChatRequest, serving: Asked) -> Response:
    """Answer a conversation `n` times."""
    work, answer = await _work(request, serving), _Answer(request, serving)
    if request.stream:
        start = head("chat.completion.chunk", "chatcmpl", work.model)
        return event_stream(answer.chunks(start, await serving.started(work)))
    (done,) = await serving.finished(work)
    choices = [answer.choice(news, done) for news in answer.progress.news(0, done)]
    body = {**head("chat.completion", "chatcmpl", work.model), "choices": choices, "usage": usage([done])}
    if request.prompt_logprobs is not None:
        body["prompt_logprobs"] = logprobs.of_prompt(done.prompt_logprobs)
    return JSONResponse(body)


async def _work(request: ChatRequest, serving: Serving) -> Work:
    model, adapter = serving.model_and_adapter(request.model)
    if request.top_logprobs and not request.logprobs:
        raise APIError("top_logprobs needs logprobs to be true", param="top_logprobs")
    own: dict[str, Any] = {"logprobs": (request.top_logprobs or 0) if request.logprobs else None}
    if request.max_completion_tokens is not None:
        own["max_tokens"] = request.max_completion_tokens
    params = serving.params(request, DEFAULTS, **own)
    with answered(["messages"]):
        prompt = await asyncio.to_thread(
            serving.llm.chat_prompt,
            messages(request.messages),
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            chat_template_kwargs=request.chat_template_kwargs,
            documents=request.documents,
        )
    return Work(model, await serving.encoded([prompt], params), params, adapter)


def messages(given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages as templates know them: a developer is the system."""
    return [{**each, "role": "system"} if each.get("role") == "developer" else each for each in given]


class _Answer:
    """Choices of one call."""

    def __init__(self, request: ChatRequest, serving: Serving) -> None:
        self._request = request
        self._namer = logprobs.Namer(serving.llm, request.return_tokens_as_token_ids)
        self.progress = Progress(request.n or 1)
        self._begun: set[int] = set()

    async def chunks(self, start: dict[str, Any], outputs: Outputs) -> AsyncGenerator[dict[str, Any], None]:
        usages = Usages(self._request, self.progress.has_output)
        try:
            async for number, request in outputs:
                usages.see(number, request)
                for news in self.progress.news(number, request):
                    if news.index not in self._begun:
                        first = {"index": news.index, "delta": {"role": "assistant", "content": ""}}
                        yield {
                            **start,
                            "choices": [{**first, "logprobs": None, "finish_reason": None}],
                            **usages.of_chunk(),
                        }
                    if news.is_worth_saying:
                        yield {**start, "choices": [self._delta(news, request)], **usages.of_chunk()}
                    self._begun.add(news.index)
        finally:
            await outputs.aclose()
        if usages.is_wanted:
            yield {**start, **usages.last()}

    def _delta(self, news: News, request: RequestOutput) -> dict[str, Any]:
        return self._choice(news, request, "delta", {"content": news.text} if news.text else {})

    def choice(self, news: News, request: RequestOutput) -> dict[str, Any]:
        message = {"role": "assistant", "content": news.text, "refusal": None}
        return self._choice(news, request, "message", message)

    def _choice(self, news: News, request: RequestOutput, field: str, said: dict[str, Any]) -> dict[str, Any]:
        is_first = news.index not in self._begun
        return {
            "index": news.index,
            field: said,
            "logprobs": self._logprobs(news),
            "finish_reason": news.finish_reason,
            "stop_reason": news.stop_reason,
            **token_ids(news, request.prompt_token_ids, is_first, self._request.return_token_ids),
        }

    def _logprobs(self, news: News) -> dict[str, Any] | None:
        if news.logprobs is None:
            return None
        return logprobs.of_chat(news.token_ids, news.logprobs, self._request.top_logprobs or 0, self._namer)
