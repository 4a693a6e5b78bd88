"""Strings that tokenizers get wrong, and a hypothesis strategy that mixes their pieces with any assigned character.

Characters that Python's Unicode tables do not know are left out: which of them are letters depends on the version of
the tables, and every library carries its own.
"""

# ruff: noqa: RUF001

from hypothesis import strategies as st

CORPUS = {
    "empty": "",
    "plain": "The capital of France is Paris.",
    "contractions": "I'm you're he'd WE'LL IT'S don’t 's' ''s 'ſ 've't 'Sa 'LLa 'ſa a'sa",
    "emoji": "👋🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇫🇷 ❤️ ☺",
    "arabic": "السلام عليكم، كيف حالك؟ ٣٤٥ ـــ",
    "cjk": "日本語のテキスト。中文　字符 한국어 テスト",
    "combining": "é é ḍ̇ ä̈ Z̷̧̨a̵l̶g̸o̴ ᾖ ﬁ Å Å",
    "scripts": "Ελληνικά русский हिन्दी ไทย עברית தமிழ் ქართული",
    "code": "def f(x):\n\tif x != 0x1F:\n        return {'a': [1, 2.5e-3]}  # ok\n\n\n",
    "spaces": "a  b   c    d     e      \t f \t\t g",
    "newlines": "\n\n\n a\r\n\r\n b \n \n c\r\r\nd\n",
    "only spaces": "       ",
    "blank before digit": "x   1\n\n 2\t3   ",
    "odd blanks": "a\u00a0b\u2003\u3000c\u200bd\u2028e\u0085f\u180eg\x0b\x0ch\ufeff",
    "digits": "1 22 333 4444 1234567890 3.14 1,000,000 0x7f",
    "numerals": "x² ½ Ⅷ ③ ৪৫ 一二 ٠١ 𝟙𝟚 1²3 ²",
    "nul": "a\x00b\x00\x00 \x00",
    "controls": "a\x01\x02\x03b\x04c\x06\x13\x14\x16\x1d.\x1f\x7f\x80\x9f!\x04!",
    "planes": "𐍈 𝒳 𠜎 \U000e0041 \U000f0000 \U00100000 \ue000 \ufffd \uffff",
    "special text": "<|im_start|>user\n<|endoftext|><|im_end|> <|im_ end|>",
    "long word": "incomprehensibilities" * 200,
    "long digits": "0123456789" * 300,
    "long punctuation": "=-" * 500 + "/" * 777,
    "long blank": " " * 3000 + "x" + "\n" * 1000 + "\t" * 500 + "1",
    "long emoji": "👋🏽" * 150,
}

FRAGMENTS = (
    *("a", "the", " The", "ABC", "é", "é", "中", "العربية", "ſ", "K", "😀", "👩‍👩‍👧", "_", "<|im_end|>"),
    *(" ", "  ", "\n", "\t", "\r\n", "\u3000", "\xa0", "\u2028", "1", "23", "²", "½", "Ⅷ", "٣"),
    *("'s", "'S", "'ll", "’", "'", "!", "...", "/", "-", "\x00", "\x04", "\x1d", "\u200d", "\ufffd"),
)
CHARACTERS = st.characters(exclude_categories=("Cs", "Cn"))
TEXTS = st.lists(st.one_of(st.sampled_from(FRAGMENTS), CHARACTERS), max_size=16).map("".join)
