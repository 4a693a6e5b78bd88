"""Tokenizers from a GGUF's metadata: the engine that llama.cpp's three kinds of BPE come to.

"gpt2" is byte-level BPE, with one printable character for each byte, cut before by what `tokenizer.ggml.pre` names;
"gemma4" merges text as it is, with U+2581 for spaces; "llama" is SentencePiece's, which gives tokens scores and no
merges: of all cuts of a token in two tokens the best scored token merges first. The last two spell bytes <0x0A>.
"""

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers

from octavo.gpt.quoting import quoted
from octavo.gpt.tokenizer.engine import all_merges, build, split_merge
from octavo.gpt.tokenizer.pretokenizer import PRE, SPACES_AS_MARKS, byte_level, cutter
from octavo.gpt.tokenizer.template_files import gguf_templates
from octavo.gpt.tokenizer.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type
SPACE = "\u2581"  # what SentencePiece writes for a space
MODELS = "gpt2", "gemma4", "llama"


def from_gguf_metadata(metadata: Mapping[str, Any], source: str = "GGUF") -> Tokenizer | None:
    """Return the tokenizer of a GGUF file, None if it has none. ValueErrors begin with `source`, the file's name."""
    model = metadata.get("tokenizer.ggml.model")
    if model in (None, "none", "no_vocab"):
        return None
    if model not in MODELS:
        raise ValueError(
            f"{source}: tokenizer.ggml.model {quoted(model)} is not supported, only {', '.join(MODELS)} (BPE)"
        )
    fields = _Fields(metadata, source)
    ids: dict[str, int] = {}
    for id, token in enumerate(fields.tokens):
        ids.setdefault(token, id)
    engine, add_bos = _sentencepiece(fields, ids) if model == "llama" else _bpe(fields, ids, model)
    engine.add_tokens(fields.added(USER_DEFINED))
    engine.add_special_tokens(fields.added(CONTROL, UNKNOWN))
    bos_id, *ends = (fields.id(f"{name}_token_id") for name in ("bos", "eos", "eot", "eom"))
    eos_ids = tuple(dict.fromkeys(id for id in ends if id is not None))
    starts = bool(metadata.get("tokenizer.ggml.add_bos_token", add_bos)) and bos_id is not None
    stops = bool(metadata.get("tokenizer.ggml.add_eos_token")) and bool(eos_ids)
    return Tokenizer(
        engine,
        source,
        bos_id=bos_id,
        eos_ids=eos_ids,
        before=(bos_id,) if starts and bos_id is not None else (),
        after=eos_ids[:1] if stops else (),
        chat_template=gguf_templates(metadata, source),
    )


class _Fields:
    """The metadata's lists, checked against each other."""

    def __init__(self, metadata: Mapping[str, Any], source: str) -> None:
        self.metadata, self.source = metadata, source
        self.tokens: list[str] = self.values("tokens", str)
        kinds = self.values("token_type", int) if "tokenizer.ggml.token_type" in metadata else []
        self.kinds: list[int] = self.matching("token_type", kinds) if kinds else [NORMAL] * len(self.tokens)

    def get(self, key: str) -> Any:
        return self.metadata.get(f"tokenizer.ggml.{key}")

    def values(self, key: str, kind: type) -> list[Any]:
        values = self.get(key)
        if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
            raise ValueError(f"{self.source}: tokenizer.ggml.{key} must be a list of {kind.__name__}")
        return values

    def matching(self, key: str, values: list[Any]) -> list[Any]:
        if len(values) != len(self.tokens):
            raise ValueError(f"{self.source}: {len(self.tokens)} tokenizer.ggml.tokens but {len(values)} of {key}")
        return values

    def added(self, *kinds: int) -> list[tokenizers.AddedToken]:
        """Return the tokens of these types, which are found in a text before anything else."""
        texts = [token for token, kind in zip(self.tokens, self.kinds, strict=True) if kind in kinds and token]
        return [tokenizers.AddedToken(text, normalized=False, special=CONTROL in kinds) for text in texts]

    def merges(self) -> list[tuple[str, str]]:
        return [split_merge(merge, f"{self.source}: tokenizer.ggml.merges") for merge in self.values("merges", str)]

    def id(self, key: str) -> int | None:
        value = self.get(key)
        if value is not None and not (isinstance(value, int) and 0 <= value < len(self.tokens)):
            size = len(self.tokens)
            raise ValueError(f"{self.source}: tokenizer.ggml.{key} {quoted(value)} is outside the vocabulary of {size}")
        return value


def _bpe(fields: _Fields, ids: dict[str, int], model: str) -> tuple[tokenizers.Tokenizer, bool]:
    name = "gemma4" if model == "gemma4" else fields.get("pre") or "default"
    if not isinstance(name, str) or name not in PRE:
        raise ValueError(f"{fields.source}: tokenizer.ggml.pre {quoted(name)} is not supported")
    pre, merges, bare = PRE[name], fields.merges(), name in SPACES_AS_MARKS
    engine = build(
        fields.source,
        lambda: tokenizers.Tokenizer(
            models.BPE(vocab=ids, merges=merges, ignore_merges=pre.ignore_merges, byte_fallback=bare)
        ),
    )
    if bare:
        engine.normalizer, engine.pre_tokenizer = normalizers.Replace(" ", SPACE), cutter(pre.splits)
        engine.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    else:
        engine.pre_tokenizer, engine.decoder = byte_level(pre.splits)
        if pre.nfc:
            engine.normalizer = normalizers.NFC()
    return engine, pre.add_bos


def _sentencepiece(fields: _Fields, ids: dict[str, int]) -> tuple[tokenizers.Tokenizer, bool]:
    scores = fields.matching("scores", fields.values("scores", float))
    mergeable = {
        token: id
        for token, id in ids.items()
        if fields.kinds[id] == NORMAL and scores[id] == scores[id]  # no NaN
    }
    if len({scores[id] for id in mergeable.values()}) == 1:
        scores = scores_by_id(fields.tokens)
    prefix = fields.get("add_space_prefix")
    return sentencepiece_engine(
        fields.source,
        ids,
        merges_by_score(mergeable, scores),
        prefix is None or bool(prefix),
        fields.id("unknown_token_id"),
    ), True


def scores_by_id(tokens: list[str]) -> list[float]:
    """Return the scores of a vocabulary whose file has one for all, as llama.cpp's converter makes of tokenizer.json.

    SentencePiece numbers tokens in the order in which they merge; runs of spaces have low numbers but merge last.
    """
    return [-float(id + len(tokens) * (set(token) == {SPACE})) for id, token in enumerate(tokens)]


def merges_by_score(tokens: Mapping[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Return every pair of tokens that joins to a token, the best scored first.

    SentencePiece merges the leftmost of equally scored pairs. Such are runs of spaces, in which the parts that merged
    before stand from the longest to the shortest, so the longest left part goes first.
    """

    def order(pair: tuple[str, str]) -> tuple[float, int, int]:
        left, right = pair
        return -scores[tokens[left + right]], -len(left), -len(right)

    return sorted(all_merges(tokens), key=order)


def sentencepiece_engine(
    source: str, ids: Mapping[str, int], merges: list[tuple[str, str]], prefix: bool, unk_id: int | None
) -> tokenizers.Tokenizer:
    """Return the engine of SentencePiece's BPE: spaces are U+2581, one more before a text if `prefix`."""
    unknown = next((token for token, id in ids.items() if id == unk_id), None)
    engine: tokenizers.Tokenizer = build(
        source,
        lambda: tokenizers.Tokenizer(
            models.BPE(vocab=dict(ids), merges=merges, byte_fallback=True, fuse_unk=True, unk_token=unknown)
        ),
    )
    marks = [normalizers.Prepend(SPACE)] if prefix else []
    engine.normalizer = normalizers.Sequence([*marks, normalizers.Replace(" ", SPACE)])
    strips = [decoders.Strip(" ", 1, 0)] if prefix else []
    engine.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strips]
    )
    return engine
