"""llama.cpp on the same weights: in a dtype, in each of its formats, or on the model's own GGUF file."""

from pathlib import Path

import llama_cpp

from octavo.bench.peers import formats
from octavo.bench.peers.base import Contender, Generation, RunSettings, UnsupportedError
from octavo.bench.peers.gguf_files import gguf_in
from octavo.bench.peers.llama_context import LlamaContext

DENSE = {"": "", "f16": "float16"}  # variants that keep the weights, and their dtype where it is not the run's


class LlamaCpp(Contender):
    """llama.cpp as it is by default; variants other than `:f16` are quantised, `:file` is the model's own GGUF file."""

    def __init__(self, settings: RunSettings, variant: str) -> None:
        self.version = llama_cpp.__version__
        path, self.weight_bytes = prepare(settings, variant)
        self.value_bytes = 2  # llama.cpp's cache is float16 by default
        self.dtype, self.same_weights = _dtype(settings, variant), variant in DENSE
        self.llama = LlamaContext(path, settings.threads, settings.max_context, settings.device.type == "cuda")

    def generate(self, prompts: list[list[int]], new_tokens: int) -> Generation:
        return self.llama.generate(prompts, new_tokens)

    def nll(self, ids: list[int]) -> float:
        return float(self.llama.losses(ids).mean())

    def close(self) -> None:
        self.llama.close()
        super().close()


def prepare(settings: RunSettings, variant: str) -> tuple[Path, float]:
    """The GGUF file that a variant runs, made where it is not there yet, and the mean size of its weights."""
    source = settings.source
    if variant != formats.FILE:
        path = gguf_in(_dtype(settings, variant), source, settings.device)
    elif source.path is None or not source.is_gguf:
        raise UnsupportedError(f"{source.name} is no GGUF file")
    else:
        path = source.path
    return path, formats.weight_bytes(path, source.config)


def _dtype(settings: RunSettings, variant: str) -> str:
    return DENSE.get(variant, variant) or settings.dtype
