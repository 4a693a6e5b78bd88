"""A fast, exact decoder backend: `from octavo.gpt import LLM, SamplingParams`."""

from octavo.gpt.llm import LLM, Score, TokenProbability
from octavo.gpt.outputs import CompletionOutput, Logprob, RequestOutput
from octavo.gpt.sampling_params import SamplingParams

__all__ = ["LLM", "CompletionOutput", "Logprob", "RequestOutput", "SamplingParams", "Score", "TokenProbability"]
