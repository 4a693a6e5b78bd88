"""AsyncLLM: many callers, one engine; cancelling gives everything back."""

import asyncio
import threading

import pytest
from tiny_folder import save_tiny

from octavo.gpt import LLM, AsyncLLM, QueueFullError, SamplingParams, load_model

from watched import check_idle

GREEDY = SamplingParams(temperature=0, max_tokens=12)
SHAPE = {"dtype": "float32", "max_model_len": 128, "num_blocks": 64}


@pytest.fixture
def small(monkeypatch):
    """`dummy:tiny`: a network of a few thousand weights."""
    from octavo.gpt.models.registry import KNOWN_SHAPES

    from tiny import TINY

    monkeypatch.setitem(KNOWN_SHAPES, "tiny", TINY["llama"])
    return {**SHAPE, "model": "dummy:tiny", "max_model_len": 64}


async def last(llm: AsyncLLM, prompt: list[int], params: SamplingParams = GREEDY):
    outputs = [output async for output in llm.generate(prompt, params)]
    lengths = [len(output.outputs[0].token_ids) for output in outputs]
    assert lengths == sorted(set(lengths)), "each output has more than the one before"
    assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
    return outputs[-1].outputs[0].token_ids


def test_many_callers_get_what_each_gets_alone(small):
    prompts = [[i, i + 1, i + 2] for i in range(20)]

    async def main():
        llm = AsyncLLM(**small)
        together = await asyncio.gather(*(last(llm, prompt) for prompt in prompts))
        again = await last(llm, prompts[3])
        await llm.close()
        return together, again

    together, again = asyncio.run(main())
    alone = LLM(**small)
    assert together == [alone.generate([prompt], GREEDY)[0].outputs[0].token_ids for prompt in prompts]
    assert again == together[3]


def test_a_cancelled_task_frees_its_blocks(small):
    async def main():
        llm = AsyncLLM(**small)
        endless = SamplingParams(max_tokens=None, overflow="shift")
        tasks = [asyncio.create_task(last(llm, [1, 2, 3], endless)) for _ in range(4)]
        kept = asyncio.create_task(last(llm, [7, 8]))
        await asyncio.sleep(0.2)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        assert await kept
        stats = llm.stats()
        await llm.close()
        return stats

    stats = asyncio.run(main())
    assert (stats["blocks_used"], stats["requests_running"], stats["requests_waiting"]) == (0, 0, 0)


def test_leaving_the_loop_ends_the_request(small):
    async def main():
        llm = AsyncLLM(**small)
        stream = llm.generate([1, 2], SamplingParams(max_tokens=50))
        async for _ in stream:
            break
        await stream.aclose()
        assert not llm.llm.has_unfinished
        await llm.close()

    asyncio.run(main())


def test_a_bad_request_is_the_callers_error_alone(small):
    async def main():
        llm = AsyncLLM(**small)
        good = asyncio.create_task(last(llm, [1, 2]))
        with pytest.raises(ValueError, match="outside the vocabulary"):
            await last(llm, [10**6])
        assert len(await good) == 12
        await llm.close()

    asyncio.run(main())


def test_a_step_that_fails_ends_every_request_with_its_message(small, monkeypatch):
    async def main():
        llm = AsyncLLM(**small)
        monkeypatch.setattr(llm.llm.engine.runner.model, "forward", lambda *_: 1 / 0)
        outputs = [output async for output in llm.generate([1, 2], GREEDY)]
        monkeypatch.undo()
        assert (outputs[-1].outputs[0].finish_reason, outputs[-1].outputs[0].stop_reason) == (
            "error",
            "division by zero",
        )
        assert len(await last(llm, [1, 2])) == 12, "the engine is usable again"
        await llm.close()

    asyncio.run(main())


def test_callers_that_give_up_at_any_moment_cost_the_others_nothing(small):
    """Sixty callers on a cache for a few; half of them are cancelled, some before their request is even queued."""
    prompts = [[i % 97, (i * 7) % 97, 5] * (1 + i % 9) for i in range(60)]

    async def main(preemption: str):
        llm = AsyncLLM(**{**small, "num_blocks": 8, "preemption": preemption})
        tasks = [asyncio.create_task(last(llm, prompt)) for prompt in prompts]
        for i, task in enumerate(tasks[1::2]):
            for _ in range(i % 4):
                await asyncio.sleep(0)
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError | list) for result in results)
        assert sum(isinstance(result, asyncio.CancelledError) for result in results) >= 20
        check_idle(llm.llm.engine)
        assert llm.stats()["requests_preempted"] > 0
        await llm.close()
        return results[::2]

    alone = LLM(**small)
    expected = [alone.generate([prompt], GREEDY)[0].outputs[0].token_ids for prompt in prompts[::2]]
    for preemption in ("swap", "recompute"):
        assert asyncio.run(main(preemption)) == expected


def test_a_full_queue_is_the_callers_error_alone(small):
    async def main():
        llm = AsyncLLM(**small, max_num_waiting=2, max_num_seqs=1)
        tasks = [asyncio.create_task(last(llm, [i])) for i in range(8)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [result for result in results if isinstance(result, QueueFullError)]
        assert 0 < len(refused) < 8
        assert all("2 requests are waiting already (max_num_waiting)" in str(error) for error in refused)
        assert all(len(result) == 12 for result in results if result not in refused)
        assert len(await last(llm, [1])) == 12, "there is room again"
        check_idle(llm.llm.engine)
        await llm.close()

    asyncio.run(main())


def test_many_samples_stream_together(small):
    async def main():
        llm = AsyncLLM(**small)
        params = SamplingParams(n=3, seed=4, max_tokens=9, logprobs=1, prompt_logprobs=1)
        outputs = [output async for output in llm.generate([3, 1, 4], params)]
        assert [len(output.token_ids) for output in outputs[-1].outputs] == [9] * 3
        assert [len(output.logprobs) for output in outputs[-1].outputs] == [9] * 3
        assert len(outputs[-1].prompt_logprobs) == 3
        assert len(outputs) >= 9, "the callers see the tokens as they come"
        await llm.close()

    asyncio.run(main())


def test_close_ends_those_under_way(small):
    async def reason(llm, prompt):
        params = SamplingParams(max_tokens=None, overflow="shift")
        return [output async for output in llm.generate(prompt, params)][-1].outputs[0].finish_reason

    async def main():
        llm = AsyncLLM(**small)
        tasks = [asyncio.create_task(reason(llm, [i])) for i in range(3)]
        await asyncio.sleep(0.1)
        assert llm.llm.has_unfinished
        await llm.close()
        assert await asyncio.gather(*tasks) == ["abort"] * 3
        check_idle(llm.llm.engine)

    asyncio.run(main())


def test_the_thread_that_steps_is_the_one_that_loads(small, monkeypatch):
    """OpenMP slows every thread once several have computed."""
    threads = []

    def noted(function):
        def call(*args, **kwargs):
            threads.append(threading.current_thread())
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr("octavo.gpt.llm.load_model", noted(load_model))
    llm = AsyncLLM(**small)
    monkeypatch.setattr(llm.llm.model, "forward", noted(llm.llm.model.forward))

    async def scenario():
        async for _ in llm.generate([1, 2, 3], SamplingParams(max_tokens=3)):
            pass
        await llm.close()

    asyncio.run(scenario())
    assert len(threads) >= 3
    assert len(set(threads)) == 1
    assert threads[0] is not threading.main_thread()


TEMPLATE = """
{%- for each in tools or [] %}{{ each.function.name }};{% endfor %}
{%- for each in documents or [] %}{{ each.text }};{% endfor %}{{ mood }}
{%- for message in messages %}<s>{{ message.role }}:{{ message.content }}<|im_end|>{% endfor %}
{%- if add_generation_prompt %}<s>a:{% endif %}"""
TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
OPTIONS = [
    {},
    {"tools": [TOOL], "documents": [{"title": "A", "text": "b"}], "chat_template_kwargs": {"mood": "glad"}},
    {"continue_final_message": True, "add_generation_prompt": False},
    {"chat_template": "{{ messages[0].content }}", "lora": None, "lora_request": None},
]


def test_a_chat_streams_what_llm_answers(tmp_path):
    folder, greedy = save_tiny(tmp_path, TEMPLATE), SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    messages = [{"role": "user", "content": "hi <s>"}, {"role": "assistant", "content": "so"}]

    async def main():
        llm = AsyncLLM(folder, **SHAPE)
        answers = [[each async for each in llm.chat(messages, greedy, **options)] for options in OPTIONS]
        with pytest.raises(ValueError, match="must be a str"):
            llm.chat([{"role": 1, "content": "hi"}])
        async for _ in (stream := llm.chat(messages)):
            break
        await stream.aclose()
        llm.llm.thread.settle()
        check_idle(llm.llm.engine)
        await llm.close()
        return answers

    with LLM(folder, **SHAPE) as alone:
        for outputs, options in zip(asyncio.run(main()), OPTIONS, strict=True):
            (expected,) = alone.chat(messages, greedy, use_tqdm=False, **options)
            assert [len(each.outputs[0].token_ids) for each in outputs] == list(range(1, 7))
            last = outputs[-1]
            assert (last.prompt, last.prompt_token_ids) == (expected.prompt, expected.prompt_token_ids)
            assert last.outputs[0].token_ids == expected.outputs[0].token_ids
        prompts = {
            tuple(alone.encode_chat(messages, **{k: v for k, v in each.items() if "lora" not in k})) for each in OPTIONS
        }
        assert len(prompts) == len(OPTIONS)
