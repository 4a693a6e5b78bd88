"""TextStream: pieces add up to the whole, stop strings are held back and cut."""

import pytest

from octavo.gpt.text import TextStream


class Letters:
    """A tokenizer's place taken by a list of byte strings: token i is entry i."""

    def __init__(self, *entries: str) -> None:
        self.entries = [entry.encode() for entry in entries]

    def token_bytes(self, token_id: int) -> bytes:
        return self.entries[token_id]

    def is_special(self, token_id: int) -> bool:
        return False


def read(entries: list[str], stops: tuple[str, ...]) -> tuple[list[str], str | None]:
    stream = TextStream(Letters(*entries), stops, True)
    pieces = []
    for token_id in range(len(entries)):
        pieces.append(stream.push(token_id))
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
    stream = TextStream(Letters("ab<", "/", "s>"), ("</s>",), True)
    assert [stream.push(0), stream.push(1), stream.push(2)] == ["ab", "", ""]


def test_stop_strings_wait_for_min_tokens():
    stream = TextStream(Letters("aEND", "b", "END"), ("END",), True)
    assert stream.push(0, may_stop=False) + stream.push(1, may_stop=False) + stream.push(2) == "aENDb"
    assert stream.stopped_by == "END"
