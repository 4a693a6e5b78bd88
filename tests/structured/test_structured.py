"""Outputs that have to have a form: every one valid, and the same alone, in company and however it is computed."""

import json
import math
import re

import jsonschema
import pytest
from tiny_folder import load_tiny, save_tiny

from octavo.gpt import LLM, SamplingParams, StructuredOutputsParams
from octavo.gpt.receipts.receipt import asked
from octavo.gpt.speculative.speculation import Speculation

from schemas import SCHEMAS, record

LIMITS = {"max_model_len": 256, "num_blocks": 512, "max_num_seqs": 64}
PROMPT = "the quick brown fox"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"), max_position_embeddings=256)


@pytest.fixture(scope="module")
def llm(folder):
    return load_tiny(folder, **LIMITS)


def asks(name, seed=0, **others):
    form = {"json": SCHEMAS[name], "disable_any_whitespace": True}
    return SamplingParams(structured=form, seed=seed, **{"max_tokens": 250, **others})


def texts(llm, params, prompt=PROMPT):
    requests = llm.generate([prompt] * len(params), params, use_tqdm=False)
    return [output.text for request in requests for output in request.outputs]


def one(llm, **options):
    """The one output of a request for some form."""
    return llm.generate(PROMPT, SamplingParams(**{"max_tokens": 250, "seed": 1, **options}), use_tqdm=False)[0].outputs[
        0
    ]


def count_of_valid(llm, names, seeds, **others):
    """How many outputs there are; each has to be complete, and valid by another library."""
    asked = [(name, asks(name, seed, **others)) for name in names for seed in seeds]
    requests = llm.generate([PROMPT] * len(asked), [params for _, params in asked], use_tqdm=False)
    for (name, _), request in zip(asked, requests, strict=True):
        (output,) = request.outputs
        assert output.finish_reason == "stop", (name, output)
        jsonschema.validate(json.loads(output.text), SCHEMAS[name])
    return len(requests)


def test_every_schema_is_followed(llm):
    assert count_of_valid(llm, SCHEMAS, range(3)) == 60


@pytest.mark.slow
@pytest.mark.parametrize("of", ["random", "model"])
def test_five_hundred_outputs_are_valid(of, llm, model):
    assert count_of_valid(llm if of == "random" else model, SCHEMAS, range(25)) == 500


@pytest.fixture(scope="module")
def model():
    return LLM(max_model_len=512, num_blocks=2048)


@pytest.mark.model
def test_a_real_model_says_what_it_is_asked_for_in_the_form(model):
    form = {"type": "object", "properties": {"capital": {"type": "string"}}, "required": ["capital"]}
    params = SamplingParams(temperature=0, max_tokens=40, structured={"json": form})
    request = model.chat([{"role": "user", "content": "What is the capital of France? Answer in JSON."}], params)[0]
    assert json.loads(request.outputs[0].text)["capital"] == "Paris"


FILTERS = [{"temperature": 0}, {"top_k": 2}, {"top_p": 0.3}, {"min_p": 0.5}, {"repetition_penalty": 1.5, "logprobs": 2}]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_filters_act_on_what_is_allowed(llm, filters):
    assert count_of_valid(llm, ["nested", "unicode enum", "numbers"], [1], **filters) == 3


def test_company_and_order_change_nothing(llm, folder):
    """Beside requests of other forms and of none, cut into chunks, preempted, and with steps read one step late."""
    params = [asks(name, seed=7) for name in SCHEMAS] + [SamplingParams(seed=1, max_tokens=30)] * 5
    alone = [texts(llm, [each])[0] for each in params]
    assert texts(llm, params) == alone
    narrow = load_tiny(folder, **{**LIMITS, "num_blocks": 90, "max_num_batched_tokens": 16, "preemption": "recompute"})
    narrow.engine._depth = 1
    assert texts(narrow, params[::-1]) == alone[::-1]
    assert narrow.stats()["requests_preempted"] > 0


class Remembers:
    """Guesses the tokens of outputs seen before, by their seed; of every other guess the last token is wrong."""

    num_tokens = 4

    def __init__(self, outputs):
        self.outputs, self.num_asked = outputs, 0

    def propose(self, sequences, limits):
        return [self._guess(sequence, limit) for sequence, limit in zip(sequences, limits, strict=True)]

    def _guess(self, sequence, limit):
        done, self.num_asked = len(sequence.output), self.num_asked + 1
        guess = self.outputs[sequence.seed][done : done + limit]
        return guess if self.num_asked % 2 else [*guess[:-1], 7][:limit]

    def free(self, seq_id): ...

    def reset(self): ...


def test_guesses_change_nothing(llm, folder):
    params = [asks(name, seed, logprobs=2) for seed, name in enumerate(SCHEMAS)]
    plain = [each.outputs[0] for each in llm.generate([PROMPT] * len(params), params, use_tqdm=False)]
    other = load_tiny(folder, **LIMITS)
    known = {seed: list(output.token_ids) for seed, output in enumerate(plain)}
    other.engine.speculation = Speculation(Remembers(known), max_rows=64)
    guessed = [each.outputs[0] for each in other.generate([PROMPT] * len(params), params, use_tqdm=False)]
    for one_by_one, together in zip(plain, guessed, strict=True):
        assert (together.token_ids, together.logprobs) == (one_by_one.token_ids, one_by_one.logprobs)
        assert together.finish_reason == "stop"
    stats = other.stats()
    assert 0.3 * stats["tokens_proposed"] < stats["tokens_accepted"] < stats["tokens_proposed"]


def test_forms_change_nothing_for_others(llm):
    free = SamplingParams(seed=5, max_tokens=30)
    assert texts(llm, [free])[0] == texts(llm, [asks("nested"), free, asks("enum")])[1]


def test_completions_of_one_request_each_follow_the_form(llm):
    params = asks("record", n=4)
    together = texts(llm, [params])
    assert len(set(together)) > 1
    assert together == [texts(llm, [asks("record", seed=i)])[0] for i in range(4)]


def test_logprobs_are_those_of_the_whole_distribution(llm):
    output = one(llm, structured={"choice": ["fox"]}, logprobs=3, temperature=0)
    assert output.text == "fox"
    assert any(
        token_id not in list(entries)[1:3] for token_id, entries in zip(output.token_ids, output.logprobs, strict=True)
    )
    free = one(llm, logprobs=3, max_tokens=1, temperature=0)
    assert list(output.logprobs[0].values())[2:] == list(free.logprobs[0].values())[1:3]


def test_processed_logprobs_know_only_what_is_allowed(llm):
    output = one(llm, structured={"regex": "[ab]"}, logprobs=2, logprobs_mode="processed_logprobs")
    found = output.logprobs[0]
    assert sum(math.exp(entry.logprob) for entry in found.values()) == pytest.approx(1)
    assert {entry.decoded_token for entry in found.values()} <= {"a", "b"}


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"regex": r"[a-f]{3}-\d{2}"}, r"[a-f]{3}-\d{2}"),
        ({"regex": "é{2}/?[äöü]"}, "éé/?[äöü]"),
        ({"choice": ["yes", "no", "żółw 🐢", 'a"b\\c', "two\nlines"]}, r'(?s)yes|no|żółw 🐢|a"b\\c|two.lines'),
        ({"grammar": 'root ::= "a" [0-9] | "b" root "c"'}, r"(b*)a\d(c*)"),
        ({"grammar": 'start: "x" NUMBER\nNUMBER: /[1-9][0-9]?/'}, r"x[1-9]\d?"),
    ],
)  # fmt: skip
def test_other_forms(llm, form, pattern):
    found = {one(llm, structured=form, seed=seed, temperature=3).text for seed in range(6)}
    assert all(re.fullmatch(pattern, text) for text in found), found
    assert len(found) > 1


def test_a_tag_holds_what_its_schema_says(llm):
    tag = {"triggers": ["t"], "structures": [{"begin": "the=", "schema": SCHEMAS["enum"], "end": "!"}]}
    for seed in range(8):
        text = one(llm, structured={"structural_tag": tag}, seed=seed, max_tokens=120).text
        for part in text.split("the=")[1:-1]:
            jsonschema.validate(json.loads(part.partition("!")[0]), SCHEMAS["enum"])
        assert re.search(r"t(?!he=|$|h$|he$)", text) is None


def test_any_object(llm):
    output = one(llm, structured_outputs={"json_object": True}, logit_bias={}, max_tokens=250, seed=2)
    assert output.text.lstrip().startswith("{")


def test_many_choices(llm):
    choices = [f"word {i}" for i in range(10_000)]
    assert one(llm, structured={"choice": choices}, temperature=3).text in choices


def test_white_space_has_an_end(llm):
    """A random model likes it: of every gap it fills all that it may, and the form is complete all the same."""
    output = one(llm, structured={"json": record(a={"const": 1})}, logit_bias={llm.encode(" ")[0]: 100})
    assert max(map(len, re.findall(r"\s+", output.text))) == 32
    assert output.finish_reason == "stop"


def test_vllm_s_word_is_another_name(llm):
    form = StructuredOutputsParams(choice=["red", "blue"])
    assert SamplingParams(structured_outputs=form) == SamplingParams(structured={"choice": ["red", "blue"]})
    assert one(llm, structured_outputs=form).text in ("red", "blue")


def test_the_end_is_no_matter_of_the_end_token(llm):
    """An output ends when its form does, also where the request goes on past the end or has to have so many tokens."""
    for options in ({"ignore_eos": True}, {"min_tokens": 100}):
        output = one(llm, structured={"regex": "[ab]{4}"}, **options)
        assert re.fullmatch("[ab]{4}", output.text)
        assert output.finish_reason == "stop"
    endless = one(llm, structured={"regex": "[ab]+"}, ignore_eos=True, max_tokens=40)
    assert re.fullmatch("[ab]+", endless.text)
    assert endless.finish_reason == "length"


def test_where_nothing_is_left_the_request_ends_with_a_reason(llm):
    output = one(llm, structured={"regex": "[a-z]+"}, allowed_token_ids=llm.encode("1"))
    assert output.finish_reason == "error"
    assert output.stop_reason == "the logits were not finite, or all that structured output allows is banned"


def test_backends_agree(llm, folder):
    params = [asks(name, seed=3, max_tokens=12) for name in ("enum", "unicode enum", "optional")]
    other = load_tiny(folder, "reference", **LIMITS)
    assert texts(other, params) == texts(llm, params)


def test_a_receipt_tells_the_form(llm):
    (request,) = llm.generate(PROMPT, asks("unicode enum"), use_tqdm=False)
    data = json.loads(json.dumps(request.receipt()))
    assert asked(data).params.structured == asks("unicode enum").structured
