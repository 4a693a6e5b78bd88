"""Cases of the cache and of both attentions: ragged batches, shared and shuffled blocks, nothing to see, NaN around."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, product
from typing import Any

import torch
from torch import Tensor

from octavo.kernels.testing.case import Arguments, Case
from octavo.kernels.testing.inputs import (
    FLOATS,
    Heads,
    cu_seqlens,
    decode_args,
    fused_qkv,
    integers,
    paged,
    prefill_args,
)  # fmt: skip
from octavo.kernels.testing.layer_cases import name_of

STORES = [(12, 64, 16), (3, 64, 1), (1, 8, 4), (5, 40, 256), (9, 256, 2)]  # num_kv_heads, head_dim, block_size


def write_kv() -> Iterator[Case]:
    """Compared with all the memory around the caches, to the bit."""
    for dtype in FLOATS:
        for shape in STORES:
            yield _store(name_of(shape, dtype), shape, dtype, [11, 0, 5, -1, 7, 15, 2])
    for name, slots in {"no slot": [-1, -1, -1], "no tokens": [], "one token": [8]}.items():
        yield _store(name, (3, 8, 4), torch.float32, slots)
    yield _store("NaN, infinity, negative zero", (1, 8, 4), torch.float32, [3], special=True)


def _store(name: str, shape: tuple[int, int, int], dtype: torch.dtype, slots: list[int], special: bool = False) -> Case:
    make = partial(_store_args, shape, dtype, slots, special)
    return Case("write_kv", name, make, in_place=(2, 3), exact=True)


def _store_args(
    shape: tuple[int, int, int], dtype: torch.dtype, slots: list[int], special: bool, device: torch.device
) -> Arguments:
    num_kv_heads, head_dim, block_size = shape
    _, k, v = fused_qkv(len(slots), (2, num_kv_heads, head_dim), dtype, device=device)
    if special:
        values = [torch.nan, torch.inf, -torch.inf, -0.0, 1e-45, -torch.nan, 0.0, 3e38]
        k = torch.tensor(values, device=device).reshape(1, 1, 8)
        v = -k
    blocks = -(-16 // block_size)
    size = torch.Size((2, blocks + 2, block_size, num_kv_heads, head_dim))
    pool = torch.arange(size.numel(), device=device).reshape(size).to(dtype)
    return k, v, pool[0, 1:-1], pool[1, 1:-1], integers(slots, device)


RAGGED = [[1], [15, 16, 17], [31, 32, 33], [0, 20, 0, 1, 0], [40, 3, 70], [9, 9]]
HEADS = [(4, 4, 16), (9, 3, 64), (8, 1, 8), (3, 3, 100), (5, 5, 80), (8, 2, 32), (1, 1, 128), (2, 1, 200), (1, 1, 256)]
# Each in float32 and in one of the 16-bit dtypes, which differ in nothing that depends on heads.
HEADS_AND_DTYPES = [*((heads, torch.float32) for heads in HEADS), *zip(HEADS, cycle(FLOATS[1:]), strict=False)]

KINDS: dict[str, tuple[int, float, bool]] = {  # window, softcap, has sinks
    "window 1": (1, 0.0, False),
    "window 20": (20, 0.0, False),
    "window 500": (500, 0.0, False),
    "softcap": (0, 1.5, False),
    "sinks": (0, 0.0, True),
    "window, softcap, sinks": (20, 1.5, True),
}


def causal_attention() -> Iterator[Case]:
    op = "causal_attention"
    for dtype in FLOATS:
        for lengths in RAGGED:
            yield Case(op, name_of(lengths, dtype), partial(_causal, lengths, (3, 1, 40), dtype, 40**-0.5))
        for key in (-64.0, 64.0) if dtype != torch.float16 else ():  # beyond float16, in PyTorch too
            yield Case(op, name_of(f"scores of {128 * 64 * key:.0f}", dtype), partial(_causal_extreme, key, dtype))
    for heads, dtype in HEADS_AND_DTYPES:
        yield Case(op, name_of(f"heads {heads}", dtype), partial(_causal, [35, 2], heads, dtype, heads[2] ** -0.5))
    for kind, dtype in zip(KINDS, cycle(FLOATS), strict=False):
        yield Case(op, name_of(kind, dtype), partial(_causal_kind, kind, dtype))
    yield Case(op, "scores of -524288, softcap", partial(_causal_extreme, -64.0, torch.float32, 0, 50.0))
    for scale in (1e-3, 4.0):
        yield Case(op, f"scale {scale}", partial(_causal, [40], (2, 2, 16), torch.float32, scale))
    for lengths in ([], [0], [0, 0, 0]):
        yield Case(op, f"no tokens of {len(lengths)}", partial(_causal, lengths, (2, 1, 16), torch.float32, 1.0))


def _causal(lengths: list[int], heads: Heads, dtype: torch.dtype, scale: float, device: torch.device) -> Arguments:
    """With rows of NaN at the end, which belong to nobody and come out as zeros."""
    q, k, v = fused_qkv(sum(lengths), heads, dtype, padding=21, device=device)
    return q, k, v, cu_seqlens(lengths, device), max([0, *lengths]), scale


def _causal_kind(kind: str, dtype: torch.dtype, device: torch.device) -> Arguments:
    return *_causal([70, 2, 19], (3, 1, 40), dtype, 40**-0.5, device), *_kind(kind, device)


def _kind(kind: str, device: torch.device) -> tuple[int, float, Tensor | None]:
    """The arguments after the scale; sinks of three heads: far below the scores, amid them and far above."""
    window, softcap, has_sinks = KINDS[kind]
    sinks = torch.tensor([-40.0, 0.5, 40.0], device=device)
    return window, softcap, sinks if has_sinks else None


def _causal_extreme(key: float, dtype: torch.dtype, *rest: Any) -> Arguments:
    *kind, device = rest
    q = torch.full((40, 1, 128), 64.0, dtype=dtype, device=device)
    return q, torch.full_like(q, key), torch.ones_like(q), cu_seqlens([40], device), 40, 1.0, *kind


BATCHES = {  # contexts, queries; None: one query a sequence, in decode
    "decode": ([1, 31, 33, 255, 256, 257], None),
    "decode alone": ([37], None),
    "decode of one length": ([21, 21, 21], None),
    "decode of many lengths": ([3, 130, 2, 9, 100, 8], None),
    "decode of padding": ([0, 9, 0], None),
    "nothing but padding": ([0, 0], None),
    "prefill": ([1, 32, 33, 70, 65], [1, 32, 5, 1, 33]),
    "chunks": ([20, 33, 40], [3, 1, 24]),
    "no query": ([7, 8], [0, 2]),
    "more queries than keys": ([0, 3, 40, 0], [2, 20, 9, 0]),
}


def paged_attention() -> Iterator[Case]:
    op = "paged_attention"
    for dtype in FLOATS:
        for name, (contexts, queries) in BATCHES.items():
            make = partial(_paged, contexts, queries, (3, 1, 40), dtype, 16)
            yield Case(op, name_of(name, dtype), make)
        for count in (1, 20) if dtype != torch.float16 else ():
            name = name_of(f"scores of -524288, {count} queries", dtype)
            yield Case(op, name, partial(_paged_extreme, count, dtype))
    for dtype in (torch.float32, torch.bfloat16):
        yield Case(op, name_of("4355 keys, the last of the highest score", dtype), partial(_many_pieces, dtype))
    for heads, dtype in HEADS_AND_DTYPES:
        for phase, queries in (("decode", None), ("prefill", [17, 2])):
            make = partial(_paged, [40, 7], queries, heads, dtype, 4)
            yield Case(op, name_of(f"heads {heads}", phase, dtype), make)
    for (kind, phase), dtype in zip(product(KINDS, WINDOWED), cycle(FLOATS), strict=False):
        yield Case(op, name_of(kind, phase, dtype), partial(_paged_kind, kind, phase, dtype, 16))
    for size in (1, 4, 32, 128, 256):
        for phase, (contexts, queries) in (("decode", BATCHES["decode"]), ("prefill", BATCHES["prefill"])):
            make = partial(_paged, contexts, queries, (3, 1, 40), torch.float32, size)
            yield Case(op, f"blocks of {size}, {phase}", make)
    for size, phase in ((1, "prefill"), (4, "decode"), (256, "prefill"), (256, "decode")):
        make = partial(_paged_kind, "window 20", phase, torch.float32, size)
        yield Case(op, f"blocks of {size}, window 20, {phase}", make)
    yield Case(op, "blocks that two share", _shared_blocks)
    yield Case(op, "no sequences", partial(_paged, [], None, (2, 1, 16), torch.float32, 4))


def _paged(
    contexts: list[int], queries: list[int] | None, heads: Heads, dtype: torch.dtype, size: int, device: torch.device
) -> Arguments:
    if queries is None:
        return decode_args(contexts, heads, dtype, size, device=device)
    return prefill_args(contexts, queries, heads, dtype, size, device=device)


WINDOWED = {  # contexts, queries: windows that begin before and behind a split, within it, and at its edge
    "decode": ([1, 20, 21, 256, 257, 275, 276, 530, 0], None),
    "prefill": ([33, 290, 60, 5, 3], [33, 50, 1, 5, 9]),
}


def _paged_kind(kind: str, phase: str, dtype: torch.dtype, size: int, device: torch.device) -> Arguments:
    """No block wholly before the window is named: the table says -1 there, or what is no block at all."""
    contexts, queries = WINDOWED[phase]
    arguments = _paged(contexts, queries, (3, 1, 40), dtype, size, device)
    window = KINDS[kind][0]
    if window:
        for seq, length in enumerate(contexts):
            earliest = length - (queries[seq] if queries else 1) + 1 - window
            arguments[3][seq, : max(0, earliest) // size] = -1 if seq % 2 else 2**31 - 1
    return *arguments, *_kind(kind, device)


def _many_pieces(dtype: torch.dtype, device: torch.device) -> Arguments:
    arguments = decode_args([256 * 17 + 3], (1, 1, 256), dtype, 256, device=device)
    k_cache, table = arguments[1:4:2]
    k_cache[table[0, 17].long()] *= 16
    return arguments


def _paged_extreme(queries: int, dtype: torch.dtype, device: torch.device) -> Arguments:
    keys = torch.full((300, 1, 128), -64.0, dtype=dtype, device=device)
    q = torch.full((queries, 1, 128), 64.0, dtype=dtype, device=device)
    caches_and_table = paged(keys, torch.ones_like(keys), [300], 16)
    return q, *caches_and_table, integers([300], device), cu_seqlens([queries], device), queries, 1.0


def _shared_blocks(device: torch.device) -> Arguments:
    arguments = decode_args([32, 40], (2, 2, 16), torch.float32, 8, device=device)
    table: Tensor = arguments[3]
    table[1, :2] = table[0, :2]
    return arguments


CASES: dict[str, Callable[[], Iterator[Case]]] = {
    "write_kv": write_kv,
    "causal_attention": causal_attention,
    "paged_attention": paged_attention,
}
