"""AsyncLLM: the engine for many callers at once. A task drives it; callers wait for what their request yields."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import wraps
from typing import Any, Concatenate, ParamSpec

from octavo.gpt.llm import LLM, Prompt
from octavo.gpt.outputs import RequestOutput
from octavo.gpt.sampling_params import SamplingParams

P = ParamSpec("P")


def _takes_the_arguments_of(
    function: Callable[Concatenate[Any, P], None],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, P], None]]:
    """Give a method another's signature, to `inspect` and to type checkers, without saying the defaults twice."""
    return wraps(function, assigned=(), updated=())


class AsyncLLM:
    """`LLM` behind asyncio: the same arguments. Steps run in a thread; all else runs between them in the event loop."""

    @_takes_the_arguments_of(LLM.__init__)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="octavo-step")
        # One thread does all computing: OpenMP keeps a team of threads for each thread that computes, and once the
        # teams outnumber the cores, their threads sleep between products.
        self.llm = self._thread.submit(LLM, *args, **kwargs).result()
        self._changed = asyncio.Condition()  # the engine took a step, or stopped
        self._stepping = False
        self._driver: asyncio.Task | None = None

    async def generate(self, prompt: Prompt, params: SamplingParams | None = None) -> AsyncIterator[RequestOutput]:
        """Yield the request's output so far, each time that it grows, the last time finished.

        Leaving the loop, or cancelling the task, ends the request and frees its blocks. ValueError for a bad request.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: not self._stepping)
            request = self.llm.engine.add(
                self.llm.encode(prompt), params or SamplingParams(), prompt if isinstance(prompt, str) else None
            )
        if self._driver is None or self._driver.done():
            self._driver = asyncio.create_task(self._drive())
        seen = 0
        try:
            while not request.finished or seen != _progress(request):
                async with self._changed:
                    while self._stepping or seen == _progress(request):
                        await self._changed.wait()
                    snapshot, seen = _snapshot(request), _progress(request)
                yield snapshot
        finally:
            await asyncio.shield(self._abort(request.request_id))

    def stats(self) -> dict[str, Any]:
        """See `LLM.stats`."""
        return self.llm.stats()

    async def close(self) -> None:
        """End every request and stop."""
        for request_id in list(self.llm.engine.unfinished_requests):
            await self._abort(request_id)
        if self._driver is not None:
            await self._driver
        self._thread.shutdown()

    async def _abort(self, request_id: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._stepping)
            self.llm.abort(request_id)
            self._changed.notify_all()

    async def _drive(self) -> None:
        """Step while there is anything to do; a failing step ends every request with an error."""
        loop = asyncio.get_running_loop()
        while self.llm.has_unfinished:
            self._stepping = True
            with suppress(Exception):  # the step has ended every request with its message
                await loop.run_in_executor(self._thread, self.llm.step)
            async with self._changed:
                self._stepping = False
                self._changed.notify_all()
            await asyncio.sleep(0)  # let callers add and abort before the next step


def _progress(request: RequestOutput) -> int:
    """Return a number that changes whenever the request does."""
    return sum(len(output.token_ids) + output.finished for output in request.outputs)


def _snapshot(request: RequestOutput) -> RequestOutput:
    """Copy the request: later steps leave the copy alone."""
    outputs = []
    for output in request.outputs:
        pieces = list(output.pieces())
        logprobs = None if output.logprobs is None else list(output.logprobs)
        copy = replace(output, token_ids=list(output.token_ids), logprobs=logprobs, stream=None, _pieces=pieces)
        outputs.append(copy)
    return replace(request, outputs=outputs)
