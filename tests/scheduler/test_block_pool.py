"""The pool of cache blocks: what is given out, what is found again, what is noticed."""

import pytest

from octavo.gpt.scheduler.block_pool import BlockPool, chain_key, root_key


def test_a_full_pool_says_so():
    pool = BlockPool(2)
    pool.allocate(), pool.allocate()
    with pytest.raises(IndexError, match="all 2 cache blocks"):
        pool.allocate()


def test_cached_blocks_are_given_away_oldest_first():
    pool = BlockPool(3)
    for token_id in range(3):
        block = pool.allocate()
        pool.cache(block, chain_key(root_key(), [token_id]), [token_id])
        pool.release([block])
    pool.touch(pool.lookup(chain_key(root_key(), [0]), [0]))  # used again, and given back: now the youngest
    pool.release([pool.lookup(chain_key(root_key(), [0]), [0])])
    pool.allocate()
    assert pool.lookup(chain_key(root_key(), [1]), [1]) is None
    assert pool.lookup(chain_key(root_key(), [0]), [0]) is not None


def test_a_key_alone_is_no_hit():
    """The stored ids are compared: a colliding key must not hand out another's text."""
    pool = BlockPool(1)
    pool.cache(pool.allocate(), b"same key", [1, 2])
    assert pool.lookup(b"same key", [1, 2]) == 0
    assert pool.lookup(b"same key", [1, 3]) is None


def test_lost_blocks_are_noticed():
    pool = BlockPool(2)
    pool.allocate()
    with pytest.raises(RuntimeError, match="lost"):
        pool.check([])
