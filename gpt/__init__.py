"""A fast, exact decoder backend: `from octavo.gpt import LLM, SamplingParams`."""

from octavo.gpt.async_llm import AsyncLLM
from octavo.gpt.beam_search import Beam
from octavo.gpt.llm import LLM, Score, TokenProbability
from octavo.gpt.outputs import CompletionOutput, Logprob, RequestOutput
from octavo.gpt.sampling_params import SamplingParams

__all__ = [
    "LLM",
    "AsyncLLM",
    "Beam",
    "CompletionOutput",
    "Logprob",
    "RequestOutput",
    "SamplingParams",
    "Score",
    "TokenProbability",
]
