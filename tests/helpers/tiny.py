"""Tiny networks and engines for tests: real code, toy sizes."""

from typing import Any

import torch

from octavo.gpt.engine import Engine
from octavo.gpt.models.base import Model
from octavo.gpt.models.config import ModelConfig
from octavo.gpt.models.families.gpt2 import GPT2Config
from octavo.gpt.models.families.llama import LlamaConfig
from octavo.gpt.models.registry import family_of
from octavo.gpt.runner.decode_graph import Capture
from octavo.gpt.runner.kv_cache import PagedCache
from octavo.gpt.runner.model_runner import Runner
from octavo.gpt.sampling_params import SamplingParams
from octavo.gpt.scheduler.config import EngineConfig
from octavo.gpt.speculative.speculation import Speculation
from octavo.kernels.ops import REFERENCE, Ops

TINY_GPT2 = GPT2Config(
    vocab_size=97, context_size=64, dim=32, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=8,
    intermediate_dim=64,
)  # fmt: skip
TINY_LLAMA = LlamaConfig(**{**vars(TINY_GPT2), "num_kv_heads": 2, "intermediate_dim": 48, "tied_embeddings": False})
TINY: dict[str, ModelConfig] = {"gpt2": TINY_GPT2, "llama": TINY_LLAMA}


def tiny_model(config: ModelConfig, ops: Ops = REFERENCE, seed: int = 0) -> Model:
    """A random network whose next-token choices are far from uniform, so that tests can tell them apart."""
    model = family_of(config).network(config, ops, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return model.eval().requires_grad_(False)


def tiny_engine(
    model: Model,
    prefix_caching: bool = True,
    capture: Capture | None = None,
    async_scheduling: bool = False,
    speculation: Speculation | None = None,
    **limits: Any,
) -> Engine:
    """An engine on the CPU with small limits; `limits` are EngineConfig's fields."""
    defaults = {"max_model_len": model.config.context_size, "block_size": 4, "num_blocks": 64, "max_num_seqs": 16}
    defaults |= {"max_num_batched_tokens": 64, "sliding_window": model.config.attention_window}
    config = EngineConfig(**{**defaults, **limits})
    dtype, device = next(model.parameters()).dtype, torch.device("cpu")
    cache = PagedCache(model.config, config.num_blocks, config.block_size, dtype, device)
    cache.data.fill_(torch.nan)  # what no token wrote must never be read
    runner = Runner(model, cache, config, device, capture, speculation.max_rows if speculation else 0)
    return Engine(runner, model.config, config, None, 0, prefix_caching, async_scheduling, speculation)


def run(engine: Engine, prompts: list[list[int]], params: SamplingParams | list[SamplingParams]) -> list[list[int]]:
    """Complete all prompts together; the first completion's ids of each."""
    each = params if isinstance(params, list) else [params] * len(prompts)
    requests = [engine.add(prompt, p) for prompt, p in zip(prompts, each, strict=True)]
    for _ in range(10_000):
        if not engine.has_unfinished:
            return [request.outputs[0].token_ids for request in requests]
        engine.step()
    raise AssertionError("the engine made no progress")
