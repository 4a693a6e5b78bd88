"""Which proposer a caller asks for: by an object of ours, by a word on the command line, or by vLLM's dict."""

from collections.abc import Mapping
from typing import Any

from octavo.gpt.options.checks import integer
from octavo.gpt.quoting import quoted
from octavo.gpt.speculative.ngram import MOST_TOKENS, NGram
from octavo.gpt.speculative.proposer import Options

OF_NGRAM = {"num_speculative_tokens": "num_tokens", "prompt_lookup_min": "min_match", "prompt_lookup_max": "max_match"}


def chosen(speculative: Any, config: Mapping[str, Any] | None = None) -> Options | None:
    """Return the options asked for as `speculative`, or as vLLM's `speculative_config`; ValueError names what is wrong.

    As text: "ngram" or "ngram:4", the number of tokens to guess at a time.
    """
    if speculative is not None and config is not None:
        raise ValueError("speculative and speculative_config ask for the same thing: leave one out")
    if config is not None:
        return _of_vllm(dict(config))
    if isinstance(speculative, str):
        return _of_text(speculative)
    if speculative is not None and not isinstance(speculative, NGram):
        raise ValueError(f"speculative must be an NGram or None, not {quoted(speculative)}")
    return speculative


def _of_text(text: str) -> Options:
    name, _, number = text.partition(":")
    if name != "ngram" or (number and not number.isdecimal()):
        raise ValueError(f"speculative must be ngram or ngram:NUMBER, not {quoted(text)}")
    return NGram(integer("speculative's number of tokens", int(number), 1, MOST_TOKENS)) if number else NGram()


def _of_vllm(config: dict[str, Any]) -> Options:
    given = {name: value for name, value in config.items() if value is not None}
    method = given.pop("method", None)
    if method != "ngram":
        raise ValueError(f"speculative_config's method must be 'ngram', not {quoted(method)}")
    for name in given:
        if name not in OF_NGRAM:
            raise ValueError(f"speculative_config does not support {quoted(name)} with method 'ngram'")
    if "prompt_lookup_max" in given:
        given.setdefault("prompt_lookup_min", min(given["prompt_lookup_max"], NGram.min_match))
    return NGram(**{OF_NGRAM[name]: value for name, value in given.items()})
