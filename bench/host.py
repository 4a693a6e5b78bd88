"""Measures what a step costs the host: the engine around a model that returns at once, on one thread.

What remains is scheduling, batch building, the bookkeeping of sampling and turning ids into text. A step must cost the
same however long the contexts are. With --structured steps that draw from random logits of the whole vocabulary are
timed as well, without a form and in a JSON schema: the difference is the price of the form.
"""

import argparse
import gc
import sys
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import torch
from rich.console import Console
from torch import Tensor

from octavo.bench import options
from octavo.bench.measuring.workloads import at_least
from octavo.bench.reporting.schema import Host
from octavo.bench.run import ResultLog, run_command
from octavo.gpt import SamplingParams
from octavo.gpt.engine import Engine
from octavo.gpt.loading.loader import load_tokenizer
from octavo.gpt.models.base import LayerCache, Model
from octavo.gpt.models.batch import Batch
from octavo.gpt.models.families.gpt2 import GPT2Config
from octavo.gpt.runner.kv_cache import PagedCache
from octavo.gpt.runner.model_runner import Runner
from octavo.gpt.scheduler.config import EngineConfig
from octavo.gpt.tokenizer.tokenizer import Tokenizer
from octavo.kernels import backends

EXAMPLE = "python -m octavo.bench host --seqs 1,64,256 --context 128,4096"
STEPS = 300
WARM_UP = 20  # steps before the timed ones
WAITING = 2000  # requests whose memory is measured
BLOCK_SIZE = 16
CPU = torch.device("cpu")
VOCAB_SIZE = 50257
LOGIT_ROWS = 61  # random ones, which a step's rows take in turn

ITEM = {
    "type": "object", "required": ["name", "count", "kind"], "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "maxLength": 12}, "count": {"type": "integer", "minimum": 0, "maximum": 10**6},
        "kind": {"enum": ["red", "green", "blue"]},
    },
}  # fmt: skip
FORM = {"json": {"type": "array", "items": ITEM, "minItems": 10**6}, "disable_any_whitespace": True}
DRAW = SamplingParams(temperature=1, min_p=0.01, max_tokens=None, ignore_eos=True)
WAYS = {
    "fused": DRAW.replace(temperature=0, min_p=0.0),
    "from logits": DRAW,
    "in a schema": DRAW.replace(structured=FORM),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seqs", default="1,64,256", metavar="N,...", help="sequences that run together (1,64,256)")
    parser.add_argument("--context", default="128,1024,4096", metavar="N,...", help="prompt lengths (128,1024,4096)")
    parser.add_argument("--steps", type=int, default=STEPS, metavar="N", help=f"timed for each pair ({STEPS})")
    parser.add_argument("--tokenizer", default="dummy:gpt2", help="a model whose tokenizer decodes, or none")
    parser.add_argument("--structured", action="store_true", help="also draw from logits, without and in a JSON schema")
    options.add_output(parser)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """what a step costs the host, with a model that returns at once"""
    sizes, contexts = options.numbers(arguments.seqs, "seqs"), options.numbers(arguments.context, "context")
    at_least(1, seqs=min(sizes), context=min(contexts), steps=arguments.steps)
    name = None if arguments.tokenizer == "none" else arguments.tokenizer
    tokenizer = None if name is None else load_tokenizer(name)
    if arguments.structured and tokenizer is None:
        raise ValueError("structured needs a tokenizer: leave --tokenizer none out")
    ways = [*WAYS] if arguments.structured else [*WAYS][:1]
    torch.set_num_threads(1)

    def work(log: ResultLog) -> None:
        for num_seqs, context, way in product(sizes, contexts, ways):
            if not log.has((num_seqs, context, way)):
                log.keep(time_steps(num_seqs, context, arguments.steps, tokenizer, name, arguments.seed, way))

    return run_command("host", arguments, console, CPU, len(sizes) * len(contexts) * len(ways), work)


class Instant(Model):
    """A model that computes nothing: it returns prepared random ids, one a row, or prepared random logits."""

    def __init__(self, config: GPT2Config, seed: int) -> None:
        super().__init__(config, replace(backends.load("cpu"), name="instant", capture=None))
        generator = torch.Generator().manual_seed(seed)
        self._logits = torch.randn(LOGIT_ROWS, config.vocab_size, generator=generator)
        self._ids = torch.randint(config.vocab_size, (4096,), generator=generator).int()
        self._row = torch.zeros(1)
        self._calls = 0

    def forward(self, batch: Batch, cache: Sequence[LayerCache] | None = None) -> Tensor:
        return self._row.expand(batch.token_ids.shape[0], 1)

    def logits(self, hidden: Tensor) -> Tensor:
        self._calls += 1
        return self._logits[torch.arange(self._calls, self._calls + hidden.shape[0]) % LOGIT_ROWS]

    def sample(self, hidden: Tensor, *columns: Tensor) -> Tensor:
        num_seqs = hidden.shape[0]
        self._calls += 1
        start = self._calls * 61 % (self._ids.shape[0] - num_seqs)
        return self._ids[start : start + num_seqs]


def instant_engine(num_seqs: int, context: int, steps: int, tokenizer: Tokenizer | None, seed: int) -> Engine:
    """An engine with room for that many sequences of that length, whose steps compute nothing."""
    length = context + steps + WARM_UP + BLOCK_SIZE
    shape = GPT2Config(
        vocab_size=VOCAB_SIZE, context_size=length, dim=1, num_layers=1, num_heads=1, num_kv_heads=1,
        head_dim=1, intermediate_dim=1,
    )  # fmt: skip
    config = EngineConfig(
        max_model_len=length,
        block_size=BLOCK_SIZE,
        num_blocks=(num_seqs + 1) * -(-length // BLOCK_SIZE),
        max_num_seqs=num_seqs,
        max_num_batched_tokens=num_seqs * context,
    )
    cache = PagedCache(shape, config.num_blocks, BLOCK_SIZE, torch.float32, CPU)
    runner = Runner(Instant(shape, seed), cache, config, CPU)
    return Engine(runner, shape, config, tokenizer, seed)


def time_steps(
    num_seqs: int,
    context: int,
    steps: int,
    tokenizer: Tokenizer | None,
    tokenizer_name: str | None,
    seed: int,
    way: str = "fused",
) -> Host:
    """Time decode steps of `num_seqs` sequences whose prompts are `context` long, after a warm-up; way: one of WAYS."""
    engine = instant_engine(num_seqs, context, steps, tokenizer, seed)
    ids = torch.randint(VOCAB_SIZE, (num_seqs, context), generator=torch.Generator().manual_seed(seed)).tolist()
    requests = [engine.add(row, WAYS[way]) for row in ids]
    while not all(request.outputs[0].token_ids for request in requests):
        engine.step()
    for _ in range(WARM_UP):
        engine.step()
    gc.collect()
    samples = []
    for _ in range(steps - 1):
        start = time.perf_counter()
        engine.step()
        samples.append(time.perf_counter() - start)
    for request in requests:
        engine.abort(request.request_id)
    return Host(
        num_seqs=num_seqs,
        context=context,
        way=way,
        tokenizer=tokenizer_name,
        samples=[round(sample, 8) for sample in samples],
        bytes_per_waiting=_bytes_per_waiting(engine),
    )


def _bytes_per_waiting(engine: Engine) -> int:
    """Bytes that a queued request holds, besides the list of its prompt's ids."""
    prompt, params = [1] * 16, SamplingParams()
    engine.add(prompt, params)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    requests = [engine.add(prompt, params) for _ in range(WAITING)]
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    for request in requests:
        engine.abort(request.request_id)
    return held // WAITING - sys.getsizeof(prompt)
