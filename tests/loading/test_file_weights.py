"""A GGUF file runs in its own blocks: the same values as widened ones, in every format, family and mixture."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.gpt import LLM, SamplingParams
from octavo.gpt.loading.loader import load_model
from octavo.gpt.models.base import Linear, Model
from octavo.gpt.models.batch import dense_batch
from octavo.kernels import backends
from octavo.kernels.cpu.embed import embed
from octavo.kernels.cpu.linear import linear, pack
from octavo.kernels.cpu.panels.pack import Panels
from octavo.kernels.weights import BLOCK_FORMATS, BlockWeight, Stacked, dequantise, quantise

from checkpoints import (
    GPT2,
    LLAMA,
    LLAMA_GGUF,
    gpt2_gguf_tensors,
    gpt2_shapes,
    llama_gguf_tensors,
    llama_shapes,
    random_blocks,
    random_tensors,
    save_folder,
    save_gguf,
)

WIDE = LLAMA | {
    "vocab_size": 97, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 96,
}  # fmt: skip
WIDE_GGUF = LLAMA_GGUF | {
    "llama.embedding_length": 64, "llama.feed_forward_length": 96, "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2, "llama.attention.key_length": 16, "llama.attention.value_length": 16,
    "llama.rope.dimension_count": 16,
}  # fmt: skip
WIDE_GPT2 = GPT2 | {"vocab_size": 97, "n_positions": 16, "n_embd": 64, "n_head": 4}
GPT2_GGUF = {
    "general.architecture": "gpt2", "gpt2.context_length": 16, "gpt2.embedding_length": 64, "gpt2.block_count": 2,
    "gpt2.feed_forward_length": 256, "gpt2.attention.head_count": 4, "gpt2.attention.layer_norm_epsilon": 1e-5,
}  # fmt: skip
IDS = torch.tensor([[3, 14, 15, 92, 65, 35, 89, 79]])
KEPT = {"F16": "float16", "BF16": "bfloat16", "Q8_0": "q8_0", "Q4_0": "q4_0", "Q4_1": "q4_1"}
MIXED = {"attn_v": "Q8_0", "ffn_gate": "Q4_1", "ffn_up": "Q8_0", "ffn_down": "F16", "attn_output": "F32"}


def scaled_tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Matrices as small as a network's, so that no rounding grows from layer to layer."""
    return {name: 0.1 * t if t.dim() > 1 else t for name, t in random_tensors(shapes).items()}


def llama_file(path: Path, kind: str, tied: bool = True, kinds: dict[str, str] | None = None) -> Path:
    tensors = scaled_tensors(llama_shapes(WIDE))
    if tied:
        del tensors["lm_head.weight"]
    return save_gguf(path, WIDE_GGUF, llama_gguf_tensors(tensors, 4, 2), kind, kinds)


def gpt2_file(path: Path, kind: str, tied: bool = True) -> Path:
    shapes = gpt2_shapes(WIDE_GPT2)
    tensors = gpt2_gguf_tensors(scaled_tensors(shapes))
    if not tied:
        tensors["output.weight"] = scaled_tensors({"lm_head": (97, 64)})["lm_head"]
    return save_gguf(path, GPT2_GGUF, tensors, kind)


FILES = {"llama": llama_file, "gpt2": gpt2_file}


def load(path: Path, weights: str, backend: str = "cpu", dtype: str = "float32") -> Model:
    return load_model(path, backends.load(backend), dtype, "cpu", weights, None).model


@torch.inference_mode()
def logits(model: Model) -> Tensor:
    return model.logits(model(dense_batch(IDS))).float()


def products(model: Model) -> dict[str, Any]:
    found = {name: module.weight for name, module in model.named_modules() if isinstance(module, Linear)}
    return found | {"head": model.head}


def formats(weight: Any) -> list[str]:
    return [part.format for part in (weight.parts if isinstance(weight, Stacked) else (weight,))]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.parametrize("family", FILES)
def test_every_weight_stays_as_the_file_has_it(tmp_path: Path, family: str, kind: str, tied: bool, dtype: str) -> None:
    path = FILES[family](tmp_path / "m.gguf", kind, tied)
    own, dense = load(path, "file", dtype=dtype), load(path, "dense", "reference")
    wide = products(dense)
    for name, weight in products(own).items():
        assert isinstance(weight, Panels), name
        assert weight.format == KEPT[kind], name
        assert torch.equal(dequantise(weight, torch.float32), wide[name]), name
    expected = logits(dense)
    assert (logits(own) - expected).norm() < (1e-3 if dtype == "float32" else 0.1) * expected.norm()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_one_product_of_several_formats(tmp_path: Path, backend: str) -> None:
    path = llama_file(tmp_path / "m.gguf", "Q4_0", False, MIXED)
    own, dense = load(path, "file", backend), load(path, "dense", "reference")
    mixed = {name.rsplit(".", 1)[-1]: weight for name, weight in products(own).items()}
    if backend == "cpu":
        assert {name: formats(weight) for name, weight in mixed.items()} == {
            "qkv_proj": ["q4_0", "q8_0"], "o_proj": ["float32"], "gate_up_proj": ["q4_1", "q8_0"],
            "down_proj": ["float16"], "lm_head": ["q4_0"], "head": ["q4_0"],
        }  # fmt: skip
    assert own.formats() == ("q4_0", "q8_0", "q4_1", "float16", "float32")
    assert own.num_parameters == dense.num_parameters
    wide = products(dense)
    for name, weight in products(own).items():
        assert torch.equal(dequantise(weight, torch.float32), wide[name]), name
    expected = logits(dense)
    assert (logits(own) - expected).abs().max() <= (1e-3 if backend == "cpu" else 0) * expected.abs().max()


@pytest.mark.parametrize("kind", ["Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"])
def test_formats_that_only_files_have_stay_as_the_file_has_them(tmp_path: Path, kind: str) -> None:
    """A table of them, too, and a value of 8 bits beside them, as in the mixtures that are called Q4_K_M."""
    config = WIDE | {"hidden_size": 256, "head_dim": 64, "intermediate_size": 512}
    fields = WIDE_GGUF | {
        "llama.embedding_length": 256, "llama.feed_forward_length": 512, "llama.attention.key_length": 64,
        "llama.attention.value_length": 64, "llama.rope.dimension_count": 64,
    }  # fmt: skip
    tensors = scaled_tensors(llama_shapes(config))
    del tensors["lm_head.weight"]
    kinds = {"attn_v": "Q8_0", "blk.1.attn_q": "Q6_K"}
    path = save_gguf(tmp_path / "m.gguf", fields, llama_gguf_tensors(tensors, 4, 2), kind, kinds)
    own, dense = load(path, "auto"), load(path, "dense", "reference")
    wide = products(dense)
    for name, weight in products(own).items():
        assert set(formats(weight)) <= {kind.lower(), "q8_0", "q6_k"}, name
        assert torch.equal(dequantise(weight, torch.float32), wide[name]), name
    expected = logits(dense)
    assert (logits(own) - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize("format", BLOCK_FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_row_of_a_table_is_what_its_blocks_stand_for(format: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    table = random_blocks(70, 512, format)
    ids = torch.tensor([69, 0, 3, 3, 16, 31, 32, 17], dtype=torch.int32)
    assert torch.equal(embed(ids, pack(table), dtype), dequantise(table)[ids.long()].to(dtype))
    beyond = embed(torch.tensor([70, -1, 1]), pack(table), dtype)
    assert beyond[:2].isnan().all()
    assert torch.equal(beyond[2], dequantise(table)[1].to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_product_of_several_formats_is_each_format_s_own(dtype: torch.dtype) -> None:
    """Bit for bit, beside any other rows, on any number of threads."""
    torch.manual_seed(0)
    parts = [
        pack(torch.randn(rows, 160), format) for rows, format in ((40, "q4_0"), (33, None), (96, "q8_0"), (7, "q4_1"))
    ]
    x, bias = torch.randn(100, 160).to(dtype), torch.randn(176).to(dtype)
    stacked, threads = Stacked(tuple(parts)), torch.get_num_threads()
    pieces = zip(parts, bias.split([part.out_features for part in parts]), strict=True)
    apart = torch.cat([linear(x, part, piece, "gelu") for part, piece in pieces], 1)
    assert (stacked.out_features, stacked.in_features) == (176, 160)
    try:
        for num_threads in (1, 3):
            torch.set_num_threads(num_threads)
            for rows in (0, 1, 2, 7, 13, 97):
                assert torch.equal(linear(x[:rows], stacked, bias, "gelu"), apart[:rows])
    finally:
        torch.set_num_threads(threads)


def test_formats_without_a_product_are_widened_in_one_line(tmp_path: Path) -> None:
    path = llama_file(tmp_path / "m.gguf", "Q8_0", kinds={"ffn_up": "MXFP4"})
    with pytest.warns(UserWarning, match=r"m\.gguf: MXFP4 weights are widened to float32$") as caught:
        own = load(path, "file")
    assert len(caught) == 1
    expected = logits(load(path, "dense", "reference"))
    assert (logits(own) - expected).abs().max() < 1e-3 * expected.abs().max()


def test_auto_is_the_file_s_own_where_the_backend_prefers_it(tmp_path: Path) -> None:
    path = llama_file(tmp_path / "m.gguf", "Q4_1")
    assert load(path, "auto").head.format == "q4_1"
    assert load(path, "dense").head.format == "float32"
    assert isinstance(load(path, "auto", "reference").head, Tensor)
    assert isinstance(load(path, "file", "reference").head, BlockWeight)
    folder = save_folder(tmp_path / "folder", WIDE, random_tensors(llama_shapes(WIDE)))
    assert load(folder, "auto").head.format == "float32"


def test_a_file_s_own_blocks_take_float32_where_nobody_asks_for_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a processor that is fast at bfloat16, of whose values such products see 8 bits."""
    fast = {"auto": torch.bfloat16, "float16": torch.float16}
    monkeypatch.setattr("octavo.gpt.loading.loader.resolve_dtype", lambda dtype, device: fast[dtype])
    path, cpu = llama_file(tmp_path / "m.gguf", "Q8_0"), backends.load("cpu")
    for dtype, weights, expected in (
        ("auto", "auto", torch.float32), ("auto", "dense", torch.bfloat16), ("float16", "auto", torch.float16),
    ):  # fmt: skip
        assert load_model(path, cpu, dtype, "cpu", weights, None).dtype is expected


def test_weights_that_cannot_be_are_refused(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "folder", WIDE, random_tensors(llama_shapes(WIDE)))
    with pytest.raises(ValueError, match=r"weights file is for GGUF files, .*folder is none: use auto"):
        load(folder, "file")
    with pytest.raises(ValueError, match="weights file is for GGUF files, dummy:gpt2 is none"):
        LLM("dummy:gpt2", weights="file", backend="cpu")
    with pytest.raises(ValueError, match="weights must be auto, file, dense, q8_0, q4_0 or q4_1, not 'q9'"):
        load(folder, "q9")
    triton = pytest.importorskip("octavo.kernels.triton.backend").TRITON
    with pytest.raises(ValueError, match="weights file are not for backend triton, which takes dense ones"):
        load_model(folder, triton, "float32", "cpu", "file", None)


def test_rounding_is_of_dense_weights(tmp_path: Path) -> None:
    """A format that was asked for is what the widened values are rounded to, whatever the file holds."""
    own = load(llama_file(tmp_path / "m.gguf", "Q8_0"), "q4_0")
    dense = load(llama_file(tmp_path / "m.gguf", "Q8_0"), "dense", "reference")
    assert torch.equal(dequantise(own.head), dequantise(quantise(dense.head, "q4_0")))


@pytest.mark.model
def test_smollm2_s_own_file_answers_as_its_widened_weights_do(smollm2_path: Path) -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    greedy = SamplingParams(temperature=0, max_tokens=24)
    answers = [
        LLM(smollm2_path, dtype="float32", weights=weights, max_model_len=256).chat(question, greedy)[0].outputs[0].text
        for weights in ("auto", "dense")
    ]
    assert "Paris" in answers[0]
    assert answers[0] == answers[1]
