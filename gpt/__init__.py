"""A fast, exact decoder backend: `from octavo.gpt import LLM, SamplingParams`.

Names are imported on their first use, so that the command line can answer without PyTorch.
"""

import importlib
import typing
from importlib.metadata import version

from octavo.gpt.runner import threads

if typing.TYPE_CHECKING:
    from octavo.gpt.async_llm import AsyncLLM
    from octavo.gpt.beam_search import Beam
    from octavo.gpt.engine import QueueFullError
    from octavo.gpt.engine_thread import EngineClosedError
    from octavo.gpt.llm import LLM
    from octavo.gpt.loading.loader import load_model, load_tokenizer
    from octavo.gpt.models.families.gpt2 import GPT2
    from octavo.gpt.models.families.llama import Llama
    from octavo.gpt.options.lora import LoRARequest
    from octavo.gpt.outputs import CompletionOutput, Logprob, RequestOutput, TokenProbability
    from octavo.gpt.sampling_params import SamplingParams
    from octavo.gpt.scoring import Score
    from octavo.gpt.speculative.draft_model import DraftModel
    from octavo.gpt.speculative.ngram import NGram
    from octavo.gpt.structured.params import StructuredOutputsParams

__all__ = [
    "GPT2",
    "LLM",
    "AsyncLLM",
    "Beam",
    "CompletionOutput",
    "DraftModel",
    "EngineClosedError",
    "Llama",
    "LoRARequest",
    "Logprob",
    "NGram",
    "QueueFullError",
    "RequestOutput",
    "SamplingParams",
    "Score",
    "StructuredOutputsParams",
    "TokenProbability",
    "load_model",
    "load_tokenizer",
]

_HOMES = {
    "async_llm": "AsyncLLM",
    "beam_search": "Beam",
    "engine": "QueueFullError",
    "engine_thread": "EngineClosedError",
    "llm": "LLM",
    "loading.loader": "load_model load_tokenizer",
    "models.families.gpt2": "GPT2",
    "models.families.llama": "Llama",
    "options.lora": "LoRARequest",
    "outputs": "CompletionOutput Logprob RequestOutput TokenProbability",
    "sampling_params": "SamplingParams",
    "scoring": "Score",
    "speculative.draft_model": "DraftModel",
    "speculative.ngram": "NGram",
    "structured.params": "StructuredOutputsParams",
}

__version__ = version("octavo")

threads.share_cores()  # before a name below loads PyTorch


def __getattr__(name: str) -> typing.Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for home, names in _HOMES.items():
        module = importlib.import_module(f"{__name__}.{home}")
        globals().update({each: getattr(module, each) for each in names.split()})
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
