"""OpenVINO GenAI: `LLMPipeline` on the model's own GGUF file, with its own defaults, ids in, ids out."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import openvino
import openvino_genai

from octavo.bench.peers import formats
from octavo.bench.peers.base import Contender, Generation, RunSettings, UnsupportedError, file_read

FAMILIES = ("llama", "qwen2", "qwen3")  # whose files it reads


class OpenVino(Contender):
    """It keeps keys and values in 8 bits on a CPU."""

    def __init__(self, settings: RunSettings, variant: str) -> None:
        if variant != formats.FILE:
            raise UnsupportedError("openvino reads the model's own GGUF file: ask for --weights file")
        path = file_read(replace(settings, dtype=variant))
        assert path is not None  # of this format there always is one
        if settings.source.config.family not in FAMILIES:
            raise UnsupportedError(f"openvino reads GGUF files of {', '.join(FAMILIES)} only")
        self.version = openvino_genai.__version__.partition("-")[0]
        self.dtype, self.same_weights, self.value_bytes = variant, False, 1
        self.weight_bytes = formats.weight_bytes(path, settings.source.config)
        self.pipeline = openvino_genai.LLMPipeline(str(path), "CPU", INFERENCE_NUM_THREADS=settings.threads)

    def generate(self, prompts: list[list[int]], new_tokens: int) -> Generation:
        ids = np.array(prompts, np.int64)
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        config = openvino_genai.GenerationConfig(
            max_new_tokens=new_tokens, ignore_eos=True, do_sample=False, apply_chat_template=False
        )
        results = self.pipeline.generate(inputs, config)
        raw = results.perf_metrics.raw_metrics
        if set(raw.m_batch_sizes) != {len(prompts)}:
            raise ValueError("openvino did not give every sequence a token in each step")
        steps = [(after - before) / 1e3 for before, after in pairwise(raw.m_new_token_times)]  # of milliseconds
        return Generation(list(results.tokens), raw.m_times_to_first_token[0] / 1e6, steps)
