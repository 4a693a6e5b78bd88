"""Beams are transformers' beams."""

import itertools
import math

import pytest
import torch

from octavo.gpt import LLM
from octavo.gpt.beam_search import BeamSearch, check_options, run
from octavo.gpt.models.batch import dense_batch

from tiny import TINY, tiny_model

OPTIONS = [
    {"beam_width": 4, "max_tokens": 12},
    {"beam_width": 3, "max_tokens": 10, "length_penalty": 2.0, "early_stopping": True},
    {"beam_width": 2, "max_tokens": 14, "length_penalty": -1.0, "early_stopping": "never"},
]


def expand_with(model):
    """The likeliest next tokens of each text by a network without a cache."""

    def expand(texts: list[list[int]], number: int) -> list[list[tuple[int, float]]]:
        found = []
        for text in texts:
            hidden = model.forward(dense_batch(torch.tensor([text])), None)[-1:]
            values, ids = torch.log_softmax(model.logits(hidden), -1)[0].topk(min(number, 97))
            found.append(list(zip(ids.tolist(), values.tolist(), strict=True)))
        return found

    return expand


def test_wide_beams_find_the_likeliest_text_of_all():
    """With as many beams as there are texts, the best beam is the best of every text of that length."""
    model = tiny_model(TINY["gpt2"])
    search = BeamSearch([1, 2], 97, 2, 0.0, "never", ())
    run([search], expand_with(model))
    logprobs = {}
    first = dict(expand_with(model)([[1, 2]], 97)[0])
    for token_id, following in zip(first, expand_with(model)([[1, 2, i] for i in first], 97), strict=True):
        logprobs.update({(token_id, other): first[token_id] + value for other, value in following})
    best = sorted(logprobs, key=logprobs.get, reverse=True)
    assert [tuple(beam.token_ids) for beam in search.finished[:5]] == best[:5]


def test_an_end_token_ends_a_beam_and_scores_by_length():
    tables = {0: [(9, math.log(0.6)), (1, math.log(0.4))], 1: [(9, math.log(0.9)), (1, math.log(0.1))]}
    search = BeamSearch([5], 1, 8, 1.0, False, (9,))
    run([search], lambda texts, number: [tables[min(len(text) - 1, 1)] for text in texts])
    assert [beam.token_ids for beam in search.finished] == [[9]]
    assert search.finished[0].score == pytest.approx(math.log(0.6))


@pytest.mark.parametrize(
    "options",
    [(0, 4, 1.0, False), (2, 0, 1.0, False), (2, 4, math.nan, False), (2, 4, 1.0, "sometimes"), (True, 4, 1.0, False)],
    ids=str,
)
def test_bad_options_are_named(options):
    with pytest.raises(ValueError, match=r"beam_width|max_tokens|length_penalty|early_stopping"):
        check_options(*options)


@pytest.mark.model
@pytest.mark.parametrize(
    "options", [OPTIONS[0], *(pytest.param(each, marks=pytest.mark.slow) for each in OPTIONS[1:])], ids=str
)
def test_beams_are_those_of_transformers(options, smollm2_path, transformers_smollm2):
    llm = LLM(smollm2_path, dtype="float32", weights="dense", max_model_len=256)
    prompts = ["The capital of France is", "Once upon a time", "My favourite colour is blue."]
    beams = llm.beam_search(prompts, **options)
    for prompt, ours in zip(prompts, beams, strict=True):
        ids = torch.tensor([llm.tokenizer.encode(prompt)])
        theirs = transformers_smollm2.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=options["beam_width"],
            num_return_sequences=options["beam_width"], max_new_tokens=options["max_tokens"],
            length_penalty=options.get("length_penalty", 1.0), early_stopping=options.get("early_stopping", False),
            output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
        expected = [
            list(itertools.takewhile(lambda i: i != 2, row)) for row in theirs.sequences[:, ids.shape[1] :].tolist()
        ]
        assert [[i for i in beam.token_ids if i != 2] for beam in ours] == expected
        assert [beam.score for beam in ours] == pytest.approx(theirs.sequences_scores.tolist(), rel=1e-4)
