"""The official `openai` client asks every endpoint: what comes back is what `LLM` gives."""

import math

import pytest
from tiny_folder import load_tiny

from octavo.gpt import SamplingParams

from served import served

openai = pytest.importorskip("openai")

MESSAGES = [{"role": "user", "content": "the sun"}]
GREEDY = {"model": "tiny", "temperature": 0, "max_tokens": 8}
IGNORE = {"ignore_eos": True, "return_token_ids": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("served") / "model"


@pytest.fixture(scope="module")
def server(folder):
    with served(folder) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def llm(folder, server):
    with load_tiny(folder, max_model_len=96, num_blocks=256) as llm:
        yield llm


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").max_model_len == 96


def test_a_completion_is_what_the_library_gives(client, llm):
    mine = llm.generate(["the sun"], SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=2))[0]
    given = client.completions.create(prompt="the sun", logprobs=2, extra_body=IGNORE, **GREEDY)
    (choice,), output = given.choices, mine.outputs[0]
    assert (choice.text, choice.token_ids, choice.finish_reason) == (output.text, output.token_ids, "length")
    assert choice.prompt_token_ids == mine.prompt_token_ids
    logprobs = [step[i].logprob for i, step in zip(output.token_ids, output.logprobs, strict=True)]
    assert choice.logprobs.token_logprobs == logprobs, "to the bit"
    assert all(len(top) >= 2 for top in choice.logprobs.top_logprobs)
    assert given.usage.completion_tokens == 8
    assert given.usage.total_tokens == 8 + given.usage.prompt_tokens == 8 + len(mine.prompt_token_ids)


@pytest.mark.parametrize("prompt", ["the sun", ["the sun", "rain"], [5, 6, 7], [[5, 6], [7, 8, 9]]])
def test_a_stream_says_what_the_whole_answer_says(client, prompt):
    asked = {"prompt": prompt, "n": 2, "seed": 3, "logprobs": 1, "echo": True, "extra_body": IGNORE}
    asked |= GREEDY | {"temperature": 1.0}
    whole = client.completions.create(**asked)
    texts, ids, chosen, ends = {}, {}, {}, {}
    for chunk in client.completions.create(stream=True, **asked):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            ids.setdefault(choice.index, []).extend(choice.token_ids)
            chosen.setdefault(choice.index, []).extend(choice.logprobs.token_logprobs)
            ends[choice.index] = choice.finish_reason
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert ids == {choice.index: choice.token_ids for choice in whole.choices}
    assert chosen == {choice.index: choice.logprobs.token_logprobs for choice in whole.choices}
    assert ends == {choice.index: choice.finish_reason for choice in whole.choices}
    assert len(texts) == 2 * (len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1)


def test_echo_scores_the_prompt(client, llm):
    mine = llm.generate(["the sun"], SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0))[0]
    given = client.completions.create(prompt="the sun", echo=True, logprobs=0, **GREEDY | {"max_tokens": 0})
    (choice,) = given.choices
    assert choice.text == "the sun"
    assert (choice.finish_reason, given.usage.completion_tokens) == ("length", 0)
    steps = zip(mine.prompt_token_ids, mine.prompt_logprobs, strict=True)
    assert choice.logprobs.token_logprobs == [step and step[i].logprob for i, step in steps]
    assert choice.logprobs.text_offset[0] == 0
    assert [choice.text[at] for at in choice.logprobs.text_offset] == [token[0] for token in choice.logprobs.tokens]


def test_a_chat_whole_and_streamed(client, llm):
    mine = llm.chat(MESSAGES, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True), use_tqdm=False)[0]
    asked = {"messages": MESSAGES, "logprobs": True, "top_logprobs": 3, "extra_body": IGNORE, **GREEDY}
    whole = client.chat.completions.create(**asked)
    choice = whole.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", mine.outputs[0].text)
    assert choice.token_ids == mine.outputs[0].token_ids
    assert all(len(entry.top_logprobs) == 3 for entry in choice.logprobs.content)
    assert math.isclose(sum(math.exp(e.logprob) for e in choice.logprobs.content[0].top_logprobs), 0.5, abs_tol=0.5)
    streamed = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **asked))
    *chunks, last = streamed
    assert last.choices == []
    assert last.usage.model_dump()["completion_tokens"] == whole.usage.completion_tokens
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content
    assert [
        e for c in chunks if c.choices[0].logprobs for e in c.choices[0].logprobs.content
    ] == choice.logprobs.content
    assert (chunks[0].choices[0].delta.role, chunks[-1].choices[0].finish_reason) == ("assistant", "length")


def test_a_second_request_hits_the_prefix_cache(client):
    asked = {"prompt": list(range(20, 60)), **GREEDY}
    client.completions.create(**asked)
    assert client.completions.create(**asked).usage.prompt_tokens_details.cached_tokens >= 36


WRONG = {  # what is asked -> the status, the field at fault, a part of the line
    "temperature": ({"temperature": -1}, 400, "temperature", "not -1"),
    "kind": ({"top_p": "much"}, 400, "top_p", "top_p: input should be a valid number, not 'much'"),
    "unknown": ({"extra_body": {"temprature": 1}}, 400, "temprature", "temprature is not known here"),
    "model": ({"model": "gpt-9"}, 404, "model", "no model 'gpt-9', only tiny"),
    "n": ({"n": 17}, 400, "n", "n: 17 is more than this server's limit of 16"),
    "stop": ({"stop": ["x"] * 17}, 400, "stop", "17 is more than this server's limit of 16"),
    "logprobs": ({"logprobs": 21}, 400, "logprobs", "21 is more than this server's limit of 20"),
    "prompt": ({"prompt": ["x"] * 65}, 400, "prompt", "65 prompts are more than this server's limit of 64"),
    "length": ({"prompt": "x " * 4000}, 400, None, "max_model_len is 96"),
    "id": ({"prompt": [999999]}, 400, None, "outside the vocabulary"),
    "empty": ({"prompt": []}, 400, "prompt", "empty"),
    "bias": ({"logit_bias": {"x": 1}}, 400, "logit_bias", "a key must be a token id, not 'x'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_error_is_one_line_in_openais_form(client, case):
    change, status, param, line = WRONG[case]
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(**{"prompt": "x", **GREEDY, **change})
    error = caught.value
    assert (error.status_code, error.body["param"]) == (status, param)
    assert line in error.body["message"]
    assert "\n" not in error.body["message"]
    assert set(error.body) == {"message", "type", "param", "code"}
