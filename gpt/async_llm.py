"""AsyncLLM: the engine for many callers at once, in any number of event loops; `LLM` behind asyncio."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Unpack

from octavo.gpt.engine_thread import EngineClosedError
from octavo.gpt.llm import LLM
from octavo.gpt.options.lora import Lora
from octavo.gpt.outputs import RequestOutput
from octavo.gpt.prompts import Message, Prompt, text_of
from octavo.gpt.sampling_params import RequestOutputKind, SamplingParams
from octavo.gpt.tokenizer.chat_template import ChatOptions

P = ParamSpec("P")

MAX_COPIES = 16  # that wait to be read; whoever is further behind gets the next ones later, and the last in any case


def _takes_the_arguments_of(
    function: Callable[Concatenate[Any, P], None],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, P], None]]:
    """Give a method another's signature, to `inspect` and to type checkers, without saying the defaults twice."""
    return wraps(function, assigned=(), updated=())


class AsyncLLM:
    """`LLM` behind asyncio: the same arguments. Several event loops may use it, one after another or at once."""

    @_takes_the_arguments_of(LLM.__init__)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.llm = LLM(*args, **kwargs)

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        lora: Lora = None,
        *,
        lora_request: Lora = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yield the request's output so far, each time that it has grown, the last time finished.

        With output_kind FINAL_ONLY only the last time. lora_request is vLLM's word for lora.

        Leaving the loop, or cancelling the task, ends the request and frees its blocks. ValueError for a bad request,
        QueueFullError, EngineClosedError. A step that raises finishes the request with the reason "error".
        """
        engine, thread = self.llm.engine, self.llm.thread
        lora = lora_request if lora is None else lora
        params = sampling_params or self.llm.get_default_sampling_params()
        ids, snapshots = self.llm.encode_request(prompt, params), _Snapshots(params.output_kind)
        try:
            adding = thread.submit(engine.add, ids, params, text_of(prompt), snapshots, lora)
            await asyncio.wrap_future(adding)
            while True:
                snapshot = await snapshots.get()
                yield snapshot
                if snapshot.finished:
                    return
        finally:
            with suppress(EngineClosedError):
                thread.submit(engine.forget, snapshots)  # not waited for: the task may be cancelled

    def chat(
        self,
        messages: Sequence[Message],
        sampling_params: SamplingParams | None = None,
        *,
        lora: Lora = None,
        lora_request: Lora = None,
        **options: Unpack[ChatOptions],
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yield the assistant's answer to a conversation so far, as `generate` does; for the options see `ChatOptions`.

        ValueError for a bad conversation, at the call itself.
        """
        prompt = self.llm.chat_prompt(messages, **options)
        return self.generate(prompt, sampling_params, lora, lora_request=lora_request)

    def stats(self) -> dict[str, Any]:
        """See `LLM.stats`."""
        return self.llm.stats()

    async def close(self) -> None:
        """End every request and stop. Calls that come later raise EngineClosedError."""
        await asyncio.to_thread(self.llm.close)


class _Snapshots:
    """Listens to a request for one event loop: a copy each time that it grew, unless the loop is far behind."""

    def __init__(self, output_kind: int) -> None:
        self._wants_all = output_kind == RequestOutputKind.CUMULATIVE
        self._loop = asyncio.get_running_loop()
        self._is_ready = asyncio.Event()
        self._copies: deque[RequestOutput] = deque()

    def __call__(self, request: RequestOutput) -> None:
        if (self._wants_all and len(self._copies) < MAX_COPIES) or request.finished:
            self._copies.append(_copy(request))
            self._loop.call_soon_threadsafe(self._is_ready.set)

    async def get(self) -> RequestOutput:
        while not self._copies:
            self._is_ready.clear()
            await self._is_ready.wait()
        return self._copies.popleft()


def _copy(request: RequestOutput) -> RequestOutput:
    """Copy the request: later steps leave the copy alone."""
    outputs = []
    for output in request.outputs:
        pieces = list(output.pieces())
        logprobs = None if output.logprobs is None else list(output.logprobs)
        kept = None if output.kept is None else list(output.kept)
        changes = {"token_ids": list(output.token_ids), "logprobs": logprobs, "kept": kept}
        copy = replace(output, **changes, stream=None, _pieces=pieces)  # type: ignore[arg-type]
        outputs.append(copy)
    return replace(request, outputs=outputs, metrics=replace(request.metrics))
