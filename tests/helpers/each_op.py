"""Every op of the Triton backend called once at small shapes, checked against the reference: a program for memcheck.

    python tests/helpers/each_op.py

On a CUDA device if there is one, else in the interpreter. Prints how many calls were right.
"""

import os
import sys

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from octavo.bench.measuring.accuracy import verdict
from octavo.bench.measuring.op_cases import Shapes, cases
from octavo.gpt.models.families.gpt2 import GPT2Config
from octavo.gpt.models.families.llama import LlamaConfig
from octavo.kernels.backends import load
from octavo.kernels.ops import REFERENCE

GPT2 = GPT2Config(
    vocab_size=777, context_size=64, dim=40, num_layers=1, num_heads=5, num_kv_heads=5, head_dim=8,
    intermediate_dim=72,
)  # fmt: skip
LLAMA = LlamaConfig(
    vocab_size=777, context_size=64, dim=48, num_layers=1, num_heads=6, num_kv_heads=2, head_dim=24,
    intermediate_dim=56,
)  # fmt: skip


def main() -> int:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    triton, dtype = load("triton"), torch.float16 if device.type == "cuda" else torch.float32
    found = [case for config in (GPT2, LLAMA) for case in cases(Shapes(config, device, dtype, 3, 21, 19, seed=0))]
    wrong = [
        f"{case.op} {case.shape}"
        for case in found
        if verdict(case, getattr(triton, case.op), getattr(REFERENCE, case.op), case.make()) == "wrong"
    ]
    print(f"{len(found) - len(wrong)} of {len(found)} right", *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
