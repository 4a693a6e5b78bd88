"""Prompts that begin alike compute their beginning once, whoever comes first."""

import random

import pytest

from octavo.gpt import LLM
from octavo.gpt.models.registry import KNOWN_SHAPES
from octavo.gpt.sampling_params import SamplingParams
from octavo.gpt.scheduler.block_pool import chain_key, root_key
from octavo.gpt.scheduler.config import EngineConfig
from octavo.gpt.scheduler.scheduler import Scheduler
from octavo.gpt.scheduler.sequence import Sequence

from tiny import TINY, tiny_engine, tiny_model
from watched import finish, outputs_of

WINDOW = 256
SIZE = 4


def scheduler_of(*prompts, budget=64, caching=True, **params):
    """A scheduler with these prompts in its queue."""
    config = EngineConfig(WINDOW, SIZE, num_blocks=256, max_num_batched_tokens=budget)
    scheduler = Scheduler(config, caching)
    for i, prompt in enumerate(prompts):
        scheduler.add(Sequence(i, list(prompt), SamplingParams(**params), seed=0, max_len=WINDOW))
    return scheduler


def planned(scheduler):
    """One step: which prompts it computes, and from where to where."""
    plan = scheduler.schedule()
    scheduler.advance(plan)
    return [(chunk.sequence.seq_id, chunk.start, chunk.end) for chunk in plan.prefill]


def test_a_prompt_waits_for_the_blocks_that_another_computes():
    scheduler = scheduler_of(range(10), [*range(8), 50], range(9))
    assert planned(scheduler) == [(0, 0, 10)]
    assert planned(scheduler) == [(1, 8, 9), (2, 8, 9)]


def test_it_waits_no_longer_than_it_has_to():
    """The first prompt takes four steps; the second shares what the first of them computes."""
    scheduler = scheduler_of(range(64), [*range(8), *range(100, 104)], budget=16)
    assert planned(scheduler) == [(0, 0, 16)]
    assert planned(scheduler) == [(0, 16, 32)]
    scheduler.finish(scheduler.prefilling[0])
    assert planned(scheduler) == [(1, 8, 12)]


@pytest.mark.parametrize(
    ("second", "options"),
    [
        ([50, *range(1, 9)], {}),  # another first block
        (range(4), {}),  # one block, whose last token has to be computed
        (range(3), {}),  # no full block
        (range(10), {"caching": False}),
        (range(10), {"prompt_logprobs": 0}),  # every token has to be computed
    ],
    ids=["other", "one block", "no block", "no cache", "prompt logprobs"],
)
def test_what_cannot_be_shared_is_not_waited_for(second, options):
    scheduler = scheduler_of(range(10), second, **options)
    assert planned(scheduler) == [(0, 0, 10), (1, 0, len(second))]


def test_a_text_that_was_shifted_makes_nothing_to_wait_for():
    """Its first tokens are forgotten and its positions have moved: nobody finds its blocks."""
    scheduler = scheduler_of(range(300), range(300 - WINDOW, 300), budget=1024, overflow="shift")
    assert planned(scheduler) == [(0, 0, WINDOW), (1, 0, WINDOW)]


def test_a_prompt_that_ends_early_holds_nobody_up():
    scheduler = scheduler_of(range(40), range(30), budget=16)
    assert planned(scheduler) == [(0, 0, 16)]
    scheduler.finish(scheduler.prefilling[0])
    assert planned(scheduler) == [(1, 16, 30)]


@pytest.mark.parametrize("budget", [32, 100, 4096])
def test_one_prefix_of_many_requests_is_computed_once(budget):
    rng = random.Random(0)
    engine = tiny_engine(tiny_model(TINY["gpt2"]), max_num_batched_tokens=budget, num_blocks=512, max_num_seqs=64)
    shared = [rng.randrange(97) for _ in range(48)]
    many = [shared + [rng.randrange(97) for _ in range(5)] for _ in range(64)]
    params = SamplingParams(temperature=0, max_tokens=2)
    tokens = [ids for ids, _ in outputs_of(engine, many, params)]
    assert engine.stats()["tokens_prefilled"] == 48 + 64 * 5
    cold = tiny_engine(tiny_model(TINY["gpt2"]), prefix_caching=False, num_blocks=1024, max_num_seqs=64)
    assert tokens == [ids for ids, _ in outputs_of(cold, many, params)]
    assert cold.stats()["tokens_prefilled"] == 64 * 53


def test_salts_keep_prompts_apart():
    engine, prompt = tiny_engine(tiny_model(TINY["gpt2"])), list(range(20))
    for salt, hits in (("a", 0), ("b", 0), ("", 0), ("a", 16), ("b", 32)):
        outputs_of(engine, [prompt], SamplingParams(max_tokens=1, cache_salt=salt))
        assert engine.scheduler.num_hit_tokens == hits
    for one, other in (("a", "b"), ("", "a"), ("a", "ab"), ("", "\0")):
        assert root_key(one) != root_key(other)


def test_a_key_is_about_all_tokens_before():
    """The same four tokens after other ones are another block; so is a block of other tokens after the same ones."""
    first, second = chain_key(root_key(), [1, 2, 3, 4]), chain_key(root_key(), [1, 2, 3, 5])
    assert len({first, second, chain_key(first, [9] * 4), chain_key(second, [9] * 4), chain_key(first, [8] * 4)}) == 5


def test_samples_of_one_prompt_share_its_blocks():
    engine = tiny_engine(tiny_model(TINY["llama"]))
    engine.add(list(range(21)), SamplingParams(n=5, max_tokens=3, seed=1))
    while len(engine.scheduler.decoding) < 5:
        engine.step()
    tables = [sequence.block_table for sequence in engine.scheduler.decoding]
    assert len({tuple(table[:5]) for table in tables}) == 1, "20 tokens, five blocks, one copy"
    assert len({table[5] for table in tables}) == 5, "each writes into its own"
    finish(engine)


def test_beams_share_what_they_have_in_common(monkeypatch):
    """Each step of each beam computes at most a block of tokens, not its whole text again."""
    monkeypatch.setitem(KNOWN_SHAPES, "tiny", TINY["gpt2"])
    shared, cold = (
        LLM("dummy:tiny", dtype="float32", block_size=SIZE, enable_prefix_caching=caching) for caching in (True, False)
    )
    prompt, options = list(range(40)), {"beam_width": 3, "max_tokens": 6}
    beams = shared.beam_search(prompt, **options)[0]
    assert [beam.token_ids for beam in beams] == [beam.token_ids for beam in cold.beam_search(prompt, **options)[0]]
    assert shared.stats()["tokens_prefilled"] <= 40 + 5 * 3 * SIZE
    assert cold.stats()["tokens_prefilled"] == 40 + 3 * sum(range(41, 46))
