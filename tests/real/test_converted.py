"""GGUF files that llama.cpp's own converter wrote from random checkpoints of transformers, which are the oracle."""

import ctypes
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import gguf
import pytest
import torch
from converted import BLOCKS, CASES, CONTEXT, NUM_TOKENS, Answers, Converter, build, encoder

from octavo.gpt import LLM, SamplingParams
from octavo.kernels.testing.numerics import assert_within

from real_files import hard_texts, real

TYPES = ("f32", "f16", "bf16")
LIMITS = {"num_blocks": 64, "block_size": 4, "max_model_len": CONTEXT}


@pytest.fixture(scope="module")
def convert() -> Iterator[Converter]:
    converter = Converter(real("convert"))
    yield converter
    converter.pool.shutdown()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Answers]:
    return cache(lambda name: build(CASES[name], tmp_path_factory.mktemp("network")))


def assert_computes(path: Path, answers: Answers) -> None:
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    with LLM(path, backend="reference", dtype="float32", **LIMITS) as llm:
        output = llm.generate([answers.prompt], params, use_tqdm=False)[0]
        logits = llm.model.loss(torch.tensor([answers.prompt + answers.tokens])).logits[0]
        ids_of, _ = encoder(answers.folder)
        for text in hard_texts()[:300]:
            assert llm.tokenizer.encode(text) == ids_of(text), repr(text)
    assert_within(logits, answers.true, answers.twin)
    assert output.outputs[0].token_ids == answers.tokens


@pytest.mark.parametrize(("name", "kind"), [(name, TYPES[i % 3]) for i, name in enumerate(CASES)])
def test_it_computes_what_transformers_computes(
    name: str, kind: str, convert: Converter, built: Callable[[str], Answers], tmp_path: Path
) -> None:
    answers = built(name)
    assert_computes(convert(answers.folder, tmp_path / "model.gguf", "--outtype", kind), answers)


def test_a_file_in_parts(convert: Converter, built: Callable[[str], Answers], tmp_path: Path) -> None:
    answers = built("Llama 3.1")
    convert(answers.folder, tmp_path / "model.gguf", "--outtype", "f32", "--split-max-tensors", "10")
    first, *rest = sorted(tmp_path.glob("model-*.gguf"))
    assert rest
    assert_computes(first, answers)


QUANTISED = (
    *("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K"),
    *("IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4_MOE"),
)


@pytest.fixture(scope="module")
def wide(convert: Converter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    build(BLOCKS, folder)
    return convert(folder, folder / "model.gguf", "--outtype", "f32")


@pytest.mark.parametrize("kind", QUANTISED)
def test_what_llama_cpp_quantises(kind: str, wide: Path, tmp_path: Path) -> None:
    """A layer of the type, the embedding and the head of 8 bits: every value is what the gguf package makes of it."""
    path = tmp_path / "model.gguf"
    quantise(wide, path, kind)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert kind.startswith(stored["blk.1.attn_q.weight"].tensor_type.name)

    def values(*names: str) -> torch.Tensor:
        parts = (gguf.dequantize(stored[name].data, stored[name].tensor_type) for name in names)
        return torch.cat([torch.from_numpy(part.copy()) for part in parts])

    with LLM(path, backend="reference", dtype="float32", **LIMITS) as llm:
        weights = dict(llm.model.named_parameters())
    expected = {
        "embed_tokens": values("token_embd.weight"),
        "lm_head": values("output.weight"),
        "norm": values("output_norm.weight"),
        "layers.1.self_attn.qkv_proj": values(*(f"blk.1.attn_{part}.weight" for part in "qkv")),
        "layers.1.self_attn.o_proj": values("blk.1.attn_output.weight"),
        "layers.1.mlp.gate_up_proj": values("blk.1.ffn_gate.weight", "blk.1.ffn_up.weight"),
        "layers.1.mlp.down_proj": values("blk.1.ffn_down.weight"),
    }
    for name, value in expected.items():
        assert torch.equal(weights[f"{name}.weight"], value), name


def quantise(source: Path, path: Path, kind: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python, which quantises, is not installed")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.pure, params.nthread = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}"), True, 1
    params.token_embedding_type = params.output_tensor_type = int(gguf.GGMLQuantizationType.Q8_0)
    assert llama_cpp.llama_model_quantize(bytes(source), bytes(path), ctypes.byref(params)) == 0
