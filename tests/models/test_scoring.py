"""What cannot be scored or served is one line at every door; what is scored is a number."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_folder import GREEDY, load_tiny, save_tiny

from octavo.gpt import LLM
from octavo.gpt.cli.output import json_line
from octavo.gpt.loading.loader import load_model
from octavo.gpt.scoring import score
from octavo.kernels.ops import REFERENCE

from checkpoints import LLAMA, llama_tensors, save_folder

CPU = torch.device("cpu")
DOORS: dict[str, Callable[[LLM, Any], object]] = {
    "score": lambda llm, prompt: llm.score(prompt),
    "next_tokens": lambda llm, prompt: llm.next_tokens(prompt),
    "generate": lambda llm, prompt: llm.generate(prompt, GREEDY),
    "stream": lambda llm, prompt: list(llm.stream(prompt, GREEDY)),
}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """A model whose tokenizer has a token more than its embedding, as some fine-tunes have."""
    folder = save_tiny(tmp_path_factory.mktemp("tiny"))
    data = json.loads((folder / "tokenizer.json").read_text())
    more = dict(data["added_tokens"][-1], id=len(data["model"]["vocab"]), content="<pad>", special=False)
    data["added_tokens"].append(more)
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return load_tiny(folder, backend="reference")


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
@pytest.mark.parametrize("prompt", ["a<pad>b", [5, 9000, 6], [5, -1], [5, 10**30]], ids=str)
def test_ids_that_the_model_lacks_are_refused_at_every_door(
    llm: LLM, door: Callable[[LLM, Any], object], prompt: Any
) -> None:
    with pytest.raises(ValueError, match=r"prompt token id -?\d+ is outside the vocabulary of \d+"):
        door(llm, prompt)


def test_ids_that_the_model_lacks_are_refused_in_a_chat(llm: LLM) -> None:
    with pytest.raises(ValueError, match=r"prompt token id \d+ is outside the vocabulary"):
        llm.chat([{"role": "user", "content": "a<pad>b"}], GREEDY)


def scored_with(folder: Path, head: torch.Tensor) -> Any:
    model = load_model(save_folder(folder, LLAMA, llama_tensors() | {"lm_head.weight": head}), REFERENCE).model.float()
    return score(model, [1, 2, 3, 4], 4, CPU)


def test_a_model_of_nan_has_no_score(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"logits are not numbers \(NaN\)"):
        scored_with(tmp_path, torch.full((29, 12), math.nan))


def test_a_perplexity_that_no_float_holds_is_infinite(tmp_path: Path) -> None:
    found = scored_with(tmp_path, 1e6 * torch.randn(29, 12, generator=torch.Generator().manual_seed(0)))
    assert 709 < found.nll < math.inf
    assert found.perplexity == math.inf


def test_json_has_null_for_what_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    json_line({"perplexity": math.inf, "logprobs": [(-math.inf, math.nan, 0.5)], "text": "a"})
    assert capsys.readouterr().out == '{"perplexity": null, "logprobs": [[null, null, 0.5]], "text": "a"}\n'
