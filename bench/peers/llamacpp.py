"""llama.cpp through llama-cpp-python: one sequence at a time, as its Python users run it."""

import tempfile
from itertools import islice
from pathlib import Path

import gguf
import llama_cpp
import torch

from octavo.bench.measuring.roofline import step_weights
from octavo.bench.measuring.timing import Stopwatch
from octavo.bench.peers.base import Contender, Generation, RunSettings, UnsupportedError
from octavo.bench.peers.export_gguf import write_gguf
from octavo.bench.peers.sources import plain_model
from octavo.gpt.loading.loader import DTYPES

UNREAD = ("position_embd.weight",)  # a table of which a step reads one row
Q8_0_BYTES = 34 / 32  # 32 weights and their scale


class LlamaCpp(Contender):
    """`Llama.generate` on the run's weights: in the run's dtype, as `:q8_0`, or `:file` for the model's own GGUF."""

    def __init__(self, settings: RunSettings, variant: str) -> None:
        self.version = llama_cpp.__version__
        self.value_bytes = 2  # llama.cpp's cache is float16 by default
        self.same_weights = not variant
        if variant == "file":
            if settings.source.path is None or not settings.source.is_gguf:
                raise UnsupportedError(f"{settings.source.name} is no GGUF file")
            self.dtype, self.weight_bytes = _format(settings)
            self.llama = self._open(settings.source.path, settings)
            return
        self.dtype = variant or settings.dtype
        self.weight_bytes = Q8_0_BYTES if variant else float(DTYPES[settings.dtype].itemsize)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            model = plain_model(settings.source, "float32" if variant else settings.dtype, settings.device)
            write_gguf(model, path, self.dtype)
            del model
            self.llama = self._open(path, settings)

    def _open(self, path: Path, settings: RunSettings) -> llama_cpp.Llama:
        return llama_cpp.Llama(
            str(path),
            n_ctx=settings.max_context,
            n_threads=settings.threads,
            n_threads_batch=settings.threads,
            n_gpu_layers=-1 if settings.device.type == "cuda" else 0,
            verbose=False,
        )

    def generate(self, prompts: list[list[int]], new_tokens: int) -> Generation:
        if len(prompts) > 1:
            raise UnsupportedError("llama-cpp-python generates one sequence at a time")
        watch, tokens = Stopwatch(torch.device("cpu")), []
        watch.mark()
        for token_id in islice(self.llama.generate(prompts[0], temp=0.0), new_tokens):
            watch.mark()
            tokens.append(token_id)
        first, *steps = watch.laps()
        return Generation([tokens], first, steps)

    def close(self) -> None:
        self.llama.close()
        super().close()


def _format(settings: RunSettings) -> tuple[str, float]:
    """The commonest format of a GGUF file's matrices, and the mean size of a weight that a step reads."""
    reader = gguf.GGUFReader(settings.source.path)
    read = [tensor for tensor in reader.tensors if tensor.name not in UNREAD]
    if not settings.source.config.tied_embeddings:
        read = [tensor for tensor in read if tensor.name != "token_embd.weight"]
    kinds = [tensor.tensor_type.name.lower() for tensor in read if len(tensor.shape) > 1]
    size = sum(int(tensor.n_bytes) for tensor in read)
    return max(set(kinds), key=kinds.count), size / step_weights(settings.source.config)
