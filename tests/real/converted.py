"""Random networks of transformers with real tokenizers beside them, and llama.cpp's own converter to GGUF files."""

import json
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import convert_process
import tokenizers
import torch
from networks import answers, make

from real_files import FOLDER

PROMPT = "In 1969, the sky wasn't dark:"
NUM_TOKENS = 16  # drawn after the prompt
CONTEXT = 64


class Case(NamedTuple):
    """A network of networks.VARIANTS, a tokenizer that the converter takes for it, and what the converter needs."""

    network: str
    tokenizer: str  # below hf or mistral
    changes: Mapping[str, Any] = MappingProxyType({})  # of the network: what the files cannot say otherwise
    config: Mapping[str, Any] = MappingProxyType({})  # besides in config.json, as in those of real models
    suffix: bytes = b""  # of the SentencePiece model
    tokens: tuple[str, ...] = ()  # control tokens that the converter looks for


MISTRAL = "tokenizer.model.v1"
NO_PREFIX = b"\x1a\x02\x18\x00"  # normalizer_spec.add_dummy_prefix = false, as in Gemma's model
SCALAR = {"query_pre_attn_scalar": 8}  # head_dim, as in all of Gemma but the 27B
WIDE = {"n_inner": 128}  # four times the width, as the converter takes for granted
# The converter asks for rotary_pct, which transformers 5 hides, unless transformers does not know the model_type.
NEOX = {"rotary_pct": 0.25, "model_type": "pythia"}
GLM: Any = {"tokens": ("<|user|>",)}
CASES = {
    "Llama 2": Case("Llama", "llama2"),
    "Llama 3": Case("Llama", "llama3"),
    "Llama 3.1": Case("Llama 3.1", "llama3_1"),
    "Llama, YaRN": Case("Llama, YaRN", MISTRAL),
    "DeepSeek": Case("Llama", "deepseek_v3"),
    "Mistral": Case("Mistral", MISTRAL),
    "Qwen 2": Case("Qwen 2", "qwen3"),
    "Qwen 3": Case("Qwen 3", "qwen3"),
    "SmolLM3": Case("SmolLM3", "llama3_1"),
    "Arcee": Case("Arcee", "llama3_1"),
    "Granite": Case("Granite", MISTRAL),
    "OLMo 2": Case("OLMo 2", "qwen3"),
    "OLMo 3": Case("OLMo 3", "qwen3"),
    "Phi-2": Case("Phi-2", "qwen3", {"intermediate_size": 128, "num_key_value_heads": 4}),
    "Phi-3": Case("Phi-3", MISTRAL),
    "Phi-3, LongRoPE": Case("Phi-3, LongRoPE", MISTRAL),
    "Gemma": Case("Gemma", MISTRAL, suffix=NO_PREFIX),
    "Gemma 2": Case("Gemma 2", MISTRAL, SCALAR, suffix=NO_PREFIX),
    "Gemma 3": Case("Gemma 3", MISTRAL, SCALAR, suffix=NO_PREFIX),
    "Nemotron": Case("Nemotron", MISTRAL),
    "GPT-2": Case("GPT-2", "qwen3", WIDE, {"n_ctx": CONTEXT}),
    "GPT-BigCode": Case("GPT-BigCode", "qwen3", WIDE),
    "StarCoder 2": Case("StarCoder 2", "qwen3", {"sliding_window": None}),
    "GPT-NeoX": Case("GPT-NeoX", "qwen3", config=NEOX),
    "GPT-NeoX, serial": Case("GPT-NeoX, serial", "qwen3", config=NEOX),
    "StableLM": Case("StableLM", "qwen3"),
    "StableLM, parallel": Case("StableLM, parallel", "qwen3"),
    "GLM": Case("GLM", "qwen3", {"rms_norm_eps": 1e-5}, {"seq_length": CONTEXT}, **GLM),
    "GLM-4": Case("GLM-4", "qwen3", **GLM),
    "Command R": Case("Command R", "llama3_1"),
    "Command R7B": Case("Command R7B", "llama3_1", config={"rotary_pct": 1.0}),
}

# Rows of whole blocks of 256 values, the largest of llama.cpp's types.
BLOCKS = Case("Llama", "llama2", {"hidden_size": 256, "intermediate_size": 512})


class Answers(NamedTuple):
    """A folder in transformers' format, and what its network says."""

    folder: Path
    prompt: list[int]
    tokens: list[int]
    true: torch.Tensor
    twin: torch.Tensor


def build(case: Case, folder: Path) -> Answers:
    """Save the network, its values short enough for each 16-bit type, with the tokenizer's files."""
    place_tokenizer(case, folder)
    size, prompt = read_tokenizer(folder)
    model = make(case.network, vocab_size=size, pad_token_id=None, **case.changes)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().half().float()
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **case.config}))
    return Answers(folder, prompt, *answers(model, prompt, NUM_TOKENS))


def place_tokenizer(case: Case, folder: Path) -> None:
    assert FOLDER is not None
    if (source := FOLDER / "hf" / case.tokenizer).is_dir():
        shutil.copytree(source, folder, dirs_exist_ok=True)
        add_tokens(folder / "tokenizer.json", case.tokens)
        return
    pieces = (FOLDER / "mistral" / case.tokenizer).read_bytes()
    (folder / "tokenizer.model").write_bytes(pieces + case.suffix)
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def add_tokens(path: Path, tokens: Sequence[str]) -> None:
    if tokens:
        engine = tokenizers.Tokenizer.from_file(str(path))
        engine.add_special_tokens([*tokens])
        engine.save(str(path))


@cache
def read_tokenizer(folder: Path) -> tuple[int, list[int]]:
    """The number of ids, and the prompt's ids."""
    encode, size = encoder(folder)
    return size, encode(PROMPT)


def encoder(folder: Path) -> Any:
    """The function from a text to ids that the tokenizer's own library has, and the number of ids."""
    if (folder / "tokenizer.json").exists():
        engine = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        engine.encode_special_tokens = True
        return (lambda text: engine.encode(text, add_special_tokens=False).ids), engine.get_vocab_size()
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    return pieces.encode, pieces.vocab_size()


class Converter:
    """convert_hf_to_gguf.py in one process, which has imported it once and no other gguf package."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))

    def __call__(self, folder: Path, file: Path, *arguments: str) -> Path:
        whole = [str(folder), "--outfile", str(file), *arguments]
        self.pool.submit(convert_process.run, str(self.home), whole).result()
        return file
