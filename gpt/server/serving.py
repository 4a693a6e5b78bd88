"""Serving: one model and the settings, as routes ask them: names, prompts, limits, outputs as they come."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.gpt.async_llm import AsyncLLM
from octavo.gpt.llm import LLM
from octavo.gpt.outputs import RequestOutput, raise_if_failed
from octavo.gpt.prompts import Prompt, TokensPrompt
from octavo.gpt.quoting import quoted
from octavo.gpt.sampling_params import RequestOutputKind, SamplingParams
from octavo.gpt.server.api.protocol import SAMPLING, Generation
from octavo.gpt.server.errors import APIError, answered
from octavo.gpt.server.metrics import Metrics
from octavo.gpt.server.settings import Settings
from octavo.gpt.structured.requests import FIELDS, structured_of

Outputs = AsyncGenerator[tuple[int, RequestOutput], None]


@dataclass(frozen=True)
class Work:
    """What one call asks of the engine: prompts that were checked, how each is sampled, by which adapter."""

    model: str
    prompts: list[TokensPrompt]
    params: SamplingParams
    adapter: str | None


class Serving:
    """The model once it is loaded; until then, and while the server stops, requests are refused with 503."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.created = int(time.time())
        self.is_stopping = False
        self.metrics = Metrics()
        self.num_open = 0  # calls that are being answered
        self._async_llm: AsyncLLM | None = None

    def begin(self, llm: AsyncLLM) -> None:
        """Serve this model from now on."""
        self._async_llm = llm

    @property
    def has_model(self) -> bool:
        return self._async_llm is not None

    @property
    def is_ready(self) -> bool:
        return self.has_model and not self.is_stopping

    @property
    def async_llm(self) -> AsyncLLM:
        if self._async_llm is None:
            raise APIError("the model is being loaded", 503, code="loading")
        return self._async_llm

    @property
    def llm(self) -> LLM:
        return self.async_llm.llm

    @property
    def model_name(self) -> str:
        """What the model is called: as the settings say, else its name, of a folder or file the last part."""
        name = self.settings.served_model_name or self.llm.name
        return Path(name).name if name == self.llm.name and Path(name).exists() else name

    @property
    def adapters(self) -> list[str]:
        return self.llm.engine.runner.adapters.names

    def model_and_adapter(self, asked: str | None) -> tuple[str, str | None]:
        """Return the name to answer with, and the adapter that it stands for; APIError 404 for an unknown one."""
        if asked in (None, "", self.model_name):
            return self.model_name, None
        if asked in self.adapters:
            return str(asked), asked
        raise APIError(f"there is no model {quoted(asked)}, only {self.model_name}", 404, "model", "model_not_found")

    def params(self, request: Generation, defaults: dict[str, Any], **own: Any) -> SamplingParams:
        """Return how a request is sampled: as it says, else as the model's makers say, else by the API's defaults."""
        given = {name: value for name in SAMPLING if (value := getattr(request, name)) is not None}
        if request.logit_bias is not None:
            given["logit_bias"] = {_token_id(key): bias for key, bias in request.logit_bias.items()}
        kind = RequestOutputKind.CUMULATIVE if request.stream else RequestOutputKind.FINAL_ONLY
        fields = defaults | self.llm.sampling_defaults | given | own | {"output_kind": kind}
        with answered({*fields, *FIELDS}):
            form = structured_of({name: getattr(request, name) for name in FIELDS})
            params = SamplingParams(**fields, structured=form)
        self._check_limits(params)
        return params

    def _check_limits(self, params: SamplingParams) -> None:
        limits = self.settings
        for name, value, most in (
            ("n", params.n, limits.max_n),
            ("stop", len(params.stop_strings), limits.max_stop),
            ("logprobs", _number(params.logprobs), limits.max_logprobs),
            ("prompt_logprobs", _number(params.prompt_logprobs), limits.max_logprobs),
        ):
            if value > most:
                raise APIError(f"{name}: {value:g} is more than this server's limit of {most}", param=name)

    async def encoded(
        self, prompts: Sequence[Prompt], params: SamplingParams, adds_special: bool = True
    ) -> list[TokensPrompt]:
        """Return the prompts as checked token ids with their texts; made on another thread, which long ones take."""
        if not prompts:
            raise APIError("prompt is empty: give a text, token ids or a list of them", param="prompt")
        if len(prompts) > self.settings.max_prompts:
            most = self.settings.max_prompts
            raise APIError(
                f"prompt: {len(prompts)} prompts are more than this server's limit of {most}", param="prompt"
            )
        with answered():
            return await asyncio.to_thread(lambda: [self._encoded(each, params, adds_special) for each in prompts])

    def _encoded(self, prompt: Prompt, params: SamplingParams, adds_special: bool) -> TokensPrompt:
        llm, most = self.llm, self.settings.max_prompt_tokens
        if not adds_special and isinstance(prompt, str) and llm.tokenizer is not None:
            llm.tokenizer.check_length(prompt, llm.config.max_model_len)
            ids = llm.tokenizer.encode(prompt, llm.parse_special)
        else:
            ids = llm.encode_request(prompt, params)
        if most is not None and len(ids) > most:
            raise ValueError(f"prompt: {len(ids)} tokens are more than this server's limit of {most}")
        return {"prompt_token_ids": llm.engine.check(ids, params), "prompt": text_of(llm, prompt, ids)}

    async def started(self, work: Work) -> Outputs:
        """Queue the work, and return its outputs as they come once there is a first one.

        APIError where it cannot be queued. Closing the outputs ends the requests.
        """
        streams = [self.async_llm.generate(prompt, work.params, work.adapter) for prompt in work.prompts]
        outputs = merged(streams)
        with answered():
            first = await anext(outputs)
        return self._following(work.model, first, outputs)

    async def _following(self, model: str, first: tuple[int, RequestOutput], others: Outputs) -> Outputs:
        """Yield the outputs, and count each request when it is followed no more."""
        latest: dict[int, RequestOutput] = {}
        item: tuple[int, RequestOutput] | None = first
        try:
            while item is not None:
                latest[item[0]] = item[1]
                checked(item[1])
                yield item
                item = await anext(others, None)
        finally:
            await others.aclose()
            for request in latest.values():
                self.metrics.ended(model, request)

    async def abort_all(self) -> None:
        """End every request; what listens to one gets what there is of it, with the reason "abort"."""
        if self.has_model:
            await asyncio.wrap_future(self.llm.thread.submit(self.llm.engine.abort_all))

    async def finished(self, work: Work) -> list[RequestOutput]:
        """Return the work's outputs when all of them are finished."""
        found: dict[int, RequestOutput] = {}
        async for index, request in await self.started(work):
            found[index] = request
        return [found[index] for index in range(len(found))]


def text_of(llm: LLM, prompt: Any, ids: list[int]) -> str | None:
    """Return a prompt's text, as it was given or as its ids spell it; None without a tokenizer."""
    if isinstance(prompt, str):
        return prompt
    return None if llm.tokenizer is None else llm.tokenizer.decode(ids)


def checked(request: RequestOutput) -> None:
    """Raise APIError for a request that a step's error ended."""
    try:
        raise_if_failed(request)
    except Exception as error:
        raise APIError(f"the engine failed: {error}", 500, code="engine_error") from error


async def merged(streams: Sequence[AsyncGenerator[RequestOutput, None]]) -> Outputs:
    """Yield what several streams yield, each with its number, as it comes; closing this closes them."""

    async def following(number: int) -> RequestOutput | None:
        return await anext(streams[number], None)

    pending = {asyncio.create_task(following(number)): number for number in range(len(streams))}
    try:
        while pending:
            done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=pending.__getitem__):
                number = pending.pop(task)
                if (request := task.result()) is not None:
                    pending[asyncio.create_task(following(number))] = number
                    yield number, request
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for stream in streams:
            await stream.aclose()


def _token_id(key: str) -> int:
    if not key.isdecimal() or not key.isascii() or len(key) > 10:
        raise APIError(f"logit_bias: a key must be a token id, not {quoted(key)}", param="logit_bias")
    return int(key)


def _number(logprobs: int | None) -> float:
    return 0 if logprobs is None else float("inf") if logprobs < 0 else logprobs
