"""The front door on the real model: SmolLM2-135M-Instruct, compared with transformers on the same file."""

import json
import math

import pytest
import torch

from octavo.gpt import LLM, SamplingParams
from octavo.gpt.cli import main
from octavo.kernels.ops import REFERENCE

pytestmark = pytest.mark.model

PROMPTS = [
    "The capital of France is",
    "Once upon a time",
    "def fibonacci(n):",
    "Water boils at 100",
    "The three laws of motion",
    "Dear Sir or Madam,",
    "1, 2, 3, 5, 8,",
    "La Tour Eiffel est",
    "In the beginning",
    "Roses are red,",
]
NEVER = 10**6  # an end-of-text id that no model samples
GREEDY = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(smollm2_path):
    return LLM(smollm2_path, dtype="float32", weights="dense", max_model_len=1024)


@pytest.fixture(scope="module")
def completions(llm):
    return [request.outputs[0].token_ids for request in llm.generate(PROMPTS, GREEDY)]


def test_greedy_tokens_are_those_of_transformers(llm, transformers_smollm2, completions):
    """One real `generate`; for the others transformers reads our text and must want each of its tokens."""
    ids = torch.tensor([llm.tokenizer.encode(PROMPTS[0])])
    theirs = transformers_smollm2.generate(ids, max_new_tokens=64, do_sample=False, eos_token_id=NEVER)[
        0, ids.shape[1] :
    ].tolist()
    assert completions[0] == theirs
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        prompt_ids = llm.tokenizer.encode(prompt)
        with torch.inference_mode():
            wanted = transformers_smollm2(torch.tensor([prompt_ids + completion])).logits[0].argmax(-1)
        assert wanted[len(prompt_ids) - 1 : -1].tolist() == completion


def test_batched_equals_alone(llm, completions):
    ragged = [*PROMPTS, *(" ".join(PROMPTS[:n]) for n in (2, 4, 6, 8, 10)), "I"]
    short = SamplingParams(temperature=0, max_tokens=12)
    together = [request.outputs[0].token_ids for request in llm.generate(ragged, short)]
    assert together == [llm.generate(prompt, short)[0].outputs[0].token_ids for prompt in ragged]
    assert together[:10] == [completion[:12] for completion in completions]


def test_score_is_transformers_loss(llm, transformers_smollm2):
    text = "The quick brown fox jumps over the lazy dog. " * 5 + "Ceci n'est pas une pipe."
    ids = torch.tensor([llm.tokenizer.encode(text)])
    with torch.inference_mode():
        loss = transformers_smollm2(ids, labels=ids).loss.item()
    score = llm.score(text)
    assert score.nll == pytest.approx(loss, abs=1e-4)
    assert score.perplexity == pytest.approx(math.exp(loss), rel=1e-3)
    assert score.num_tokens == ids.shape[1] - 1


def test_score_of_a_long_text_reads_overlapping_windows(smollm2_path, transformers_smollm2, llm):
    narrow = LLM(smollm2_path, dtype="float32", weights="dense", max_model_len=32)
    ids = llm.tokenizer.encode(" ".join(PROMPTS))
    total, scored = 0.0, 1
    for start in range(0, len(ids), 16):
        end = min(start + 32, len(ids))
        with torch.inference_mode():
            logprobs = torch.log_softmax(transformers_smollm2(torch.tensor([ids[start:end]])).logits[0], -1)
        total -= sum(logprobs[i - start - 1, ids[i]].item() for i in range(scored, end))
        scored = end
        if end == len(ids):
            break
    assert narrow.score(ids).nll == pytest.approx(total / (len(ids) - 1), abs=1e-4)


def test_next_tokens_are_the_softmax(llm, transformers_smollm2):
    entries = llm.next_tokens("I love", n=20)
    ids = torch.tensor([llm.tokenizer.encode("I love")])
    with torch.inference_mode():
        expected = transformers_smollm2(ids).logits[0, -1].softmax(-1).topk(20)
    assert [entry.token_id for entry in entries] == expected.indices.tolist()
    assert [entry.probability for entry in entries] == pytest.approx(expected.values.tolist(), rel=1e-3)
    everything = llm.next_tokens("I love", n=1000)
    assert 0.9 < sum(entry.probability for entry in everything) < 1 + 1e-5


def test_the_same_seed_gives_the_same_text(llm):
    prompt = "Once upon a time"
    params = [SamplingParams(seed=seed, temperature=1.2, max_tokens=16) for seed in (1, 2, 3)]
    alone = [llm.generate(prompt, p)[0].outputs[0].text for p in params]
    assert len(set(alone)) == 3
    mixed = llm.generate([PROMPTS[0], *[prompt] * 3, PROMPTS[2]], [params[0], *params, GREEDY])
    assert [request.outputs[0].text for request in mixed[1:4]] == alone
    backwards = llm.generate([prompt] * 3, params[::-1])
    assert [request.outputs[0].text for request in backwards] == alone[::-1]


def test_samples_of_one_prompt_are_draws_from_transformers_logits(llm, transformers_smollm2):
    """Each of the n texts, read by transformers: its logits and the specified draw give every token."""
    params = SamplingParams(n=4, seed=5, temperature=0.9, top_k=50, top_p=0.9, max_tokens=16, ignore_eos=True)
    ids = llm.tokenizer.encode("Once upon a time, in a village by the sea, there lived a")
    before = llm.stats()["tokens_prefilled"]
    outputs = llm.generate(ids, params)[0].outputs
    prefilled = llm.stats()["tokens_prefilled"] - before
    assert len({tuple(output.token_ids) for output in outputs}) == 4
    assert prefilled == len(ids) + 3 * (len(ids) - (len(ids) - 1) // 16 * 16), "full blocks are computed once"
    for index, output in enumerate(outputs):
        with torch.inference_mode():
            logits = transformers_smollm2(torch.tensor([ids + output.token_ids])).logits[0, len(ids) - 1 : -1]
        columns = [
            torch.full((16,), value, dtype=dtype)
            for value, dtype in ((0.9, torch.float32), (50, torch.int32), (0.9, torch.float32), (0.0, torch.float32))
        ]
        seeds, positions = torch.full((16,), 5 + index), torch.arange(len(ids), len(ids) + 16, dtype=torch.int32)
        sampled, _ = REFERENCE.sample(logits.float().contiguous(), *columns, seeds, positions)
        assert sampled.tolist() == output.token_ids


def test_prompt_logprobs_are_those_of_transformers(llm, transformers_smollm2):
    request = llm.generate("The capital of France is Paris.", SamplingParams(max_tokens=1, prompt_logprobs=3))[0]
    ids = request.prompt_token_ids
    with torch.inference_mode():
        rows = torch.log_softmax(transformers_smollm2(torch.tensor([ids])).logits[0], -1)[:-1]
    assert len(request.prompt_logprobs) == len(ids)
    for token_id, entry, row in zip(ids[1:], request.prompt_logprobs[1:], rows, strict=True):
        assert entry[token_id].logprob == pytest.approx(float(row[token_id]), abs=1e-3)
        assert [i for i, value in entry.items() if value.rank == 1] == [int(row.argmax())]
        assert entry[token_id].decoded_token == llm.tokenizer.decode([token_id])


def test_pieces_add_up_to_the_text(llm):
    params = SamplingParams(seed=7, max_tokens=40, temperature=1.5)
    pieces = list(llm.stream("Emoji: 👋🏽 🎉 and 日本語", params))
    assert "".join(pieces) == llm.generate("Emoji: 👋🏽 🎉 and 日本語", params)[0].outputs[0].text
    assert len(pieces) > 10


def test_a_stream_that_is_left_ends_its_request(llm):
    for _ in llm.stream("Once upon a time", GREEDY):
        break
    assert not llm.has_unfinished
    assert llm.engine.scheduler.pool.num_used == 0


def test_stop_strings_cut_the_text(llm):
    output = llm.generate("Count: one, two, three,", SamplingParams(temperature=0, max_tokens=40, stop=["seven"]))[0]
    assert output.outputs[0].finish_reason == "stop"
    assert output.outputs[0].stop_reason == "seven"
    assert output.outputs[0].text.endswith("six, ")


def test_chat_answers(llm):
    question = [{"role": "user", "content": "What is the capital of France?"}]
    output = llm.chat(question, SamplingParams(temperature=0, max_tokens=32))[0].outputs[0]
    assert output.text == "The capital of France is Paris."
    assert output.finish_reason == "stop"


def test_special_tokens_in_a_prompt_are_ordinary_text(llm):
    ids = llm.encode("<|im_end|>")
    assert len(ids) > 1
    assert llm.tokenizer.decode(ids) == "<|im_end|>"


def test_prompts_may_be_text_or_ids(llm):
    ids = llm.tokenizer.encode(PROMPTS[0])
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=3)
    text, token_ids, single = llm.generate([PROMPTS[0], ids], params)[:2] + llm.generate(ids, params)
    assert text.outputs[0].token_ids == token_ids.outputs[0].token_ids == single.outputs[0].token_ids
    assert (text.prompt, token_ids.prompt) == (PROMPTS[0], None)
    assert text.prompt_token_ids == ids
    assert all(len(entries) == 3 for entries in text.outputs[0].logprobs)


def test_step_by_step(llm):
    first, second = llm.add("Hello", SamplingParams(max_tokens=3)), llm.add("Hi", SamplingParams(max_tokens=50))
    seen = {output.request_id for output in llm.step()}
    assert seen == {first, second}
    llm.abort(second)
    while llm.has_unfinished:
        llm.step()


def test_json_is_one_document(smollm2_path, capsys):
    arguments = [
        "generate",
        "Hi",
        "--model",
        str(smollm2_path),
        "--n",
        "2",
        "--max-tokens",
        "3",
        "--logprobs",
        "2",
        "--json",
    ]
    assert main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["outputs"]) == 2
    assert all(len(output["token_ids"]) == 3 for output in document["outputs"])
