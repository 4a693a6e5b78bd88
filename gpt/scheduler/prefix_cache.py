"""PrefixCache: which blocks of a text hold what was computed for an earlier one, read or generated. Integers only."""

from collections.abc import Iterable

from octavo.gpt.scheduler.block_pool import BlockPool, chain_key, root_key
from octavo.gpt.scheduler.sequence import Sequence


class PrefixCache:
    """Finds full blocks of a text in the pool; a block's key stands for all tokens up to the block's end."""

    def __init__(self, pool: BlockPool, block_size: int, enabled: bool = True) -> None:
        self.pool = pool
        self.block_size = block_size
        self.enabled = enabled

    def match(self, sequence: Sequence) -> list[int]:
        """Return the blocks that already hold the sequence's first tokens; the last token is always computed."""
        blocks: list[int] = []
        for index in range(self._num_shareable(sequence)):
            block = self.pool.lookup(self._key(sequence, index), self._tokens(sequence, index))
            if block is None:
                break
            blocks.append(block)
        return blocks

    def is_pending(self, sequence: Sequence, num_matched: int, prefilling: Iterable[Sequence]) -> bool:
        """Whether the block after the matched ones is about to be computed for another prompt."""
        if num_matched >= self._num_shareable(sequence):
            return False
        key, end = self._key(sequence, num_matched), (num_matched + 1) * self.block_size
        return any(
            other.num_computed < end <= other.num_prefill
            and self._is_kept(other)
            and self._key(other, num_matched) == key
            for other in prefilling
        )

    def insert(self, sequence: Sequence) -> None:
        """Let every full block of the sequence be found, of its prompt and of its output.

        Its newest token may be known only to the device yet: a block that holds it has no key.
        """
        if not self._is_kept(sequence):
            return
        known = min(sequence.num_computed, sequence.num_in_context) // self.block_size
        first, last = sequence.num_findable_blocks, min(known, len(sequence.block_table))
        for index in range(max(first, sequence.num_skipped_blocks), last):
            self.pool.cache(sequence.block_table[index], self._key(sequence, index), self._tokens(sequence, index))
        sequence.num_findable_blocks = max(first, last)

    def _is_kept(self, sequence: Sequence) -> bool:
        """Whether its blocks may be found: not where positions have shifted."""
        return self.enabled and not sequence.context_start and not sequence.is_stale

    def _num_shareable(self, sequence: Sequence) -> int:
        """Full blocks before the last token; 0 where positions have shifted, or while all tokens' logits are wanted."""
        wants_logits = sequence.params.prompt_logprobs is not None and not sequence.output
        if not self.enabled or sequence.context_start or wants_logits:
            return 0
        return (sequence.num_prefill - 1) // self.block_size

    def _tokens(self, sequence: Sequence, index: int) -> list[int]:
        return sequence.tokens(index * self.block_size, (index + 1) * self.block_size)

    def _key(self, sequence: Sequence, index: int) -> bytes:
        """Return the key of a full block; a sequence hashes each block once."""
        keys = sequence.block_keys
        while len(keys) <= index:
            parent = keys[-1] if keys else root_key(sequence.params.cache_salt, sequence.adapter)
            keys.append(chain_key(parent, self._tokens(sequence, len(keys))))
        return keys[index]
