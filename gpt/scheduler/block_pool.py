"""BlockPool: which cache blocks are whose. Integers only.

A block is used (someone counts on it), cached (nobody does, but its content is a known prefix and may be asked for
again) or free. Cached blocks are given away last, the least recently used first.
"""

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import sha256


def root_key(salt: str = "") -> bytes:
    """The key before the first block: texts with different salts share nothing."""
    return sha256(b"octavo" + salt.encode("utf-8", "surrogatepass")).digest()


def chain_key(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The key of a full block: SHA-256 over the key before it and its own token ids."""
    return sha256(parent + b"".join(token_id.to_bytes(4, "little") for token_id in token_ids)).digest()


class BlockPool:
    """Reference-counted blocks 0 .. num_blocks - 1, some of them findable by the prefix they hold."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(reversed(range(num_blocks)))  # the last given back is the next given out: it is warm
        self._cached: OrderedDict[int, None] = OrderedDict()  # unused but findable, oldest first
        self._counts = [0] * num_blocks
        self._found: dict[bytes, int] = {}
        self._content: dict[int, tuple[bytes, tuple[int, ...]]] = {}

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can give: free ones and cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_available

    def allocate(self) -> int:
        """A block of one's own; IndexError when none is available."""
        if self._free:
            block = self._free.pop()
        elif self._cached:
            block = next(iter(self._cached))
            self._forget(block)
        else:
            raise IndexError(f"all {self.num_blocks} cache blocks are in use")
        self._counts[block] = 1
        return block

    def share(self, block: int) -> int:
        """Count on a block that holds something already."""
        if self._counts[block] == 0:
            del self._cached[block]
        self._counts[block] += 1
        return block

    def release(self, blocks: Sequence[int]) -> None:
        """Count on these no longer. The last blocks of a prefix are given away before the first."""
        for block in reversed(blocks):
            self._counts[block] -= 1
            if self._counts[block] == 0:
                if block in self._content:
                    self._cached[block] = None
                else:
                    self._free.append(block)

    def publish(self, block: int, key: bytes, token_ids: Sequence[int]) -> None:
        """Make a full block findable; the first one with a key stays the one."""
        if key not in self._found and block not in self._content:
            self._found[key] = block
            self._content[block] = (key, tuple(token_ids))

    def find(self, key: bytes, token_ids: Sequence[int]) -> int | None:
        """The block with this key, if its token ids are really these."""
        block = self._found.get(key)
        return block if block is not None and self._content[block][1] == tuple(token_ids) else None

    def reset(self) -> None:
        """Forget every prefix that nobody uses."""
        while self._cached:
            block = next(iter(self._cached))
            self._forget(block)
            self._free.append(block)

    def _forget(self, block: int) -> None:
        del self._cached[block]
        del self._found[self._content.pop(block)[0]]

    def check(self, tables: Sequence[Sequence[int]]) -> None:
        """RuntimeError unless the counts are exactly those of the given block tables and no block is lost or double."""
        counts = [0] * self.num_blocks
        for block in (block for table in tables for block in table):
            counts[block] += 1
        unused = sorted([*self._free, *self._cached])
        if counts != self._counts or unused != [block for block, count in enumerate(counts) if count == 0]:
            raise RuntimeError("cache blocks were lost or counted twice")
        if {block for block, _ in self._content.items()} != set(self._found.values()):
            raise RuntimeError("the prefix index and the blocks' contents disagree")
