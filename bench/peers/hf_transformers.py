"""transformers: `generate` as it is, with a static cache, compiled, and its continuous batching."""

import contextlib
import io
from typing import Any

import torch
import transformers
from torch import Tensor

from octavo.bench.measuring.timing import Stopwatch
from octavo.bench.peers.base import Contender, Generation, NonStreamingContender, RunSettings, UnsupportedError
from octavo.bench.peers.export_hf import network
from octavo.bench.peers.sources import ModelSource, plain_model
from octavo.gpt.loading.loader import DTYPES

NOT_FROM_GGUF = ("gpt2",)  # transformers assumes the context and width of these families' files


class Transformers(Contender):
    """`model.generate`, greedy; a streamer notes when tokens come."""

    def __init__(self, settings: RunSettings, variant: str) -> None:
        self.version = transformers.__version__
        self.dtype, self.device, self.variant = settings.dtype, settings.device, variant
        self.weight_bytes, self.value_bytes = float(DTYPES[self.dtype].itemsize), DTYPES[self.dtype].itemsize
        self.model: Any = load(settings.source, self.dtype, self.device)
        generation = self.model.generation_config
        generation.eos_token_id, generation.do_sample = None, False
        generation.temperature = generation.top_p = generation.top_k = None
        generation.pad_token_id = 0  # no prompt is padded: all are of one length
        if variant in ("static", "compile"):
            generation.cache_implementation = "static"
        if variant == "compile":
            self.model.forward = torch.compile(self.model.forward, mode="reduce-overhead", fullgraph=True)

    def generate(self, prompts: list[list[int]], new_tokens: int) -> Generation:
        ids = torch.tensor(prompts, device=self.device)
        clock = _Clock(self.device)
        clock.mark()
        output = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, streamer=clock
        )
        laps = clock.laps()
        return Generation(output[:, ids.shape[1] :].tolist(), laps[0] + laps[1], laps[2:])

    @torch.inference_mode()
    def nll(self, ids: list[int]) -> float:
        tokens = torch.tensor([ids], device=self.device)
        logits = self.model(tokens).logits[0, :-1].float()
        return float(torch.nn.functional.cross_entropy(logits, tokens[0, 1:]))

    def close(self) -> None:
        super().close()
        torch.compiler.reset()


class _Clock(Stopwatch):
    """A streamer: `generate` hands it the prompt, then each step's tokens."""

    def put(self, value: Tensor) -> None:
        self.mark()

    def end(self) -> None:
        """Nothing is left to do."""


class Continuous(Transformers, NonStreamingContender):
    """Continuous batching: `generate_batch`, paged and scheduled."""

    generate = NonStreamingContender.generate

    def __init__(self, settings: RunSettings, variant: str) -> None:
        if settings.device.type != "cuda":
            raise UnsupportedError("continuous batching of transformers is for CUDA devices")
        super().__init__(settings, variant)

    def complete(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        config = transformers.GenerationConfig(
            max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        outputs = self.model.generate_batch(inputs=prompts, generation_config=config, progress_bar=False)
        by_prompt = {tuple(output.prompt_ids): output.generated_tokens for output in outputs.values()}
        return [by_prompt[tuple(prompt)] for prompt in prompts]


def open_peer(settings: RunSettings, variant: str) -> Contender:
    return (Continuous if variant == "continuous" else Transformers)(settings, variant)


def load(source: ModelSource, dtype: str, device: torch.device) -> Any:
    """The model as transformers reads the same file, or its own network around the same random weights."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    kind = transformers.AutoModelForCausalLM
    if source.path is None or (source.is_gguf and source.config.family in NOT_FROM_GGUF):
        model = network(plain_model(source, dtype, device))
    elif source.is_gguf:
        with contextlib.redirect_stderr(io.StringIO()):  # hides the progress bar
            model = kind.from_pretrained(
                source.path.parent, gguf_file=source.path.name, dtype=DTYPES[dtype], **_dense()
            )
    else:
        model = kind.from_pretrained(source.path, dtype=DTYPES[dtype])
    return model.to(device).eval().requires_grad_(False)


def _dense() -> dict[str, Any]:
    """Options for weights in the run's dtype; newer releases keep them packed unless told."""
    newer = hasattr(transformers, "GgufConfig")
    return {"quantization_config": transformers.GgufConfig(dequantize=True)} if newer else {}
