"""The launch table: static facts (arch, dtype, head_dim, weight shape) -> tile sizes, warps, stages.

The tables are plain data, and no two archs share an object: what is tuned on one GPU changes no other. A lookup per op
reads them, or applies the rule in its docstring; nothing is measured or chosen at run time. A lookup takes the tensor's
device and resolves its arch once. Bits may depend on BLOCK_K and the key tile only, so those are fixed per weight shape
or head_dim, whatever the number of rows. To add a GPU: add its configs, run
`python -m octavo.kernels.codegen --arch sm_NN`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias, TypeVar

import torch

Value = TypeVar("Value")
Config: TypeAlias = Mapping[str, int]
"""Keyword arguments of a launch, `kernel[grid](..., **config)`: constexprs, num_warps, num_stages, compiler options."""

ARCHS = ("sm_80", "sm_90", "sm_100", "gfx942")


@cache
def arch_of(device: torch.device) -> str:
    """The table's name for a device: one of `ARCHS`, or "interpreter" where Triton runs without a GPU."""
    if device.type != "cuda":
        return "interpreter"
    if torch.version.hip:
        return "gfx942"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise ValueError(f"device {device} has compute capability {major}.{minor}; the Triton kernels need 8.0")
    # sm_8x and sm_12x have mma.sync and 99 KB of shared memory a program: rows of sm_80 keep within that.
    return {9: "sm_90", 10: "sm_100"}.get(major, "sm_80")


def _config(num_warps: int, num_stages: int, **kwargs: int) -> Config:
    return {**kwargs, "num_warps": num_warps, "num_stages": num_stages}


def _warp_size(device: torch.device) -> int:
    return 64 if arch_of(device).startswith("gfx") else 32


def power_of_two(size: int) -> int:
    """The least power of two not below size."""
    return 1 << max(0, size - 1).bit_length()


NORM_MAX_DIM = 32768  # beyond it a row no longer fits the registers of one program


def norm(device: torch.device, dim: int) -> Config:
    """One program a token; 16 values a thread, so that a thread has two 16-byte loads in flight in 16 bits."""
    tile, lanes = power_of_two(dim), _warp_size(device)
    return _config(min(max(tile // (16 * lanes), 1), 1024 // lanes), 1, TILE=tile)


def elementwise(device: torch.device, intermediate_dim: int) -> Config:
    """A program computes up to 1024 values of one token, 8 a thread; 1024 divides most hidden dims."""
    tile = min(1024, power_of_two(intermediate_dim))
    return _config(max(tile // (8 * _warp_size(device)), 1), 1, TILE=tile)


def rope(device: torch.device, num_heads: int, half_dim: int) -> Config:
    """A program rotates up to 512 pairs of one token, whole heads, 8 pairs a thread."""
    half = power_of_two(half_dim)
    heads = min(power_of_two(num_heads), max(1, 512 // half))
    num_warps = max(heads * half // (8 * _warp_size(device)), 1)
    # Left to itself, ptxas spills to stay at 32 registers.
    options = {} if arch_of(device).startswith("gfx") else {"maxnreg": 64}
    return _config(num_warps, 1, TILE_HEADS=heads, TILE_HALF=half, **options)


MAX_DECODE_TOKENS = 64  # up to here one tile holds all tokens, and each weight is read once


@dataclass(frozen=True)
class LinearConfigs:
    """`linear` on one arch in one dtype. BLOCK_K is the same throughout: a row's bits do not depend on the choice."""

    fill_programs: int  # as many programs as fill the GPU
    decode_narrow: tuple[Config, ...]  # for a weight of fewer tiles than that: narrow tiles or a deep pipeline
    decode: tuple[Config, ...]  # for a wide weight; tokens ascending
    prefill: tuple[Config, ...]  # largest tile first


Tiles: TypeAlias = tuple[tuple[int, int, int, int], ...]  # each BLOCK_M (tokens), BLOCK_N (features), warps, stages


def _linear(
    fill_programs: int, block_k: int, decode_narrow: Tiles, decode: Tiles, prefill: Tiles, **options: int
) -> LinearConfigs:
    def configs(tiles: Tiles) -> tuple[Config, ...]:
        return tuple(_config(w, s, BLOCK_M=m, BLOCK_N=n, BLOCK_K=block_k, **options) for m, n, w, s in tiles)

    return LinearConfigs(fill_programs, configs(decode_narrow), configs(decode), configs(prefill))


# Features are the left operand, so that wgmma and tcgen05 get their 64 rows however few tokens there are. AMD has 16x16
# MFMA throughout: with 32x32 in prefill, k would be cut in other groups.
# fmt: off
LINEAR = {
    ("sm_80", 2): _linear(
        fill_programs=108, block_k=64,
        decode_narrow=((16, 16, 4, 8), (32, 16, 4, 8), (64, 16, 4, 6)),
        decode=((16, 64, 4, 6), (32, 64, 4, 6), (64, 64, 4, 5)),
        prefill=((128, 64, 4, 3), (64, 64, 4, 4)),
    ),
    **{(arch, 2): _linear(
        fill_programs=132, block_k=64,
        decode_narrow=((16, 64, 4, 16), (32, 64, 4, 14), (64, 64, 4, 12)),
        decode=((16, 64, 4, 6), (32, 64, 4, 6), (64, 64, 4, 6)),
        prefill=((256, 128, 8, 4), (128, 128, 8, 4), (64, 64, 4, 6)),
    ) for arch in ("sm_90", "sm_100")},
    ("gfx942", 2): _linear(
        fill_programs=304, block_k=64, matrix_instr_nonkdim=16,
        decode_narrow=((16, 16, 4, 2), (32, 16, 4, 2), (64, 16, 4, 2)),
        decode=((16, 64, 4, 2), (32, 64, 4, 2), (64, 64, 4, 2)),
        prefill=((128, 128, 8, 2), (64, 64, 4, 2)),
    ),
    **{(arch, 4): _linear(
        fill_programs=132, block_k=32,
        decode_narrow=((16, 16, 4, 6), (32, 16, 4, 6), (64, 16, 4, 6)),
        decode=((16, 32, 4, 6), (32, 32, 4, 6), (64, 32, 4, 6)),
        prefill=((128, 64, 8, 3), (64, 64, 8, 4)),
    ) for arch in ("sm_80", "sm_90")},
    ("sm_100", 4): _linear(
        fill_programs=132, block_k=32,
        decode_narrow=((16, 16, 4, 6), (32, 16, 4, 6), (64, 16, 4, 6)),
        decode=((16, 32, 4, 6), (32, 32, 4, 6), (64, 32, 4, 6)),
        prefill=((128, 64, 8, 3), (64, 64, 4, 4)),
    ),
    ("gfx942", 4): _linear(
        fill_programs=304, block_k=32, matrix_instr_nonkdim=16,
        decode_narrow=((16, 16, 4, 2), (32, 16, 4, 2), (64, 16, 4, 2)),
        decode=((16, 32, 4, 2), (32, 32, 4, 2), (64, 32, 4, 2)),
        prefill=((128, 64, 8, 2), (64, 64, 4, 2)),
    ),
    **{("interpreter", itemsize): _linear(
        fill_programs=2, block_k=64,
        decode_narrow=((64, 128, 1, 1),), decode=((64, 128, 1, 1),), prefill=((32, 64, 1, 1),),
    ) for itemsize in (2, 4)},
}
# fmt: on


def linear(device: torch.device, dtype: torch.dtype, num_tokens: int, out_features: int) -> Config:
    """Up to `MAX_DECODE_TOKENS` the least tile that holds all tokens; beyond, the largest that fills the GPU.

    A width that is no multiple of 8 is stored value by value; the addresses of the largest tile would spill.
    """
    table = LINEAR[arch_of(device), dtype.itemsize]
    if num_tokens <= MAX_DECODE_TOKENS:
        narrow = out_features // table.decode[0]["BLOCK_N"] < table.fill_programs
        fitting = table.decode_narrow if narrow else table.decode
        return next(config for config in fitting if config["BLOCK_M"] >= num_tokens)
    for config in table.prefill[1:] if out_features % 8 else table.prefill:
        if -(-num_tokens // config["BLOCK_M"]) * -(-out_features // config["BLOCK_N"]) >= table.fill_programs:
            return config
    return table.prefill[-1]


def write_kv(device: torch.device, width: int) -> Config:
    """A program copies up to 1024 of one token's `num_kv_heads * head_dim` values, 8 a thread: 16 bytes in bf16."""
    tile = min(1024, max(64, power_of_two(width)))
    return _config(max(1, tile // 256), 1, TILE=tile)


MAX_HEAD_DIM = 256


def _attention(tiles: dict[int, tuple[int, int, int, int]]) -> dict[int, Config]:
    """tiles: padded head_dim, at most -> BLOCK_M, BLOCK_N, warps, stages."""
    return {head: _config(w, s, BLOCK_M=m, BLOCK_N=n) for head, (m, n, w, s) in tiles.items()}


# BLOCK_N is the key tile of prefill and decode alike, so that it alone decides the bits. Without tensor cores float32
# has to be content with small tiles. Results of earlier pieces of a context stand beside those of its present one, so a
# wide head leaves room for few queries.
ATTENTION = {
    ("sm_80", 2): _attention({64: (128, 64, 8, 3), 128: (64, 32, 8, 3), 256: (64, 32, 8, 2)}),
    ("sm_90", 2): _attention({64: (64, 64, 4, 3), 128: (128, 64, 8, 3), 256: (64, 32, 8, 2)}),
    ("sm_100", 2): _attention({64: (64, 64, 4, 3), 128: (64, 64, 8, 3), 256: (64, 32, 8, 3)}),
    ("gfx942", 2): _attention({64: (128, 64, 4, 2), 128: (128, 64, 4, 2), 256: (64, 32, 4, 2)}),
    **{(arch, 4): _attention({64: (32, 16, 4, 2), 128: (32, 16, 8, 2), 256: (16, 16, 8, 2)}) for arch in ARCHS},
    **{("interpreter", itemsize): _attention({64: (16, 32, 1, 1), 256: (16, 16, 1, 1)}) for itemsize in (2, 4)},
}


def _decode(tiles: dict[int, tuple[int, int, int, int]], **options: int) -> dict[int, tuple[Config, int]]:
    """tiles: padded head_dim, at most -> rows of queries, warps, stages, and programs of a multiprocessor."""
    return {head: (_config(w, s, GROUP_TILE=m, **options), programs) for head, (m, w, s, programs) in tiles.items()}


# A query has the bits of prefill where its scores and values are summed by the same instruction over the same layout
# of keys, so decode has prefill's tile, or a lower one whose warps are stacked as prefill's; most of its rows are
# empty. As many programs are launched as the registers of a multiprocessor hold: more programs keep more loads in
# flight. One stage is for the block ids, which are loaded first. Told on sm_80 how many registers it has, the compiler
# no longer spills some of them to have more programs resident.
PAGED_DECODE = {
    ("sm_80", 2): _decode({64: (64, 4, 2, 2), 128: (64, 8, 3, 1), 256: (64, 8, 3, 1)}, maxnreg=240),
    ("sm_90", 2): _decode({64: (64, 4, 3, 3), 128: (64, 4, 3, 2), 256: (64, 8, 3, 1)}),
    ("sm_100", 2): _decode({64: (64, 4, 3, 2), 128: (64, 8, 3, 1), 256: (64, 8, 3, 1)}),
    ("gfx942", 2): _decode({64: (64, 4, 3, 4), 256: (64, 4, 3, 3)}),
    **{(arch, 4): _decode({64: (32, 4, 2, 2), 128: (32, 8, 2, 1), 256: (16, 8, 2, 1)}) for arch in ARCHS},
    **{("interpreter", itemsize): _decode({256: (16, 1, 1, 1)}) for itemsize in (2, 4)},
}
NUM_SMS = {"sm_80": 108, "sm_90": 132, "sm_100": 148, "gfx942": 304, "interpreter": 1}


def _holding(table: dict[int, Value], head_dim: int) -> Value:
    """The value of the least listed head that holds this one."""
    return next(value for width, value in table.items() if width >= head_dim)


def attention(device: torch.device, dtype: torch.dtype, head_dim: int) -> Config:
    """Prefill, contiguous or paged."""
    return _holding(ATTENTION[arch_of(device), dtype.itemsize], head_dim)


def paged_decode(device: torch.device, dtype: torch.dtype, head_dim: int, group: int) -> tuple[Config, int]:
    """Decode: the config, whose key tile is prefill's, and how many programs to launch: all are resident at once.

    group is the number of query heads of a kv head, which share a tile.
    """
    arch = arch_of(device)
    config, programs_per_sm = _holding(PAGED_DECODE[arch, dtype.itemsize], head_dim)
    key_tile = attention(device, dtype, head_dim)["BLOCK_N"]
    group_tile = max(config["GROUP_TILE"], power_of_two(group))
    return {**config, "GROUP_TILE": group_tile, "BLOCK_N": key_tile}, programs_per_sm * NUM_SMS[arch]


# Configs of the sampling kernels: none of them decides a bit of a token.
NO_FUSION = {"enable_fp_fusion": False}  # a fused multiply-add rounds once where the reference rounds twice
GROUPS = 2048  # of a row at most: one program holds their maxima


def scan(device: torch.device, vocab_size: int) -> Config:
    """A program reads 2048 logits, 16 a thread. In the interpreter, where a step takes the same time for more, tiles
    of several rows."""
    group = max(32, power_of_two(vocab_size) // GROUPS)
    if arch_of(device) != "interpreter":
        return _config(4, 1, GROUP=group, TILE=2048, ROWS=1, **NO_FUSION)
    tile = max(group, min(2048, power_of_two(vocab_size)))
    return _config(4, 1, GROUP=group, TILE=tile, ROWS=16384 // tile, **NO_FUSION)


def choose(device: torch.device, vocab_size: int) -> Config:
    """A program keeps 2048 ids in registers, 8 a thread; two programs fill a multiprocessor's registers."""
    arch = arch_of(device)
    chunk = min(2048, max(32, power_of_two(vocab_size))) if arch == "interpreter" else 2048
    # Told how many registers it has, the compiler no longer spills some of them to have more programs resident.
    options = {"maxnreg": 128} if arch.startswith("sm_") else {}
    return _config(8, 1, CHUNK=chunk, **NO_FUSION, **options)


def penalties(device: torch.device, vocab_size: int) -> Config:
    """A program changes 1024 logits of one row, 8 a thread."""
    return _config(4, 1, TILE=min(1024, power_of_two(vocab_size)), **NO_FUSION)


def bias() -> Config:
    return _config(1, 1, TILE=128, **NO_FUSION)


def merge(head_dim: int) -> Config:
    """A warp folds 128 values of a head's pieces, at full width: with more, those of 16 pieces would spill."""
    return _config(1 if head_dim <= 128 else 2, 1)


def lm_head(device: torch.device, dtype: torch.dtype, num_rows: int, vocab_size: int) -> Config:
    """The config of `linear` for as many tokens, up to its widest decode tile: beyond, the noise would spill."""
    return {**linear(device, dtype, min(num_rows, MAX_DECODE_TOKENS), vocab_size), **NO_FUSION}


def best() -> Config:
    return _config(4, 1, TILE=1024, **NO_FUSION)
