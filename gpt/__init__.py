"""A fast, exact decoder backend: `from octavo.gpt import LLM, SamplingParams`."""

from octavo.gpt.async_llm import AsyncLLM
from octavo.gpt.beam_search import Beam
from octavo.gpt.engine import QueueFullError
from octavo.gpt.llm import LLM
from octavo.gpt.outputs import CompletionOutput, Logprob, RequestOutput, TokenProbability
from octavo.gpt.sampling_params import SamplingParams
from octavo.gpt.scoring import Score

__all__ = [
    "LLM",
    "AsyncLLM",
    "Beam",
    "CompletionOutput",
    "Logprob",
    "QueueFullError",
    "RequestOutput",
    "SamplingParams",
    "Score",
    "TokenProbability",
]
