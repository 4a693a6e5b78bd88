"""Engines under watch: blocks poisoned before they are used again, invariants after each step, nothing left behind."""

import random
from typing import Any

import tokenizers
import torch
from tokenizers import models

from octavo.gpt.engine import Engine
from octavo.gpt.outputs import RequestOutput
from octavo.gpt.sampling_params import SamplingParams
from octavo.gpt.scheduler.scheduler import Scheduler
from octavo.gpt.scheduler.sequence import Sequence, State
from octavo.gpt.tokenizer.pretokenizer import byte_level
from octavo.gpt.tokenizer.token_bytes import BYTE_SPELLING
from octavo.gpt.tokenizer.tokenizer import Tokenizer

VOCAB = 97


def poison(engine: Engine, value: float = torch.nan) -> Engine:
    """Fill the cache, and from now on each block that changes hands, with `value` before it is written."""
    cache, pool, runner = engine.runner.cache, engine.scheduler.pool, engine.runner
    cache.data.fill_(value)
    handed_out: list[int] = []
    allocate, launch = pool.allocate, runner.launch

    def noted() -> int:
        handed_out.append(allocate())
        return handed_out[-1]

    def poisoned(plan: Any) -> Any:
        still_to_be_copied = {block for swap in plan.swap_out for block in swap.blocks}
        cache.data[:, :, [block for block in handed_out if block not in still_to_be_copied]] = value
        handed_out.clear()
        return launch(plan)

    pool.allocate, runner.launch = noted, poisoned  # type: ignore[method-assign]
    return engine


def check(engine: Engine) -> None:
    """What holds between any two steps."""
    scheduler, runner = engine.scheduler, engine.runner
    running = scheduler.prefilling + scheduler.decoding
    scheduler.pool.check([sequence.held_blocks for sequence in running])
    assert all(len(s.held_blocks) <= scheduler.config.max_blocks_per_seq for s in running)
    owners: dict[int, list[Sequence]] = {}
    for sequence in running:
        assert sequence.state is State.RUNNING
        assert sequence.num_computed <= sequence.capacity
        for block in sequence.block_table[sequence.num_computed // scheduler.config.block_size :]:
            owners.setdefault(block, []).append(sequence)
    assert all(len(sharing) == 1 for sharing in owners.values()), "a block that two may write"
    assert len(running) <= scheduler.config.max_num_seqs
    in_host_memory = {seq_id for seq_id, copy in runner.cache._host.items() if copy.numel()}
    assert in_host_memory == {sequence.seq_id for sequence in scheduler.swapped}
    assert {sequence.seq_id for sequence in runner.input_batch.sequences} <= {sequence.seq_id for sequence in running}


def is_empty(scheduler: Scheduler) -> bool:
    """Whether no sequence is in any of the scheduler's queues."""
    return not (scheduler.waiting or scheduler.prefilling or scheduler.decoding or scheduler.swapped)


def check_idle(engine: Engine) -> None:
    """What holds once every request has ended: everything is back."""
    assert not engine.has_unfinished
    assert is_empty(engine.scheduler)
    assert not engine.unfinished_requests
    check(engine)
    pool = engine.scheduler.pool
    assert pool.num_used == 0
    assert pool.num_available == pool.num_blocks
    assert not engine.runner.cache._host
    assert not engine.runner.input_batch.sequences
    assert not engine.runner.sampler._counts


def finish(engine: Engine, most_steps: int = 10_000) -> None:
    """Step to the end, checking each step."""
    for _ in range(most_steps):
        if not engine.has_unfinished:
            return check_idle(engine)
        engine.step()
        check(engine)
    raise AssertionError(f"not finished in {most_steps} steps")


def yielded(request: RequestOutput) -> list[tuple]:
    """All that a caller sees of a request's completions, but for rounding."""
    return [(o.token_ids, o.text, o.finish_reason, o.stop_reason) for o in request.outputs]


def letters(vocab_size: int) -> Tokenizer:
    """A tokenizer whose token i is the byte 33 + i: the last ones are no text by themselves."""
    spelling = {byte: char for char, byte in BYTE_SPELLING.items()}
    vocabulary = {spelling[33 + token_id]: token_id for token_id in range(vocab_size)}
    engine = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    engine.pre_tokenizer, engine.decoder = byte_level(())
    return Tokenizer(engine)


def prompts(number: int, seed: int = 0, longest: int = 30) -> list[list[int]]:
    """Random prompts for the tiny networks."""
    rng = random.Random(seed)
    return [[rng.randrange(VOCAB) for _ in range(rng.randint(1, longest))] for _ in range(number)]


def outputs_of(engine: Engine, many: list[list[int]], params: SamplingParams) -> list[tuple[list[int], list[dict]]]:
    """Tokens and the bits of the log-probabilities of every request."""
    requests = [engine.add(prompt, params) for prompt in many]
    finish(engine)
    outputs = [request.outputs[0] for request in requests]
    assert all(output.finish_reason in ("stop", "length") for output in outputs)
    return [(o.token_ids, [{i: e.logprob for i, e in step.items()} for step in o.logprobs or []]) for o in outputs]
