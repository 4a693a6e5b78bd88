"""A fast, exact decoder backend: `from octavo.gpt import LLM, SamplingParams`."""

from importlib.metadata import version

from octavo.gpt.async_llm import AsyncLLM
from octavo.gpt.beam_search import Beam
from octavo.gpt.engine import QueueFullError
from octavo.gpt.engine_thread import EngineClosedError
from octavo.gpt.llm import LLM
from octavo.gpt.loading.loader import load_model
from octavo.gpt.models.gpt2 import GPT2
from octavo.gpt.models.llama import Llama
from octavo.gpt.outputs import CompletionOutput, Logprob, RequestOutput, TokenProbability
from octavo.gpt.sampling_params import SamplingParams
from octavo.gpt.scoring import Score

__all__ = [
    "GPT2",
    "LLM",
    "AsyncLLM",
    "Beam",
    "CompletionOutput",
    "EngineClosedError",
    "Llama",
    "Logprob",
    "QueueFullError",
    "RequestOutput",
    "SamplingParams",
    "Score",
    "TokenProbability",
    "load_model",
]

__version__ = version("octavo")
