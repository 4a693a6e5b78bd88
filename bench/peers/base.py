"""Contenders: anything that turns prompts into greedy tokens and tells when. Octavo's own is here."""

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from octavo.bench.measuring.timing import Stopwatch
from octavo.bench.peers import formats
from octavo.bench.peers.sources import ModelSource
from octavo.gpt import LLM, SamplingParams
from octavo.kernels import backends
from octavo.kernels.ops import OP_NAMES, REFERENCE, Ops

OWN = "octavo:"  # how the names of Octavo's own contenders begin


@dataclass(frozen=True)
class Generation:
    """Greedy tokens of a batch, and when they came, in seconds."""

    tokens: list[list[int]]
    ttft_s: float  # until every sequence had its first token
    step_s: list[float]  # of each later step that gave every sequence a token
    steps_are_means: bool = False  # only the end of a generation is known; step_s has one entry, the mean


class UnsupportedError(ValueError):
    """A contender was asked for something that it was never made for."""


class Contender(ABC):
    """An engine with its weights loaded; ValueError from the constructor where something is missing or impossible."""

    name: str
    version: str
    dtype: str  # of weights and arithmetic, or the peer's own format
    weight_bytes: float  # the mean size of a weight that a step reads
    value_bytes: int  # of a cached value
    same_weights: bool = True  # False: quantised anew, so tokens may differ for good reason

    @abstractmethod
    def generate(self, prompts: list[list[int]], new_tokens: int) -> Generation:
        """Exactly `new_tokens` greedy tokens for each prompt, end-of-text ignored."""

    def nll(self, ids: list[int]) -> float:
        """Minus the mean log-probability of each id but the first, in nats."""
        raise UnsupportedError("it does not tell how likely a text is")

    def forget(self) -> None:
        """Drop what is kept of earlier prompts in case that they come again: nothing, where nothing is said."""
        return

    def close(self) -> None:
        """Release the model."""
        vars(self).clear()


class NonStreamingContender(Contender):
    """A contender that gives its tokens all at once, at the end.

    The first token is timed by a pass of its own, on the prompts reversed: no prefix cache helps the second pass.
    """

    @abstractmethod
    def complete(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        """Exactly `new_tokens` greedy tokens for each prompt, end-of-text ignored."""

    def generate(self, prompts: list[list[int]], new_tokens: int) -> Generation:
        start = time.perf_counter()
        self.complete([prompt[::-1] for prompt in prompts], 1)
        middle = time.perf_counter()
        tokens = self.complete(prompts, new_tokens)
        first, rest = middle - start, time.perf_counter() - middle - (middle - start)
        if rest <= 0:
            raise ValueError("all tokens took no longer than the first alone: too few to time")
        return Generation(tokens, first, [rest / (new_tokens - 1)], steps_are_means=True)


@dataclass(frozen=True)
class RunSettings:
    """What every contender of a run is given."""

    source: ModelSource
    dtype: str
    device: torch.device
    threads: int
    max_batch: int
    max_context: int  # prompt and output


class Octavo(Contender):
    """LLM as its users make it: default settings, room for the largest batch."""

    def __init__(self, settings: RunSettings, backend: Ops) -> None:
        # A dtype of a run may also name a format of weights.
        format = settings.dtype if settings.dtype in formats.FORMATS else None
        path = file_read(settings)
        self.name = OWN + backend.name
        self.version = metadata.version("octavo")
        self.device = settings.device
        weights = formats.FILE if format in formats.MADE else format or formats.DENSE
        self.llm = _open(
            path or settings.source.path or settings.source.name,
            backend=backend,
            dtype="auto" if format else settings.dtype,
            weights=weights,
            device=settings.device.type,
            # Text costs the same in every row, so a file that has no tokenizer gets the model's.
            tokenizer=(settings.source.path or settings.source.name) if format in formats.MADE else "auto",
            max_num_seqs=max(64, settings.max_batch),
        )
        self.dtype, self.same_weights = settings.dtype, format is None
        self.value_bytes = self.llm.dtype.itemsize
        if path is not None:
            self.weight_bytes = formats.weight_bytes(path, settings.source.config)
        else:
            self.weight_bytes = formats.QUANTISED.get(settings.dtype, float(self.value_bytes))

    def generate(self, prompts: list[list[int]], new_tokens: int) -> Generation:
        params = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True)
        watch, given = Stopwatch(self.device), []
        outputs: dict[int, Any] = {}
        watch.mark()
        numbers = [self.llm.add(prompt, params) for prompt in prompts]
        try:
            while self.llm.has_unfinished:
                touched = self.llm.step()
                watch.mark()
                started = len(outputs)
                outputs |= {request.request_id: request.outputs[0] for request in touched}
                given.append(len(touched) if started == len(prompts) else 0)
        finally:
            for number in numbers:
                self.llm.abort(number)
        if failed := [output.stop_reason for output in outputs.values() if output.finish_reason == "error"]:
            raise ValueError(f"a request failed: {failed[0]}")
        laps = watch.laps()
        first = next(i for i, count in enumerate(given) if count) if any(given) else len(given)
        steps = [lap for lap, count in zip(laps, given, strict=True) if count == len(prompts)]
        return Generation([outputs[number].token_ids for number in numbers], sum(laps[:first]), steps)

    def nll(self, ids: list[int]) -> float:
        return self.llm.score(ids).nll

    def forget(self) -> None:
        self.llm.reset_prefix_cache()


def file_read(settings: RunSettings) -> Path | None:
    """The GGUF file whose blocks LLM reads as they are, made where it must be; None where it reads the model itself."""
    source = settings.source
    if settings.dtype == formats.FILE:
        if source.path is None or not source.is_gguf:
            raise UnsupportedError(f"{source.name} is no GGUF file")
        return source.path
    if settings.dtype not in formats.MADE:
        return None
    if find_spec("llama_cpp") is None:
        raise UnsupportedError(f"llama.cpp makes the file of {settings.dtype}: pip install llama-cpp-python")
    from octavo.bench.peers.gguf_files import gguf_in

    return gguf_in(settings.dtype, source, settings.device)


def _open(name: str | Path, **arguments: Any) -> LLM:
    """LLM; UnsupportedError where it has no products with such weights."""
    try:
        return LLM(name, **arguments)
    except ValueError as error:
        if str(error).startswith("weights "):
            raise UnsupportedError(str(error)) from None
        raise


def backend(name: str) -> Ops:
    """An octavo backend, or an ablation of one: `triton-sample` is triton with the reference's `sample`.

    Several ops may be given back to the reference, one dash each. A backend of another package has its own name, or
    that under which it was asked for where its own is one of octavo's. ValueError for a name that is no backend or no
    op, RuntimeError where the backend cannot run.
    """
    base, *given_back = name.split("-")
    for op in given_back:
        if op not in OP_NAMES:
            raise ValueError(f"backend {name!r}: {op!r} is no op (only {', '.join(OP_NAMES)})")
    ops = backends.load(base)
    if ":" in base and ops.name not in backends.BACKENDS:
        name = "-".join([ops.name, *given_back])
    return replace(ops, name=name, **{op: getattr(REFERENCE, op) for op in given_back})
