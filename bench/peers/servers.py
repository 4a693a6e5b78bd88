"""vLLM and SGLang, each through its offline engine with its own defaults, on a checkpoint written for them."""

import tempfile
from importlib import import_module
from importlib.metadata import version
from typing import Any

from octavo.bench.peers.base import NonStreamingContender, RunSettings
from octavo.bench.peers.export_hf import network
from octavo.bench.peers.sources import plain_model
from octavo.gpt.loading.loader import DTYPES


class Server(NonStreamingContender):
    """An engine that reads a Hugging Face folder; ids in, ids out."""

    def __init__(self, settings: RunSettings, package: str) -> None:
        self.package: Any = import_module(package)
        self.version, self.dtype = version(package), settings.dtype
        self.weight_bytes, self.value_bytes = float(DTYPES[self.dtype].itemsize), DTYPES[self.dtype].itemsize
        self.folder = tempfile.TemporaryDirectory()
        network(plain_model(settings.source, self.dtype, settings.device)).save_pretrained(self.folder.name)

    def close(self) -> None:
        self.folder.cleanup()
        super().close()


class VLLM(Server):
    def __init__(self, settings: RunSettings, variant: str) -> None:
        super().__init__(settings, "vllm")
        self.llm = self.package.LLM(
            model=self.folder.name, dtype=self.dtype, max_model_len=settings.max_context, skip_tokenizer_init=True
        )

    def complete(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        params = self.package.SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
        outputs = self.llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]


class SGLang(Server):
    def __init__(self, settings: RunSettings, variant: str) -> None:
        super().__init__(settings, "sglang")
        self.engine = self.package.Engine(
            model_path=self.folder.name, dtype=self.dtype, skip_tokenizer_init=True, log_level="error"
        )

    def complete(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        params = {"temperature": 0.0, "max_new_tokens": new_tokens, "ignore_eos": True}
        outputs = self.engine.generate(input_ids=prompts, sampling_params=params)
        return [list(output["output_ids"]) for output in outputs]

    def close(self) -> None:
        self.engine.shutdown()
        super().close()
