"""What makers of engines share: the package's refusals in one line, and pairs of tokens as merges."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tokenizers

from octavo.gpt.quoting import one_line, quoted


def guarded(complaint: str, call: Callable[[], Any]) -> Any:
    """Return what `call` returns; a ValueError that begins with the complaint for whatever the package raises."""
    try:
        return call()
    except (OSError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of Rust is no Exception
        reason = str(error).removeprefix("Cannot instantiate Tokenizer from buffer: ")
        raise ValueError(f"{complaint}: {one_line(reason, 200)}") from None


def build(source: str, make: Callable[[], tokenizers.Tokenizer]) -> tokenizers.Tokenizer:
    engine: tokenizers.Tokenizer = guarded(f"{source}: not a tokenizer that can be used", make)
    return engine


def split_merge(merge: str, source: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    if not left or not right or " " in right:
        raise ValueError(f"{source}: {quoted(merge)} is not a pair of tokens")
    return left, right


def all_merges(tokens: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Yield every pair of tokens that joins to a token, in the order of the tokens they make."""
    for token in tokens:
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in tokens and right in tokens:
                yield left, right
