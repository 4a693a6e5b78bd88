"""Loading holds no weight twice: the growth of a fresh process stays near the size of the model it loads."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from checkpoints import LLAMA, LLAMA_GGUF, llama_gguf_tensors, llama_shapes, save_folder, save_gguf

LOADING = """
import re, sys
from dataclasses import replace
from pathlib import Path
from octavo.gpt.loading.loader import load_model
from octavo.kernels import backends

ops = replace(backends.load(sys.argv[3]), compile=None)  # which takes memory of its own meanwhile

def peak(field):
    return int(re.search(field + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

before = peak("VmRSS")
model = load_model(sys.argv[1], ops, sys.argv[2], "cpu").model
print(peak("VmHWM") - before)
"""

LARGE = LLAMA | {
    "vocab_size": 4096, "hidden_size": 512, "num_hidden_layers": 11, "num_attention_heads": 8, "head_dim": 64,
    "num_key_value_heads": 8, "intermediate_size": 2048, "tie_word_embeddings": True,
}  # fmt: skip
LARGE_GGUF = LLAMA_GGUF | {
    "llama.block_count": 11, "llama.embedding_length": 512, "llama.feed_forward_length": 2048,
    "llama.attention.head_count": 8, "llama.attention.head_count_kv": 8, "llama.attention.key_length": 64,
    "llama.attention.value_length": 64, "llama.rope.dimension_count": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """One network of 48 million weights as a float32 folder, a sharded float32 folder, and a Q8_0 file."""
    folder = tmp_path_factory.mktemp("large")
    shapes = llama_shapes(LARGE)
    del shapes["lm_head.weight"]
    tensors = {name: torch.full(shape, 0.5) for name, shape in shapes.items()}
    paths = {
        "whole": save_folder(folder / "whole", LARGE, tensors),
        "sharded": save_folder(folder / "sharded", LARGE, tensors, num_shards=2),
        "gguf": save_gguf(folder / "m.gguf", LARGE_GGUF, llama_gguf_tensors(tensors, 8, 8), "Q8_0"),
    }
    yield paths
    shutil.rmtree(folder)


@pytest.mark.parametrize(("kind", "dtype"), [("whole", "float32"), ("sharded", "bfloat16"), ("gguf", "float32")])
def test_no_weight_is_held_twice(large: dict[str, Path], kind: str, dtype: str) -> None:
    width = 4 if dtype == "float32" else 2
    sizes = [
        torch.Size(shape).numel() * width for name, shape in llama_shapes(LARGE).items() if name != "lm_head.weight"
    ]
    grown = growth(large[kind], dtype, "reference")
    assert sum(sizes) < grown < 1.3 * sum(sizes) + max(sizes)


def test_a_file_s_own_blocks_are_all_that_is_held(large: dict[str, Path]) -> None:
    """Beside what reading takes whatever the size of the file."""
    size, fixed = large["gguf"].stat().st_size, 32 * 2**20
    assert 0.95 * size < growth(large["gguf"], "float32", "cpu") < 1.05 * size + fixed


def growth(path: Path, dtype: str, backend: str) -> int:
    """Bytes that a process has more at most while it loads."""
    command = [sys.executable, "-c", LOADING, str(path), dtype, backend]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
