"""One thread owns the engine: callers of any thread, event loop or process, and what becomes of them."""

import asyncio
import gc
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupts import threads_named
from tiny_folder import GREEDY, LIMITS, ids_of, load_tiny, save_tiny

from octavo.gpt import LLM, AsyncLLM, EngineClosedError, SamplingParams

from watched import check_idle

PROMPTS = ["the quick", "brown fox", "jumps over", "lazy dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def llm(folder: Path) -> Iterator[LLM]:
    with load_tiny(folder) as llm:
        yield llm


def in_threads(*actions: Callable[[], Any]) -> list[Any]:
    """The actions' results, run at once; what one raises is its result."""
    results: list[Any] = [None] * len(actions)

    def run(index: int) -> None:
        try:
            results[index] = actions[index]()
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(actions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a caller hangs"
    return results


def test_threads_share_the_steps_of_one_engine(llm: LLM) -> None:
    alone = [ids_of(llm, [prompt]) for prompt in PROMPTS]
    texts = ["".join(llm.stream(prompt, GREEDY)) for prompt in PROMPTS]
    scores = [llm.score(prompt) for prompt in PROMPTS]

    def caller(index: int) -> list[Any]:
        found = []
        for turn in range(index, index + 12):
            which = turn % len(PROMPTS)
            found.append(ids_of(llm, [PROMPTS[which]]) == alone[which])
            found.append("".join(llm.stream(PROMPTS[which], GREEDY)) == texts[which])
            found.append(llm.score(PROMPTS[which]) == scores[which])
        return found

    assert in_threads(*[lambda i=i: caller(i) for i in range(8)]) == [[True] * 36] * 8
    check_idle(llm.engine)


def test_generate_of_many_threads_is_one_batch(llm: LLM) -> None:
    sizes = []
    forward = llm.model.forward
    llm.model.forward = lambda batch, cache=None: sizes.append(len(batch.context_lens)) or forward(batch, cache)  # type: ignore[method-assign]
    long = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    in_threads(*[lambda i=i: ids_of(llm, [[i + 1, 2, 3]], long) for i in range(9)])
    assert max(sizes) > 4, "requests of several threads were never decoded together"


def test_streams_read_in_turns_keep_their_text(llm: LLM) -> None:
    whole = ["".join(llm.stream(prompt, GREEDY)) for prompt in PROMPTS]
    rows = list(zip_longest(*[llm.stream(prompt, GREEDY) for prompt in PROMPTS], fillvalue=""))
    assert ["".join(column) for column in zip(*rows, strict=True)] == whole
    paused = ""
    for piece in llm.stream(PROMPTS[0], GREEDY):
        ids_of(llm, PROMPTS[1:])
        paused += piece
    assert paused == whole[0]


def test_a_stream_closed_on_the_engine_s_own_thread_ends_its_request(llm: LLM) -> None:
    stream = llm.stream("the quick", SamplingParams(max_tokens=60, ignore_eos=True))
    next(stream)
    llm.thread.call(stream.close)  # type: ignore[attr-defined]  # as garbage collection may do
    llm.thread.settle()
    llm.thread.call(check_idle, llm.engine)


def test_a_prompt_list_longer_than_the_queue_is_worked_off(folder: Path) -> None:
    with load_tiny(folder, max_num_waiting=2, max_num_seqs=2) as llm:
        prompts = [[i + 1, 2] for i in range(40)]
        assert ids_of(llm, prompts) == [ids_of(llm, [prompt])[0] for prompt in prompts]


def test_two_engines_do_not_disturb_each_other(folder: Path, llm: LLM) -> None:
    with load_tiny(folder, max_num_seqs=2) as other:
        want = ids_of(llm, PROMPTS)
        got = in_threads(*[lambda e=engine: [ids_of(e, PROMPTS) for _ in range(10)] for engine in (llm, other)])
    assert got == [[want] * 10] * 2


def test_what_a_step_raises_reaches_every_caller_and_the_next_is_right(llm: LLM, monkeypatch: Any) -> None:
    want = ids_of(llm, PROMPTS)
    long = SamplingParams(temperature=0, max_tokens=50, ignore_eos=True)
    calls = iter(range(1000))

    def failing(*_: Any) -> Any:
        time.sleep(0.002)
        if next(calls) == 20:
            raise ZeroDivisionError("by a hook of the user")
        return forward(*_)

    forward = llm.model.forward
    llm.engine.runner.step.capture_layers = None  # so that every step calls the model
    monkeypatch.setattr(llm.model, "forward", failing)
    results = in_threads(
        lambda: ids_of(llm, PROMPTS, long), lambda: ids_of(llm, [5], long), lambda: list(llm.stream("the", long))
    )
    assert [str(result) for result in results] == ["by a hook of the user"] * 3
    monkeypatch.undo()
    check_idle(llm.engine)
    assert ids_of(llm, PROMPTS) == want


def test_a_closed_engine_says_so(folder: Path) -> None:
    llm = load_tiny(folder)
    endless = SamplingParams(max_tokens=None, overflow="shift", ignore_eos=True)
    waiting = threading.Thread(
        target=lambda: ends.extend(r.outputs[0].finish_reason for r in llm.generate([[1]], endless))
    )
    ends: list[str | None] = []
    waiting.start()
    while not llm.engine.has_unfinished:
        time.sleep(0.01)
    llm.close()
    waiting.join(30)
    assert ends == ["abort"]
    for call in (lambda: llm.generate("the"), lambda: next(llm.stream("the")), llm.step, llm.stats):
        with pytest.raises(EngineClosedError, match="the engine is closed"):
            call()
    llm.close()

    async def late() -> None:
        served = AsyncLLM(folder, **LIMITS)
        await served.close()
        async for _ in served.generate("the"):
            pass

    with pytest.raises(EngineClosedError, match="the engine is closed"):
        asyncio.run(late())


def test_a_dropped_llm_takes_its_thread_along(folder: Path) -> None:
    before = threads_named("octavo-engine")
    for _ in range(3):
        llm = load_tiny(folder)
        next(llm.stream("the quick"))
        del llm
    gc.collect()
    deadline = time.time() + 20
    while threads_named("octavo-engine") > before and time.time() < deadline:
        time.sleep(0.01)
    assert threads_named("octavo-engine") <= before


def test_an_op_that_asks_the_engine_from_within_a_step_is_refused(llm: LLM) -> None:
    handle = llm.model.register_forward_hook(lambda *_: llm.generate("the"))
    with pytest.raises(RuntimeError, match="from within its own step"):
        llm.generate("the")
    handle.remove()
    assert ids_of(llm, ["the"])


def test_a_forked_child_goes_on_and_says_so_where_it_cannot(folder: Path, llm: LLM) -> None:
    want = ids_of(llm, PROMPTS)
    fork = multiprocessing.get_context("fork")

    def child(queue: Any) -> None:
        try:
            queue.put(ids_of(llm, PROMPTS))
        except RuntimeError as error:
            queue.put(str(error))

    def of_child() -> Any:
        queue = fork.SimpleQueue()
        process = fork.Process(target=child, args=(queue,), daemon=True)
        process.start()
        process.join(60)
        assert process.exitcode == 0, "the child hangs"
        return queue.get()

    assert of_child() == want
    assert ids_of(llm, PROMPTS) == want
    endless = llm.stream("the", SamplingParams(max_tokens=None, overflow="shift", ignore_eos=True))
    next(endless)
    assert of_child() == "a forked child cannot use this engine of its parent: load the model in the child"
    endless.close()
    assert ids_of(llm, PROMPTS) == want


def test_a_caller_s_number_of_threads_is_the_engine_s(llm: LLM) -> None:
    before = torch.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            assert llm.thread.call(torch.get_num_threads) == number
    finally:
        torch.set_num_threads(before)


def test_several_event_loops_one_after_another_and_at_once(folder: Path) -> None:
    served = AsyncLLM(folder, **LIMITS)
    want = ids_of(served.llm, PROMPTS)

    async def answers() -> list[list[int]]:
        async def answer(prompt: str) -> list[int]:
            outputs = [output async for output in served.generate(prompt, GREEDY)]
            return outputs[-1].outputs[0].token_ids

        return await asyncio.gather(*map(answer, PROMPTS))

    async def leave_early() -> None:
        async for _ in served.generate("the", SamplingParams(max_tokens=60, ignore_eos=True)):
            return

    async def forget_a_task() -> None:
        asyncio.create_task(answers())  # noqa: RUF006
        await asyncio.sleep(0.01)

    assert asyncio.run(answers()) == asyncio.run(answers()) == want
    for ending in (leave_early, forget_a_task):
        asyncio.run(ending())
    assert in_threads(*[lambda: asyncio.run(answers()) for _ in range(3)]) == [want] * 3
    served.llm.close()
    check_idle(served.llm.engine)


def test_a_loop_that_is_gone_ends_its_requests(folder: Path) -> None:
    """A loop closed without cancelling: nobody can be told any more."""
    served = AsyncLLM(folder, **LIMITS)
    loop = asyncio.new_event_loop()
    stream = served.generate("the", SamplingParams(max_tokens=None, overflow="shift", ignore_eos=True))
    loop.run_until_complete(anext(stream))
    loop.close()
    deadline = time.time() + 30
    while served.llm.has_unfinished and time.time() < deadline:
        time.sleep(0.01)
    check_idle(served.llm.engine)
    served.llm.close()
