"""What `octavo.gpt` promises: these names and no others, one signature for both front doors, a version."""

import inspect
import tomllib
from pathlib import Path

import octavo.gpt
from octavo.gpt import LLM, AsyncLLM

NAMES = [
    "GPT2", "LLM", "AsyncLLM", "Beam", "CompletionOutput", "DraftModel", "EngineClosedError", "Llama", "LoRARequest",
    "Logprob", "NGram", "QueueFullError", "RequestOutput", "SamplingParams", "Score", "StructuredOutputsParams",
    "TokenProbability", "load_model", "load_tokenizer",
]  # fmt: skip


def test_the_names_are_exactly_these():
    assert octavo.gpt.__all__ == NAMES
    assert all(inspect.isclass(value) or callable(value) for value in map(vars(octavo.gpt).get, NAMES))


def test_every_other_name_is_a_module():
    others = {name for name in vars(octavo.gpt) if not name.startswith("_")} - {*NAMES, "version"}
    assert all(inspect.ismodule(vars(octavo.gpt)[name]) for name in others)


def test_both_front_doors_take_the_same_arguments():
    assert inspect.signature(AsyncLLM) == inspect.signature(LLM)
    assert "max_model_len" in inspect.signature(AsyncLLM).parameters
    assert AsyncLLM.__init__.__qualname__ == "AsyncLLM.__init__"


def test_the_version_is_the_distribution_s():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert octavo.gpt.__version__ == project["version"]
