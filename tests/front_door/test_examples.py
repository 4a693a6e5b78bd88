"""The first things that a person tries: the examples of the help and of the README answer sensibly in every format."""

import shlex
from pathlib import Path

import pytest

from octavo.gpt import LLM, SamplingParams
from octavo.gpt.cli.commands import EXAMPLES, main

FORMS = [("float32", "auto"), ("float32", "dense"), ("bfloat16", "auto"), ("bfloat16", "dense"), ("float32", "q8_0")]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=FORMS, ids=["-".join(form) for form in FORMS])
def form(request):
    return request.param


def test_the_help_s_question_is_answered(form, smollm2_path, capsys):
    program, *arguments = shlex.split(EXAMPLES["chat"])
    assert program == "octavo"
    assert main([*arguments, "--model", str(smollm2_path), "--dtype", form[0], "--weights", form[1]]) == 0
    assert capsys.readouterr().out == "The capital of Japan is Tokyo.\n"


def test_the_readme_s_prompts_are_completed(form, smollm2_path):
    prompt = "The capital of France is"
    shown = f'["{prompt}", "Once upon a time"], SamplingParams(temperature=0, max_tokens=16)'
    assert shown in (ROOT / "README.md").read_text()
    with LLM(smollm2_path, dtype=form[0], weights=form[1]) as llm:
        paris, story = llm.generate([prompt, "Once upon a time"], SamplingParams(temperature=0, max_tokens=16))
    assert "Paris" in paris.outputs[0].text
    assert len(set(story.outputs[0].token_ids)) > 8, "words, not a loop"


def test_the_demo_is_the_help_s_example_with_the_defaults():
    assert f"{EXAMPLES['chat']} --stats\n" in (ROOT / "Makefile").read_text().replace("$(BIN)/", "")
