"""The micro-kernel of all products: a tile of rows of x times two panels of a weight, in LLVM instructions.

A panel holds 16 outputs of a weight. A lane of a register is an output, a value of x is broadcast to all lanes, and
nothing is ever summed across lanes: the order in which an output sums its inputs does not depend on how many rows share
a pass over the panel. `Format.accumulate` writes what one block of inputs adds; this file writes the loop around it.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from octavo.kernels.cpu import numba_kernel as nk
from octavo.kernels.cpu import vector_ir as vi
from octavo.kernels.cpu.kernel_cache import is_kept
from octavo.kernels.cpu.panels.formats import Format
from octavo.kernels.cpu.panels.steps import X_BLOCK_BYTES

PANELS = 2  # that a tile reads side by side
WIDTH = PANELS * vi.LANES  # outputs of a tile
SUM = 256  # inputs that are summed before the sum joins what the blocks before them gave, which keeps errors small
AHEAD = 2048  # bytes: so far before its use a line of a panel is asked for
FETCHED_ROWS = 4  # of x: up to here a product waits for memory, and asks for it itself
TILE_ROWS = 1, 2, 4, 8, 12  # of x; more would not fit the registers of AVX-512


TILE = types.void(*[types.int64] * 7)


@cache
def tile_address(format: Format) -> int:
    """Compile the tiles of a format, and return the address of one function of type `TILE` for all of them:

    `product(w, w_stride, x, x_stride, rows, num_blocks, out)` adds to `out`, float32 `[TILE_ROWS[-1], WIDTH]`, what
    `num_blocks` blocks of inputs give for up to 12 rows of prepared x. All arguments are addresses and sizes in bytes.
    Rows of `out` behind the last may be overwritten.
    """
    if not is_wide(format):
        return _compile(_narrow_product(format), format)
    one, two, four, eight, twelve = (_tile(format, rows) for rows in TILE_ROWS)

    def product(w, w_stride, x, x_stride, rows, num_blocks, out):
        if rows == 1:
            one(w, w_stride, x, x_stride, rows, num_blocks, out)
        elif rows == 2:
            two(w, w_stride, x, x_stride, rows, num_blocks, out)
        elif rows <= 4:
            four(w, w_stride, x, x_stride, rows, num_blocks, out)
        elif rows <= 8:
            eight(w, w_stride, x, x_stride, rows, num_blocks, out)
        else:
            twelve(w, w_stride, x, x_stride, rows, num_blocks, out)

    return _compile(product, format)


def _compile(product: Any, format: Format) -> int:
    product.__qualname__ = f"tile_{format.name}_{format.activations}"  # the name of what is kept on disk
    if not is_kept(getattr(format.accumulate, "func", format.accumulate)):
        product.__module__ = "a format of others"  # not kept: no hash of the sources would tell that it has changed
    _compiled.append(nk.compile_kept(product, TILE))
    return int(_compiled[-1].address)


def is_wide(format: Format) -> bool:
    """Whether a panel's line fits one of 32 registers, so that two panels and many rows are worth one pass."""
    return vi.has_feature("avx512f") and (format.activations not in X_BLOCK_BYTES or vi.has_feature("avx512vnni"))


def _narrow_product(format: Format) -> Any:
    tiles = _intrinsic(lambda builder, arguments: write_narrow(builder, format, arguments))

    def product(w, w_stride, x, x_stride, rows, num_blocks, out):
        tiles(w, w_stride, x, x_stride, rows, num_blocks, out)

    return product


_compiled: list[Any] = []  # the machine code, as long as the process lives


@intrinsic
def call_tile(
    context: Any, tile: Any, w: Any, w_stride: Any, x: Any, x_stride: Any, rows: Any, num_blocks: Any, out: Any
) -> Any:
    """Call the function of type `TILE` at the address `tile`."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        function = ir.FunctionType(ir.VoidType(), [vi.I64] * len(TILE.args))
        builder.call(builder.inttoptr(values[0], function.as_pointer()), values[1:])
        return context.get_dummy_value()

    return types.void(types.int64, *TILE.args), generate


def _tile(format: Format, rows: int) -> Any:
    """Make `product` for a number of rows. Many rows of whole numbers leave no registers for a second panel."""
    one_by_one = rows == TILE_ROWS[-1] and format.activations in X_BLOCK_BYTES
    write = write_panel_by_panel if one_by_one else write_tile
    return _intrinsic(lambda builder, arguments: write(builder, format, rows, arguments))


def _intrinsic(write: Callable[[Any, Sequence[Any]], None]) -> Any:
    @intrinsic
    def run(context: Any, w: Any, w_stride: Any, x: Any, x_stride: Any, count: Any, num_blocks: Any, out: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            write(builder, arguments)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return run


def write_tile(builder: Any, format: Format, rows: int, arguments: Sequence[Any], panels: int = PANELS) -> None:
    """Write `product` for a number of rows; where there are fewer, the last of them is computed several times."""
    w, w_stride, x, x_stride, count, num_blocks, out = arguments
    last = builder.sub(count, vi.whole(1))
    xs = [builder.add(x, builder.mul(x_stride, _smaller(builder, vi.whole(row), last))) for row in range(rows)]
    ws = [builder.add(w, builder.mul(w_stride, vi.whole(panel))) for panel in range(panels)]
    sums = [[cgutils.alloca_once_value(builder, vi.constant(vi.F32, 0.0)) for _ in xs] for _ in ws]
    with cgutils.for_range(builder, num_blocks, intp=vi.I64) as loop:
        x_step = builder.mul(loop.index, vi.whole(format.x_bytes))
        w_step = builder.mul(loop.index, vi.whole(format.panel_bytes))
        places = [builder.add(each, x_step) for each in xs]
        lines = [builder.add(each, w_step) for each in ws]
        if rows <= FETCHED_ROWS:
            for each in lines:
                for line in range(0, format.panel_bytes, 64):
                    _fetch(builder, vi.offset(builder, each, AHEAD + line))
        held = [[builder.load(each) for each in own] for own in sums]
        for own, values in zip(sums, format.accumulate(builder, lines, places, held), strict=True):
            for place, value in zip(own, values, strict=True):
                builder.store(value, place)
    for panel, own in enumerate(sums):
        for row, place in enumerate(own):
            _add(builder, vi.offset(builder, out, 4 * (row * WIDTH + panel * vi.LANES)), builder.load(place))


def write_narrow(builder: Any, format: Format, arguments: Sequence[Any]) -> None:
    """Write `product` for any number of rows, one panel and few rows at a time: as many as the registers hold.

    A line of a panel takes two registers of AVX2 and four of NEON. Bytes are unpacked again for each row, because there
    is no place to keep them.
    """
    w, w_stride, x, x_stride, count, num_blocks, out = arguments
    rows = 1 if format.activations in X_BLOCK_BYTES else 4 if vi.has_feature("avx2") or vi.has_feature("neon") else 2
    step = vi.whole(rows)
    with cgutils.for_range_slice(builder, vi.whole(0), count, step, intp=vi.I64) as (first, _):
        own_x = builder.add(x, builder.mul(first, x_stride))
        own_out = builder.add(out, builder.mul(first, vi.whole(4 * WIDTH)))
        left = builder.sub(count, first)
        write_panel_by_panel(builder, format, rows, (w, w_stride, own_x, x_stride, left, num_blocks, own_out))


def write_panel_by_panel(builder: Any, format: Format, rows: int, arguments: Sequence[Any]) -> None:
    """Write `product` for a number of rows and one panel after the other."""
    w, w_stride, x, x_stride, count, num_blocks, out = arguments
    with cgutils.for_range(builder, vi.whole(PANELS), intp=vi.I64) as panel:
        own_w = builder.add(w, builder.mul(w_stride, panel.index))
        place = builder.add(out, builder.mul(panel.index, vi.whole(4 * vi.LANES)))
        write_tile(builder, format, rows, (own_w, w_stride, x, x_stride, count, num_blocks, place), 1)


def _fetch(builder: Any, address: Any) -> None:
    """Ask for a line of memory that will be read soon; an address that is nobody's does no harm."""
    pointer = builder.inttoptr(address, vi.I8.as_pointer())
    flags = [ir.Constant(vi.I32, flag) for flag in (0, 3, 1)]  # to read, keep in all caches, data
    vi.call(builder, "llvm.prefetch.p0", ir.VoidType(), [pointer, *flags])


def _smaller(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.icmp_signed("<", a, b), a, b)


def _add(builder: Any, address: Any, value: ir.Value) -> None:
    vi.store(builder, builder.fadd(vi.load(builder, value.type, address), value), address)
