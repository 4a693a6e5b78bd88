"""Drives `AsyncLLM`, or a server, as callers would, and notes when each token came. One thread, one event loop."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo.bench.measuring.workloads import Load, Request, arrivals
from octavo.gpt import AsyncLLM, QueueFullError, SamplingParams


@dataclass
class Served:
    """What became of a request; times are of the monotonic clock, and there are none where it was refused."""

    prompt_tokens: int
    due: float
    sent: float = 0.0
    times: list[float] = field(default_factory=list)  # of each token
    tokens: list[int] = field(default_factory=list)

    @property
    def ttft(self) -> float:
        """From the moment it was due: a generator that is late must not flatter the server."""
        return self.times[0] - self.due

    @property
    def gaps(self) -> list[float]:
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


Ask = Callable[[Request, Served], Awaitable[None]]  # one request to its end; what came, and when, is noted in Served


async def serve(
    ask: Ask, requests: Sequence[Request], load: Load, seed: int, note: Callable[[], object] = lambda: None
) -> list[Served]:
    """Every request under the load, in their order; `note` is called as each ends. ValueError if one fails."""
    moments = arrivals(load.level, len(requests), seed) if load.kind == "open" else [0.0] * len(requests)
    gate = asyncio.Semaphore(int(load.level) if load.kind == "closed" else len(requests))
    start = time.perf_counter()

    async def caller(request: Request, moment: float) -> Served:
        await asyncio.sleep(start + moment - time.perf_counter())
        async with gate:
            now = time.perf_counter()
            served = Served(len(request.prompt), start + moment if load.kind == "open" else now, now)
            await ask(request, served)
            note()
            return served

    tasks = [asyncio.create_task(caller(*pair)) for pair in zip(requests, moments, strict=True)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def ask(llm: AsyncLLM, request: Request, served: Served) -> None:
    """One request, greedy, to the last of its tokens; ValueError if it ends otherwise."""
    params = SamplingParams(temperature=0, max_tokens=request.new_tokens, ignore_eos=True)
    try:
        async for output in llm.generate(request.prompt, params):
            answer, now = output.outputs[0], time.perf_counter()
            served.times += [now] * (len(answer.token_ids) - len(served.times))
            served.tokens = answer.token_ids
            if answer.finish_reason == "error":
                raise ValueError(f"a request failed: {answer.stop_reason}")
    except QueueFullError:
        return
    if len(served.tokens) != request.new_tokens:
        raise ValueError(f"a request ended after {len(served.tokens)} of {request.new_tokens} tokens")


def samples_of(served: Sequence[Served]) -> dict[str, Any]:
    """The fields of a line of `bench serve` that were measured."""
    done = [request for request in served if request.times]
    if not done:
        return {"num_refused": len(served)}
    return {
        "num_refused": len(served) - len(done),
        "prompt_tokens": sum(request.prompt_tokens for request in done),
        "duration_s": max(request.times[-1] for request in done) - min(request.due for request in served),
        "ttft_s": [round(request.ttft, 6) for request in done],
        "itl_s": [[round(gap, 6) for gap in request.gaps] for request in done],
        "late_s": max(request.sent - request.due for request in served),
    }
