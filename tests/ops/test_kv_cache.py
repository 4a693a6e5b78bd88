"""write_kv: exact to the bit, and nothing else is touched."""

import pytest
import torch
from torch import Tensor

from octavo.kernels import reference
from octavo.kernels.testing.inputs import DEVICE, FLOATS, far_rows, fused_qkv, integers
from octavo.kernels.triton.kv_cache import write_kv


def bits(x: Tensor) -> Tensor:
    """x as integers, so that NaN equals NaN and -0 does not equal 0."""
    return x.contiguous().view({2: torch.int16, 4: torch.int32}[x.element_size()])


def caches(num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> list[Tensor]:
    """k_cache and v_cache as views of one pool full of distinct values, with a block to spare on each side."""
    shape = (num_blocks + 2, 2, block_size, num_kv_heads, head_dim)
    pool = torch.arange(torch.Size(shape).numel(), device=DEVICE).reshape(shape).to(dtype)
    return [pool[1:-1, 0], pool[1:-1, 1]]


def same_pool(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether all memory around and between the caches is the same, bit for bit."""
    assert a[0]._base is not None
    assert b[0]._base is not None
    return torch.equal(bits(a[0]._base), bits(b[0]._base))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize(
    ("num_kv_heads", "head_dim", "block_size"), [(12, 64, 16), (3, 64, 1), (1, 8, 4), (5, 40, 256), (9, 256, 2)]
)
def test_stores_what_the_reference_stores(
    num_kv_heads: int, head_dim: int, block_size: int, index: torch.dtype, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    num_tokens, num_blocks = 7, -(-16 // block_size)
    _, k, v = fused_qkv(num_tokens, (2, num_kv_heads, head_dim), dtype)
    slots = torch.randperm(num_blocks * block_size)[:num_tokens].to(DEVICE, index)
    slots[3] = -1
    actual, expected = (caches(num_blocks, block_size, num_kv_heads, head_dim, dtype) for _ in range(2))
    write_kv(k, v, *actual, slots)
    reference.write_kv(k, v, *expected, slots)
    assert same_pool(actual, expected)


def test_nan_infinity_and_negative_zero_are_copied_as_they_are() -> None:
    k = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 1e-45, -torch.nan, 0.0, 3e38]).reshape(1, 1, 8).to(DEVICE)
    k_cache, v_cache = caches(1, 1, 1, 8, torch.float32)
    write_kv(k, -k, k_cache, v_cache, integers([0]))
    assert torch.equal(bits(k_cache[0]), bits(k))
    assert torch.equal(bits(v_cache[0]), bits(-k))


@pytest.mark.parametrize("slots", [[-1, -1, -1], [-7, 32, 2**31 - 1], [-1, 99, -(2**31)]], ids=str)
def test_row_4_a_slot_that_is_none_writes_nothing(slots: list[int]) -> None:
    """Slot -1, taken for Python's last index, overwrote the last block."""
    _, k, v = fused_qkv(3, (1, 2, 16), torch.float16)
    actual, before = caches(8, 4, 2, 16, torch.float16), caches(8, 4, 2, 16, torch.float16)
    write_kv(k, v, *actual, integers(slots))
    assert same_pool(actual, before)


def test_row_26_no_tokens() -> None:
    """An empty append is a no-op."""
    actual, before = caches(2, 4, 2, 16, torch.float32), caches(2, 4, 2, 16, torch.float32)
    empty = torch.zeros(0, 2, 16, device=DEVICE)
    write_kv(empty, empty, *actual, integers([]))
    assert same_pool(actual, before)


def good() -> dict[str, Tensor]:
    _, k, v = fused_qkv(3, (1, 2, 16), torch.float16)
    k_cache, v_cache = caches(8, 4, 2, 16, torch.float16)
    return {
        "k": k,
        "v": v,
        "k_cache": k_cache,
        "v_cache": v_cache,
        "slot_mapping": torch.tensor([0, 1, 2], device=DEVICE),
    }


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("k", torch.zeros(3, 32).half(), "k must be"),
        ("v", torch.zeros(2, 2, 16).half(), "v must be shaped"),
        ("v", torch.zeros(3, 2, 16), "v must be torch.float16"),
        ("v", torch.zeros(3, 16, 2).half().transpose(1, 2), "v must have a contiguous last dimension"),
        ("k_cache", torch.zeros(32, 2, 16).half(), "k_cache must be"),
        ("k_cache", torch.zeros(8, 4, 3, 16).half(), "k_cache must be"),
        ("v_cache", torch.zeros(8, 2, 2, 16).half(), "v_cache must be shaped"),
        ("v_cache", torch.zeros(8, 4, 2, 16, device="meta").half(), "v_cache must be torch.float16 on"),
        ("slot_mapping", torch.tensor([0, 1]), "slot_mapping must be"),
        ("slot_mapping", torch.tensor([0.0, 1.0, 2.0]), "slot_mapping must be"),
        ("slot_mapping", torch.arange(6)[::2], "slot_mapping must be contiguous"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_named_before_anything_is_written(name: str, bad: Tensor, message: str) -> None:
    arguments = good()
    k_cache, v_cache = arguments["k_cache"].clone(), arguments["v_cache"].clone()
    with pytest.raises(ValueError, match=message):
        write_kv(**{**arguments, name: bad if bad.is_meta else bad.to(DEVICE)})
    assert torch.equal(arguments["k_cache"], k_cache)
    assert torch.equal(arguments["v_cache"], v_cache)


def test_row_5_addresses_beyond_2_to_31_elements() -> None:
    """A slot times a stride wraps in int32, silently."""
    _, k, v = fused_qkv(4, (1, 1, 16), torch.float16)
    caches, slots = far_rows(2, 5, 16, torch.float16), [4, 0, 3, 1]
    for cache in caches:
        cache[:] = 1
    write_kv(k, v, *(cache.unsqueeze(1) for cache in caches), integers(slots))
    for cache, new in zip(caches, (k, v), strict=True):
        assert torch.equal(cache[slots], new)
        assert torch.equal(cache[2], torch.ones_like(cache[2]))


@pytest.mark.gpu
def test_row_5_a_pool_beyond_2_to_31_elements() -> None:
    """Int32 addresses wrap, silently, in a pool of ordinary size."""
    k_cache = torch.zeros(2**15 + 2, 16, 32, 128, dtype=torch.bfloat16, device="cuda")  # 2^31 elements and two blocks
    v_cache = k_cache.clone()
    _, k, v = fused_qkv(2, (1, 32, 128), torch.bfloat16)
    last = k_cache.shape[0] * 16 - 1
    write_kv(k, v, k_cache, v_cache, torch.tensor([last, 0], device="cuda"))
    for cache, new in ((k_cache, k), (v_cache, v)):
        assert torch.equal(cache[-1, -1], new[0])
        assert torch.equal(cache[0, 0], new[1])
        assert int(cache.count_nonzero()) == int(new.count_nonzero())
