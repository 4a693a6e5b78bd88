"""Runner: a plan's sequences become batches, batches become logits, logits become tokens."""

from collections.abc import Sequence as Seq
from itertools import accumulate

import torch
from torch import Tensor

from octavo.gpt.batch import Batch
from octavo.gpt.cache import PagedCache
from octavo.gpt.model import Model
from octavo.gpt.sampler import Sampled, Sampler
from octavo.gpt.scheduler import Chunk, Plan
from octavo.gpt.sequence import Sequence


class Runner:
    """Executes plans on one model and one cache. Prefill and decode are two batches, so each kind of token is always
    computed the same way, whoever shares the step."""

    def __init__(self, model: Model, cache: PagedCache, block_size: int, device: torch.device) -> None:
        self.model = model
        self.cache = cache
        self.block_size = block_size
        self.device = device
        self.sampler = Sampler(model.ops, device)

    @torch.inference_mode()
    def run(self, plan: Plan) -> tuple[list[Sequence], list[Sampled]]:
        """Compute a step: the sequences that got a token, and the tokens, in the same order."""
        for swap in plan.swap_out:
            self.cache.swap_out(swap.seq_id, swap.blocks)
        for swap in plan.swap_in:
            self.cache.swap_in(swap.seq_id, swap.blocks)
        finished = [i for i, chunk in enumerate(plan.prefill) if chunk.end == chunk.sequence.num_visible]
        sequences = [plan.prefill[i].sequence for i in finished] + plan.decode
        logits = []
        if plan.prefill:
            # A prefill never claims a longest query of 1, which would mean decode.
            batch = self._batch(plan.prefill, max(2, *(chunk.end - chunk.start for chunk in plan.prefill)))
            hidden = self.model.forward(batch, self.cache.layers)
            if finished:
                logits.append(self.model.logits(hidden[batch.cu_seqlens_q[1:].long()[finished] - 1]))
        if plan.decode:
            chunks = [Chunk(s, s.num_visible - 1, s.num_visible) for s in plan.decode]
            logits.append(self.model.logits(self.model.forward(self._batch(chunks, 1), self.cache.layers)))
        if not logits:
            return [], []
        return sequences, self.sampler(torch.cat(logits), sequences)

    def forget(self, seq_id: int) -> None:
        """Drop what is kept for a sequence that ended."""
        self.cache.discard(seq_id)
        self.sampler.forget(seq_id)

    def _batch(self, chunks: Seq[Chunk], max_seqlen_q: int) -> Batch:
        size = self.block_size
        token_ids, positions, slots, lengths, ends, tables = [], [], [], [0], [], []
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
            max_seqlen_q=max_seqlen_q,
        )

    def _ints(self, values: list) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)
