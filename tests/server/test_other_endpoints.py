"""Tokens, scores, metrics, tools in a chat: the endpoints beside completions."""

import math

import pytest
from tiny_folder import CHATML, load_tiny, save_tiny

from octavo.gpt import SamplingParams

from served import served

httpx = pytest.importorskip("httpx2")
openai = pytest.importorskip("openai")

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
WITH_TOOLS = "{% if tools %}{{ '<s>tools\n<tool_call>' + tools[0].function.name + '<|im_end|>\n' }}{% endif %}" + CHATML
CHAT = [{"role": "user", "content": "the sun"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = save_tiny(tmp_path_factory.mktemp("served"), WITH_TOOLS)
    with served(folder) as server:
        server.folder = folder
        yield server


@pytest.fixture(scope="module")
def llm(server):
    with load_tiny(server.folder, max_model_len=96) as llm:
        yield llm


def post(server, path, **body):
    answer = httpx.post(server.url + path, json=body)
    return answer.json() if answer.status_code == 200 else answer.json()["error"]["message"]


def test_a_text_as_tokens_and_back(server, llm):
    found = post(server, "/tokenize", prompt="the sun", return_token_strs=True)
    assert (found["tokens"], found["count"]) == (llm.encode("the sun"), len(llm.encode("the sun")))
    assert "".join(found["token_strs"]) == "the sun"
    assert found["max_model_len"] == 96
    assert post(server, "/detokenize", tokens=found["tokens"]) == {"prompt": "the sun"}
    own = post(server, "/detokenize", tokens=found["tokens"], return_token_strs=True)
    assert own == {"prompt": "the sun", "token_strs": found["token_strs"]}
    assert post(server, "/detokenize", tokens=[10**6]).startswith("token id 1000000 is outside")


def test_a_conversation_as_tokens(server, llm):
    assert post(server, "/tokenize", messages=CHAT)["tokens"] == llm.encode_chat(CHAT)
    with_tools = post(server, "/tokenize", messages=CHAT, tools=TOOLS)["tokens"]
    assert with_tools == llm.encode_chat(CHAT, tools=TOOLS) != llm.encode_chat(CHAT)
    assert post(server, "/tokenize") == "tokenize takes either prompt or messages"
    assert "role" in post(server, "/tokenize", messages=[{"content": "x"}])


def test_a_score_is_the_library_s(server, llm):
    found = post(server, "/v1/score", prompt=["the sun is", "rain rain"])
    for entry, text in zip(found["data"], ["the sun is", "rain rain"], strict=True):
        mine = llm.score(text)
        assert entry["nll"] == pytest.approx(mine.nll, rel=1e-5)
        assert entry["perplexity"] == pytest.approx(mine.perplexity, rel=1e-5)
        assert entry["num_tokens"] == mine.num_tokens == len(entry["token_logprobs"])
    assert post(server, "/v1/score", prompt=[5]) == "score needs at least two tokens, one to predict the other from"


def test_metrics_count_what_was_done(server):
    def metrics():
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
        return {name.replace('{model_name="tiny"}', ""): float(value) for name, value in pairs}

    post(server, "/v1/completions", prompt=[5, 6, 7], max_tokens=1)
    before = metrics()
    post(server, "/v1/completions", prompt=[5, 6, 7], max_tokens=7, n=2, ignore_eos=True)
    after = metrics()
    grown = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
    assert grown["vllm:prompt_tokens_total"] == 3
    assert grown["vllm:generation_tokens_total"] == 14
    assert grown['vllm:request_success_total{finished_reason="length",model_name="tiny"}'] == 2
    assert grown["vllm:e2e_request_latency_seconds_count"] == grown["vllm:time_to_first_token_seconds_count"] == 1
    assert after["vllm:num_requests_running"] == after["vllm:kv_cache_usage_perc"] == 0


@pytest.mark.parametrize("streams", [False, True])
def test_a_tool_call_is_read_from_the_answer(server, llm, monkeypatch, streams):
    """A model of random weights calls nothing: its text is put in place of what it wrote."""
    from octavo.gpt.outputs import CompletionOutput

    call = ["See", " <tool", '_call>{"name": "f", ', '"arguments": {}}</tool_call>']
    monkeypatch.setattr(CompletionOutput, "pieces", lambda self: call[: len(self.token_ids)])
    asked = {"model": "tiny", "messages": CHAT, "tools": TOOLS, "max_tokens": 4, "extra_body": {"ignore_eos": True}}
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        if streams:
            deltas = [c.choices[0].delta for c in client.chat.completions.create(stream=True, **asked)]
            text = "".join(delta.content or "" for delta in deltas)
            calls = [call for delta in deltas for call in delta.tool_calls or []]
        else:
            message = client.chat.completions.create(**asked).choices[0].message
            text, calls = message.content, message.tool_calls
    assert text == "See "
    assert [(call.function.name, call.function.arguments) for call in calls] == [("f", "{}")]


def test_tools_without_a_use_are_refused(server, tmp_path, llm):
    with served(tmp_path / "plain") as plain:
        assert "takes no tools" in post(plain, "/v1/chat/completions", messages=CHAT, tools=TOOLS)
        none = post(plain, "/v1/chat/completions", messages=CHAT, tools=TOOLS, tool_choice="none", max_tokens=2)
        assert none["choices"][0]["message"]["role"] == "assistant"
    assert "tool_choice" in post(server, "/v1/chat/completions", messages=CHAT, tools=TOOLS, tool_choice="required")


def test_calls_of_earlier_turns_reach_the_template_as_values(server, llm):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    turns = [*CHAT, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "developer", "content": "z"}]
    from octavo.gpt.server.api.chat import _message

    assert _message(turns[1])["tool_calls"][0]["function"]["arguments"] == {"x": 1}
    assert _message(turns[2])["role"] == "system"
    assert turns[1]["tool_calls"][0]["function"]["arguments"] == '{"x": 1}', "the client's own is left alone"


def test_vllms_words_reach_the_sampler(server, llm):
    words = {"top_k": 3, "min_p": 0.01, "repetition_penalty": 1.3, "min_tokens": 5, "stop_token_ids": [9], "seed": 4}
    words |= {"temperature": 0.8, "presence_penalty": 0.5, "allowed_token_ids": list(range(5, 60)), "max_tokens": 12}
    mine = llm.generate(["the sun"], SamplingParams(logit_bias={7: 2.0}, **words))[0].outputs[0]
    asked = {"logit_bias": {"7": 2.0}, "return_token_ids": True, **words}
    found = post(server, "/v1/completions", prompt="the sun", **asked)["choices"][0]
    assert (found["token_ids"], found["text"], found["finish_reason"]) == (
        mine.token_ids,
        mine.text,
        mine.finish_reason,
    )


def test_processed_log_probabilities_are_those_that_were_drawn_from(server):
    body = {"prompt": "the sun", "max_tokens": 1, "logprobs": 5, "temperature": 0.5, "top_k": 2, "seed": 1}
    answer = post(server, "/v1/completions", logprobs_mode="processed_logprobs", **body)
    (top,) = answer["choices"][0]["logprobs"]["top_logprobs"]
    kept = [math.exp(logprob) for logprob in top.values() if logprob > -9999]
    assert (len(kept), sum(kept)) == (2, pytest.approx(1, abs=1e-6))
    assert "logprobs_mode must be one of" in post(server, "/v1/completions", logprobs_mode="logits", **body)
