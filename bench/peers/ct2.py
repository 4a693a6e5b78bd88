"""CTranslate2: the network converted by its own converter from transformers' classes, then `generate_batch`."""

import tempfile
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ctranslate2
import torch
from ctranslate2.converters import TransformersConverter

from octavo.bench.measuring.timing import Stopwatch
from octavo.bench.peers.base import Contender, Generation, RunSettings
from octavo.bench.peers.export_hf import network
from octavo.bench.peers.sources import plain_model

INT8 = "int8"


class CTranslate2(Contender):
    """A Generator in the run's dtype, or in float32 where CTranslate2 has no kernels for it; `:int8` quantises."""

    def __init__(self, settings: RunSettings, variant: str) -> None:
        self.version = ctranslate2.__version__
        kind = "cuda" if settings.device.type == "cuda" else "cpu"
        able = ctranslate2.get_supported_compute_types(kind)
        self.dtype = variant or (settings.dtype if settings.dtype in able else "float32")
        self.same_weights = not variant
        self.value_bytes = 4 if self.dtype in ("float32", INT8) else 2
        self.weight_bytes = 1.0 if variant else float(self.value_bytes)
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "converted"
            convert(settings, target, "float32" if variant else self.dtype, INT8 if variant else None)
            self.generator = ctranslate2.Generator(
                str(target), device=kind, compute_type=self.dtype, intra_threads=settings.threads
            )

    def generate(self, prompts: list[list[int]], new_tokens: int) -> Generation:
        watch, told = Stopwatch(torch.device("cpu")), count(1)

        def note(_: Any) -> bool:
            """Called with each token; the step is over when the last sequence of the batch got its own."""
            if next(told) % len(prompts) == 0:
                watch.mark()
            return False

        watch.mark()
        results = self.generator.generate_batch(
            [[_token(token_id) for token_id in prompt] for prompt in prompts], max_length=new_tokens, sampling_topk=1,
            include_prompt_in_result=False, end_token=[], callback=note,
        )  # fmt: skip
        first, *steps = watch.laps()
        return Generation([result.sequences_ids[0] for result in results], first, steps)


def convert(settings: RunSettings, target: Path, dtype: str, quantization: str | None) -> None:
    """CTranslate2's own converter, given the network at hand instead of a checkpoint to load."""
    twin = network(plain_model(settings.source, dtype, settings.device)).cpu()

    class AtHand(TransformersConverter):
        def load_model(self, *_: Any, **__: Any) -> Any:
            return twin

        def load_tokenizer(self, *_: Any, **__: Any) -> Any:
            vocabulary = {_token(token_id): token_id for token_id in range(settings.source.config.vocab_size)}
            return SimpleNamespace(
                get_vocab=lambda: vocabulary, bos_token=_token(0), eos_token=_token(0), unk_token=_token(0)
            )

    with tempfile.TemporaryDirectory() as folder:
        twin.config.save_pretrained(folder)
        AtHand(folder).convert(str(target), quantization=quantization)


def _token(token_id: int) -> str:
    """CTranslate2 speaks in tokens; these name their own number."""
    return f"<{token_id}>"
