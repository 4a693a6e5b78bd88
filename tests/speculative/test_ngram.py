"""N-gram guesses: where the newest tokens stood before, found without reading the text again."""

import random

import pytest

from octavo.gpt import LLM, DraftModel, NGram, SamplingParams
from octavo.gpt.cli import commands
from octavo.gpt.models.registry import KNOWN_SHAPES
from octavo.gpt.scheduler.sequence import Sequence
from octavo.gpt.speculative.choice import chosen
from octavo.gpt.speculative.ngram import NGramProposer
from octavo.gpt.speculative.speculation import LONGEST_PAUSE, SHORTEST_PAUSE, Pace

from tiny import TINY


def guess(options: NGram, text: list[int], limit: int = 8) -> list[int]:
    sequence = Sequence(0, text, SamplingParams(), 0, 64)
    return NGramProposer(options).propose([sequence], [limit])[0]


def test_a_text_goes_on_as_it_did_after_the_longest_match():
    assert guess(NGram(min_match=2), [1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3], 2) == [4, 9]
    assert guess(NGram(min_match=2, max_match=2), [1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3], 2) == [5, 1]


def test_a_period_is_continued():
    assert guess(NGram(), [5, 6, 7, 5, 6, 7, 5, 6], 7) == [7, 5, 6, 7, 5, 6, 7]
    assert guess(NGram(min_match=1), [4, 4], 3) == [4, 4, 4]


@pytest.mark.parametrize("text", [[1], [1, 2], [1, 2, 3, 4], [1, 2, 9, 2]])
def test_nothing_is_guessed_where_nothing_matches(text):
    assert guess(NGram(min_match=2), text) == []


def test_an_index_that_grew_finds_what_a_new_one_does():
    rng = random.Random(0)
    text = [rng.randrange(3) for _ in range(300)]
    sequence = Sequence(0, text[:20], SamplingParams(max_tokens=None), 0, 512)
    growing = NGramProposer(NGram())
    for token_id in text[20:]:
        sequence.append(token_id)
        assert growing.propose([sequence], [5]) == NGramProposer(NGram()).propose([sequence], [5])
        assert len(growing._indices[0].before) == len(sequence.prompt) + len(sequence.output)


def test_what_fails_pauses_for_longer_each_time_and_success_begins_anew():
    pace, paused = Pace(8), []
    for _ in range(8):
        pace.note(0, 0)
        paused.append(pace.resumes_at)
    assert paused[:3] == [SHORTEST_PAUSE, 2 * SHORTEST_PAUSE, 4 * SHORTEST_PAUSE]
    assert max(paused) == LONGEST_PAUSE
    assert pace.num_tokens == 2
    pace.note(2, 0)
    assert pace.pause == SHORTEST_PAUSE
    pace.note(2, 0), pace.note(3, 0), pace.note(4, 0)
    assert 4 < pace.num_tokens <= 8


def test_one_token_at_a_time_may_pay():
    pace = Pace(1)
    pace.note(0, 5), pace.note(1, 5)
    assert (pace.resumes_at, pace.num_tokens) == (0, 1)
    pace.note(0, 5), pace.note(0, 5)
    assert pace.resumes_at > 5


def test_guesses_are_chosen_by_object_by_word_and_by_the_dict_of_vllm():
    assert chosen(None) is None
    assert chosen(NGram(3)) == NGram(3)
    assert (chosen("ngram"), chosen("ngram:7")) == (NGram(), NGram(7))
    config = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    assert chosen(None, config) == NGram(5, 1, 3)
    assert chosen(None, {"method": "ngram", "prompt_lookup_max": 1}) == NGram(4, 1, 1)
    assert (chosen("a/b"), chosen("a/b:5")) == (DraftModel("a/b"), DraftModel("a/b", 5))
    assert chosen(None, {"model": "a", "num_speculative_tokens": 2}) == DraftModel("a", 2)


@pytest.mark.parametrize(
    ("speculative", "config", "message"),
    [
        ("ngram:0", None, "num_tokens must be an integer in"),
        ("ngram:x", None, "either with :NUMBER"),
        (None, {"num_speculative_tokens": 3}, "names no model"),
        (3, None, "speculative must be"),
        (None, {"method": "eagle"}, "'eagle'"),
        (None, {"method": "ngram", "disable_by_batch_size": 4}, "'disable_by_batch_size'"),
        (NGram(), {"method": "ngram"}, "leave one out"),
    ],
)
def test_a_choice_that_makes_no_sense_is_one_line(speculative, config, message):
    with pytest.raises(ValueError, match=message):
        chosen(speculative, config)


@pytest.mark.parametrize("options", [{"num_tokens": 0}, {"min_match": 0}, {"min_match": 4, "max_match": 3}])
def test_numbers_are_checked_by_name(options):
    with pytest.raises(ValueError, match=next(reversed(options))):
        NGram(**options)


def test_the_front_door_speculates_and_tells(monkeypatch):
    monkeypatch.setitem(KNOWN_SHAPES, "tiny", TINY["llama"])
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    prompt = [1, 2, 3] * 5
    plain, ours = (LLM("dummy:tiny", dtype="float32", speculative=each) for each in (None, "ngram:3"))
    assert ours.generate(prompt, params)[0]["token_ids"] == plain.generate(prompt, params)[0]["token_ids"]
    stats = ours.stats()
    assert 0 < stats["tokens_accepted"] <= stats["tokens_proposed"]
    assert 1 < stats["tokens_per_step"] <= 4
    assert plain.stats()["tokens_per_step"] == 1


def test_the_command_line_passes_it_on(capsys):
    assert commands.main(["generate", "a", "--speculative", "ngram:x"]) == 2
    assert "speculative must be" in capsys.readouterr().err
