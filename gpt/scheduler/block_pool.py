"""BlockPool: which cache blocks are in use, and which prefixes they hold. Integers only.

A block is used (a block table holds it), cached (no table does, but its content is a prefix that may be asked for
again) or free. Cached blocks are given away last, the least recently used first.
"""

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import sha256


def root_key(salt: str = "", adapter: int = 0) -> bytes:
    """Return the key before the first block: texts with different salts or adapters share nothing."""
    return sha256(b"octavo" + adapter.to_bytes(8, "little") + salt.encode("utf-8", "surrogatepass")).digest()


def chain_key(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Return the key of a full block: SHA-256 over the key before it and its own token ids."""
    return sha256(parent + b"".join(token_id.to_bytes(4, "little") for token_id in token_ids)).digest()


class BlockPool:
    """Reference-counted blocks 0 .. num_blocks - 1, some of them found by the prefix that they hold."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(reversed(range(num_blocks)))  # a stack: the block given back last is still in the caches
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._counts = [0] * num_blocks
        self._by_key: dict[bytes, int] = {}
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
        """Take a block for one table alone; IndexError when none is available."""
        if self._free:
            block = self._free.pop()
        elif self._cached:
            block = next(iter(self._cached))
            self._uncache(block)
        else:
            raise IndexError(f"all {self.num_blocks} cache blocks are in use")
        self._counts[block] = 1
        return block

    def touch(self, block: int) -> None:
        """Take a block that holds a cached prefix into one more table."""
        if self._counts[block] == 0:
            del self._cached[block]
        self._counts[block] += 1

    def is_shared(self, block: int) -> bool:
        """Whether several tables hold it."""
        return self._counts[block] > 1

    def release(self, blocks: Sequence[int]) -> None:
        """Give back one table's blocks. The last blocks of a prefix are given away before its first."""
        for block in reversed(blocks):
            self._counts[block] -= 1
            if self._counts[block] == 0:
                if block in self._content:
                    self._cached[block] = None
                else:
                    self._free.append(block)

    def cache(self, block: int, key: bytes, token_ids: Sequence[int]) -> None:
        """Let `lookup` find a full block; of several blocks with one key, the first stays."""
        if key not in self._by_key and block not in self._content:
            self._by_key[key] = block
            self._content[block] = (key, tuple(token_ids))

    def lookup(self, key: bytes, token_ids: Sequence[int]) -> int | None:
        """Return the block with this key; None if there is none, or if the keys collide and its token ids differ."""
        block = self._by_key.get(key)
        return block if block is not None and self._content[block][1] == tuple(token_ids) else None

    def reset(self) -> None:
        """Let no prefix be found any more; blocks that no table holds are free."""
        self._free += reversed(self._cached)
        for index in (self._cached, self._by_key, self._content):
            index.clear()

    def _uncache(self, block: int) -> None:
        del self._cached[block]
        del self._by_key[self._content.pop(block)[0]]

    def check(self, tables: Sequence[Sequence[int]]) -> None:
        """Raise RuntimeError unless the counts are those of the given block tables and no block is lost or double."""
        counts = [0] * self.num_blocks
        for block in (block for table in tables for block in table):
            counts[block] += 1
        unused = sorted([*self._free, *self._cached])
        if counts != self._counts or unused != [block for block, count in enumerate(counts) if count == 0]:
            raise RuntimeError("cache blocks were lost or counted twice")
        if set(self._content) != set(self._by_key.values()):
            raise RuntimeError("the prefix index and the blocks' contents disagree")
