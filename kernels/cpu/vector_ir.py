"""LLVM vectors in numba kernels: what an intrinsic writes where loops over single values would not become wide enough.

An intrinsic gets addresses as int64 and writes LLVM's own instructions on vectors of 16 lanes. LLVM cuts these to the
registers of the machine: one of AVX-512, two of AVX, four of NEON. Where an instruction has no general form, the
machine's own is used if `has_feature` finds it, and sums and products of whole numbers, which give the same, otherwise.
"""

from functools import cache
from typing import Any

from llvmlite import ir
from numba.core import cgutils
from numba.core.registry import cpu_target

LANES = 16  # of a vector of 4-byte values: a cache line

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32, F16 = ir.FloatType(), ir.HalfType()


class _BFloat(ir.Type):
    """bfloat16, which llvmlite does not name. Values of it are only loaded, moved and multiplied by an instruction."""

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


BF16 = _BFloat()


def vector(element: ir.Type, lanes: int = LANES) -> ir.VectorType:
    return ir.VectorType(element, lanes)


@cache
def has_feature(name: str) -> bool:
    """Whether the machine that numba compiles for has an instruction set, by LLVM's name: avx512f, avx512vnni ..."""
    features = cpu_target.target_context.codegen().magic_tuple()[2]
    return f"+{name}" in features.split(",")


def whole(value: int) -> ir.Constant:
    """An int64 constant."""
    return ir.Constant(I64, value)


def offset(builder: Any, address: Any, distance: Any) -> Any:
    """The address `distance` bytes further; distance is an int or an int64 value."""
    return builder.add(address, whole(distance) if isinstance(distance, int) else distance)


def load(builder: Any, kind: ir.Type, address: Any) -> Any:
    """A value or vector from any address, aligned or not."""
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)


def store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=1)


def splat(builder: Any, scalar: Any, lanes: int = LANES) -> Any:
    """A vector that holds a scalar in every lane."""
    unset = ir.Constant(vector(scalar.type, lanes), ir.Undefined)
    first = builder.insert_element(unset, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, unset, ir.Constant(vector(I32, lanes), [0] * lanes))


def constant(kind: ir.Type, value: float, lanes: int = LANES) -> ir.Constant:
    return ir.Constant(vector(kind, lanes), [value] * lanes)


def call(builder: Any, name: str, result: ir.Type, arguments: list[Any]) -> Any:
    """Call an LLVM intrinsic by its name, types taken from the arguments."""
    kind = ir.FunctionType(result, [each.type for each in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """`a * b + c` of float32 vectors, rounded once where the machine can."""
    if not any(map(has_feature, ("fma", "avx512f", "neon"))):  # a call of the C library for each lane otherwise
        return builder.fadd(builder.fmul(a, b), c)
    return call(builder, f"llvm.fma.v{a.type.count}f32", a.type, [a, b, c])


def dot_bytes(builder: Any, total: Any, unsigned: Any, signed: Any) -> Any:
    """total `<16 x i32>` plus, in each lane, four products of unsigned and signed bytes (`<64 x i8>` both)."""
    if has_feature("avx512vnni"):
        return call(builder, "llvm.x86.avx512.vpdpbusd.512", total.type, [total, unsigned, signed])
    w, x = (builder.bitcast(each, vector(I16, 2 * LANES)) for each in (unsigned, signed))
    eight = constant(I16, 8, 2 * LANES)
    even = _dot_words(
        builder, builder.and_(w, constant(I16, 255, 2 * LANES)), builder.ashr(builder.shl(x, eight), eight)
    )
    odd = _dot_words(builder, builder.lshr(w, eight), builder.ashr(x, eight))
    return builder.add(total, builder.add(even, odd))


def _dot_words(builder: Any, a: Any, b: Any) -> Any:
    """In each of 16 lanes two products of 16-bit numbers; LLVM finds the machine's instruction for this pattern."""
    products = []
    for place in (0, 1):
        chosen = ir.Constant(vector(I32), list(range(place, 2 * LANES, 2)))
        halves = [builder.sext(builder.shuffle_vector(x, x, chosen), vector(I32)) for x in (a, b)]
        products.append(builder.mul(*halves))
    return builder.add(*products)


def dot_bfloat16(builder: Any, total: Any, a: Any, b: Any) -> Any:
    """total `<16 x float>` plus, in each lane, two products of bfloat16 (`<32 x bfloat>` both); needs avx512bf16."""
    return call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", total.type, [total, a, b])


def halves_of(builder: Any, pairs: Any) -> tuple[Any, Any]:
    """The first and the second bfloat16 of each lane of `<16 x i32>`, widened to float32."""
    first = builder.shl(pairs, constant(I32, 16))
    second = builder.and_(pairs, constant(I32, 0xFFFF0000))
    return builder.bitcast(first, vector(F32)), builder.bitcast(second, vector(F32))
