"""Prefixes: which blocks of a prompt hold what an earlier prompt computed. Integers only."""

from octavo.gpt.blocks import ROOT, BlockPool, chain_key
from octavo.gpt.sequence import Sequence


class Prefixes:
    """Finds full blocks of a text in the pool, and makes them findable: a key stands for all tokens up to their end."""

    def __init__(self, pool: BlockPool, block_size: int) -> None:
        self.pool = pool
        self.block_size = block_size

    def known(self, sequence: Sequence) -> list[int]:
        """Blocks that already hold the sequence's first tokens; its last token is always computed."""
        blocks: list[int] = []
        if sequence.start or sequence.params.prompt_logprobs is not None:
            return blocks  # positions have moved, or every token's logits are wanted
        for index in range((sequence.num_prefill - 1) // self.block_size):
            block = self.pool.find(*self._content(sequence, index))
            if block is None:
                break
            blocks.append(block)
        return blocks

    def publish(self, sequence: Sequence, start: int, end: int) -> None:
        """Make findable the blocks that were filled by computing the tokens `start` to `end` - 1 as prefill."""
        if sequence.start:
            return
        for index in range(start // self.block_size, end // self.block_size):
            self.pool.publish(sequence.block_table[index], *self._content(sequence, index))

    def _content(self, sequence: Sequence, index: int) -> tuple[bytes, list[int]]:
        """The key and the token ids of a full block; each key is hashed once a sequence."""
        keys = sequence.block_keys
        token_ids = sequence.tokens(index * self.block_size, (index + 1) * self.block_size)
        if index == len(keys):
            keys.append(chain_key(keys[-1] if keys else ROOT, token_ids))
        return keys[index], token_ids
