"""The launch table: static facts (arch, dtype, head_dim, weight shape) -> tile sizes, warps, stages.

Plain data and one small lookup per op; nothing is measured or chosen at run time. A lookup takes the tensor's device
and resolves its arch once; what no table lists follows the rule in its lookup. Bits may depend on a row's BLOCK_K and
key tile only, so those are fixed per weight shape or head_dim, whatever the number of rows. To add a GPU: add its
rows, run `python -m octavo.kernels.codegen --arch sm_NN`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import torch


@dataclass(frozen=True)
class Row:
    """How one kernel is launched: `kernel[grid](..., **row.kwargs)`."""

    num_warps: int
    num_stages: int
    tiles: Mapping[str, int] = field(default_factory=dict)  # the kernel's constexpr names -> sizes
    options: Mapping[str, int] = field(default_factory=dict)  # what only one vendor's compiler knows

    @property
    def kwargs(self) -> dict[str, int]:
        return {**self.tiles, **self.options, "num_warps": self.num_warps, "num_stages": self.num_stages}


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


def row(num_warps: int, num_stages: int, **tiles: int) -> Row:
    return Row(num_warps, num_stages, tiles)


def _warp_size(device: torch.device) -> int:
    return 64 if arch_of(device).startswith("gfx") else 32


def power_of_two(size: int) -> int:
    """The least power of two not below size."""
    return 1 << max(0, size - 1).bit_length()


NORM_MAX_DIM = 32768  # beyond it a row no longer fits the registers of one program


def norm(device: torch.device, dim: int) -> Row:
    """One program a token; 16 values a thread, so that a thread has two 16-byte loads in flight in 16 bits."""
    tile, lanes = power_of_two(dim), _warp_size(device)
    return row(min(max(tile // (16 * lanes), 1), 1024 // lanes), 1, TILE=tile)


def elementwise(device: torch.device, intermediate_dim: int) -> Row:
    """A program computes up to 1024 values of one token, 8 a thread; 1024 divides most hidden dims."""
    tile = min(1024, power_of_two(intermediate_dim))
    return row(max(tile // (8 * _warp_size(device)), 1), 1, TILE=tile)


def rope(device: torch.device, num_heads: int, half_dim: int) -> Row:
    """A program rotates up to 512 pairs of one token, whole heads, 8 pairs a thread."""
    half = power_of_two(half_dim)
    heads = min(power_of_two(num_heads), max(1, 512 // half))
    num_warps = max(heads * half // (8 * _warp_size(device)), 1)
    # Left to itself, ptxas spills to stay at 32 registers.
    options = {} if arch_of(device).startswith("gfx") else {"maxnreg": 64}
    return Row(num_warps, 1, {"TILE_HEADS": heads, "TILE_HALF": half}, options)


THIN_ROWS = 64  # up to here one tile holds all tokens, and each weight is read once


@dataclass(frozen=True)
class LinearRows:
    """linear on one arch in one dtype. BLOCK_K is the same throughout: a row's bits do not depend on the choice."""

    fill: int  # programs that fill the GPU
    few: tuple[Row, ...]  # thin, for a weight of fewer tiles than that: narrow tiles or a deep pipeline
    thin: tuple[Row, ...]  # thin, for a wide weight; tokens ascending
    tall: tuple[Row, ...]  # largest tile first


def _tile(num_warps: int, num_stages: int, tokens: int, features: int, depth: int, **options: int) -> Row:
    return Row(num_warps, num_stages, {"BLOCK_M": tokens, "BLOCK_N": features, "BLOCK_K": depth}, options)


# Features are the left operand, so that wgmma and tcgen05 get their 64 rows however few tokens there are.
_HOPPER = LinearRows(
    132,
    few=(_tile(4, 16, 16, 64, 64), _tile(4, 14, 32, 64, 64), _tile(4, 12, 64, 64, 64)),
    thin=(_tile(4, 6, 16, 64, 64), _tile(4, 6, 32, 64, 64), _tile(4, 6, 64, 64, 64)),
    tall=(_tile(8, 4, 256, 128, 64), _tile(8, 4, 128, 128, 64), _tile(4, 6, 64, 64, 64)),
)
_FLOAT32 = LinearRows(
    132,
    few=(_tile(4, 6, 16, 16, 32), _tile(4, 6, 32, 16, 32), _tile(4, 6, 64, 16, 32)),
    thin=(_tile(4, 6, 16, 32, 32), _tile(4, 6, 32, 32, 32), _tile(4, 6, 64, 32, 32)),
    tall=(_tile(8, 3, 128, 64, 32), _tile(8, 4, 64, 64, 32)),
)
_FLOAT32_BLACKWELL = replace(_FLOAT32, tall=(_tile(8, 3, 128, 64, 32), _tile(4, 4, 64, 64, 32)))
# 16x16 MFMA on every path: with 32x32 on the tall one, k would be cut in other groups.
_AMD = {"matrix_instr_nonkdim": 16}
LINEAR = {
    ("sm_80", 2): LinearRows(
        108,
        few=(_tile(4, 8, 16, 16, 64), _tile(4, 8, 32, 16, 64), _tile(4, 6, 64, 16, 64)),
        thin=(_tile(4, 6, 16, 64, 64), _tile(4, 6, 32, 64, 64), _tile(4, 5, 64, 64, 64)),
        tall=(_tile(4, 3, 128, 64, 64), _tile(4, 4, 64, 64, 64)),
    ),
    ("sm_90", 2): _HOPPER,
    ("sm_100", 2): _HOPPER,
    ("gfx942", 2): LinearRows(
        304,
        few=(_tile(4, 2, 16, 16, 64, **_AMD), _tile(4, 2, 32, 16, 64, **_AMD), _tile(4, 2, 64, 16, 64, **_AMD)),
        thin=(_tile(4, 2, 16, 64, 64, **_AMD), _tile(4, 2, 32, 64, 64, **_AMD), _tile(4, 2, 64, 64, 64, **_AMD)),
        tall=(_tile(8, 2, 128, 128, 64, **_AMD), _tile(4, 2, 64, 64, 64, **_AMD)),
    ),
    ("sm_80", 4): _FLOAT32,
    ("sm_90", 4): _FLOAT32,
    ("sm_100", 4): _FLOAT32_BLACKWELL,
    ("gfx942", 4): LinearRows(
        304,
        few=(_tile(4, 2, 16, 16, 32, **_AMD), _tile(4, 2, 32, 16, 32, **_AMD), _tile(4, 2, 64, 16, 32, **_AMD)),
        thin=(_tile(4, 2, 16, 32, 32, **_AMD), _tile(4, 2, 32, 32, 32, **_AMD), _tile(4, 2, 64, 32, 32, **_AMD)),
        tall=(_tile(8, 2, 128, 64, 32, **_AMD), _tile(4, 2, 64, 64, 32, **_AMD)),
    ),
}
_INTERPRETED = LinearRows(2, few=(), thin=(_tile(1, 1, 64, 128, 64),), tall=(_tile(1, 1, 32, 64, 64),))


def linear(device: torch.device, dtype: torch.dtype, num_tokens: int, out_features: int) -> Row:
    """Thin up to `THIN_ROWS` tokens: the least tile that holds them. Tall beyond: the largest that fills the GPU.

    A width that is no multiple of 8 is stored value by value; the addresses of the largest tile would spill.
    """
    arch = arch_of(device)
    rows = _INTERPRETED if arch == "interpreter" else LINEAR[arch, dtype.itemsize]
    if num_tokens <= THIN_ROWS:
        tiles = out_features // rows.thin[0].tiles["BLOCK_N"]
        fitting = rows.few if rows.few and tiles < rows.fill else rows.thin
        return next(row for row in fitting if row.tiles["BLOCK_M"] >= num_tokens)
    for row in rows.tall[1:] if out_features % 8 else rows.tall:
        tokens, features = row.tiles["BLOCK_M"], row.tiles["BLOCK_N"]
        if -(-num_tokens // tokens) * -(-out_features // features) >= rows.fill:
            return row
    return rows.tall[-1]


def write_kv(device: torch.device, width: int) -> Row:
    """A program copies up to 1024 of one token's `num_kv_heads * head_dim` values, 8 a thread: 16 bytes in bf16."""
    tile = min(1024, max(64, 1 << (width - 1).bit_length()))
    return row(max(1, tile // 256), 1, TILE=tile)


MAX_HEAD_DIM = 256
# (arch, bytes of a value) -> the padded head_dim, at most -> the row. BLOCK_N is the key tile of prefill and decode
# alike, so that it alone decides the bits. Without tensor cores float32 has to be content with small tiles.
_FLOAT32_ATTENTION = {
    64: row(4, 2, BLOCK_M=32, BLOCK_N=16),
    128: row(8, 2, BLOCK_M=32, BLOCK_N=16),
    256: row(8, 2, BLOCK_M=16, BLOCK_N=16),
}
_WGMMA_ATTENTION = {
    64: row(8, 3, BLOCK_M=128, BLOCK_N=64),
    128: row(8, 3, BLOCK_M=128, BLOCK_N=64),
    256: row(8, 2, BLOCK_M=128, BLOCK_N=32),
}
ATTENTION = {
    ("sm_80", 2): {
        64: row(8, 3, BLOCK_M=128, BLOCK_N=64),
        128: row(8, 3, BLOCK_M=128, BLOCK_N=32),
        256: row(8, 2, BLOCK_M=64, BLOCK_N=32),
    },
    ("sm_90", 2): _WGMMA_ATTENTION,
    ("sm_100", 2): _WGMMA_ATTENTION,
    ("gfx942", 2): {
        64: row(4, 2, BLOCK_M=128, BLOCK_N=64),
        128: row(4, 2, BLOCK_M=128, BLOCK_N=64),
        256: row(4, 2, BLOCK_M=64, BLOCK_N=32),
    },
    ("sm_80", 4): _FLOAT32_ATTENTION,
    ("sm_90", 4): _FLOAT32_ATTENTION,
    ("sm_100", 4): _FLOAT32_ATTENTION,
    ("gfx942", 4): _FLOAT32_ATTENTION,
}
_INTERPRETED_ATTENTION = {64: row(1, 1, BLOCK_M=16, BLOCK_N=32), 256: row(1, 1, BLOCK_M=16, BLOCK_N=16)}
# bytes of a value -> the padded head_dim, at most -> warps, stages (one for the block ids, which are loaded first),
# programs on a multiprocessor, as many as its registers hold: the more there are, the more of the cache is on its way.
DECODE = {2: {64: (4, 3, 4), 256: (4, 3, 3)}, 4: {64: (4, 2, 3), 128: (4, 2, 2), 256: (8, 2, 1)}}
MULTIPROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148, "gfx942": 304, "interpreter": 1}


def attention(device: torch.device, dtype: torch.dtype, head_dim: int) -> Row:
    """Prefill, contiguous or paged: the row of the least listed head that holds this one."""
    arch = arch_of(device)
    rows = _INTERPRETED_ATTENTION if arch == "interpreter" else ATTENTION[arch, dtype.itemsize]
    return next(row for width, row in rows.items() if width >= head_dim)


def paged_decode(device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[Row, int]:
    """Decode: the row, whose key tile is prefill's, and how many programs to launch: all are resident at once."""
    arch = arch_of(device)
    warps, stages, programs = next(row for width, row in DECODE[dtype.itemsize].items() if width >= head_dim)
    aims_too_low = arch == "sm_80" and dtype.itemsize == 2 and head_dim > 64  # ptxas would take 96 registers, and spill
    options = {"maxnreg": 168} if aims_too_low else {}
    tiles = {"BLOCK_N": attention(device, dtype, head_dim).tiles["BLOCK_N"]}
    return Row(warps, stages, tiles, options), programs * MULTIPROCESSORS[arch]


# Rows of the sampling kernels: none of them decides a bit of a token.
NO_FUSION = {"enable_fp_fusion": False}  # a fused multiply-add rounds once where the reference rounds twice
GROUPS = 2048  # of a row at most: one program holds their maxima


def scan(device: torch.device, vocab_size: int) -> Row:
    """A program reads 2048 logits, 16 a thread. In the interpreter, where a step takes the same time for more, tiles
    of several rows."""
    group = max(32, power_of_two(vocab_size) // GROUPS)
    if arch_of(device) != "interpreter":
        return _exact(4, GROUP=group, TILE=2048, ROWS=1)
    tile = max(group, min(2048, power_of_two(vocab_size)))
    return _exact(4, GROUP=group, TILE=tile, ROWS=16384 // tile)


def choose(device: torch.device, vocab_size: int) -> Row:
    """A program keeps 2048 ids in registers, 8 a thread; two programs fill a multiprocessor's registers."""
    arch = arch_of(device)
    row = _exact(8, CHUNK=min(2048, max(32, power_of_two(vocab_size))) if arch == "interpreter" else 2048)
    # Told how many registers it has, the compiler no longer spills some of them to have more programs resident.
    return replace(row, options={**NO_FUSION, "maxnreg": 128}) if arch.startswith("sm_") else row


def penalties(device: torch.device, vocab_size: int) -> Row:
    """A program changes 1024 logits of one row, 8 a thread."""
    return _exact(4, TILE=min(1024, power_of_two(vocab_size)))


def bias() -> Row:
    return _exact(1, TILE=128)


def lm_head(device: torch.device, dtype: torch.dtype, num_rows: int, vocab_size: int) -> Row:
    """The row of `linear` for as many tokens, up to its widest thin tile: beyond, a program's noise would spill."""
    row = linear(device, dtype, min(num_rows, THIN_ROWS), vocab_size)
    return replace(row, options={**row.options, **NO_FUSION})


def best() -> Row:
    return _exact(4, TILE=1024)


def _exact(num_warps: int, **tiles: int) -> Row:
    return Row(num_warps, 1, tiles, NO_FUSION)
