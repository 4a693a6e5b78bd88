"""The machine code of every config of the launch table, compiled for GPUs that need not be there."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from triton import knobs

from octavo.kernels.codegen import compiler, sass, waivers
from octavo.kernels.codegen.cases import CASES, DTYPES
from octavo.kernels.triton import launch

CLEAN = sass.Code(
    label="linear 16 x 768 -> 768",
    dtype="bf16",
    arch="sm_90",
    kernel="_linear_kernel",
    constants={"BLOCK_M": 16},
    num_warps=4,
    num_stages=6,
    shared=61440,
    seconds=0.3,
    has_dot=True,
    k_widths=frozenset(),
    registers=38,
    stack=0,
    programs=3,
    instructions=700,
    tensor_core=frozenset({"HGMMA"}),
    load_bits=128,
)


def python(*arguments: str) -> subprocess.CompletedProcess:
    """A Python of its own, where kernels are compiled, not interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


def run(*arguments: str) -> subprocess.CompletedProcess:
    return python("-m", "octavo.kernels.codegen", "--markdown", *arguments)


def test_a_representative_part_is_clean_on_sm_90():
    result = run("--arch", "sm_90", "--dtype", "bf16", "--quick", "--jobs", "1")
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("| linear |")]
    assert len(lines) >= 5
    assert all("| HGMMA |" in line for line in lines)


SAME_KERNEL = """
import torch
from octavo.kernels.triton import linear, norm, rope
from octavo.kernels.codegen.cases import Case, meta
from octavo.kernels.codegen.sass import compile_case

def calls(n):
    x, w, b = (meta(*shape, dtype=torch.bfloat16) for shape in ((n, 768), (768, 768), (768,)))
    q, t = x.unflatten(1, (12, 64)), meta(64, 32, dtype=torch.float32)
    yield Case("", linear.linear, (x, w, b)), Case("", norm.layer_norm, (x, b, b, 1e-5))
    yield Case("", rope.rope, (q, q, meta(n), t, t)), Case("", linear.linear, (x, w, b, "gelu"))

known = set()
for n in (17, 32, 18, 31):
    for pair in calls(n):
        for case in pair:
            print(n, *(code.kernel for code in compile_case(case, "bf16", "sm_90", known)))
"""


def test_the_number_of_tokens_compiles_nothing_new():
    lines = python("-c", SAME_KERNEL).stdout.split("\n")
    first = ["17 _linear_kernel", "17 _norm_kernel", "17 _rope_kernel", "17 _linear_kernel"]
    assert [line.strip() for line in lines] == first + [str(n) for n in (32, 18, 31) for _ in range(4)] + [""]


def test_every_arch_of_the_table_can_be_compiled_for():
    assert tuple(compiler.MACHINES) == launch.ARCHS


@pytest.mark.codegen
@pytest.mark.parametrize("arch", launch.ARCHS)
def test_every_row_is_clean(arch):
    result = run("--arch", arch)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"stack": 8}, "spill"),
        ({"shared": 227 * 1024 + 1}, "shared"),
        ({"tensor_core": frozenset({"HMMA"})}, "tensor_core"),
        ({"tensor_core": frozenset()}, "tensor_core"),
        ({"tensor_core": frozenset({"HGMMA", "HMMA"})}, "tensor_core"),
        ({"k_widths": frozenset({2, 4})}, "k_order"),
        ({"load_bits": 64}, "wide_load"),
        ({"arch": "gfx942", "registers": None, "shared": 65537}, "shared"),
    ],
    ids=str,
)
def test_each_broken_limit_is_named(change, check):
    assert not list(compiler.broken_limits(CLEAN))
    assert [name for name, _ in compiler.broken_limits(dataclasses.replace(CLEAN, **change))] == [check]


def test_a_waiver_covers_what_it_names_and_nothing_else(monkeypatch):
    waiver = waivers.Waiver("_linear_kernel", "spill", ("sm_90",), {"BLOCK_M": 16, "dtype": "bf16"}, "because")
    monkeypatch.setattr(waivers, "WAIVERS", (waiver,))
    assert compiler.waiver_for(CLEAN, "spill") is waiver
    for change in ({"arch": "sm_80"}, {"kernel": "_norm_kernel"}, {"constants": {"BLOCK_M": 32}}, {"dtype": "fp32"}):
        assert compiler.waiver_for(dataclasses.replace(CLEAN, **change), "spill") is None
    assert compiler.waiver_for(CLEAN, "wide_load") is None


def test_a_failure_is_reported_and_a_waived_one_is_not():
    used: list[waivers.Waiver] = []
    failures: list[str] = []
    spilled = dataclasses.replace(CLEAN, stack=8)
    assert compiler.judge(spilled, used, failures) == "spill: 8 bytes of stack"
    assert failures == ["sm_90 _linear_kernel (linear 16 x 768 -> 768, bf16): spill: 8 bytes of stack"]


LOOP = """
  /*0000*/ LDG.E.128 R4, desc[UR4][R2.64] ;
  /*0010*/ LDG.E.U16 R5, desc[UR4][R2.64] ;
  /*0020*/ LDGSTS.E.BYPASS.64 [R1], desc[UR4][R2.64] ;
  /*0030*/ @P0 BRA 0x10 ;
  /*0040*/ BRA 0x40 ;
"""


def test_the_widest_load_is_looked_for_in_the_loop():
    assert sass.widest_load(LOOP) == 64
    assert sass.widest_load(LOOP.replace("0x10", "0x40")) == 128  # forward: no loop
    assert sass.widest_load("/*0000*/ STG.E [R1], R2 ;") is None


@pytest.mark.parametrize(
    ("instruction", "bits"),
    [("LDG.E", 32), ("LDG.E.U16", 16), ("LDG.E.S8", 8), ("LDG.E.128.CONSTANT", 128), ("UTMALDG.2D", 128)],
)
def test_bits_of_a_load(instruction, bits):
    assert sass.load_bits(instruction) == bits


@pytest.mark.parametrize(
    "arguments", [["--arch", "sm_91"], ["--op", "conv"], ["--dtype", "fp8"]], ids=lambda arguments: arguments[0]
)
def test_asking_for_the_unknown_is_one_line_and_exit_2(arguments, capsys):
    assert compiler.main(arguments) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"{arguments[0]} must be one of ")
    assert line.endswith(f"not '{arguments[1]}'\n")
    assert line.count("\n") == 1


def test_the_interpreter_has_nothing_to_compile(capsys, monkeypatch):
    monkeypatch.setattr(knobs.runtime, "interpret", True)
    assert compiler.main([]) == 2
    assert capsys.readouterr().err == "TRITON_INTERPRET is set: there is nothing to compile\n"


def test_the_page_s_table_is_of_these_kernels():
    """Every line of CODEGEN.md is a call that codegen makes, and none of them breaks a limit unexplained."""
    text = (Path(compiler.__file__).parent.parent / "CODEGEN.md").read_text()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "| sm" not in line]
    known = {(case.label, dtype) for dtype, kind in DTYPES.items() for calls in CASES.values() for case in calls(kind)}
    listed = [cells for cells in lines if len(cells) == 12 and cells[2] in DTYPES]
    assert {(cells[1], cells[2]) for cells in listed} <= known
    assert len({cells[0] for cells in listed}) >= 15  # kernels by name
    assert all(cells[-1] == "ok" or "waived: " in cells[-1] for cells in listed)
    assert {cells[6] for cells in listed} == {"0"}  # bytes of stack
