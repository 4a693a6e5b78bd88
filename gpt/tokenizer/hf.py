"""The tokenizer of a Hugging Face folder: `tokenizer.json`, or `vocab.json` and `merges.txt`, and their companions.

`tokenizer_config.json` and `special_tokens_map.json` name the BOS and EOS tokens, `config.json` numbers them where no
name is given; `template_files` finds the chat templates. A folder without these may hold Mistral's own files. https://huggingface.co/docs/tokenizers/components
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from octavo.gpt.loading.files import is_there, read_json, read_text, read_whole
from octavo.gpt.models.config_reader import as_list
from octavo.gpt.quoting import one_line, quoted
from octavo.gpt.tokenizer import mistral
from octavo.gpt.tokenizer.engine import build, split_merge
from octavo.gpt.tokenizer.ranks import END_OF_TEXT
from octavo.gpt.tokenizer.template_files import folder_templates
from octavo.gpt.tokenizer.tokenizer import MAX_ID, Tokenizer

_ADDED = re.compile(r'(?<!\\)"added_tokens"\s*:\s*(?=\[)')


@dataclass
class _Parts:
    """The engine of `tokenizer.json`, or of `vocab.json` and `merges.txt`."""

    source: Path
    engine: tokenizers.Tokenizer
    adds: tuple[bool, bool] = False, False  # BOS and EOS, where there is no post-processor to say so
    default_special: str | None = None


def from_folder(folder: Path) -> Tokenizer | None:
    """Return the folder's tokenizer; None if it has no tokenizer files. ValueErrors name the file at fault."""
    one_file, vocab, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    try:
        config = read_json(folder / "tokenizer_config.json")
        if is_there(one_file):
            return _with_config(folder, config, _Parts(one_file, _read(one_file)))
        if is_there(vocab) and is_there(merges):
            return _with_config(folder, config, _from_vocab_and_merges(vocab, merges, config))
    except (TypeError, KeyError, AttributeError, IndexError, UnicodeEncodeError) as error:  # a field of a wrong shape
        raise ValueError(
            f"{folder}: malformed tokenizer files ({type(error).__name__}: {one_line(str(error), 80)})"
        ) from None
    if is_there(vocab) or is_there(merges):
        raise ValueError(f"{folder}: vocab.json and merges.txt belong together, and one is missing")
    return mistral.from_folder(folder)


def is_tokenizer_file(path: Path) -> bool:
    """Whether a file of this name holds a tokenizer and no model."""
    return path.name == "tokenizer.json" or mistral.is_its_file(path)


def from_file(path: Path) -> Tokenizer | None:
    """Return the tokenizer of such a file, with what stands beside it in its folder."""
    return mistral.from_file(path) if mistral.is_its_file(path) else from_folder(path.parent)


def _read(path: Path) -> tokenizers.Tokenizer:
    """Return the engine of a tokenizer.json, each added token with the id that the file gives it."""
    text = read_whole(path)
    engine: tokenizers.Tokenizer = build(str(path), lambda: tokenizers.Tokenizer.from_buffer(text))
    if dropout := getattr(engine.model, "dropout", None):
        raise ValueError(f"{path}: model dropout {dropout:g} is not supported: a text would have other ids each time")
    engine.no_truncation()  # both are left in the file by the last training run, and would cut or fill prompts
    engine.no_padding()
    found = _ADDED.search(text.decode("utf-8"))
    listed = json.JSONDecoder().raw_decode(text.decode("utf-8"), found.end())[0] if found else []
    _check_ids(engine, {entry["content"]: entry["id"] for entry in listed}, path)
    return engine


def _check_ids(engine: tokenizers.Tokenizer, listed: dict[str, int], source: Path) -> None:
    """Refuse a file whose ids are not those of its tokens: the engine numbers added tokens on its own, in order."""
    for text, id in listed.items():
        if text and engine.token_to_id(text) != id:
            raise ValueError(
                f"{source}: added token {quoted(text)} has id {quoted(id)}, "
                f"but {engine.token_to_id(text)} is the one that follows the vocabulary"
            )


def _from_vocab_and_merges(vocab: Path, merges: Path, config: dict[str, Any]) -> _Parts:
    """Read GPT-2's pair of files; other tokenizers kept in such a pair cut text in other ways."""
    name, source = config.get("tokenizer_class"), vocab.parent / "tokenizer_config.json"
    if name not in (None, "GPT2Tokenizer", "GPT2TokenizerFast"):
        raise ValueError(f"{source}: tokenizer_class {quoted(name)} needs a tokenizer.json")
    lines = [line.rstrip("\r") for line in read_text(merges).split("\n") if not line.startswith("#version")]
    pairs = [split_merge(line, str(merges)) for line in lines if line]
    engine = build(str(vocab), lambda: tokenizers.Tokenizer(models.BPE(vocab=read_json(vocab), merges=pairs)))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space")))
    engine.decoder = decoders.ByteLevel()
    added_file = vocab.parent / "added_tokens.json"
    _add(engine, {id: {"content": text} for text, id in read_json(added_file).items()}, added_file)
    return _Parts(vocab, engine, (bool(config.get("add_bos_token")), bool(config.get("add_eos_token"))), END_OF_TEXT)


def _add(engine: tokenizers.Tokenizer, listed: dict[Any, dict[str, Any]], source: Path) -> None:
    """Add tokens that a companion file lists by their ids, those that the engine has not."""
    for id, entry in listed.items():
        if type(id) is not int or not 0 <= id <= MAX_ID:
            raise ValueError(
                f"{source}: added token {quoted(entry['content'])} has id {quoted(id)}, outside [0, {MAX_ID}]"
            )
    missing = [entry for id, entry in sorted(listed.items()) if engine.token_to_id(entry["content"]) != id]
    engine.add_tokens([_added_token(entry) for entry in missing])
    engine.add_special_tokens([_added_token(entry) for entry in missing if entry.get("special")])
    _check_ids(engine, {entry["content"]: id for id, entry in listed.items()}, source)


def _added_token(entry: dict[str, Any]) -> tokenizers.AddedToken:
    flags = {name: bool(entry[name]) for name in ("single_word", "lstrip", "rstrip", "normalized") if name in entry}
    return tokenizers.AddedToken(entry["content"], special=bool(entry.get("special")), **flags)


def _with_config(folder: Path, config: dict[str, Any], parts: _Parts) -> Tokenizer:
    source, engine = folder / "tokenizer_config.json", parts.engine
    listed = config.get("added_tokens_decoder", {})
    if not all(id.isdecimal() and len(id) <= len(str(MAX_ID)) for id in listed):
        raise ValueError(f"{source}: added_tokens_decoder must be keyed by token ids")
    _add(engine, {int(id): entry for id, entry in listed.items()}, source)
    bos_ids, eos_ids = (_named(folder, config, f"{name}_token", parts) for name in ("bos", "eos"))
    before, after = _frame(engine)
    adds_bos, adds_eos = parts.adds
    before, after = bos_ids if adds_bos else before, eos_ids[:1] if adds_eos else after
    return Tokenizer(
        engine,
        str(parts.source),
        bos_id=next(iter((*before, *bos_ids)), None),
        eos_ids=eos_ids,
        before=before,
        after=after,
        chat_template=folder_templates(folder, config),
    )


def _frame(engine: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that the post-processor puts before and behind a text."""
    framed = engine.encode("a")
    ids, added = framed.ids, framed.special_tokens_mask
    start = added.index(0) if 0 in added else len(ids)
    stop = len(ids) - added[::-1].index(0) if 0 in added else len(ids)
    return tuple(ids[:start]), tuple(ids[stop:])


def _named(folder: Path, config: dict[str, Any], key: str, parts: _Parts) -> tuple[int, ...]:
    """Return the ids of the BOS or EOS token: by its name beside the tokenizer, else by its number in `config.json`."""
    name = config.get(key) or read_json(folder / "special_tokens_map.json").get(key) or parts.default_special
    text = name["content"] if isinstance(name, dict) else name
    if text is not None and (number := parts.engine.token_to_id(text)) is not None:
        return (number,)
    if text is not None and text != parts.default_special:
        raise ValueError(f"{folder / 'tokenizer_config.json'}: {key} {quoted(text)} is not in the vocabulary")
    value = read_json(folder / "config.json").get(f"{key}_id")
    return tuple(id for id in as_list(value) if _is_token(parts.engine, id))


def _is_token(engine: tokenizers.Tokenizer, id: Any) -> bool:
    return type(id) is int and 0 <= id <= MAX_ID and engine.id_to_token(id) is not None
