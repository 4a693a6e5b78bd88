"""Which proposer a caller asks for: by an object of ours, by a word on the command line, or by vLLM's dict."""

from collections.abc import Mapping
from typing import Any

from octavo.gpt.quoting import quoted
from octavo.gpt.speculative.draft_model import DraftModel
from octavo.gpt.speculative.ngram import NGram
from octavo.gpt.speculative.proposer import Options

# vLLM's methods, and what its words are called here.
OF_METHOD: dict[str, tuple[type[Any], dict[str, str]]] = {
    "ngram": (
        NGram,
        {"num_speculative_tokens": "num_tokens", "prompt_lookup_min": "min_match", "prompt_lookup_max": "max_match"},
    ),
    "draft_model": (DraftModel, {"num_speculative_tokens": "num_tokens", "model": "model"}),
}


def chosen(speculative: Any, config: Mapping[str, Any] | None = None) -> Options | None:
    """Return the options asked for as `speculative`, or as vLLM's `speculative_config`; ValueError names what is wrong.

    As text: "ngram", or the draft model's name, folder or file; ":4" behind it is the number of tokens to guess at a
    time.
    """
    if speculative is not None and config is not None:
        raise ValueError("speculative and speculative_config ask for the same thing: leave one out")
    if config is not None:
        return _of_vllm(dict(config))
    if isinstance(speculative, str):
        return _of_text(speculative)
    if not isinstance(speculative, NGram | DraftModel | None):
        raise ValueError(f"speculative must be an NGram, a DraftModel or a text, not {quoted(speculative)}")
    return speculative


def _of_text(text: str) -> Options:
    name, colon, number = text.rpartition(":")
    given: dict[str, Any] = {"num_tokens": int(number)} if colon and number.isdecimal() else {}
    name = name if given else text
    if name == "ngram":
        return NGram(**given)
    if not name or name.startswith("ngram:"):
        raise ValueError(f"speculative must be ngram, a model, or either with :NUMBER, not {quoted(text)}")
    return DraftModel(name, **given)


def _of_vllm(config: dict[str, Any]) -> Options:
    given = {name: value for name, value in config.items() if value is not None}
    method = given.pop("method", "draft_model")
    if method not in OF_METHOD:
        raise ValueError(f"speculative_config's method must be {' or '.join(OF_METHOD)}, not {quoted(method)}")
    kind, names = OF_METHOD[method]
    for name in given:
        if name not in names:
            raise ValueError(f"speculative_config does not support {quoted(name)} with method {method}")
    if kind is DraftModel and "model" not in given:
        raise ValueError("speculative_config names no model")
    if "prompt_lookup_max" in given:
        given.setdefault("prompt_lookup_min", min(given["prompt_lookup_max"], NGram.min_match))
    return kind(**{names[name]: value for name, value in given.items()})
