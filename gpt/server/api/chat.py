"""POST /v1/chat/completions: the assistant's next message, whole or as a stream."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from octavo.gpt.outputs import RequestOutput
from octavo.gpt.prompts import TokensPrompt
from octavo.gpt.server.api import logprobs
from octavo.gpt.server.api.answers import News, Progress, Usages, event_stream, head, token_ids, usage
from octavo.gpt.server.api.protocol import ChatRequest, TokenizeRequest
from octavo.gpt.server.api.routes import Asked
from octavo.gpt.server.api.tools import ToolText, marker_of
from octavo.gpt.server.errors import APIError, answered
from octavo.gpt.server.serving import Outputs, Serving, Work
from octavo.gpt.tokenizer.chat_template import choose_template

router = APIRouter()

DEFAULTS = {"max_tokens": None}  # of the API: as many tokens as the context holds


@router.post("/v1/chat/completions")
async def chat_completions(request: ChatRequest, serving: Asked) -> Response:
    """Answer a conversation `n` times."""
    answer = _Answer(request, serving)
    work = await _work(request, serving, answer.marker)
    if request.stream:
        start = head("chat.completion.chunk", "chatcmpl", work.model)
        return event_stream(answer.chunks(start, await serving.started(work)))
    (done,) = await serving.finished(work)
    choices = [answer.choice(news, done) for news in answer.progress.news(0, done)]
    body = {**head("chat.completion", "chatcmpl", work.model), "choices": choices, "usage": usage([done])}
    if request.prompt_logprobs is not None:
        body["prompt_logprobs"] = logprobs.of_prompt(done.prompt_logprobs)
    return JSONResponse(body)


async def _work(request: ChatRequest, serving: Serving, marker: str | None) -> Work:
    model, adapter = serving.model_and_adapter(request.model)
    if request.top_logprobs and not request.logprobs:
        raise APIError("top_logprobs needs logprobs to be true", param="top_logprobs")
    own: dict[str, Any] = {"logprobs": (request.top_logprobs or 0) if request.logprobs else None}
    if request.max_completion_tokens is not None:
        own["max_tokens"] = request.max_completion_tokens
    if marker and serving.llm.tokenizer is not None and marker in serving.llm.tokenizer.specials:
        own["skip_special_tokens"] = False
    params = serving.params(request, DEFAULTS, **own)
    prompt = await render(request, serving)
    return Work(model, await serving.encoded([prompt], params), params, adapter)


async def render(request: ChatRequest | TokenizeRequest, serving: Serving) -> TokensPrompt:
    """Return a conversation as the model's template writes it; APIError says what is wrong with it."""
    options: dict[str, Any] = {"tools": request.tools, "chat_template_kwargs": request.chat_template_kwargs}
    if isinstance(request, ChatRequest):
        options |= {"documents": request.documents, "tools": _wanted_tools(request)}
    with answered(["messages", "tools", "chat_template_kwargs"]):
        return await asyncio.to_thread(
            serving.llm.chat_prompt,
            [_message(each) for each in request.messages or []],
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            **options,
        )


def _message(given: dict[str, Any]) -> dict[str, Any]:
    """Return a message as templates know it: a developer is the system, arguments of calls are values, not JSON."""
    message = {**given, "role": "system"} if given.get("role") == "developer" else {**given}
    if isinstance(message.get("tool_calls"), list):
        message["tool_calls"] = [_with_values(call) for call in message["tool_calls"]]
    return message


def _with_values(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        with suppress(ValueError, RecursionError):
            return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}
    return call


def _wanted_tools(request: ChatRequest) -> list[dict[str, Any]] | None:
    return None if request.tool_choice == "none" else request.tools or None


def _marker(request: ChatRequest, serving: Serving) -> str | None:
    """Return what tool calls begin with in this answer, None where it may have none; APIError without a template."""
    if _wanted_tools(request) is None or serving.llm.tokenizer is None:
        return None
    with answered():
        marker = marker_of(choose_template(serving.llm.tokenizer.chat_template, None, has_tools=True))
    if marker is None:
        raise APIError("the model's chat template takes no tools, or writes calls in an unknown form", param="tools")
    return marker


class _Answer:
    """Choices of one call."""

    def __init__(self, request: ChatRequest, serving: Serving) -> None:
        self._request = request
        self._namer = logprobs.Namer(serving.llm, request.return_tokens_as_token_ids)
        self.marker = _marker(request, serving)
        self.progress = Progress(request.n or 1)
        self._begun: set[int] = set()
        self._tools: dict[int, ToolText] = {}

    async def chunks(self, start: dict[str, Any], outputs: Outputs) -> AsyncGenerator[dict[str, Any], None]:
        usages = Usages(self._request, self.progress.has_output)
        try:
            async for number, request in outputs:
                usages.see(number, request)
                for news in self.progress.news(number, request):
                    for choice in self._deltas(news, request):
                        yield {**start, "choices": [choice], **usages.of_chunk()}
        finally:
            await outputs.aclose()
        if usages.is_wanted:
            yield {**start, **usages.last()}

    def _deltas(self, news: News, request: RequestOutput) -> list[dict[str, Any]]:
        first = {"index": news.index, "delta": {"role": "assistant", "content": ""}}
        before = [] if news.index in self._begun else [{**first, "logprobs": None, "finish_reason": None}]
        text, calls = self._read(news)
        said: dict[str, Any] = {"content": text} if text else {}
        if calls:
            said["tool_calls"] = [{"index": index, **call} for index, call in enumerate(calls)]
        has_something = said or news.logprobs or news.finish_reason
        after = [self._choice(news, request, "delta", said)] if has_something else []
        self._begun.add(news.index)
        return before + after

    def choice(self, news: News, request: RequestOutput) -> dict[str, Any]:
        text, calls = self._read(news)
        message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
        if calls:
            message["tool_calls"] = calls
        return self._choice(news, request, "message", message)

    def _read(self, news: News) -> tuple[str, list[dict[str, Any]]]:
        """Return the text that can be said now, and the calls where the answer is complete."""
        if self.marker is None:
            return news.text, []
        tools = self._tools.setdefault(news.index, ToolText(self.marker))
        text = tools.push(news.text)
        rest, calls = tools.end() if news.finish_reason else ("", [])
        return text + rest, calls

    def _choice(self, news: News, request: RequestOutput, field: str, said: dict[str, Any]) -> dict[str, Any]:
        is_first = news.index not in self._begun
        is_call = "tool_calls" in said and news.finish_reason == "stop"
        return {
            "index": news.index,
            field: said,
            "logprobs": self._logprobs(news),
            "finish_reason": "tool_calls" if is_call else news.finish_reason,
            "stop_reason": news.stop_reason,
            **token_ids(news, request.prompt_token_ids, is_first, self._request.return_token_ids),
        }

    def _logprobs(self, news: News) -> dict[str, Any] | None:
        if news.logprobs is None:
            return None
        return logprobs.of_chat(news.token_ids, news.logprobs, self._request.top_logprobs or 0, self._namer)
