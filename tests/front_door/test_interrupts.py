"""A step is all or nothing: interrupted at any line, in any thread, it leaves books that the next call can trust.

OCTAVO_INTERRUPTS multiplies the number of interrupts, 1 unless set.
"""

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from interrupts import LineCounter, run_counted
from tiny_folder import ids_of, load_tiny, save_tiny

from octavo.gpt import AsyncLLM, SamplingParams

from watched import check_idle

PROMPTS: list[Any] = [*[[5, 6, 7, 8] * 4 + [i] for i in range(4)], [9] * 30, "the quick"]
PARAMS = [
    SamplingParams(temperature=0, max_tokens=8, ignore_eos=True),
    SamplingParams(seed=1, n=2, max_tokens=8, ignore_eos=True),
    SamplingParams(seed=3, logprobs=2, repetition_penalty=1.2, max_tokens=6),
    SamplingParams(seed=4, top_p=0.9, prompt_logprobs=1, max_tokens=6),
    SamplingParams(seed=5, stop=["a", "ee"], max_tokens=8, ignore_eos=True),
    SamplingParams(seed=6, min_p=0.1, min_tokens=3, max_tokens=8),
]
TIGHT = {"num_blocks": 24, "max_num_seqs": 5, "max_num_batched_tokens": 32}  # so that sequences are preempted
TIMES = int(os.environ.get("OCTAVO_INTERRUPTS", "1"))
LINES, CTRL_CS, FAILURES = 40 * TIMES, 60 * TIMES, 12 * TIMES  # in each case here; `make fuzz` tries many more lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def step_by_step(llm: Any) -> None:
    numbers = [llm.add(prompt, params) for prompt, params in zip(PROMPTS, PARAMS, strict=True)]
    llm.step()
    llm.abort(numbers[1])
    while llm.has_unfinished:
        llm.step()


def stream(llm: Any) -> None:
    for piece, _ in zip(llm.stream(PROMPTS[-1], PARAMS[4]), llm.stream(PROMPTS[0], PARAMS[3]), strict=False):
        assert isinstance(piece, str)


async def serve(llm: Any) -> None:
    async def one(prompt: Any, params: SamplingParams) -> None:
        async for output in served.generate(prompt, params):
            if params.seed == 4 and output.outputs[0].token_ids:
                return

    served = AsyncLLM.__new__(AsyncLLM)
    served.llm = llm
    await asyncio.gather(*map(one, PROMPTS, PARAMS))


DOORS: dict[str, Callable[[Any], Any]] = {
    "generate": lambda llm: llm.generate(PROMPTS, PARAMS, use_tqdm=False),
    "step": step_by_step,
    "stream": stream,
    "AsyncLLM": lambda llm: asyncio.run(serve(llm)),
}


def recovered(llm: Any, want: Any) -> None:
    """What was begun ends, the next requests are right, and nothing is held."""
    deadline = time.time() + 60
    while llm.has_unfinished:
        assert time.time() < deadline, "never idle again"
        llm.step()
    assert ids_of(llm, PROMPTS) == want
    llm.thread.call(check_idle, llm.engine)


# An interrupt may fall into a generator that is being thrown away, where Python can only report it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("where", ["caller", "engine"])
@pytest.mark.parametrize("backend", ["cpu", pytest.param("reference", marks=pytest.mark.slow)])
@pytest.mark.parametrize("door", DOORS)
def test_an_interrupt_at_any_line(folder: Path, door: str, backend: str, where: str) -> None:
    rng = random.Random(f"{door}{backend}{where}")
    with load_tiny(folder, backend, **TIGHT) as llm:
        want, action = ids_of(llm, PROMPTS), DOORS[door]
        on_thread = llm.thread.call if where == "engine" else None
        run_counted(lambda: action(llm), counter := LineCounter(), on_thread)
        assert counter.count > (500 if where == "engine" else 20)
        for target in rng.sample(range(1, counter.count), min(LINES, counter.count - 1)):
            broken_at = LineCounter(target)
            run_counted(lambda: action(llm), broken_at, on_thread)
            try:
                recovered(llm, want)
            except BaseException as error:
                raise AssertionError(f"interrupted at {broken_at.place}: {error}") from error


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_at_any_moment(folder: Path, request: pytest.FixtureRequest) -> None:
    rng = random.Random(0)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with load_tiny(folder, **TIGHT) as llm:
        want = ids_of(llm, PROMPTS)
        interrupted = 0
        for turn in range(CTRL_CS):
            main, action = threading.main_thread().ident, list(DOORS.values())[turn % 4]
            assert main is not None
            timer = threading.Timer(rng.random() * 0.03, signal.pthread_kill, (main, signal.SIGINT))
            try:
                timer.start()
                action(llm)
                timer.join()
                time.sleep(0.01)
            except KeyboardInterrupt:
                interrupted += 1
            timer.join()
            recovered(llm, want)
    assert interrupted == CTRL_CS


@pytest.mark.parametrize("door", DOORS)
def test_an_exception_in_any_forward_pass(folder: Path, door: str) -> None:
    class PlantedError(MemoryError):
        pass

    with load_tiny(folder, **TIGHT) as llm:
        want, forward = ids_of(llm, PROMPTS), llm.model.forward
        llm.engine.runner.step.capture_layers = None
        for number in range(FAILURES):
            countdown = [number]

            def failing(*arguments: Any, countdown: list[int] = countdown) -> Any:
                countdown[0] -= 1
                if countdown[0] == -1:
                    raise PlantedError("no memory")
                return forward(*arguments)

            llm.model.forward = failing  # type: ignore[method-assign]
            try:
                DOORS[door](llm)
                assert door == "AsyncLLM" or countdown[0] >= 0, "the caller was not told"
            except PlantedError:
                pass
            llm.model.forward = forward  # type: ignore[method-assign]
            recovered(llm, want)
