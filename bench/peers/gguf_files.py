"""GGUF files of a run's model in every format, made once and kept in the cache folder."""

import hashlib
import inspect
import os
import re
import tempfile
from importlib import metadata
from pathlib import Path

import llama_cpp
import torch

from octavo.bench.peers import export_gguf
from octavo.bench.peers.sources import ModelSource, plain_model
from octavo.gpt.loading.fetch import cache_dir

QUANTISED = {  # what llama_model_quantize calls them
    "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "q4_1": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_1,
    "q4_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "q5_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_K_M,
    "q6_k": llama_cpp.LLAMA_FTYPE_MOSTLY_Q6_K,
}
PURE = (
    "q8_0",
    "q4_0",
    "q4_1",
)  # every matrix, as LLM does while it loads; else llama.cpp's mix, as published files are


def gguf_in(format: str, source: ModelSource, device: torch.device) -> Path:
    """The model's GGUF file in a dtype or a quantised format; ValueError where the model's family is not written."""
    path = cache_dir() / "bench" / f"{_slug(source.name)}-{format}-{_fingerprint(source)}.gguf"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=path.parent) as folder:
            scratch = Path(folder) / "made.gguf"
            if format in QUANTISED:
                _quantise(gguf_in("float32", source, device), scratch, format)
            else:
                export_gguf.write_gguf(plain_model(source, format, device), scratch, format)
            os.replace(scratch, path)
    return path


def _quantise(dense: Path, target: Path, format: str) -> None:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.pure, params.nthread = QUANTISED[format], format in PURE, torch.get_num_threads()
    if llama_cpp.llama_model_quantize(str(dense).encode(), str(target).encode(), params):
        raise ValueError(f"llama.cpp cannot write {dense.name} in {format}")


def _fingerprint(source: ModelSource) -> str:
    """Of the weights, by name, size and time of their files, and of all that writes them anew."""
    files = [] if source.path is None else [source.path, *sorted(source.path.glob("*"))]
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    writers = [Path(inspect.getfile(writer)).read_text() for writer in (export_gguf.write_gguf, type(source.config))]
    versions = [metadata.version(name) for name in ("gguf", "llama-cpp-python", "torch")]
    return hashlib.sha256(repr((source.name, source.config, stats, writers, versions)).encode()).hexdigest()[:16]


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", Path(name).name)[:60]
