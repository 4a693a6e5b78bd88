"""What is refused, in one line that names it, and what asks for the same."""

import sys

import numpy as np
import pytest
from tiny_folder import load_tiny, save_tiny

from octavo.gpt import SamplingParams, StructuredOutputsParams
from octavo.gpt.structured.requests import structured_of

from tiny import TINY_LLAMA, tiny_engine, tiny_model

EVERYTHING = {"type": "object"}


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return load_tiny(save_tiny(tmp_path_factory.mktemp("tiny")))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({}, "structured must have one of json, regex, choice, grammar, json_object, structural_tag, not none of them"),
        ({"regex": "a", "choice": ["a"]}, "structured must have one of .*, not regex and choice$"),
        ({"jsn": 1}, "structured has no field 'jsn': it has choice, "),
        ("{}", "structured must be StructuredOutputsParams or a dict of its fields, not '{}'"),
        ({"json": "{"}, "structured json is not JSON: Expecting property name"),
        ({"json": '{"a": NaN}'}, "structured json is not JSON: NaN is no number of JSON's"),
        ({"json": {"a": {1}}}, "structured json is not JSON: Object of type set"),
        ({"json": "[1]"}, r"structured json must be a JSON object, not \[1\]"),
        ({"json": {"enum": ["\ud800"]}}, "structured json holds a lone surrogate"),
        ({"regex": ""}, "structured regex must be a non-empty string, not ''"),
        ({"regex": "a" * 2**20 + "a"}, "structured regex has 1048577 characters, at most 1048576 are compiled"),
        ({"choice": []}, "structured choice is empty"),
        ({"choice": ["a", 1]}, "structured choice must be non-empty strings, not 1"),
        ({"json_object": 1}, "structured json_object must be True or False, not 1"),
        ({"json": {}, "disable_any_whitespace": "no"}, "structured disable_any_whitespace must be True or False"),
    ],
)  # fmt: skip
def test_bad_params(form, message):
    with pytest.raises(ValueError, match=message) as refusal:
        SamplingParams(structured=form)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"json": {"type": "foo"}}, "Invalid type: foo"),
        ({"json": {"not": {"type": "string"}}}, r'Unimplemented keys: \["not"\]'),
        ({"json": {"type": "string", "pattern": "("}}, "unclosed group"),
        ({"json": {"$ref": "http://example.com/x"}}, "Default retriever does not fetch resources"),
        ({"json": '{"items":' * 500 + "{}" + "}" * 500}, ""),
        ({"regex": "(?=a)b"}, "look-ahead"),
        ({"regex": "("}, "unclosed group$"),
        ({"grammar": 'start: "a" missing'}, "missing"),
        ({"grammar": "root ::= ("}, ""),
        ({"structural_tag": {"triggers": ["a"]}}, "it lacks 'structures'$"),
        ({"structural_tag": {"structures": 3, "triggers": []}}, "must be lists"),
        ({"structural_tag": {"structures": [{"begin": "b", "schema": {}}], "triggers": ["a"]}}, "no trigger"),
        ({"structural_tag": {"structures": [], "triggers": []}}, "structures is empty"),
    ],
)  # fmt: skip
def test_forms_that_cannot_be_followed_are_refused_before_anything_starts(llm, form, message):
    for ask in (llm.generate, llm.add, llm.stream):
        with pytest.raises(
            ValueError, match=f"^structured {next(iter(form))} cannot be followed: .*{message}"
        ) as refusal:
            ask("a b", SamplingParams(structured=form))
        assert "\n" not in str(refusal.value)
        assert len(str(refusal.value)) < 400
    assert not llm.has_unfinished


def test_two_words_for_one_thing_are_one_too_many():
    form = StructuredOutputsParams(json=EVERYTHING)
    with pytest.raises(ValueError, match="two names of one thing"):
        SamplingParams(structured=form, structured_outputs=form)


def test_equal_forms_are_one():
    params = SamplingParams(structured={"json": '{"type": "object"}', "json_object": False})
    assert params == SamplingParams(structured=StructuredOutputsParams(json=EVERYTHING))
    assert hash(params) == hash(params.clone())
    assert params.replace(structured=None) == SamplingParams()
    assert "structured=StructuredOutputsParams(json=" in repr(params)


def test_objects_without_more_properties(llm):
    inner = {"type": "object", "properties": {"b": {"const": 1}}, "required": ["b"]}
    form = {"json": {"type": "object", "properties": {"a": inner}, "required": ["a"]}}
    form |= {"disable_additional_properties": True, "disable_any_whitespace": True}
    request = llm.generate("a", SamplingParams(structured=form, max_tokens=40, seed=1), use_tqdm=False)[0]
    assert request.outputs[0].text == '{"a":{"b":1}}'


def test_a_model_without_a_tokenizer():
    engine = tiny_engine(tiny_model(TINY_LLAMA))
    with pytest.raises(ValueError, match="structured output needs a tokenizer, and this model has none"):
        engine.add([1], SamplingParams(structured={"regex": "a"}))


def test_without_the_library_the_extra_is_named(llm, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ValueError, match=r"^structured output needs llguidance: pip install 'octavo\[structured\]'$"):
        llm.generate("a", SamplingParams(structured={"regex": "never compiled"}), use_tqdm=False)


def test_a_form_is_compiled_once(llm):
    guides = llm.engine.guides
    before = guides._compiled.cache_info().misses
    for _ in range(3):
        llm.generate("a", SamplingParams(structured={"regex": "once"}, max_tokens=9), use_tqdm=False)
    assert guides._compiled.cache_info().misses == before + 1


def test_looking_ahead_sees_what_each_step_would(llm):
    """And leaves the guide where it is, also behind the end and behind what may not come."""
    params = SamplingParams(structured={"regex": "fo[xg]s?!"})
    for text, right in (("foxs!", True), ("fog!", True), ("fax!", False)):
        steps, ahead = llm.engine.guides.guide(params), llm.engine.guides.guide(params)
        token_ids, words = llm.encode(text), -(-llm.engine.model_config.vocab_size // 32)
        seen = np.full((len(token_ids) + 1, words), -1, np.int32)
        for _ in range(2):
            ahead.look_ahead(token_ids, seen)
        for token_id, row in zip([*token_ids, None], seen, strict=True):
            now = np.zeros(words, np.int32)
            steps.fill(now)
            assert (now == row).all()
            if token_id is None or not now[token_id // 32] >> token_id % 32 & 1:
                break
            steps.advance(token_id)
        assert steps.is_complete == right


BODIES = [
    ({}, None),
    ({"response_format": {"type": "text"}, "guided_json": None}, None),
    ({"response_format": {"type": "json_object"}}, {"json_object": True}),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": EVERYTHING}}},
        {"json": EVERYTHING},
    ),
    ({"structured_outputs": {"regex": "a"}}, {"regex": "a"}),
    ({"guided_choice": ["a", "b"]}, {"choice": ["a", "b"]}),
    ({"guided_grammar": 'root ::= "a"'}, {"grammar": 'root ::= "a"'}),
]


@pytest.mark.parametrize(("body", "form"), BODIES, ids=str)
def test_what_a_request_s_body_asks_for(body, form):
    assert structured_of(body) == StructuredOutputsParams.from_any("form", form)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"response_format": {"type": "yaml"}}, "response_format must have the type text, .*, not 'yaml'"),
        ({"response_format": "json"}, "response_format must have the type .*, not 'json'"),
        ({"response_format": {"type": "json_schema"}}, "needs json_schema.schema"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "_format and guided_regex both ask"),
        ({"structured_outputs": 3}, "structured_outputs must be StructuredOutputsParams or a dict"),
    ],
)  # fmt: skip
def test_bodies_that_are_refused(body, message):
    with pytest.raises(ValueError, match=message):
        structured_of(body)
