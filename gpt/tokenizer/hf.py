"""The tokenizer of a Hugging Face folder: `tokenizer.json`, or `vocab.json` and `merges.txt`, and their companions.

`tokenizer_config.json` and `special_tokens_map.json` name the BOS and EOS tokens, `config.json` numbers them where no
name is given; `template_files` finds the chat templates. Whatever would make ids other than byte-level BPE's is refused
by name. https://huggingface.co/docs/tokenizers/components
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import regex

from octavo.gpt.loading.files import is_there, read_json, read_text
from octavo.gpt.models.config_reader import as_list
from octavo.gpt.quoting import one_line, quoted
from octavo.gpt.tokenizer.gguf import END_OF_TEXT, make_tokenizer, split_merge
from octavo.gpt.tokenizer.pretokenizer import DIGIT, DIGITS, GPT2, AddedToken
from octavo.gpt.tokenizer.template_files import folder_templates
from octavo.gpt.tokenizer.tokenizer import Tokenizer

# Fields of tokenizer.json's "model" and the values that leave byte-level BPE as it is.
_PLAIN_BPE = {
    "type": ("BPE",),
    "dropout": (None, 0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (None, False),
}

MAX_ID = 2**31 - 1  # ids are 32-bit integers in the network


@dataclass
class _Parts:
    """Contents of `tokenizer.json`, or of `vocab.json` and `merges.txt`."""

    source: Path
    tokens: dict[int, str]
    merges: list[tuple[str, str]]
    splits: tuple[str, ...] = (GPT2,)
    added: dict[int, AddedToken] = field(default_factory=dict)
    prompt_start: int | None = None  # the BOS that tokenizer.json itself puts before every prompt
    adds_bos: bool = False  # the same wish where there is no tokenizer.json, whose post-processor has the last word
    default_special: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


def from_folder(folder: Path) -> Tokenizer | None:
    """Return the folder's tokenizer; None if it has no tokenizer files. ValueErrors name the file at fault."""
    names = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model")
    one_file, vocab, merges, sentencepiece = (folder / name for name in names)
    try:
        config = read_json(folder / "tokenizer_config.json")
        if is_there(one_file):
            return _with_config(folder, config, _from_tokenizer_json(one_file))
        if is_there(vocab) and is_there(merges):
            return _with_config(folder, config, _from_vocab_and_merges(vocab, merges, config))
    except (TypeError, KeyError, AttributeError, IndexError, UnicodeEncodeError) as error:  # a field of a wrong shape
        raise ValueError(
            f"{folder}: malformed tokenizer files ({type(error).__name__}: {one_line(str(error), 80)})"
        ) from None
    if is_there(vocab) or is_there(merges):
        raise ValueError(f"{folder}: vocab.json and merges.txt belong together, and one is missing")
    if is_there(sentencepiece):
        raise ValueError(f"{sentencepiece}: sentencepiece is not supported, only byte-level BPE")
    return None


def _by_id(vocab: dict[str, int], source: Path) -> dict[int, str]:
    tokens = {id: token for token, id in vocab.items()}
    if len(tokens) != len(vocab) or not all(type(id) is int and 0 <= id <= MAX_ID for id in tokens):
        raise ValueError(f"{source}: the vocabulary must number its tokens, each by an integer of its own")
    return tokens


def _from_vocab_and_merges(vocab: Path, merges: Path, config: dict[str, Any]) -> _Parts:
    """Read GPT-2's pair of files; other tokenizers kept in such a pair cut text in other ways."""
    name, source = config.get("tokenizer_class"), vocab.parent / "tokenizer_config.json"
    if name not in (None, "GPT2Tokenizer", "GPT2TokenizerFast"):
        raise ValueError(f"{source}: tokenizer_class {quoted(name)} needs a tokenizer.json")
    if config.get("add_prefix_space"):
        raise ValueError(f"{source}: add_prefix_space is not supported")
    lines = [line.rstrip("\r") for line in read_text(merges).split("\n") if not line.startswith("#version")]
    added_file = vocab.parent / "added_tokens.json"
    added = read_json(added_file)
    return _Parts(
        vocab,
        _by_id(read_json(vocab), vocab),
        [split_merge(line, str(merges)) for line in lines if line],
        added={id: _added(id, {"content": text}, added_file) for text, id in added.items()},
        default_special=END_OF_TEXT,
        adds_bos=bool(config.get("add_bos_token")),
    )


def _from_tokenizer_json(path: Path) -> _Parts:
    data = read_json(path)
    model = data["model"]
    for name, plain in _PLAIN_BPE.items():
        if model.get(name) not in plain:
            raise ValueError(f"{path}: model {name} {quoted(model.get(name))} is not supported, only byte-level BPE")
    normal_form = (data.get("normalizer") or {}).get("type")
    if normal_form not in (None, "NFC"):
        raise ValueError(f"{path}: normalizer {quoted(normal_form)} is not supported")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    unknown = model.get("unk_token")
    options = {
        "ignore_merges": bool(model.get("ignore_merges")),
        "unk_id": None if unknown is None else model["vocab"][unknown],
        "fuse_unk": bool(model.get("fuse_unk")),
        "normal_form": normal_form,
    }
    return _Parts(
        path,
        _by_id(model["vocab"], path),
        [split_merge(merge, str(path)) for merge in merges],
        _splits(data.get("pre_tokenizer"), path),
        {entry["id"]: _added(entry["id"], entry, path) for entry in data.get("added_tokens", ())},
        _prompt_start(data.get("post_processor"), path),
        options=options,
    )


def _added(id: Any, entry: dict[str, Any], source: Path) -> AddedToken:
    if type(id) is not int or not 0 <= id <= MAX_ID:
        raise ValueError(f"{source}: added token {quoted(entry['content'])} has id {quoted(id)}, outside [0, {MAX_ID}]")
    if entry.get("single_word"):
        raise ValueError(
            f"{source}: added token {quoted(entry['content'])} asks for single_word, which is not supported"
        )
    strips = bool(entry.get("lstrip")), bool(entry.get("rstrip"))
    return AddedToken(entry["content"], id, bool(entry.get("special")), *strips)


def _splits(spec: dict[str, Any] | None, source: Path) -> tuple[str, ...]:
    """Return the regular expressions of a pre-tokenizer, which must end in ByteLevel."""
    stages = _flat(spec, "pretokenizers")
    if not stages or stages[-1]["type"] != "ByteLevel" or any(stage["type"] == "ByteLevel" for stage in stages[:-1]):
        names = " + ".join(stage["type"] for stage in stages)
        raise ValueError(
            f"{source}: pre_tokenizer {quoted(names or None)} is not supported: only one that ends in ByteLevel"
        )
    return tuple(pattern for stage in stages if (pattern := _stage(stage, source)))


def _flat(spec: dict[str, Any] | None, parts: str) -> list[dict[str, Any]]:
    if spec is None:
        return []
    return [stage for part in spec[parts] for stage in _flat(part, parts)] if spec["type"] == "Sequence" else [spec]


def _stage(stage: dict[str, Any], source: Path) -> str | None:
    match stage:
        case {"type": "ByteLevel", "add_prefix_space": True}:
            raise ValueError(f"{source}: pre_tokenizer ByteLevel with add_prefix_space is not supported")
        case {"type": "ByteLevel"}:
            return GPT2 if stage.get("use_regex", True) else None
        case {"type": "Digits"}:
            return DIGIT if stage["individual_digits"] else DIGITS
        case {"type": "Split", "behavior": "Isolated", "pattern": {"String": str(text)}}:
            return regex.escape(text)
        case {"type": "Split", "behavior": "Isolated", "pattern": {"Regex": str(pattern)}}:
            try:
                regex.compile(pattern)
            except regex.error as error:
                raise ValueError(
                    f"{source}: pre_tokenizer Split: {one_line(str(error), 80)} in {quoted(pattern)}"
                ) from None
            return pattern
    behavior = f" with behavior {quoted(stage['behavior'])}" if "behavior" in stage else ""
    raise ValueError(f"{source}: pre_tokenizer {quoted(stage['type'])}{behavior} is not supported")


def _prompt_start(spec: dict[str, Any] | None, source: Path) -> int | None:
    """Return the id that a post-processor puts before a prompt, None if there is none."""
    found = None
    for stage in _flat(spec, "processors"):
        match stage:
            case {"type": "ByteLevel"} | {"type": "TemplateProcessing", "single": [{"Sequence": _}]}:
                pass
            case {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": name}}, {"Sequence": _}]}:
                found = stage["special_tokens"][name]["ids"][0]
            case _:
                what = " that adds more than BOS" if stage["type"] == "TemplateProcessing" else ""
                raise ValueError(f"{source}: post_processor {quoted(stage['type'])}{what} is not supported")
    return found


def _with_config(folder: Path, config: dict[str, Any], parts: _Parts) -> Tokenizer:
    source = folder / "tokenizer_config.json"
    if config.get("add_eos_token"):
        raise ValueError(f"{source}: add_eos_token is not supported")
    listed = config.get("added_tokens_decoder", {})
    if not all(id.isdecimal() and len(id) <= len(str(MAX_ID)) for id in listed):
        raise ValueError(f"{source}: added_tokens_decoder must be keyed by token ids")
    added = parts.added | {int(id): _added(int(id), entry, source) for id, entry in listed.items()}
    texts = parts.tokens | {id: token.text for id, token in added.items()}
    bos_ids, eos_ids = (_named(folder, config, f"{name}_token", texts, parts) for name in ("bos", "eos"))
    if parts.prompt_start is not None:
        bos_ids = (parts.prompt_start,)
    for id in (*bos_ids, *eos_ids):
        added[id] = added.get(id, AddedToken(texts[id], id, special=True))._replace(special=True)
    return make_tokenizer(
        str(parts.source),
        texts,
        parts.merges,
        added.values(),
        splits=parts.splits,
        bos_id=bos_ids[0] if bos_ids else None,
        eos_ids=eos_ids,
        add_bos=bool(bos_ids) and (parts.prompt_start is not None or parts.adds_bos),
        chat_template=folder_templates(folder, config),
        **parts.options,
    )


def _named(folder: Path, config: dict[str, Any], key: str, texts: dict[int, str], parts: _Parts) -> tuple[int, ...]:
    """Return the ids of the BOS or EOS token: by its name beside the tokenizer, else by its number in `config.json`."""
    name = config.get(key) or read_json(folder / "special_tokens_map.json").get(key) or parts.default_special
    text = name["content"] if isinstance(name, dict) else name
    numbers = {token: id for id, token in texts.items()}
    if text in numbers:
        return (numbers[text],)
    if text is not None and text != parts.default_special:
        raise ValueError(f"{folder / 'tokenizer_config.json'}: {key} {quoted(text)} is not in the vocabulary")
    value = read_json(folder / "config.json").get(f"{key}_id")
    return tuple(id for id in as_list(value) if id in texts)
