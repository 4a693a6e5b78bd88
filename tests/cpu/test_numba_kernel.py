"""The compiled loops of the cpu backend: their arithmetic and their threads; attention over many splits."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numba import njit

from octavo.kernels import backends, reference
from octavo.kernels.cpu import norm, numba_kernel
from octavo.kernels.cpu.attention.ops import paged_attention
from octavo.kernels.cpu.attention.piece import SPLIT
from octavo.kernels.cpu.numba_kernel import (
    cpu_kernel,
    exp,
    float_ptrs,
    from_float32,
    int_args,
    thread_range,
    to_float32,
)
from octavo.kernels.testing.numerics import assert_accurate

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@njit
def _exp_of_all(x, y):
    for i in range(len(x)):
        y[i] = exp(x[i])


def test_exp():
    x = np.concatenate([np.linspace(-87, 88, 1_000_001), [0.0, -0.0]]).astype(np.float32)
    y = np.empty_like(x)
    _exp_of_all(x, y)
    true = np.exp(x.astype(np.float64))
    assert (abs(y - true) <= 2 * np.spacing(true.astype(np.float32))).all()
    special = np.array([-np.inf, -1e9, -88, 89, np.inf, np.nan], np.float32)
    y = np.empty_like(special)
    _exp_of_all(special, y)
    np.testing.assert_array_equal(y, np.array([0, 0, 0, np.inf, np.inf, np.nan], np.float32))


@cpu_kernel("vv q")
def _copy(fields):
    source, target = float_ptrs(fields, 0, 2)
    (count,) = int_args(fields, 2, 1)
    first, last = thread_range(count)
    for i in range(first, last):
        target[i] = from_float32(to_float32(source[i]), source[i])


@cpu_kernel("vv q")
def _shrink(fields):
    source, target = float_ptrs(fields, 0, 2)
    (count,) = int_args(fields, 2, 1)
    for i in range(count):
        target[i] = from_float32(to_float32(source[i]) * np.float32(0.99999), source[i])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_halves_are_rounded_as_torch_rounds_them(dtype):
    every = torch.arange(2**16).to(torch.int16).view(dtype)  # NaN, infinities, subnormals
    got = torch.empty_like(every)
    _copy(dtype, every.numel(), every, got, len(every))
    assert torch.equal(got.isnan(), every.isnan())
    assert torch.equal(got.nan_to_num(nan=0.0).view(torch.int16), every.nan_to_num(nan=0.0).view(torch.int16))
    _shrink(dtype, every.numel(), every, got, len(every))
    wanted = (every.float() * np.float32(0.99999)).to(dtype)
    assert torch.equal(got.nan_to_num(nan=0.0), wanted.nan_to_num(nan=0.0))


@cpu_kernel("v q")
def _count_visits(fields):
    (visits,) = float_ptrs(fields, 0, 1)
    (count,) = int_args(fields, 1, 1)
    first, last = thread_range(count)
    for i in range(first, last):
        visits[i] += np.float32(1)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 1000])
@pytest.mark.parametrize("work", [0, 10**9], ids=["one thread", "all threads"])
def test_threads_share_all_of_the_work_once(count, work):
    visits = torch.zeros(count + 1)
    _count_visits(torch.float32, work, visits, count)
    assert visits.tolist() == [1.0] * count + [0.0]


def test_without_gnu_threads_a_loop_runs_on_one():
    program = """
import ctypes
load = ctypes.CDLL
def refuse(name, *arguments, **options):
    if name == "libgomp.so.1":
        raise OSError("no such library")
    return load(name, *arguments, **options)
ctypes.CDLL = refuse
import torch
from octavo.kernels import reference
from octavo.kernels.cpu import norm
from octavo.kernels.cpu.graph import capture
x, weight = torch.randn(200, 576), torch.rand(576)
assert torch.allclose(norm.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5), atol=1e-5)
with torch.inference_mode():
    replay = capture(lambda: norm.rms_norm(norm.rms_norm(x, weight, 1e-5), weight, 1e-5))
    x.normal_()
    assert torch.equal(replay(), norm.rms_norm(norm.rms_norm(x, weight, 1e-5), weight, 1e-5))
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def _decode(lengths: list[int], dtype: torch.dtype):
    """Arguments of paged_attention, one query a sequence, 3 query heads a kv head, NaN where no token lives."""
    block_size, most = 16, -(-max(lengths) // 16)
    table = torch.randperm(len(lengths) * most).view(len(lengths), most).int()
    caches = torch.full((2, table.numel(), block_size, 2, 64), torch.nan, dtype=dtype)
    for row, length in enumerate(lengths):
        for position in range(length):
            caches[:, table[row, position // 16], position % 16] = torch.randn(2, 2, 64).to(dtype)
    q = torch.randn(len(lengths), 6, 64).to(dtype)
    bounds = torch.arange(len(lengths) + 1, dtype=torch.int32)
    return q, *caches, table, torch.tensor(lengths, dtype=torch.int32), bounds, 1, 0.125


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "lengths", [[SPLIT], [SPLIT + 1, 0, 3], [1, 2 * SPLIT - 1, 2 * SPLIT, 40], [3 * SPLIT + 5]], ids=str
)
def test_decode_over_many_splits(lengths, dtype):
    arguments = _decode(lengths, dtype)
    assert_accurate(paged_attention(*arguments), reference.paged_attention, *arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sequence_decodes_the_same_in_company_and_on_any_number_of_threads(dtype):
    q, k_cache, v_cache, table, lengths, bounds, *rest = _decode([700, 1, 300, 513, 80], dtype)
    together = paged_attention(q, k_cache, v_cache, table, lengths, bounds, *rest)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(paged_attention(q, k_cache, v_cache, table, lengths, bounds, *rest), together)
    finally:
        torch.set_num_threads(threads)
    for s in range(len(q)):
        own = slice(s, s + 1)
        alone = paged_attention(q[own], k_cache, v_cache, table[own], lengths[own], bounds[:2], *rest)
        assert torch.equal(alone, together[own])


def test_a_sequence_that_is_not_a_number_harms_no_other():
    q, k_cache, v_cache, table, *rest = _decode([300, 20, 270], torch.float32)
    sound = paged_attention(q, k_cache, v_cache, table, *rest)
    k_cache[table[1, 0], 3] = torch.nan
    harmed = paged_attention(q, k_cache, v_cache, table, *rest)
    assert torch.equal(harmed[[0, 2]], sound[[0, 2]])
    assert bool(harmed[1].isnan().all())


def test_tokens_of_nobody_yield_zeros(monkeypatch):
    """Rows behind the last sequence are padding; fresh memory holds NaN here, so what nobody wrote shows."""
    q, *arguments = _decode([20, 0], torch.float32)
    q = torch.cat((q, torch.randn(3, *q.shape[1:])))
    monkeypatch.setattr(torch, "empty_like", lambda x, **options: torch.full_like(x, torch.nan, **options))
    o = paged_attention(q, *arguments)
    assert bool((o[1:] == 0).all())
    assert bool(o[0].isfinite().all())


def test_caches_that_are_not_contiguous_are_refused():
    q, k_cache, v_cache, *rest = _decode([5], torch.float32)
    with pytest.raises(ValueError, match="k_cache and v_cache must be contiguous"):
        paged_attention(q, k_cache.transpose(1, 2), v_cache.transpose(1, 2), *rest)


@pytest.mark.parametrize("dtypes", [(torch.float64, torch.float64), (torch.float32, torch.bfloat16)], ids=str)
def test_other_dtypes_and_mixed_ones_are_refused(dtypes):
    x, weight = torch.ones(2, 3, dtype=dtypes[0]), torch.ones(3, dtype=dtypes[1])
    with pytest.raises(ValueError, match=rf"one of float32, bfloat16, float16, not in .*{dtypes[1]}"):
        norm.rms_norm(x, weight, 1e-5)


def test_without_numba_auto_means_the_reference(monkeypatch):
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    assert backends.best_for("cpu") == "reference"
    with pytest.raises(RuntimeError, match=r"needs the package numba, which is not installed"):
        backends.load("cpu")


def test_a_whole_number_given_for_a_float_is_that_number():
    """It was once read as the bits of a float: eps=1 computed with 5e-324, and nobody said so."""
    x, weight = torch.randn(3, 64), torch.rand(64)
    results = []
    for eps in (1, 1.0):
        out = torch.empty_like(x)
        norm._rms_norm(torch.float32, x.numel(), x, x, x, weight, out, 3, 64, 1, 64, 0, eps)
        results.append(out)
    assert torch.equal(*results)
    assert_accurate(results[0], reference.rms_norm, x, weight, 1.0)
    assert torch.equal(norm.rms_norm(x, weight, 1), results[0])


@pytest.mark.parametrize(
    "wrong",
    [
        "a float for a whole number",
        "one too few",
        "one too many",
        "a number for a tensor",
        "a tensor for a number",
        "another dtype",
    ],
)
def test_arguments_that_were_not_declared_are_refused(wrong):
    x, weight = torch.ones(3, 64), torch.ones(64)
    arguments = {
        "a float for a whole number": (x, x, x, weight, x, 3.0, 64, 1, 64, 0, 1e-5),
        "one too few": (x, x, x, weight, x, 3, 64, 1, 64, 0),
        "one too many": (x, x, x, weight, x, 3, 64, 1, 64, 0, 1e-5, 1),
        "a number for a tensor": (x, x, x, 64, x, 3, 64, 1, 64, 0, 1e-5),
        "a tensor for a number": (x, x, x, weight, x, x, 64, 1, 64, 0, 1e-5),
        "another dtype": (x, x, x, weight.double(), x, 3, 64, 1, 64, 0, 1e-5),
    }
    with pytest.raises(TypeError, match=r"_rms_norm takes \(vvvvv qqqqq d\) with values of torch.float32, not \("):
        norm._rms_norm(torch.float32, x.numel(), *arguments[wrong])


@pytest.mark.parametrize("path", sorted(Path(numba_kernel.__file__).parent.rglob("*.py")), ids=lambda path: path.stem)
def test_what_a_kernel_reads_is_what_it_declares(path):
    letters = {"float_ptrs": "v", "int32_ptrs": "i", "float32_ptrs": "f", "int_args": "q"}
    letters["float_args"] = "d"
    for function in ast.parse(path.read_text()).body:
        for decorator in getattr(function, "decorator_list", []):
            if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "cpu_kernel":
                reads = sorted(
                    (call.args[1].value, letters[call.func.id] * call.args[2].value)
                    for call in ast.walk(function)
                    if isinstance(call, ast.Call) and getattr(call.func, "id", "") in letters
                )
                assert "".join(part for _, part in reads) == decorator.args[0].value.replace(" ", "").replace(
                    "a", "q"
                ), function.name
