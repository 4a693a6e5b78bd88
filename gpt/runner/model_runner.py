"""Runner: a plan's sequences become batches, batches become tokens. It starts a step; what was drawn is read later."""

from dataclasses import dataclass
from itertools import accumulate, takewhile

import torch
from torch import Tensor

from octavo.gpt.models.base import Model
from octavo.gpt.models.batch import Batch
from octavo.gpt.runner.decode_graph import Capture, DecodeStep, Graphs
from octavo.gpt.runner.input_batch import LOGITS, Rows
from octavo.gpt.runner.kv_cache import PagedCache
from octavo.gpt.runner.sampler import Ranking, Sampler, TopLogprobs
from octavo.gpt.scheduler.config import EngineConfig
from octavo.gpt.scheduler.scheduler import Chunk, Plan
from octavo.gpt.scheduler.sequence import Sequence
from octavo.kernels.ops import recorder


@dataclass(frozen=True, slots=True)
class Drawn:
    """Tokens of some sequences, a row each, perhaps still being computed; -1 where the logits were not numbers."""

    sequences: list[Sequence]
    token_ids: Tensor
    wanted: dict[int, int]  # rows that asked for log-probabilities, and for how many
    ranking: Ranking | None  # theirs


class Launched:
    """A step under way. `read` waits for its results; `last` are the sequences that have to be read before they go on,
    since they are full now or their window slides.
    """

    def __init__(self, parts: list[Drawn], num_decoded: int, last: list[Sequence]) -> None:
        self.last = last
        self.num_decoded = num_decoded
        self.sequences = [sequence for part in parts for sequence in part.sequences]
        self._token_ids = [part.token_ids.to("cpu", non_blocking=True) for part in parts]
        self._wanted = [row + first for part, first in zip(parts, _firsts(parts), strict=True) for row in part.wanted]
        self._rankings = [part.ranking.to_host() for part in parts if part.ranking is not None]
        self._done: torch.cuda.Event | None = None
        if parts and parts[0].token_ids.is_cuda:
            self._done = torch.cuda.Event()
            self._done.record()

    def read(self) -> tuple[list[int], dict[int, TopLogprobs]]:
        """A token id for each of `sequences`, and log-probabilities by row, for those that asked."""
        if self._done is not None:
            self._done.synchronize()
        token_ids = [token_id for part in self._token_ids for token_id in part.tolist()]
        top = [entry for ranking in self._rankings for entry in ranking.read()]
        return token_ids, dict(zip(self._wanted, top, strict=True))


def _firsts(parts: list[Drawn]) -> list[int]:
    return list(accumulate((len(part.sequences) for part in parts[:-1]), initial=0)) if parts else []


class Runner:
    """Executes plans on one model and one cache.

    Prefill and decode are two batches, so each kind of token is always computed the same way, whoever shares the step.
    capture: how decode steps become CUDA graphs; None runs them eagerly.
    """

    def __init__(
        self,
        model: Model,
        cache: PagedCache,
        config: EngineConfig,
        device: torch.device,
        capture: Capture | None = None,
    ) -> None:
        self.model = model
        self.cache = cache
        self.device = device
        self.block_size = config.block_size
        max_blocks = -(-config.max_model_len // config.block_size)
        self.rows = Rows(config.max_num_seqs, max_blocks, config.block_size, device)
        self.sampler = Sampler(model.ops, device)
        self.step = DecodeStep(model, cache, self.rows, recorder(model.ops))
        self.graphs = None if capture is None else Graphs(self.step, capture, config.max_num_seqs)

    @torch.inference_mode()
    def launch(self, plan: Plan) -> Launched:
        """Start a step: a token for each decoding sequence and for each whose prefill is complete."""
        self._swap(plan)
        for sequence in plan.grown:
            self.rows.update_blocks(sequence)
        self.rows.join_all(plan.decode)
        parts, num_decoded = [], len(self.rows.sequences)
        if num_decoded:
            parts.append(self._decode())
        if plan.prefill:
            parts += self._prefill(plan.prefill)
        return Launched(parts, num_decoded, self.rows.advance())

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

    def forget(self, seq_id: int) -> None:
        """Drop what is kept for a sequence that ended."""
        self.rows.leave(seq_id)
        self.cache.discard(seq_id)
        self.sampler.forget(seq_id)

    def _swap(self, plan: Plan) -> None:
        for swap in plan.swap_out:
            self.rows.leave(swap.seq_id)
            self.cache.swap_out(swap.seq_id, swap.blocks)
        for swap in plan.swap_in:
            self.cache.swap_in(swap.seq_id, swap.blocks)

    def _decode(self) -> Drawn:
        self.rows.upload()
        num_rows = len(self.rows.sequences)
        ending = self.rows.ending(0, num_rows)
        step = self.step if self.graphs is None else self.graphs
        return self._drawn(step(num_rows, ending), 0, ending)

    def _prefill(self, chunks: list[Chunk]) -> list[Drawn]:
        """Compute the chunks; sequences that are complete get a row each, in order, and their tokens."""
        batch = self._batch(chunks)
        hidden = self.model(batch, self.cache.layers)
        ends = list(accumulate(chunk.end - chunk.start for chunk in chunks))
        for chunk, end in zip(chunks, ends, strict=True):
            if chunk.sequence.params.prompt_logprobs is not None:
                self._note_prompt(chunk, hidden[end - (chunk.end - chunk.start) : end])
        complete = [i for i, chunk in enumerate(chunks) if chunk.end == chunk.sequence.num_visible]
        if not complete:
            return []
        first = len(self.rows.sequences)
        for i in complete:
            self.rows.join(chunks[i].sequence, drawn=True)
        self.rows.upload()
        last = len(self.rows.sequences)
        ending = self.rows.ending(first, last)
        newest = hidden[self._ints([ends[i] - 1 for i in complete])]
        return [self._drawn(self.step.finish(newest, first, last, ending), first, ending)]

    def _drawn(self, result: Tensor, first: int, ending: int) -> Drawn:
        """A part of the step that ended in token ids, or in logits for the sampler."""
        last = first + len(result)
        sequences = self.rows.sequences[first:last]
        if ending != LOGITS:
            return Drawn(sequences, result, {}, None)
        columns = self.rows.sampling(first, last)
        token_ids, wanted, ranking = self.sampler(result, sequences, columns, self.rows.num_drawn(first, last))
        self.step.keep(token_ids, first, last)
        return Drawn(sequences, token_ids, wanted, ranking)

    def _note_prompt(self, chunk: Chunk, hidden: Tensor) -> None:
        """Log-probabilities of the prompt tokens that follow the chunk's positions."""
        sequence = chunk.sequence
        targets = sequence.prompt[sequence.start + chunk.start + 1 : sequence.start + chunk.end + 1]
        if not targets or sequence.output:
            return
        logits = self.model.logits(hidden[: len(targets)])
        numbers = [sequence.params.prompt_logprobs or 0] * len(targets)
        ranking = self.sampler.rank(logits, self._ints(targets), numbers)
        sequence.prompt_logprobs += zip(targets, ranking.read(), strict=True)

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
            max_seqlen_q=max(2, *lengths),  # prefill never claims a longest query of 1, which would mean decode
        )

    def _ints(self, values: list) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)
