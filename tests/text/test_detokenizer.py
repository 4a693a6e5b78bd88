"""TextStream: pieces add up to the whole, stop strings are held back and cut."""

import pytest

from octavo.gpt.tokenizer.detokenizer import TextStream


class Letters:
    """A tokenizer's place taken by a list of byte strings: token i is entry i."""

    def __init__(self, *entries: str) -> None:
        self.entries = [entry.encode() for entry in entries]
        self.vocab_size = len(entries)

    def token_bytes(self, token_id: int) -> bytes:
        return self.entries[token_id]

    def is_special(self, token_id: int) -> bool:
        return False


def read(entries: list[str], stops: tuple[str, ...]) -> tuple[list[str], str | None]:
    stream = TextStream(Letters(*entries), stops)
    pieces = []
    for token_id in range(len(entries)):
        pieces.append(stream.push(token_id, token_id + 1))
        if stream.stopped_by is not None:
            return pieces, stream.stopped_by
    return [*pieces, stream.flush()], stream.stopped_by


CASES = {
    "none": (["ab", "cd"], (), "abcd", None),
    "inside a token": (["ab", "cENDd"], ("END",), "abc", "END"),
    "over three tokens": (["abE", "N", "Dxx"], ("END",), "ab", "END"),
    "begun, not ended": (["abE", "N", "xx"], ("END",), "abENxx", None),
    "begun at the very end": (["ab", "EN"], ("END",), "abEN", None),
    "begun twice": (["EE", "ND"], ("END",), "E", "END"),
    "the first of two": (["a b", "c stop"], ("stop", "c"), "a b", "c"),
    "one begins the other": (["x", "yz"], ("xyzz", "yz"), "x", "yz"),
    "at once": (["\n\n"], ("\n",), "", "\n"),
}


@pytest.mark.parametrize("name", CASES)
def test_text_is_cut_at_the_first_stop_string(name):
    entries, stops, text, stopped_by = CASES[name]
    pieces, by = read(entries, stops)
    assert ("".join(pieces), by) == (text, stopped_by)


def test_nothing_is_shown_that_a_stop_string_may_take_back():
    stream = TextStream(Letters("ab<", "/", "s>"), ("</s>",))
    assert [stream.push(i, i + 1) for i in range(3)] == ["ab", "", ""]


def test_stop_strings_wait_for_min_tokens():
    stream = TextStream(Letters("aEND", "b", "END"), ("END",), min_tokens=3)
    assert "".join(stream.push(i, i + 1) for i in range(3)) == "aENDb"
    assert stream.stopped_by == "END"


EARLY = {  # stop strings, min_tokens -> the text, and what stopped it
    "complete and held back for a longer one": (["a", "X", "b", "c"], ("X", "Xylophone"), 3, "aXbc", None),
    "a second time, later": (["a", "X", "b", "X"], ("X", "Xylophone"), 3, "aXb", "X"),
    "early, with a part of itself": (["x", "aa", "a", "b"], ("aa",), 3, "xa", "aa"),
    "begun early": (["a", "E", "ND", "b"], ("END",), 3, "a", "END"),
    "held back over tokens without text": (["X", "", "y", "z"], ("X", "Xyz"), 2, "", "Xyz"),
}


@pytest.mark.parametrize(("entries", "stops", "min_tokens", "text", "stopped_by"), EARLY.values(), ids=EARLY)
def test_a_stop_string_completed_too_early_never_stops(entries, stops, min_tokens, text, stopped_by):
    stream = TextStream(Letters(*entries), stops, min_tokens=min_tokens)
    pieces = []
    for token_id in range(len(entries)):
        pieces.append(stream.push(token_id, token_id + 1))
        if stream.stopped_by is not None:
            break
    assert ("".join(pieces) + stream.flush(), stream.stopped_by) == (text, stopped_by)


def test_ids_that_end_the_request_and_ids_past_the_vocabulary_have_no_text():
    stream = TextStream(Letters("a", "b"), silent_ids={1})
    assert [stream.push(i, i + 1) for i in range(3)] == ["a", "", ""]
