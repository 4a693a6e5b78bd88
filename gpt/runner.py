"""Runner: a plan's sequences become batches, batches become logits, logits become tokens."""

from itertools import accumulate

import torch
from torch import Tensor

from octavo.gpt.batch import Batch
from octavo.gpt.cache import PagedCache
from octavo.gpt.config import EngineConfig
from octavo.gpt.model import Model
from octavo.gpt.rows import Rows
from octavo.gpt.sampler import Sampled, Sampler, TopLogprobs
from octavo.gpt.scheduler import Chunk, Plan


class Runner:
    """Executes plans on one model and one cache.

    Prefill and decode are two batches, so each kind of token is always computed the same way, whoever shares the step.
    """

    def __init__(self, model: Model, cache: PagedCache, config: EngineConfig, device: torch.device) -> None:
        self.model = model
        self.cache = cache
        self.device = device
        self.block_size = config.block_size
        max_blocks = -(-config.max_model_len // config.block_size)
        self.rows = Rows(config.max_num_seqs, max_blocks, config.block_size, device)
        self.sampler = Sampler(model.ops, device)

    @torch.inference_mode()
    def run(self, plan: Plan) -> Sampled:
        """Compute a step: a token for each decoding sequence and for each whose prefill is complete."""
        self._swap(plan)
        for sequence in plan.grown:
            self.rows.update_blocks(sequence)
        self.rows.join_all(plan.decode)
        logits = []
        if plan.decode:
            logits.append(self.model.logits(self.model.forward(self.rows.batch(), self.cache.layers)))
        if plan.prefill:
            logits += self._prefill(plan.prefill)
        if not logits:
            return Sampled([], [], [])
        sampled = self.sampler(torch.cat(logits), list(self.rows.sequences), self.rows.sampling())
        self.rows.advance(sampled.token_ids)
        return sampled

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

    def _prefill(self, chunks: list[Chunk]) -> list[Tensor]:
        """Compute the chunks; sequences that are complete get a row each, in order, and their last logits."""
        batch = self._batch(chunks)
        hidden = self.model.forward(batch, self.cache.layers)
        ends = batch.cu_seqlens_q[1:].tolist()
        for chunk, end in zip(chunks, ends, strict=True):
            if chunk.sequence.params.prompt_logprobs is not None:
                self._note_prompt(chunk, hidden[end - (chunk.end - chunk.start) : end])
        complete = [i for i, chunk in enumerate(chunks) if chunk.end == chunk.sequence.num_visible]
        for i in complete:
            self.rows.join(chunks[i].sequence)
        return [self.model.logits(hidden[[ends[i] - 1 for i in complete]])] if complete else []

    def _note_prompt(self, chunk: Chunk, hidden: Tensor) -> None:
        """Log-probabilities of the prompt tokens that follow the chunk's positions."""
        sequence = chunk.sequence
        targets = sequence.prompt[sequence.start + chunk.start + 1 : sequence.start + chunk.end + 1]
        if not targets or sequence.output:
            return
        logits = self.model.logits(hidden[: len(targets)])
        ids = torch.tensor(targets, device=self.device)
        logprobs = torch.log_softmax(logits.float(), -1).gather(1, ids.unsqueeze(1)).squeeze(1).tolist()
        top: list[TopLogprobs] = self.sampler.top(logits, ids, [sequence.params.prompt_logprobs or 0] * len(targets))
        sequence.prompt_logprobs += zip(targets, logprobs, top, strict=True)

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
