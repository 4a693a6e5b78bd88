"""Runner: a plan's sequences become batches, batches become tokens. It starts a step; the result is read later."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, groupby, islice, takewhile
from typing import Any

import torch
from torch import Tensor

from octavo.gpt.models.base import Model
from octavo.gpt.models.batch import Batch
from octavo.gpt.runner.adapters import AdapterTable
from octavo.gpt.runner.decode_graph import Capture, DecodeStep, Graphs
from octavo.gpt.runner.input_batch import InputBatch
from octavo.gpt.runner.kv_cache import PagedCache
from octavo.gpt.runner.logprobs import LogprobTensors, TokenLogprobs, gather_logprobs
from octavo.gpt.runner.sampler import SampledRows, SampledToken, Sampler, SamplingRows
from octavo.gpt.runner.transfer import to_device
from octavo.gpt.scheduler.config import EngineConfig
from octavo.gpt.scheduler.scheduler import Chunk, Plan
from octavo.gpt.scheduler.sequence import Sequence
from octavo.kernels.backends import graph_capture

LOGIT_ROWS = 64  # prompt positions whose logits are held at once


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Log-probabilities of a sequence's prompt tokens from index `first` on, perhaps still being computed."""

    sequence: Sequence
    first: int
    logprobs: LogprobTensors


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step computed. Decoding sequences come first, then those whose prefill is complete."""

    sequences: list[Sequence]
    num_tokens: list[int]  # tokens sampled for each sequence
    tokens: list[SampledToken]  # sequence after sequence
    prompt_logprobs: list[tuple[Sequence, int, list[TokenLogprobs]]]  # of prompt tokens from an index on

    def rows(self) -> Iterator[tuple[Sequence, list[SampledToken]]]:
        """Yield each sequence with the tokens sampled for it."""
        tokens = iter(self.tokens)
        for sequence, num_tokens in zip(self.sequences, self.num_tokens, strict=True):
            yield sequence, list(islice(tokens, num_tokens))


class PendingStep:
    """A step that was started. Its first `num_decoded` sequences were decoded, the others prefilled.

    is_guided: what some sequence may sample next depends on what it samples in this step.
    """

    def __init__(self, sampled: list[SampledRows], prompts: list[PromptRows], num_decoded: int) -> None:
        self.num_decoded = num_decoded
        self.is_guided = any(sequence.guide is not None for part in sampled for sequence in part.sequences)
        self._sampled = [part.to_host() for part in sampled]
        self._prompts = [replace(part, logprobs=part.logprobs.to_host()) for part in prompts]
        self._done: torch.cuda.Event | None = None
        tensors = [part.token_ids for part in sampled] + [part.logprobs.ranks for part in prompts]
        if any(tensor.is_cuda for tensor in tensors):
            self._done = torch.cuda.Event()
            self._done.record()

    def result(self) -> StepResult:
        """Wait until the device has computed the step, and return what it computed."""
        if self._done is not None:
            self._done.synchronize()
        rows = groupby(sequence for part in self._sampled for sequence in part.sequences)
        counts = [(sequence, len(list(each))) for sequence, each in rows]
        return StepResult(
            sequences=[sequence for sequence, _ in counts],
            num_tokens=[number for _, number in counts],
            tokens=[token for part in self._sampled for token in part.read()],
            prompt_logprobs=[(part.sequence, part.first, part.logprobs.read()) for part in self._prompts],
        )


class Runner:
    """Executes plans on one model and one cache.

    Prefill and decode are two batches, so each kind of token is always computed the same way, whoever shares the step.
    capture: how decode steps become CUDA graphs; None runs them eagerly. max_rows: queries of a decode step, where
    guesses may make them more than `max_num_seqs`.
    """

    def __init__(
        self,
        model: Model,
        cache: PagedCache,
        config: EngineConfig,
        device: torch.device,
        capture: Capture | None = None,
        max_rows: int = 0,
    ) -> None:
        model.set_length(config.max_model_len)
        self.model = model
        self.cache = cache
        self.device = device
        self.block_size = config.block_size
        max_blocks = -(-config.max_model_len // config.block_size)
        max_rows = max(max_rows, config.max_num_seqs)
        self.input_batch = InputBatch(max_rows, max_blocks, config.block_size, device)
        self.sampler = Sampler(model, device)
        self.step = DecodeStep(model, cache, self.input_batch, self.sampler, graph_capture(model.ops))
        self.graphs = None if capture is None else Graphs(self.step, capture, max_rows)
        self.adapters = AdapterTable(model, device)
        self._weights = versions_of(model)
        self.weights_hash: str | None = None  # where somebody asked for it
        self.weights_since = 0.0  # by time.perf_counter

    @torch.inference_mode()
    def launch(self, plan: Plan) -> PendingStep:
        """Start a step, which samples a token for each decoding sequence and for each whose prefill is complete.

        On CUDA nothing here waits for the device.
        """
        self._swap(plan)
        for sequence in plan.new_blocks:
            self.input_batch.update_blocks(sequence)
        self.input_batch.add_missing(plan.decode)
        sampled: list[SampledRows] = []
        prompts: list[PromptRows] = []
        if plan.decode:
            sampled.append(self._decode())
        if plan.prefill:
            self._prefill(plan.prefill, sampled, prompts)
        return PendingStep(sampled, prompts, len(plan.decode))

    @torch.inference_mode()
    def warm_up(self, max_num_batched_tokens: int) -> None:
        """Compile what prefill of different lengths needs, and capture every decode step. Nothing is stored."""
        for num_tokens in takewhile(lambda n: n <= max_num_batched_tokens, (4**i for i in range(1, 10))):
            padding = [0] * num_tokens
            self.model(
                Batch(
                    token_ids=self._ints(padding),
                    positions=self._ints(padding),
                    slot_mapping=self._ints([-1] * num_tokens),
                    cu_seqlens_q=self._ints([0, num_tokens]),
                    context_lens=self._ints([0]),
                    block_table=self._ints([[-1]]),
                    max_seqlen_q=num_tokens,
                ),
                self.cache.layers,
            )
        if self.graphs is not None:
            self.graphs.capture_all()

    def graph_stats(self) -> dict[str, float]:
        """How many decode steps were captured, and what that took, in seconds and bytes of device memory."""
        cost = (0, 0.0, 0) if self.graphs is None else self.graphs.cost
        return dict(zip(("graphs_captured", "graph_seconds", "graph_bytes"), cost, strict=True))

    def remove_row(self, seq_id: int) -> None:
        """Decode the sequence no longer; what else is kept for it stays."""
        self.input_batch.remove(seq_id)

    def free(self, seq_id: int) -> None:
        """Drop all that is kept for a sequence that ended."""
        self.input_batch.remove(seq_id)
        self.cache.free(seq_id)
        self.sampler.free(seq_id)

    def follow_weights(self) -> bool:
        """Return whether a weight was replaced or written since the last call; captured steps that read it are dropped.

        A write through another tensor's memory (`.data`, NumPy) goes unseen, and is followed by all but packed weights.
        """
        now = versions_of(self.model)
        same = len(now) == len(self._weights) and all(
            one is other and version == before
            for (one, version), (other, before) in zip(now, self._weights, strict=True)
        )
        if not same:
            self.forget_steps()
        return not same

    def forget_steps(self) -> None:
        """Drop captured steps, the hash, and every hold on weights that the model has no more."""
        self.weights_hash, self.weights_since = None, time.perf_counter()
        self._weights = versions_of(self.model)
        self.step.forget()
        if self.graphs is not None:
            self.graphs.forget()

    def reset(self) -> None:
        """Drop all that is kept for any sequence. Buffers stay where they are: captured steps refer to them."""
        self.input_batch.reset()
        self.cache.reset()
        self.sampler.reset()

    def _swap(self, plan: Plan) -> None:
        for swap in plan.swap_out:
            self.input_batch.remove(swap.seq_id)
            self.cache.swap_out(swap.seq_id, swap.blocks)
        for swap in plan.swap_in:
            self.cache.swap_in(swap.seq_id, swap.blocks)

    def _decode(self) -> SampledRows:
        rows = self.input_batch.prepare_decode()
        return self.sampler.finish(self._start(rows), rows)

    @torch.inference_mode()
    def sample_last(self, sequences: list[Sequence]) -> list[int]:
        """Compute each sequence's newest token and those of its guess; return what is sampled after the last of them.

        Nobody's logits are changed. No other sequence keeps its row.
        """
        self.input_batch.reset()
        self.input_batch.add_missing(sequences)
        token_ids = self._start(self.input_batch.prepare_decode()).tolist()
        return [token_ids[end - 1] for end in accumulate(1 + len(sequence.guess) for sequence in sequences)]

    def _start(self, rows: SamplingRows) -> Tensor:
        numbers = [sequence.adapter for sequence in rows.sequences]
        run = self.step.run if self.graphs is None else self.graphs.replay
        if any(numbers):
            run = partial(self.step.run_with, self.adapters.model_for(numbers))
        return run(len(rows.sequences), rows.mode)

    def _prefill(self, chunks: list[Chunk], sampled: list[SampledRows], prompts: list[PromptRows]) -> None:
        """Compute the chunks, and sample a token for each sequence whose prefill is complete: it gets a row."""
        numbers = [chunk.sequence.adapter for chunk in chunks for _ in range(chunk.start, chunk.end)]
        hidden = self.adapters.model_for(numbers)(self._batch(chunks), self.cache.layers)
        ends = list(accumulate(chunk.end - chunk.start for chunk in chunks))
        for chunk, end in zip(chunks, ends, strict=True):
            targets = _prompt_targets(chunk)
            if targets:
                first = end - (chunk.end - chunk.start)
                prompts.append(self._prompt_logprobs(chunk, targets, hidden[first : first + len(targets)]))
        complete = [(chunk.sequence, end - 1) for chunk, end in zip(chunks, ends, strict=True) if chunk.is_last]
        if complete:
            first_row = len(self.input_batch.sequences)
            for sequence, _ in complete:
                self.input_batch.add(sequence, sampling=True)
            self.input_batch.upload()
            newest = hidden[self._ints([index for _, index in complete])]
            sampled.append(self.sampler.sample(newest, self.input_batch.sampling_rows(first_row)))

    def _prompt_logprobs(self, chunk: Chunk, targets: list[int], hidden: Tensor) -> PromptRows:
        """Gather them some rows at a time, into tensors made before: what is kept between large temporary tensors
        would keep their memory from being used again."""
        number = chunk.sequence.params.prompt_logprobs or 0
        gathered = LogprobTensors.empty([number] * len(targets), self.device)
        token_ids = self._ints(targets)
        for first in range(0, len(targets), LOGIT_ROWS):
            rows = slice(first, first + LOGIT_ROWS)
            logits = self.model.logits(hidden[rows])
            gathered.fill(rows, gather_logprobs(self.model.ops, logits, token_ids[rows], gathered.numbers[rows]))
        return PromptRows(chunk.sequence, chunk.sequence.context_start + chunk.start + 1, gathered)

    def _batch(self, chunks: list[Chunk]) -> Batch:
        size = self.block_size
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        lengths, ends, tables = [0], [], []
        for chunk in chunks:
            table = chunk.sequence.block_table
            token_ids += chunk.sequence.tokens(chunk.start, chunk.end)
            positions += range(chunk.start, chunk.end)
            slots += [table[p // size] * size + p % size for p in range(chunk.start, chunk.end)]
            lengths.append(chunk.end - chunk.start)
            ends.append(chunk.end)
            tables.append(table)
        width = max(map(len, tables))
        return Batch(
            token_ids=self._ints(token_ids),
            positions=self._ints(positions),
            slot_mapping=self._ints(slots),
            cu_seqlens_q=self._ints(list(accumulate(lengths))),
            context_lens=self._ints(ends),
            block_table=self._ints([table + [-1] * (width - len(table)) for table in tables]),
            max_seqlen_q=max(2, *lengths),  # a longest query of 1 would mean decode
        )

    def _ints(self, values: list) -> Tensor:
        return to_device(values, torch.int32, self.device)


def versions_of(model: Model) -> list[tuple[Any, int]]:
    """Return every weight of the model, and how often each was written to."""
    return [
        (weight, weight._version if isinstance(weight, Tensor) and not weight.is_inference() else 0)
        for weight in model.weights()
    ]


def _prompt_targets(chunk: Chunk) -> list[int]:
    """Return the prompt tokens that follow the chunk's positions, if the request asked about them and has none yet."""
    sequence = chunk.sequence
    if sequence.params.prompt_logprobs is None or sequence.output:
        return []
    first = sequence.context_start + chunk.start + 1
    return sequence.prompt[first : sequence.context_start + chunk.end + 1]
