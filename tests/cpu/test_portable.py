"""What other processors run: the same bits without an instruction, and the right instruction where there is one."""

import dataclasses

import numpy as np
import pytest
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from octavo.kernels.codegen import cpu_tiles
from octavo.kernels.cpu import vector_ir as vi
from octavo.kernels.cpu.panels.formats import FORMATS

BASE = vi.Target("x86_64-unknown-linux-gnu", "x86-64", frozenset({"sse2"}))


def for_base(kind, result, write):
    """A function of one number, as it is written for a processor that has nothing."""

    @intrinsic
    def convert(context, value):
        def generate(context, builder, signature, arguments):
            with vi.writing_for(BASE):
                return write(builder, arguments[0])

        return result(kind), generate

    @njit
    def each(values, out):
        for i in range(len(values)):
            out[i] = convert(values[i])

    return each


def test_without_an_instruction_every_float16_is_widened_to_the_same_bits():
    widen = for_base(
        types.int16, types.float32, lambda builder, x: vi.widened(builder, builder.bitcast(x, ir.HalfType()))
    )
    bits = np.arange(-(2**15), 2**15).astype(np.int16)
    out = np.empty(len(bits), np.float32)
    widen(bits, out)
    np.testing.assert_array_equal(out, bits.view(np.float16).astype(np.float32))
    assert (np.signbit(out) == (bits < 0)).all()


def test_without_an_instruction_float32_is_rounded_to_the_same_float16():
    narrow = for_base(types.float32, types.int16, lambda builder, x: builder.bitcast(vi.narrowed(builder, x), vi.I16))
    halves = np.arange(2**15, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves = halves[np.isfinite(halves)]
    between = (halves[1:] + halves[:-1]) / 2  # ties
    edges = np.concatenate([halves, between, np.nextafter(between, 0), np.nextafter(between, np.float32(1e9))])
    special = np.float32([0, 1e-45, 65504, 65519.99, 65520, 1e38, np.inf, np.nan])
    values = np.concatenate([edges, special]).astype(np.float32)
    values = np.concatenate([values, -values])
    out = np.empty(len(values), np.int16)
    narrow(values, out)
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    np.testing.assert_array_equal(out.view(np.float16), expected)
    assert (np.signbit(out.view(np.float16)) == np.signbit(values))[~np.isnan(values)].all()


@pytest.mark.parametrize(
    ("features", "name"),
    [
        ("sse2 avx2 fma f16c avx512f avx512vnni", "AVX-512 VNNI"),
        ("sse2 avx2 fma f16c avx512f avx512vnni avx512bf16", "AVX-512 VNNI BF16"),
        ("sse2 avx avx2 fma f16c", "AVX2 FMA F16C"),
        ("sse2", "SSE2"),
        ("neon dotprod", "NEON dotprod"),
        ("", "LLVM's own vectors"),
    ],
)
def test_the_instruction_set_has_a_name(features, name):
    with vi.writing_for(vi.Target("any", "any", frozenset(features.split()))):
        assert vi.instruction_set() == name
    assert vi.instruction_set() != ""


DOTS = ["", "sse2", "avx2", "avx512bw", "avxvnni", "avx512vnni"]  # each has a way of its own


@pytest.mark.parametrize("feature", DOTS)
def test_products_of_bytes_are_the_same_sums_by_every_instruction(feature):
    needed = "avx512vnni" if feature == "avxvnni" else feature  # which has its instruction, too
    if needed and not vi.has_feature(needed):
        pytest.skip(f"needs {needed}")
    target = vi.Target("any", "any", frozenset({feature}))

    @intrinsic
    def dot(context, total, a, b):
        def generate(context, builder, signature, arguments):
            four = vi.vector(vi.I8, 64)
            loaded = [vi.load(builder, four, each) for each in arguments[1:]]
            with vi.writing_for(target):
                total = vi.dot_bytes(builder, vi.load(builder, vi.vector(vi.I32), arguments[0]), *loaded)
            vi.store(builder, total, arguments[0])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), generate

    @njit
    def run(total, a, b):
        dot(total.ctypes.data, a.ctypes.data, b.ctypes.data)

    random = np.random.default_rng(0)
    a, b = random.integers(0, 256, 64).astype(np.uint8), random.integers(-128, 128, 64).astype(np.int8)
    a[:8], b[:8] = 255, [-128] * 4 + [127] * 4
    total = random.integers(-(2**30), 2**30, 16).astype(np.int32)
    expected = total + (a.astype(np.int32) * b).reshape(16, 4).sum(1, dtype=np.int32)
    run(total, a, b)
    np.testing.assert_array_equal(total, expected)


@pytest.mark.parametrize("name", cpu_tiles.MACHINES)
def test_tiles_are_made_of_the_instruction_that_a_processor_has(name):
    """And with one row of x nothing that fits in registers goes through memory."""
    machine = cpu_tiles.MACHINES[name]
    first = {format.activations: format for format in reversed(FORMATS.values()) if format.activations != "int15"}
    for format in first.values():
        if format.activations != "bfloat16" or machine.pairs:
            loop = cpu_tiles.loop_of(machine, format, 1)
            assert loop.products >= 8, loop
            assert loop.stack <= loop.counts.total() // 5, loop


def test_a_tile_without_its_instruction_is_an_error(monkeypatch, capsys):
    wrong = dataclasses.replace(cpu_tiles.MACHINES["haswell"], fma="vdivps")
    monkeypatch.setitem(cpu_tiles.MACHINES, "haswell", wrong)
    assert cpu_tiles.main(["--cpu", "haswell", "--rows", "1"]) == 1
    assert "0 vdivps" in capsys.readouterr().out
