"""What the compiler says about both attentions, with no GPU: one kernel for all sizes, one order of sums."""

import os
import subprocess
import sys

import pytest

from octavo.kernels.triton import launch

pytestmark = pytest.mark.codegen
PREAMBLE = """
import json, re, sys
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


# What decides how a row is summed: the dots, and the sums over keys, each with how keys (not rows) lie in threads.
ORDERS = """
LISTS = r"(\\w+) = (\\[[^=]*\\])[,}]"

def over_keys(layout, axis):
    kind, numbers = re.match(r"#ttg.(\\w+)", layout)[1], {k: json.loads(v) for k, v in re.findall(LISTS, layout)}
    if kind == "linear":
        return kind, *(str([s[axis] for s in numbers[at] if s[axis]]) for at in ("register", "lane", "warp"))
    if kind == "blocked":
        return kind, *(numbers[name][axis] for name in ("sizePerThread", "threadsPerWarp", "warpsPerCTA"))
    return kind, numbers["warpsPerCTA"][axis], *numbers["instrShape"]

def order(kernel):
    text = kernel.asm["ttgir"]
    layouts = dict(re.findall(r"^(#\\w+) = (.*)$", text, re.M))
    sums = r"axis = (\\d) : i32\\}> \\(\\{[^}]*arith.addf[^}]*\\}\\) : \\(tensor<(\\S+)xf32, (.*?)>\\) ->"
    found = set()
    for axis, shape, layout in re.findall(sums, text):
        if "slice" in layout:  # what is left of three axes, of which the first was summed
            axis = int(axis) + 1
        name = re.search(r"#\\w+$|#\\w+(?=})", layout)[0]
        found.add((shape.split("x")[int(axis) - ("slice" in layout)], over_keys(layouts[name], int(axis))))
    dots = re.findall(r"(tt.dot|warp_group_dot|tc_gen5_mma) .*?(?:: | -> tensor<)(.*)", text)
    for dot, types in dots:
        found.add((dot,))
        for name in set(re.findall(r"#\\w+", types)) & set(layouts):
            if re.match(r"#ttg.(nvidia_mma|amd_mfma)<", layouts[name]):
                kind, _, *shape = over_keys(layouts[name], 1)
                found.add((dot, kind, *shape, *re.findall(r"kWidth = \\d+", types)))
    assert len([1 for first, *_ in found if first.isdigit()]), "found no sums over keys"
    return found
"""


@pytest.mark.parametrize("arch", launch.ARCHS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_prefill_and_decode_sum_in_the_same_layout(arch: str, dtype: str) -> None:
    """The bits of causal_attention, of paged prefill and of decode: the same dots, and sums over the same layouts."""
    script = f"""
for head_dim in (24, 64, 128, 256):
    with pretend("{arch}") as compiled:
        causal(256, 2, 128, torch.{dtype}, head_dim)
        paged(256, 2, 128, 16, torch.{dtype}, head_dim)
        paged(2, 2, 1, 16, torch.{dtype}, head_dim)
    causal_order, prefill, decode = (order(kernel) for kernel, _ in compiled[:3])
    print(head_dim, causal_order == prefill, prefill == decode or (prefill, decode))
"""
    assert run(ORDERS + script) == [f"{head_dim} True True" for head_dim in (24, 64, 128, 256)]


INSTRUCTIONS = {  # of sm_80 and sm_90 by head_dim: what multiplies in 16 bits
    "sm_80": {head_dim: ["HMMA.16816.F32.BF16"] for head_dim in (64, 128, 256)},
    "sm_90": {
        64: ["HGMMA.64x64x16.F32.BF16"],
        128: ["HGMMA.64x128x16.F32.BF16", "HGMMA.64x64x16.F32.BF16"],
        256: ["HGMMA.64x128x16.F32.BF16", "HGMMA.64x16x16.F32.BF16"],
    },
}


@pytest.mark.parametrize("arch", INSTRUCTIONS)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_prefill_and_decode_multiply_with_the_same_instructions(arch: str, head_dim: int) -> None:
    script = f"""
from octavo.kernels.codegen.sass import disassemble
with pretend("{arch}") as compiled:
    causal(256, 2, 128, torch.bfloat16, {head_dim})
    paged(256, 2, 128, 16, torch.bfloat16, {head_dim})
    paged(2, 2, 1, 16, torch.bfloat16, {head_dim})
for kernel, _ in compiled[:3]:
    print(*sorted(set(re.findall(r"\\bH(?:G)?MMA[.][.\\w]*", disassemble(kernel.asm["cubin"])))))
"""
    assert [line.split() for line in run(script)] == [INSTRUCTIONS[arch][head_dim]] * 3


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
            _, launched = launch.paged_decode(torch.device("meta"), dtype, head_dim, 1)
        code = inspect(*compiled[0], "decode", "", "{arch}")
        print(code.programs * launch.NUM_SMS["{arch}"] >= launched)
"""
    assert run(script) == ["True"] * 6
