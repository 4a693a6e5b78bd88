"""A hash of the weights that a model computes with: of their bytes as they are held, whatever file they came from."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from octavo.gpt.engine import Engine
from octavo.gpt.models.base import Model

DIGEST_BYTES = 16


def hash_weights(model: Model) -> str:
    """Return 32 hexadecimal digits that change with any bit of any weight, and with its name, shape, dtype or format.

    A pass over all bytes, at about a gigabyte a second and core.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = list(pool.map(_digest, *zip(*_named_tensors(model), strict=True)))
    return blake2b(b"".join(digests), digest_size=DIGEST_BYTES).hexdigest()


def weights_hash(engine: Engine, last_used: float) -> str:
    """Return the hash of an engine's weights, computed once as long as they stay; to be called on its thread.

    last_used: when they were last needed, by `time.perf_counter`; ValueError if they have changed since.
    """
    runner = engine.runner
    if runner.follow_weights():
        engine.scheduler.pool.reset()  # what the cache holds follows from the old weights
    if last_used < runner.weights_since:
        raise ValueError("receipt: the weights have changed since: ask before they do")
    if runner.weights_hash is None:
        runner.weights_hash = hash_weights(runner.model)
    return runner.weights_hash


def _named_tensors(model: Model) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of every weight, whatever the weight's type; tables that follow from the options are none."""
    for prefix, module in model.named_modules():
        held = {**module._parameters, "weight": getattr(module, "weight", None)}
        for name, weight in held.items():
            yield from _tensors(f"{prefix}.{name}", weight)


def _tensors(name: str, weight: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(weight, Tensor):
        yield name, weight
    elif isinstance(weight, tuple):
        facts = [str(part) for part in weight if not isinstance(part, Tensor | tuple)]
        for index, part in enumerate(weight):
            yield from _tensors(" ".join((f"{name}.{index}", *facts)), part)
    elif hasattr(weight, "__dict__"):
        yield from _tensors(name, tuple(vars(weight).values()))


def _digest(name: str, tensor: Tensor) -> bytes:
    found = blake2b(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode(), digest_size=DIGEST_BYTES)
    found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.digest()
