"""What the compiler says about both attentions, with no GPU: one kernel for all sizes, one order of sums."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.codegen
PREAMBLE = """
import re, sys
import torch
from octavo.kernels.triton.attention import causal_attention
from octavo.kernels.codegen.sass import pretend
from octavo.kernels.triton.kv_cache import write_kv
from octavo.kernels.triton.paged_attention import paged_attention

def meta(*shape, dtype=torch.int32):
    return torch.empty(shape, dtype=dtype, device="meta")

def causal(num_tokens, num_seqs, longest, dtype, head_dim):
    q, k, v = meta(num_tokens, 12, head_dim, dtype=dtype).split(4, dim=1)
    causal_attention(q, k, v, meta(num_seqs + 1), longest, 0.125)

def paged(num_tokens, num_seqs, longest, width, dtype, head_dim):
    q, cache = meta(num_tokens, 4, head_dim, dtype=dtype), meta(64, 16, 4, head_dim, dtype=dtype)
    paged_attention(q, cache, cache, meta(num_seqs, width), meta(num_seqs), meta(num_seqs + 1), longest, 0.125)
"""


def run(script: str) -> list[str]:
    """The lines that a script prints in a process where kernels are compiled, not interpreted."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", PREAMBLE + script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_numbers_that_change_from_step_to_step_compile_nothing_new() -> None:
    """Batch sizes, table widths and lengths of every divisibility: one kernel each for prefill, split and merge."""
    script = """
half = torch.float16
with pretend("sm_90") as compiled:
    for num_tokens, num_seqs, longest in ((1, 1, 1), (16, 1, 16), (17, 3, 9), (512, 16, 64)):
        causal(num_tokens, num_seqs, longest, half, 64)
        new, cache = meta(num_tokens, 4, 64, dtype=half), meta(64, 16, 4, 64, dtype=half)
        write_kv(new, new, cache, cache, meta(num_tokens))
        for width in (1, 5, 16):
            paged(num_tokens, num_seqs, longest + 1, width, half, 64)
            paged(num_seqs, num_seqs, 1, width, half, 64)
for name in sorted({kernel.metadata.name for kernel, _ in compiled}):
    print(name, len({id(kernel) for kernel, _ in compiled if kernel.metadata.name == name}))
"""
    names = ("_causal_attention_kernel", "_merge_kernel", "_prefill_kernel", "_split_kernel", "_write_kv_kernel")
    assert run(script) == [f"{name} 1" for name in names]


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_both_prefills_sum_in_the_same_layout(arch: str, dtype: str) -> None:
    """The bits of causal_attention and of paged prefill: the same dots and reductions, over the same layouts."""
    script = f"""
for head_dim in (64, 128, 256):
    with pretend("{arch}") as compiled:
        causal(256, 2, 128, torch.{dtype}, head_dim)
        paged(256, 2, 128, 16, torch.{dtype}, head_dim)
    orders = []
    for kernel, _ in compiled:
        text = kernel.asm["ttgir"]
        for name, layout in reversed(re.findall(r"^(#\\w+) = (.*)$", text, re.M)):
            text = re.sub(name + r"\\b", layout, text)
        steps = re.findall(r"(?:tt.dot|warp_group_dot|tc_gen5_mma) [^:]*: (.*?)(?: loc|$)", text, re.M)
        orders.append((set(steps), set(re.findall(r"^ *}}\\) : (\\(tensor.*?)(?: loc|$)", text, re.M))))
    assert all(orders[0]), "found no dots or no reductions"
    print(head_dim, orders[0] == orders[1])
"""
    assert run(script) == ["64 True", "128 True", "256 True"]


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_all_programs_of_decode_are_resident_at_once(arch: str) -> None:
    """One that waited for a place would begin its share of the work when the others have ended theirs."""
    script = f"""
from octavo.kernels.triton import launch
from octavo.kernels.codegen.sass import inspect
for dtype in (torch.float16, torch.float32):
    for head_dim in (64, 128, 256):
        with pretend("{arch}") as compiled:
            paged(64, 64, 1, 256, dtype, head_dim)
            _, launched = launch.paged_decode(torch.device("meta"), dtype, head_dim)
        code = inspect(*compiled[0], "decode", "", "{arch}")
        print(code.programs * launch.MULTIPROCESSORS["{arch}"] >= launched)
"""
    assert run(script) == ["True"] * 6
