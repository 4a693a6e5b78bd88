"""Chat templates that are made to hurt get one line soon; messages read to any template as they were written."""

import resource
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from octavo.gpt.tokenizer import template_sandbox
from octavo.gpt.tokenizer.chat_template import MAX_TEMPLATE, render, render_hidden
from octavo.gpt.tokenizer.hf import from_folder
from octavo.gpt.tokenizer.message_text import MessageText
from octavo.gpt.tokenizer.tokenizer import Tokenizer

from made_tokenizers import RULES, save, train

USER = [{"role": "user", "content": "hello"}]
FOREVER = "{% for a in range(99999) %}"
TIME, LONG, ITEMS, TOTAL, WIDE, BITS = (
    "it takes more than 0.3 s",
    "it makes a value of more than 10,000,000 characters",
    "it makes a value of more than 250,000 items",
    "it makes more than 60,000,000 characters",
    "it asks for more than 10,000 at once",
    "it makes an integer of more than 100,000 bits",
)
BIG = "{% set big = 'a' * 9999999 %}"
NESTED = "{% set ns = namespace(x=[1]) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
HURTING = {
    "nested loops": (FOREVER * 2 + "{% endfor %}" * 2, TIME),
    "loops that are captured": ("{% set x %}" + FOREVER * 2 + "aaaa" + "{% endfor %}" * 2 + "{% endset %}", TIME),
    "loops in a test": ("{% for a in range(9) if range(99999)|map('int')|list %}{% endfor %}" * 999, TIME),
    "macros that branch": (
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(50) }}",
        TIME,
    ),
    "recursive loops": ("{% for a in [1,2] recursive %}{{ loop([a, a]) }}{% endfor %}", "maximum recursion depth"),
    "output": (BIG + "{{ big }}{{ big }}", "it writes more than 10,000,000 characters"),
    "a text times": ("{{ 'a' * 10**9 }}", LONG),
    "times a text": ("{{ 10**9 * 'a' }}", LONG),
    "a list times": ("{{ [1] * 10**9 }}", LONG),
    "a power": ("{{ 10**(10**8) }}", BITS),
    "products": ("{% set ns = namespace(x=9) %}" + FOREVER + "{% set ns.x = ns.x * ns.x %}{% endfor %}", BITS),
    "a field": ("{{ '%999999999d' % 1 }}", LONG),
    "a field's width": ("{{ '%*d' % (999999999, 1) }}", WIDE),
    "a digit's width": ("{{ '%.999999999f' % 1 }}", LONG),
    "a format filter": ("{{ '%999999999d' | format(1) }}", LONG),
    "a format": ("{{ '{:>999999999}'.format(1) }}", LONG),
    "a nested format": ("{{ '{:>{}}'.format(1, 999999999) }}", WIDE),
    "a format map": ("{{ '{a:>999999999}'.format_map({'a': 1}) }}", LONG),
    "many uses": (BIG + "{{ '{0}{0}{0}'.format(big) }}", LONG),
    "many names": (BIG + "{{ '%(a)s%(a)s' % {'a': big} }}", LONG),
    "doubling": ("{% set ns = namespace(x='aa') %}" + FOREVER + "{% set ns.x = ns.x + ns.x %}{% endfor %}", LONG),
    "doubling by ~": ("{% set ns = namespace(x='aa') %}" + FOREVER + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}", LONG),
    "doubling lists": ("{% set ns = namespace(x=[1]) %}" + FOREVER + "{% set ns.x = ns.x + ns.x %}{% endfor %}", ITEMS),
    "nesting": (NESTED + "{{ ns.x }}", ITEMS),
    "nesting, as JSON": (NESTED + "{{ ns.x | tojson }}", ITEMS),
    "nesting in dicts": (NESTED.replace("[ns.x, ns.x]", "{'a': ns.x, 'b': ns.x}") + "{{ ns.x }}", ITEMS),
    "nesting by calls": (NESTED.replace("[ns.x, ns.x]", "dict(a=ns.x, b=ns.x)") + "{{ ns.x }}", ITEMS),
    "replacing": (BIG + "{{ big.replace('a', 'bb') }}", LONG),
    "a replacing filter": (BIG + "{{ big | replace('a', 'bb') }}", LONG),
    "joining": (BIG + "{{ ''.join([big, big]) }}", LONG),
    "joining what is mapped": (BIG + "{{ ''.join([big, big] | map('string')) }}", LONG),
    "a joining filter": (BIG + "{{ [big, big] | map('string') | join }}", LONG),
    "a separator": ("{% set s = 'a' * 999 %}{{ range(99999) | join(s) }}", LONG),
    "centring": ("{{ 'a' | center(10**9) }}", WIDE),
    "a centring method": ("{{ 'a'.center(10**9) }}", LONG),
    "zeros": ("{{ '1'.zfill(10**9) }}", LONG),
    "tabs": (r"{{ '\t'.expandtabs(10**9) }}", "unsafe"),
    "translating": ("{{ 'a'.translate({97: 'aaa'}) }}", "unsafe"),
    "bytes": ("{{ (5).to_bytes(10**9, 'big') }}", LONG),
    "JSON's indent": ("{{ [[1]] | tojson(indent=10**9) }}", WIDE),
    "indenting": (r"{{ ('\n' * 99999) | indent(9999) }}", LONG),
    "indenting with a text": (r"{{ ('\n' * 99999) | indent('a' * 9999) }}", LONG),
    "batches": ("{{ [1] | batch(10**9, 'x') | list }}", WIDE),
    "slices": ("{{ [1] | slice(10**9) | list }}", WIDE),
    "rounding": ("{{ 1.5 | round(10**9, 'ceil') }}", WIDE),
    "sums of lists": ("{{ [[1]] | sum(start=[]) }}", "sum is for numbers"),
    "nonsense": ("{{ lipsum(n=10**9) }}", "'lipsum' is undefined"),
    "many values": ("".join(f"{{% set a{i} = 'a' * 9999999 %}}" for i in range(50)), TOTAL),
    "many constants": ("{% if false %}" + "{{ 'a' | center(9999) }}" * 7777 + "{% endif %}x", None),
    "a namespace": ("{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}", "a namespace cannot be written out"),
}


@pytest.mark.parametrize(("template", "message"), HURTING.values(), ids=HURTING)
def test_a_template_gets_so_much_and_no_more(
    monkeypatch: pytest.MonkeyPatch, template: str, message: str | None
) -> None:
    monkeypatch.setattr(template_sandbox, "SECONDS", 0.3 if message == TIME else 2.0)
    begin, before = time.thread_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if message is None:
        assert render(template, USER) == "x"
    else:
        with pytest.raises(ValueError, match="chat template: ") as caught:
            render(template, USER)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    assert time.thread_time() - begin < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KiB


BROKEN = {
    "loops": ("{% for a in b %}" * 21 + "{% endfor %}" * 21, "it cannot be compiled: "),
    "parentheses": ("{{ " + "(" * 300 + "1" + ")" * 300 + " }}", "it cannot be compiled: "),
    "more parentheses": ("{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}", "it cannot be compiled: maximum recursion"),
    "conditions": ("{% if a %}" * 150 + "{% endif %}" * 150, "it cannot be compiled: "),
    "an argument twice": ("{% macro f(a, a) %}{% endmacro %}", "it cannot be compiled: duplicate argument"),
    "break in a macro": ("{% macro f() %}{% break %}{% endmacro %}", "it cannot be compiled: 'break' outside loop"),
    "a long number": ("{{ " + "9" * 9999 + " }}", "chat template"),
    "length": ("a" * (MAX_TEMPLATE + 1), "200,001 characters, at most 200,000 are compiled"),
    "control characters": ("{% \x1b[31m\u202e %}", "line 1: "),
}


@pytest.mark.parametrize(("template", "message"), BROKEN.values(), ids=BROKEN)
def test_what_no_compiler_takes_is_one_line_about_the_template(template: str, message: str) -> None:
    with pytest.raises(ValueError, match="chat template") as caught:
        render(template, USER)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1100


def test_the_longest_template_compiles_soon() -> None:
    begin = time.thread_time()
    assert render("{{ a }}" * (MAX_TEMPLATE // 7), USER) == ""
    assert time.thread_time() - begin < 5


def test_ordinary_amounts_are_allowed() -> None:
    text = "a line of some length\n" * 20_000
    template = (
        "{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = ns.t + m.content %}{% endfor %}{{ ns.t }}"
    )
    assert render(template, [{"role": "user", "content": text}] * 8) == text * 8
    assert render("{{ messages | tojson }}", [{"role": "user", "content": "x"}] * 9999).count("x") == 9999
    assert render("{{ '%5d items of %s' % (7, 'x' * 9) }}", USER) == "    7 items of xxxxxxxxx"


# What a template makes of messages that speak of control tokens, in whatever way it looks at them.
LOOKING = {
    "in": "{% for m in messages %}{{ '</think>' in m.content }}{% endfor %}",
    "split": "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}",
    "qwen": "{% for m in messages %}{% set c = m.content %}{% if '</think>' in c %}"
    "{{ c.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') }}|"
    "{{ c.split('</think>')[-1].lstrip('\n') }}{% endif %}{% endfor %}",
    "by a macro": "{% macro f(c) %}{{ c }}{% endmacro %}{% for m in messages %}"
    "{% set c = f(m.content) | trim %}{{ c.split('<think>') | length }}{{ '<s>' in c }}{{ c }}{% endfor %}",
    "by a set block": "{% for m in messages %}{% set c %}{{ m.content }}{% endset %}{{ '<s>' in c }}{% endfor %}",
    "by ~": "{% for m in messages %}{% set c = '<s>' ~ m.content %}{{ c.count('<s>') }}{{ c.split('<') }}{% endfor %}",
    "by +": "{% for m in messages %}{% set c = '<' + m.content + '>' %}{{ c.rsplit('<s>', 1) }}{% endfor %}",
    "by %": "{% for m in messages %}{% set c = '<%s>' % m.content %}{{ c.partition('<s>') }}{% endfor %}",
    "by format": "{% for m in messages %}{% set c = '<{}>'.format(m.content) %}{{ c.rpartition('<s>') }}{% endfor %}",
    "by join": "{% set c = '<s>'.join(messages | map(attribute='content')) %}{{ c.split('<s>') }}{{ c.find('</') }}",
    "a joining filter": "{% set c = messages | map(attribute='content') | join('<') %}{{ c.split('<<') }}",
    "ends": "{% for m in messages %}{% set c = m.content %}{{ c.startswith('<s>') }}{{ c.endswith(('<', '>')) }}"
    "{{ c.removeprefix('<s>').removesuffix('</think>').strip('<>') }}{% endfor %}",
    "filters": "{% for m in messages %}{% set c = m.content %}{{ c | replace('<s>', '[s]') | upper }}{{ c | length }}"
    "{{ c | e }}{{ c | tojson }}{{ c | capitalize }}{{ c | list }}{{ c | first }}{{ c | reverse }}{{ c | urlencode }}"
    "{{ c | wordcount }}{{ c | indent }}{{ c | truncate(9) }}{{ c | string }}{{ c | tojson(ensure_ascii=true) }}"
    "{% endfor %}",
    "methods": "{% for m in messages %}{% set c = m.content %}{{ c.replace('<', '<<') }}{{ c.splitlines() }}"
    "{{ c.title() }}"
    "{{ c.index('') }}{{ c.rfind('<') }}{{ c.count('s') }}{{ c.replace('', '-') }}{{ c.zfill(20) }}{% endfor %}",
    "parts": "{% for m in messages %}{{ m.content[1:] }}{{ m.content[:3] == '<s>' }}{{ m.content[0:1] in '<>' }}"
    "{% for c in m.content %}{{ c == '<' }}{% endfor %}{% endfor %}",
    "order and keys": "{% for m in messages | sort(attribute='content') %}{{ m.content }}{% endfor %}"
    "{{ {'<s>': 1, 'a': 2}[messages[0].content] }}{{ messages | groupby('content') | length }}",
    "written out": "{{ messages }}{{ messages | tojson }}{{ messages | map(attribute='content') | unique | list }}",
}
SPEECH = st.lists(
    st.sampled_from(
        ["<s>", "<think>", "</think>", "<|im_end|>", "<", ">", "s", "think", "\n", " ", "é", "a", '"', "\\"]
    ),
    max_size=8,
).map("".join)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    trained = train(RULES["smollm"])
    trained.add_special_tokens(["<think>", "</think>"])
    ours = from_folder(save(trained, tmp_path_factory.mktemp("t"), chat_template="{{ messages[0].content }}"))
    assert ours is not None
    return ours, PreTrainedTokenizerFast(tokenizer_object=trained)


@pytest.mark.parametrize("template", LOOKING.values(), ids=LOOKING)
def test_messages_read_as_they_do_to_transformers(tokenizers: tuple[Tokenizer, Any], template: str) -> None:
    ours, theirs = tokenizers

    @settings(max_examples=60, deadline=None)
    @given(st.lists(SPEECH, min_size=1, max_size=3))
    def check(contents: list[str]) -> None:
        messages = [{"role": "user", "content": content} for content in contents]
        text, escaper = render_hidden(template, messages, ours.specials, {})
        assert isinstance(escaper.hide("<s>"), MessageText)
        assert escaper.reveal(text) == theirs.apply_chat_template(messages, chat_template=template, tokenize=False)

    check()


PIECES = "{% for m in messages %}{% for c in m.content.split('-') %}{{ c }}{% endfor %}{% endfor %}"
GLUED = "{{ messages | map(attribute='content') | join | replace('-', '') | trim }}{{ messages | tojson }}"


@pytest.mark.parametrize("template", [PIECES, GLUED, "{{ messages[0].content.replace('-', '') }}"])
def test_no_cutting_and_joining_makes_a_control_token(tmp_path: Path, template: str) -> None:
    ours = from_folder(save(train(RULES["smollm"]), tmp_path, chat_template=template))
    assert ours is not None
    for parts in (["<-s->"], ["<s", ">"], ["<|im", "_end|>"], ["<|i-m_e-nd|>", "<s>"], ["<", "s>"]):
        messages = [{"role": "user", "content": part, "<s>": {"<|im_end|>": 1}} for part in parts]
        assert not any(ours.is_special(token_id) for token_id in ours.encode_chat(messages))


REACHES = (
    "content._escaper.reveal(content)",
    "content._plain",
    "'{0._plain}'.format(content)",
    "content | attr('_plain')",
)


@pytest.mark.parametrize("reach", REACHES)
def test_what_hides_a_message_is_out_of_the_template_s_reach(tmp_path: Path, reach: str) -> None:
    template = f"{{% set content = messages[0].content %}}a{{{{ {reach} }}}}"
    ours = from_folder(save(train(RULES["smollm"]), tmp_path, chat_template=template))
    assert ours is not None
    try:
        ids = ours.encode_chat([{"role": "user", "content": "<s>"}])
    except ValueError:  # of the sandbox; elsewhere jinja2 has nothing in place of what is unsafe
        ids = []
    assert ids in ([], ours.encode("a"))
