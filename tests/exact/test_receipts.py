"""Receipts: what a request's output follows from, and a replay that finds it again, or what has changed."""

import copy
import gc
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_folder import load_tiny, save_tiny

from octavo.gpt import LLM, RequestOutput, SamplingParams
from octavo.gpt.cli.commands import main
from octavo.gpt.receipts.weights_hash import hash_weights

PROMPTS = [[*range(5, 5 + length)] for length in (1, 9, 17, 30)]
OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0, "logprobs": 2},
    {"seed": 3, "top_p": 0.8, "logprobs": 0, "n": 2},
    {"logit_bias": {7: -float("inf"), 9: 1.5}, "presence_penalty": 1.0},  # the engine chooses the seed
    {"seed": -5, "stop_token_ids": [3, 4], "logprobs": 1, "prompt_logprobs": 0, "logprobs_mode": "processed_logprobs"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with load_tiny(folder, seed=7) as llm:
        yield llm


def ask(llm: LLM, number: int) -> RequestOutput:
    params = SamplingParams(max_tokens=8, **OPTIONS[number])
    return llm.generate([PROMPTS[number]], params, use_tqdm=False)[0]


def lines(llm: LLM) -> list[dict[str, Any]]:
    """Receipts as a file gives them back."""
    return [json.loads(json.dumps(ask(llm, number).receipt(), allow_nan=False)) for number in range(len(OPTIONS))]


def save(path: Path, receipts: list[Any]) -> str:
    path.write_text("".join(json.dumps(each) + "\n" for each in receipts))
    return str(path)


def test_what_was_generated_comes_out_again(llm: LLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    receipts = lines(llm) * 25
    tokens = sum(len(output["token_ids"]) for each in receipts for output in each["outputs"])
    assert main(["replay", save(tmp_path / "r", receipts)]) == 0
    assert capsys.readouterr().out == f"100 receipts, {tokens} tokens: 100 equal, 0 different\n"


def change_token(data: dict[str, Any]) -> None:
    data["outputs"][0]["token_ids"][5] += 1


def change_logprob(data: dict[str, Any]) -> None:
    data["outputs"][0]["logprob_hashes"][4] = "00000000"


def change_length(data: dict[str, Any]) -> None:
    data["outputs"][0]["token_ids"].pop()


def change_prompt(data: dict[str, Any]) -> None:
    data["prompt_token_ids"][0] += 1


def change_seed(data: dict[str, Any]) -> None:
    data["params"] |= {"temperature": 5.0, "seed": 99}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (change_token, "token 5 was"),
        (change_logprob, "log-probabilities of token 4 was '00000000', and is"),
        (change_length, "token 7 was missing, and is"),
        (change_prompt, "token"),
        (change_seed, "token"),
    ],
)
def test_the_first_difference_is_told(
    change: Callable[[dict[str, Any]], None], said: str, llm: LLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    receipts = lines(llm)[:1] * 2
    receipts[1] = copy.deepcopy(receipts[0])
    change(receipts[1])
    assert main(["replay", save(tmp_path / "r", receipts)]) == 1
    out = capsys.readouterr().out
    assert f"line 2: {said}" in out
    assert out.endswith("1 equal, 1 different\n")


def test_one_weight_changed_in_its_last_bit_is_found(
    llm: LLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "r", lines(llm))
    changed = save_tiny(tmp_path)
    file = next(changed.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-4 * 1000] ^= 1  # the lowest bit of a float32
    file.write_bytes(data)
    assert main(["replay", path, "--model", str(changed)]) == 1
    out = capsys.readouterr().out
    assert out.count("the weights are others") == 4
    assert "0 equal, 4 different" in out


@pytest.mark.parametrize("weights", ["dense", "q8_0", "q4_0"])
def test_every_tensor_counts_in_the_hash_of_the_weights(weights: str, folder: Path) -> None:
    with load_tiny(folder, weights=weights) as llm:
        before = hash_weights(llm.model)
        assert hash_weights(llm.model) == before
        tensors = [
            part for weight in llm.model.weights() for part in (weight if isinstance(weight, tuple) else [weight])
        ]
        stored = [each for each in tensors if isinstance(each, torch.Tensor) and each.dtype != torch.float32]
        assert stored
        for tensor in stored[:: max(1, len(stored) // 4)]:
            with torch.inference_mode():
                tensor.view(-1).view(torch.uint8)[-1:] ^= 1
                assert hash_weights(llm.model) != before
                tensor.view(-1).view(torch.uint8)[-1:] ^= 1
        assert hash_weights(llm.model) == before


def test_versions_and_machines_are_told_of_where_something_differs(
    llm: LLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    receipts = lines(llm)[:2]
    for each in receipts:
        each["versions"]["torch"], each["machine"] = "1.0", "vax"
    change_token(receipts[0])
    assert main(["replay", save(tmp_path / "r", receipts)]) == 1
    out = capsys.readouterr().out
    assert "torch '1.0' then" in out
    assert "machine 'vax' then" in out
    assert "1 equal" in out


BAD: list[tuple[str, str]] = [
    ("", "no receipt in it"),
    ("{", "line 1: not valid JSON"),
    ("[1]", "line 1: not a receipt"),
    ("\n{}", "line 2: receipt is None, this version reads 1"),
    ('{"receipt": 1}', "line 1: model must be a dict, not None"),
]


@pytest.mark.parametrize(("text", "said"), BAD)
def test_a_file_without_receipts_is_one_line(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad"
    path.write_text(text)
    assert main(["replay", str(path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert (str(path), error.count("\n")) == (str(path), 1)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("params", {"temperatur": 1}, "params has no field 'temperatur'"),
        ("params", {"temperature": -1}, "temperature must be a number"),
        ("params", {"logit_bias": {"x": 1}}, "invalid literal"),
        ("prompt_token_ids", [10**6], "prompt token id 1000000 is outside the vocabulary"),
        ("outputs", [3], "outputs must be a list of objects"),
        ("outputs", [{"token_ids": 3}], "token_ids must be a list"),
        ("versions", 3, "versions must be a dict"),
    ],
)
def test_a_receipt_that_is_wrong_is_one_line(
    name: str, value: Any, said: str, llm: LLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = lines(llm)[0] | {name: value}
    assert main(["replay", save(tmp_path / "r", [lines(llm)[0], wrong])]) == 2
    error = capsys.readouterr().err
    assert f"r: line 2: {said}" in error
    assert error.count("\n") == 1


def test_a_receipt_is_of_a_request_that_ended_on_the_weights_that_still_are(folder: Path) -> None:
    llm = load_tiny(folder)
    llm.add(PROMPTS[0])
    with pytest.raises(ValueError, match="has not come to its end"):
        llm.step()[0].receipt()
    done = ask(llm, 0)
    assert done.receipt() == pickle.loads(pickle.dumps(done.receipt()))
    name = next(name for name, _ in llm.model.named_parameters())
    with torch.inference_mode():
        llm.model.get_parameter(name).mul_(2)
    with pytest.raises(ValueError, match="the weights have changed since"):
        done.receipt()
    assert ask(llm, 0).receipt()["weights_hash"]
    del llm
    gc.collect()
    with pytest.raises(ValueError, match="the LLM that made this output is gone"):
        done.receipt()


def test_the_command_writes_receipts_that_it_replays(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, model = str(tmp_path / "r"), ["--model", str(folder), "--backend", "cpu", "--max-tokens", "5"]
    for _ in range(2):
        assert main(["generate", "Hello", "--receipt", path, *model, "--max-model-len", "64"]) == 0
    capsys.readouterr()
    assert main(["replay", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"line": i, "num_tokens": 5, "difference": None} for i in (1, 2)]
