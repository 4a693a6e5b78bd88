"""Small byte-level tokenizers, trained and saved by Hugging Face's `tokenizers`."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers

from hard_text import FRAGMENTS

CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(use_regex: bool = True) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def cut(*patterns: str) -> Any:
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*splits, byte_level(use_regex=False)])


RULES = {
    "gpt-2": byte_level(),
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level()]),
    "llama-bpe": cut(CL100K % "{1,3}"),
    "qwen2": cut(CL100K % ""),
    "tekken": cut(TEKKEN),
    "runs of digits": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), byte_level()]),
    "many splits": cut(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥가-퟿]+", r"\p{N}"),
    "a literal split": pre_tokenizers.Sequence([pre_tokenizers.Split("the", "isolated"), byte_level()]),
    "no split": byte_level(use_regex=False),
}
WITH_BOS = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)])


def train(rule: Any, whole_alphabet: bool = True, **options: Any) -> tokenizers.Tokenizer:
    """A small byte-level BPE, learned from pairs of fragments uncut, so that every cut of `rule` tells."""
    trained = tokenizers.Tokenizer(models.BPE(**options))
    trained.pre_tokenizer = RULES["no split"]
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if whole_alphabet else []
    trainer = trainers.BpeTrainer(
        vocab_size=2500, special_tokens=["<s>", "<|im_end|>"], initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(map("".join, product(FRAGMENTS, repeat=2)), trainer)
    trained.pre_tokenizer = rule
    return trained


def save(trained: tokenizers.Tokenizer, folder: Path, **config: Any) -> Path:
    trained.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def as_gguf(trained: tokenizers.Tokenizer, pre: str) -> dict[str, Any]:
    model = json.loads(trained.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*tokens, "<tool>"],
        "tokenizer.ggml.token_type": [3, 3, *[1] * (len(tokens) - 2), 4],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }


def smollm2_oracle(metadata: dict[str, Any]) -> tokenizers.Tokenizer:
    """What SmolLM2's tokenizer.json says: every numeric character alone, then GPT-2's rule."""
    vocab = {token: id for id, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    oracle = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    oracle.pre_tokenizer, oracle.decoder = RULES["smollm"], decoders.ByteLevel()
    return oracle
