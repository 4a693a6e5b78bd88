"""Compilation ahead of the first step: what a model needs, each once, while its weights are read."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from numba.core import config
from numba.core.ccallback import CFunc

from octavo.gpt import LLM, SamplingParams
from octavo.gpt.loading.loader import load_model
from octavo.gpt.models import registry
from octavo.kernels import backends
from octavo.kernels.cpu import norm
from octavo.kernels.cpu.compiling import needed
from octavo.kernels.cpu.compiling.__main__ import main
from octavo.kernels.cpu.numba_kernel import Kernel

from tiny import TINY_GPT2


@pytest.fixture
def tiny_shape(monkeypatch):
    monkeypatch.setitem(registry.KNOWN_SHAPES, "tiny", TINY_GPT2)


def test_a_model_compiles_little_more_than_what_was_compiled_ahead(monkeypatch, tiny_shape):
    needed.start(torch.float32, "float32").join()
    asked: list[str] = []
    compile = CFunc.compile
    monkeypatch.setattr(CFunc, "compile", lambda self: asked.append(self.__name__) or compile(self))
    for _, ready in needed.for_every_model(torch.float32, "float32"):
        ready()
    assert asked == []
    llm = LLM("dummy:tiny", dtype="float32", num_blocks=16)
    llm.generate([[1, 2, 3]], SamplingParams(temperature=0, max_tokens=2), use_tqdm=False)
    some = {name for name, _ in needed.for_some_models(torch.float32, "float32")}
    assert {name.lstrip("_") for name in asked} <= some


@pytest.mark.parametrize(
    ("asked", "told"), [({}, "float32"), ({"dtype": "bfloat16"}, "bfloat16"), ({"weights": "q4_0"}, "q4_0")]
)
def test_loading_says_what_to_compile(asked, told, tiny_shape):
    calls: list[tuple[torch.dtype, str | None]] = []
    ops = replace(backends.load("cpu"), compile=lambda *what: calls.append(what))
    loaded = load_model("dummy:tiny", ops, **{"dtype": "float32", **asked})
    assert calls == [(loaded.dtype, told)]


def test_threads_that_need_a_kernel_at_once_compile_it_once(monkeypatch):
    kernel, compiled = Kernel(norm._rms_norm.function, norm._rms_norm.layout), []
    compile = CFunc.compile
    monkeypatch.setattr(CFunc, "compile", lambda self: compiled.append(self) or compile(self))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(kernel.compile, [torch.float32] * 4))
    assert len(compiled) == 1


def test_the_times_are_listed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(config, "CACHE_DIR", config.CACHE_DIR)  # which is set, and put back
    assert main(["--cache", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "dtype float32, weights float32" in out
    assert all(word in out for word in (" s  sample", " s  tile float32", " s  together"))
