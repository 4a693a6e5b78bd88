"""Many callers at once, with every way to give up: each answer is the one that its request gets alone.

OCTAVO_STORM is the number of rounds, 1 unless set.
"""

import asyncio
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest
from tiny_folder import LIMITS, load_tiny, save_tiny

from octavo.gpt import AsyncLLM, SamplingParams

from watched import check_idle

ROUNDS = int(os.environ.get("OCTAVO_STORM", "1"))
THREADS, REQUESTS, CALLERS, LOOPS = 8, 200, 300, 3
TIGHT = {"num_blocks": 48, "max_num_seqs": 12, "max_num_batched_tokens": 48}  # so that sequences are preempted
REQUEST_KINDS = [
    ([(i * 7 + j * 3) % 97 + 2 for j in range(1 + i * 5 % 23)],
     SamplingParams(temperature=i % 3 / 2, seed=i, n=1 + (i % 11 == 0), top_p=1 - i % 4 * 0.05, max_tokens=2 + i % 9,
                    repetition_penalty=1 + i % 5 * 0.1, logprobs=1 if i % 7 == 0 else None, ignore_eos=True))
    for i in range(40)
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def answer(request: Any) -> list[list[int]]:
    return [list(output.token_ids) for output in request.outputs]


def test_threads_on_one_llm(folder: Path) -> None:
    with load_tiny(folder, **TIGHT) as llm:
        alone = [answer(llm.generate([prompt], params)[0]) for prompt, params in REQUEST_KINDS]
        faults: list[Any] = []

        def caller(seed: int) -> None:
            rng, left = random.Random(seed), REQUESTS
            try:
                while left:
                    which = [rng.randrange(len(REQUEST_KINDS)) for _ in range(min(left, rng.choice((1, 1, 5, 20))))]
                    left -= len(which)
                    prompts, params = zip(*[REQUEST_KINDS[i] for i in which], strict=True)
                    found = [answer(request) for request in llm.generate(list(prompts), list(params), use_tqdm=False)]
                    faults.extend(i for i, own in zip(which, found, strict=True) if own != alone[i])
            except BaseException as error:
                faults.append(error)

        for round_ in range(ROUNDS):
            threads = [threading.Thread(target=caller, args=(round_ * THREADS + i,)) for i in range(THREADS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(300)
                assert not thread.is_alive(), "a caller hangs"
            assert not faults
            llm.thread.call(check_idle, llm.engine)


def test_callers_of_three_event_loops_that_give_up_in_every_way(folder: Path) -> None:
    served = AsyncLLM(folder, **{**LIMITS, **TIGHT})
    alone = [answer(served.llm.generate([prompt], params)[0]) for prompt, params in REQUEST_KINDS]

    async def caller(rng: random.Random) -> bool:
        which, way = rng.randrange(len(REQUEST_KINDS)), rng.randrange(5)
        outputs = []
        async with asyncio.timeout(rng.random() * 0.2 if way == 0 else None):
            async for output in served.generate(*REQUEST_KINDS[which]):
                outputs.append(output)
                if way == 1 and rng.random() < 0.3:
                    return True
                if way == 2 and rng.random() < 0.3:
                    raise LookupError("the caller's own")
        return answer(outputs[-1]) == alone[which]

    async def loop(seed: int) -> list[Any]:
        rng = random.Random(seed)
        tasks = [asyncio.create_task(caller(random.Random(rng.random()))) for _ in range(CALLERS // LOOPS)]
        for task in rng.sample(tasks, len(tasks) // 5):
            await asyncio.sleep(rng.random() * 0.01)
            task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found: list[Any] = []
    for round_ in range(ROUNDS):
        found.clear()
        threads = [
            threading.Thread(target=lambda seed: found.extend(asyncio.run(loop(seed))), args=(round_ * LOOPS + i,))
            for i in range(LOOPS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
            assert not thread.is_alive(), "a loop hangs"
        assert len(found) == CALLERS // LOOPS * LOOPS
        kinds = (bool, asyncio.CancelledError, TimeoutError, LookupError)
        assert not [result for result in found if not isinstance(result, kinds) or result is False]
        assert {type(result) for result in found} == set(kinds)
        served.llm.thread.call(check_idle, served.llm.engine)
    served.llm.close()
