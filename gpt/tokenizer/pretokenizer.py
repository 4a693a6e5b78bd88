"""How a GGUF's text is cut before BPE sees it: what each `tokenizer.ggml.pre` that llama.cpp names stands for.

A kind is a tuple of regular expressions (Oniguruma's), applied in turn: each cuts every piece of the one before into
its matches and the gaps between them, and sees nothing outside its piece. Where llama.cpp rewrote a pattern for an
engine with less, this is the model's own. https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp
"""

from typing import Any, NamedTuple

from tokenizers import Regex, decoders, pre_tokenizers


class PreTokenizer(NamedTuple):
    splits: tuple[str, ...]
    ignore_merges: bool = False  # a piece that is a token is that token, whatever the merges
    add_bos: bool = False  # where the file does not say
    nfc: bool = False  # text is composed first (the file says nothing of that)


_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACE = r"\s+(?!\S)|\s+"
_LINES = rf"\s*[\r\n]+|{_SPACE}"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_ASCII_WORD = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
_THREE_DIGITS = r"\p{N}{1,3}"
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"


def _cl100k(digits: str, contraction: str = f"{_CONTRACTION}|", marks: str = _MARKS, lines: str = _LINES) -> str:
    return f"{contraction}{_WORD}|{digits}|{marks}|{lines}"


def _cased(end: str = "", without: str = "") -> str:
    """Words that end where a capital follows small letters, with what may end them."""
    upper, lower = f"[{_UPPER}{without}]", f"[{_LOWER}{without}]"
    before = r"[^\r\n\p{L}\p{N}]?"
    return f"{before}{upper}*{lower}+{end}|{before}{upper}+{lower}*{end}"


def _o200k(digits: str, end: str = f"{_CONTRACTION}?") -> str:
    return rf"{_cased(end)}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LINES}"


_GPT2 = rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_SPACE}"
_LLAMA3, _QWEN2 = _cl100k(_THREE_DIGITS), _cl100k(r"\p{N}")
_DEEPSEEK3 = (_THREE_DIGITS, _KANA, rf"{_ASCII_WORD}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_LINES}")
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_LATIN = (  # letters with two cases, of an older Unicode
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-"
    "\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-"
    "\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"
    "\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-"
    "\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_HAN = r"&&[^\p{Han}]"
_KIMI = rf"[\p{{Han}}]+|{_cased(f'{_CONTRACTION}?', _HAN)}|{_THREE_DIGITS}|{_MARKS}|{_LINES}"
_YOUTU = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f"
    "\ufe30-\ufe4f]+|[\u3105-\u312f]+|" + _KANA
)
_AFMOE = (
    "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f"
    "\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
_CHAMELEON = (
    *("<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", r"([\t\n]|    |  )", r"\p{N}"),
    *(r"[\p{P}!-/:-@\[-`{-~]", _GPT2),
)
_JAIS2 = _cl100k(
    _THREE_DIGITS,
    lines=r"\s*[\r\n]+|"
    + "".join(rf"\s{{{n}}}(?!\S)|" for n in (512, 256, 128, 64, 32, 16, 8, 4))
    + r"\s{1,2}(?!\S)|\s",
)
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_LINES}"
)
_EXAONE = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]|{_SPACE}"
)
_LINE = r"[^\n]+|[\n]+"

_SPLITS: dict[str, tuple[str, ...]] = {  # the names of one kind -> its patterns
    "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert jina-v1-en jina-v2-code"
    " roberta-bpe mpt olmo jais trillion granite-docling exaone4": (_GPT2,),
    "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2": (r"\p{N}", _GPT2),
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano smaug-bpe dbrx"
    " chatglm-bpe glm4 glm5": (_LLAMA3,),
    "qwen2 deepseek-r1-qwen kormo f2llmv2 stablelm2 megrez hunyuan solar-open grok-2": (_QWEN2,),
    "qwen35": (_QWEN35,),
    "tekken": (_o200k(r"\p{N}", end=""),),
    "gpt-4o llama4 kanana2 talkie minimax-m2 granite-embed-multi-97m": (_o200k(_THREE_DIGITS),),
    "tiny_aya cohere2moe": (r"\d{1,3}(?=(?:\d{3})*\b)", _o200k(_THREE_DIGITS)),
    "youtu": (_YOUTU, _o200k(r"\p{N}")),
    "deepseek-llm": (
        *(r"[\r\n]", rf"\s?[{_LATIN}]+", "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", r"\s+$"),
        *(_CJK, r"\p{N}+"),
    ),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}"),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": _DEEPSEEK3,
    "spark2_5": (*_DEEPSEEK3[:2], rf"{_ASCII_WORD}| ?[\p{{P}}\p{{S}}]+|[\r\n]|{_SPACE}", r"\p{N}"),
    "afmoe": (r"\d{1,3}(?=(?:\d{3})*(?!\d))", _AFMOE, _DEEPSEEK3[2]),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    "poro-chat bloom gpt3-finnish": (_BLOOM,),
    "viking": (_BLOOM, r"\p{N}"),
    "chameleon": _CHAMELEON,
    "jais-2": (_JAIS2,),
    "kimi-k2": (_KIMI,),
    "superbpe": (r"\p{N}+", r"(?=(\d{3})+(?!\d))"),
    "bailingmoe bailingmoe2 llada-moe": (_cl100k(r"\p{N}", lines=rf"\s*[\r\n]|{_SPACE}"),),
    "seed-coder": (_cl100k(r"\p{N}", marks=r" ?[^\s\p{L}\p{N}\r\n]+"),),
    "ufakzeka": (_cl100k(r"\p{N}", contraction=""),),
    "laguna": (_LINE, _QWEN2),
    "exaone-moe": (_EXAONE,),
    "minicpm5": (_THREE_DIGITS, _cl100k(r"\p{N}+")),
    "gemma4 granite-embed-multi-311m sarvam-moe": (_LINE,),
}
_LLAMA3_BOS = {
    *[
        "llama-bpe",
        "llama3",
        "llama-v3",
        "falcon3",
        "falcon-h1",
        "pixtral",
        "midm-2.0",
        "lfm2",
        "jina-v5-nano",
        "tekken",
    ]
}
# llama.cpp's converter calls Llama 3's first tokenizer.json, which adds no begin token, smaug-bpe; llama.cpp leaves
# tokens that no merge builds unused there, the tokenizers package does not.
_WHOLE = _LLAMA3_BOS | {"smaug-bpe", "glm4", "glm5", "youtu", "minicpm5", "granite-embed-multi-97m"}
_BOS = _LLAMA3_BOS | {"chameleon", "gemma4"}
_NFC = {"qwen2"}  # whose tokenizer.json composes text; llama.cpp does not

PRE = {
    name: PreTokenizer(splits, name in _WHOLE, name in _BOS, name in _NFC)
    for names, splits in _SPLITS.items()
    for name in names.split()
}
SPACES_AS_MARKS = {*["gemma4", "granite-embed-multi-311m", "sarvam-moe"]}  # tokens are text with U+2581 for a space


def cutter(splits: tuple[str, ...], *last: Any) -> Any:
    """Return the pre-tokenizer of these patterns, and of what comes behind them."""
    return pre_tokenizers.Sequence([*(pre_tokenizers.Split(Regex(split), "isolated") for split in splits), *last])


def byte_level(splits: tuple[str, ...]) -> tuple[Any, Any]:
    """Return the pre-tokenizer of byte-level BPE that cuts by these patterns, and its decoder."""
    return cutter(splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)), decoders.ByteLevel()
