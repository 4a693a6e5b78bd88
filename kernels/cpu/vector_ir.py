"""LLVM vectors in numba kernels: what an intrinsic writes where loops over single values would not become wide enough.

An intrinsic gets addresses as int64 and writes LLVM's own instructions on vectors of 16 lanes. LLVM cuts these to the
registers of the machine: one of AVX-512, two of AVX, four of NEON. Where an instruction has no general form, the
machine's own is used if `has_feature` finds it, and sums and products of whole numbers, which give the same, otherwise.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple

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


class Target(NamedTuple):
    """A processor as LLVM names it: what machine code is for."""

    triple: str  # x86_64-unknown-linux-gnu ...
    cpu: str  # haswell, znver4 ...; generic is the least of its kind
    features: frozenset[str]  # avx512f, avx512vnni ...


BASE = {"x86_64": "sse2", "aarch64": "neon", "arm64": "neon"}  # what every processor of a kind has


@cache
def _numba_target() -> Target:
    """What numba compiles for: this machine, or what NUMBA_CPU_NAME and NUMBA_CPU_FEATURES say."""
    triple, cpu, features = cpu_target.target_context.codegen().magic_tuple()
    has = {each[1:] for each in features.split(",") if each.startswith("+")}
    return Target(triple, cpu, frozenset(has | {BASE.get(triple.partition("-")[0], "")}))


_target: ContextVar[Target | None] = ContextVar("target", default=None)


@contextmanager
def writing_for(target: Target) -> Iterator[None]:
    """Write instructions for another processor meanwhile, to be looked at: numba compiles for its own alone."""
    token = _target.set(target)
    try:
        yield
    finally:
        _target.reset(token)


def has_feature(name: str) -> bool:
    """Whether the processor that code is written for has an instruction set, by LLVM's name: avx512f, neon ..."""
    return name in (_target.get() or _numba_target()).features


# What `instruction_set` says: the first line of which a processor has the feature, then those extensions of it.
INSTRUCTION_SETS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("avx512f", "AVX-512", {"avx512vnni": "VNNI", "avx512bf16": "BF16"}),
    ("avx2", "AVX2", {"fma": "FMA", "f16c": "F16C", "avxvnni": "VNNI"}),
    ("avx", "AVX", {"fma": "FMA", "f16c": "F16C"}),
    ("sse2", "SSE2", {}),
    ("neon", "NEON", {"dotprod": "dotprod", "i8mm": "i8mm"}),
)


def instruction_set() -> str:
    """What the kernels are compiled for, of what makes them fast: "AVX-512 VNNI BF16", "AVX2 FMA F16C", "NEON" ..."""
    for feature, name, extensions in INSTRUCTION_SETS:
        if has_feature(feature):
            return " ".join([name, *(each for extension, each in extensions.items() if has_feature(extension))])
    return "LLVM's own vectors"


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
    if has_feature("avxvnni"):
        return _in_parts(builder, "llvm.x86.avx512.vpdpbusd.256", 8, total, unsigned, signed)
    if has_feature("i8mm"):
        return _in_parts(builder, "llvm.aarch64.neon.usdot.v4i32.v16i8", 4, total, unsigned, signed)
    if has_feature("dotprod"):
        return _dot_of_signed(builder, total, unsigned, signed)
    w, x = (builder.bitcast(each, vector(I16, 2 * LANES)) for each in (unsigned, signed))
    eight = constant(I16, 8, 2 * LANES)
    even = _dot_words(
        builder, builder.and_(w, constant(I16, 255, 2 * LANES)), builder.ashr(builder.shl(x, eight), eight)
    )
    odd = _dot_words(builder, builder.lshr(w, eight), builder.ashr(x, eight))
    return builder.add(total, builder.add(even, odd))


def _dot_of_signed(builder: Any, total: Any, unsigned: Any, signed: Any) -> Any:
    """By the product of signed bytes: w = (w - 128) + 128, and w - 128 is w with its highest bit turned."""
    sdot, bytes_of = "llvm.aarch64.neon.sdot.v4i32.v16i8", 4 * LANES
    moved = builder.xor(unsigned, constant(I8, -128, bytes_of))
    sums = _in_parts(builder, sdot, 4, constant(I32, 0), constant(I8, 1, bytes_of), signed)
    total = builder.add(total, builder.shl(sums, constant(I32, 7)))
    return _in_parts(builder, sdot, 4, total, moved, signed)


def _in_parts(builder: Any, name: str, lanes: int, total: Any, a: Any, b: Any) -> Any:
    """Call an instruction of so many lanes on each part of 16: a total, unless it is None, and two factors."""
    parts, each = [], a.type.count // LANES  # values of a and b that a lane takes
    for first in range(0, LANES, lanes):
        values = [] if total is None else [_part(builder, total, first, lanes)]
        values += [_part(builder, x, each * first, each * lanes) for x in (a, b)]
        parts.append(call(builder, name, vector(I32, lanes), values))
    while len(parts) > 1:
        count = 2 * parts[0].type.count
        joined = ir.Constant(vector(I32, count), list(range(count)))
        parts = [builder.shuffle_vector(a, b, joined) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _part(builder: Any, x: Any, first: int, count: int) -> Any:
    return builder.shuffle_vector(x, x, ir.Constant(vector(I32, count), list(range(first, first + count))))


# Products of 16-bit numbers, added in pairs: the feature, its instruction, and the lanes of that.
WORD_PRODUCTS = (
    ("avx512bw", "llvm.x86.avx512.pmaddw.d.512", 16),
    ("avx2", "llvm.x86.avx2.pmadd.wd", 8),
    ("sse2", "llvm.x86.sse2.pmadd.wd", 4),
)


def _dot_words(builder: Any, a: Any, b: Any) -> Any:
    """In each of 16 lanes two products of 16-bit numbers."""
    for feature, name, lanes in WORD_PRODUCTS:
        if has_feature(feature):
            return _in_parts(builder, name, lanes, None, a, b)
    products = []
    for place in (0, 1):
        chosen = ir.Constant(vector(I32), list(range(place, 2 * LANES, 2)))
        halves = [builder.sext(builder.shuffle_vector(x, x, chosen), vector(I32)) for x in (a, b)]
        products.append(builder.mul(*halves))
    return builder.add(*products)


def dot_bfloat16(builder: Any, a: Any, b: Any, total: Any) -> Any:
    """As `fma`: in each lane two products of bfloat16 (`<32 x bfloat>` both) plus a float32; needs avx512bf16."""
    return call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", total.type, [total, a, b])


def _has_halves() -> bool:
    """Whether there are instructions for float16; C's functions for it are not everywhere."""
    return any(map(has_feature, ("f16c", "avx512f", "neon")))


def widened(builder: Any, halves: Any) -> Any:
    """float16 as float32, a value or a vector."""
    if _has_halves():
        return builder.fpext(halves, _shaped(halves, F32))
    whole = _constants(halves)
    bits = builder.zext(builder.bitcast(halves, _shaped(halves, I16)), _shaped(halves, I32))
    size = builder.and_(bits, whole(0x7FFF))
    moved = builder.shl(size, whole(13))
    power = builder.bitcast(whole(0x77800000), _shaped(halves, F32))  # 2^112, the distance of the exponents
    scaled = builder.bitcast(builder.fmul(builder.bitcast(moved, power.type), power), bits.type)
    not_finite = builder.or_(moved, whole(0x7F800000))
    number = builder.select(builder.icmp_unsigned(">=", size, whole(0x7C00)), not_finite, scaled)
    sign = builder.shl(builder.and_(bits, whole(0x8000)), whole(16))
    return builder.bitcast(builder.or_(number, sign), power.type)


def narrowed(builder: Any, wide: Any) -> Any:
    """float32 as float16, a value or a vector: to nearest, ties to even."""
    if _has_halves():
        return builder.fptrunc(wide, _shaped(wide, F16))
    whole = _constants(wide)
    bits = builder.bitcast(wide, _shaped(wide, I32))
    size = builder.and_(bits, whole(0x7FFFFFFF))
    odd = builder.and_(builder.lshr(size, whole(13)), whole(1))
    normal = builder.add(builder.add(size, whole(0xFFF - (112 << 23))), odd)
    half = builder.bitcast(whole(0x3F000000), wide.type)  # 0.5, whose last place is that of the smallest float16
    shifted = builder.bitcast(builder.fadd(builder.bitcast(size, wide.type), half), bits.type)
    number = builder.select(
        builder.icmp_unsigned("<", size, whole(113 << 23)),
        builder.sub(shifted, whole(0x3F000000)),
        builder.lshr(normal, whole(13)),
    )
    not_finite = builder.select(builder.icmp_unsigned(">", size, whole(0x7F800000)), whole(0x7E00), whole(0x7C00))
    number = builder.select(builder.icmp_unsigned(">=", size, whole(143 << 23)), not_finite, number)
    sign = builder.and_(builder.lshr(bits, whole(16)), whole(0x8000))
    return builder.bitcast(builder.trunc(builder.or_(number, sign), _shaped(wide, I16)), _shaped(wide, F16))


def _shaped(like: Any, element: ir.Type) -> ir.Type:
    return vector(element, like.type.count) if isinstance(like.type, ir.VectorType) else element


def _constants(like: Any) -> Any:
    kind = _shaped(like, I32)
    return lambda value: ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


def halves_of(builder: Any, pairs: Any) -> tuple[Any, Any]:
    """The first and the second bfloat16 of each lane of `<16 x i32>`, widened to float32."""
    first = builder.shl(pairs, constant(I32, 16))
    second = builder.and_(pairs, constant(I32, 0xFFFF0000))
    return builder.bitcast(first, vector(F32)), builder.bitcast(second, vector(F32))
